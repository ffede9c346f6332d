from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from warmgap import LossFilter
from warmgap._state import from_plain, to_plain
from warmgap.signal import FilterState


def states(losses: Iterable[float], loss_filter: LossFilter | None = None) -> list[FilterState]:
    loss_filter = loss_filter or LossFilter()
    state, out = loss_filter.init(), []
    for loss in losses:
        state = loss_filter.step(state, loss)
        out.append(state)
    return out


def clean(losses: Iterable[float]) -> list[float]:
    return [state.clean for state in states(losses)]


def falling(steps: int = 200, noise: float = 0.05) -> list[float]:
    rng = np.random.default_rng(0)
    return [2.0 + 5.0 * math.exp(-t / 50) + noise * float(rng.normal()) for t in range(steps)]


def test_the_average_is_bias_corrected() -> None:
    assert clean([4.0] * 5) == pytest.approx([4.0] * 5, rel=1e-14)
    state = LossFilter().init()
    assert (state.clean, state.filled, state.weight) == (0.0, 0, 0.0)


def test_the_average_of_what_stays_is_exactly_that() -> None:
    assert {state.clean for state in states([5.545177] * 300)} == {5.545177}


def test_without_spikes_it_is_the_plain_average() -> None:
    losses = falling(noise=0.0)
    average, weight, expected = 0.0, 0.0, []
    for loss in losses:
        average, weight = 0.9 * average + 0.1 * loss, 0.9 * weight + 0.1
        expected.append(average / weight)
    assert clean(losses)[3:] == pytest.approx(expected[3:], rel=0.02)


@given(
    at=st.integers(0, 199),
    spike=st.sampled_from([1e4, 1e9, -1e6, 1e30]),
    length=st.integers(1, 4),
)
def test_spikes_never_get_through(at: int, spike: float, length: int) -> None:
    assume(length < at)
    plain = falling()
    spiked = [spike if at <= t < at + length else loss for t, loss in enumerate(plain)]
    for mine, theirs in zip(clean(spiked)[12:], clean(plain)[12:], strict=True):
        assert mine == pytest.approx(theirs, abs=0.6)


def test_a_lasting_change_does_get_through() -> None:
    assert clean([2.0] * 50 + [6.0] * 60)[-1] == pytest.approx(6.0, abs=0.05)


@given(st.lists(st.floats(-1e37, 1e37), min_size=1, max_size=60))
def test_whatever_comes_it_stays_within_the_losses(losses: list[float]) -> None:
    for value in clean(losses):
        assert min(losses) - 1e-6 * abs(min(losses)) <= value <= max(losses) + 1e-6 * abs(max(losses))


def test_the_noise_is_the_standard_deviation_of_a_single_loss() -> None:
    rng = np.random.default_rng(1)
    found = [state.noise for state in states([4.0 + 0.1 * float(rng.normal()) for _ in range(3000)])]
    assert np.mean(found[100:]) == pytest.approx(0.1, rel=0.1)
    assert states([4.0])[0].noise_weight == 0.0


def test_its_state_is_of_fixed_size_plain_and_comes_back() -> None:
    for state in (LossFilter().init(), *states(falling(30))):
        assert len(state.window) == LossFilter().window
        assert from_plain(FilterState, to_plain(state)) == state


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"averaging": 1.0}, "averaging must lie in"),
        ({"window": 2}, "window must be at least 3"),
        ({"threshold": 0.0}, "threshold must be above 0"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossFilter(**settings)  # type: ignore[arg-type]
