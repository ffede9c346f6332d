from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from warmgap import Signal
from warmgap.signal import SignalState


def clean(losses: Iterable[float], signal: Signal | None = None) -> list[float | None]:
    signal = signal or Signal()
    state, out = signal.init(), []
    for loss in losses:
        state, value = signal.step(state, loss)
        out.append(value)
    return out


def falling(steps: int = 200, noise: float = 0.05) -> list[float]:
    rng = np.random.default_rng(0)
    return [2.0 + 5.0 * math.exp(-t / 50) + noise * float(rng.normal()) for t in range(steps)]


def test_the_average_is_bias_corrected() -> None:
    assert clean([4.0] * 5) == pytest.approx([4.0] * 5, rel=1e-14)
    state = Signal().init()
    assert state.clean is None


def test_without_spikes_it_is_the_plain_average() -> None:
    losses = falling(noise=0.0)
    average, weight, expected = 0.0, 0.0, []
    for loss in losses:
        average, weight = 0.9 * average + 0.1 * loss, 0.9 * weight + 0.1
        expected.append(average / weight)
    assert clean(losses)[3:] == pytest.approx(expected[3:], rel=0.02)


@given(
    at=st.integers(0, 199),
    spike=st.sampled_from([1e4, 1e9, -1e6, math.nan, math.inf, -math.inf]),
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


def test_no_finite_loss_yet() -> None:
    assert clean([math.nan, math.inf]) == [None, None]
    assert clean([math.nan, 3.0])[-1] == 3.0


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60))
def test_whatever_comes_it_stays_within_what_was_finite(losses: list[float]) -> None:
    finite = [loss for loss in losses if math.isfinite(loss) and abs(loss) < 1e100]
    for value in clean([loss if math.isfinite(loss) and abs(loss) < 1e100 else math.nan for loss in losses]):
        assert value is None or min(finite) - 1e-6 * abs(min(finite)) <= value <= max(finite) + 1e-6 * abs(max(finite))


def test_its_state_is_plain_and_comes_back() -> None:
    signal = Signal()
    state = signal.init()
    for loss in falling(30):
        state, _ = signal.step(state, loss)
    assert SignalState.from_dict(state.to_dict()) == state
    assert len(state.window) == signal.window


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
        Signal(**settings)  # type: ignore[arg-type]
