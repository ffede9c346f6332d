from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.golden.courses import COURSES, noisy
from tests.rules.reference import Reference

from warmgap import Schedule
from warmgap.rules import SpectralRule, by_name, default_rho

TOTAL = 200


def test_with_evidence_it_runs_at_the_peak_from_the_first_step() -> None:
    schedule = Schedule(TOTAL)
    for state in (schedule.first(schedule.init(), 5.5), schedule.first(schedule.init())):
        assert (state.factor, state.base, state.phase) == (1.0, 1.0, "stable")
        assert (state.handover, state.decay_start) == (0, 120)


def test_a_run_without_a_hold_decays_from_the_first_step() -> None:
    schedule = Schedule(TOTAL, SpectralRule(hold=0.0))
    assert schedule.first(schedule.init(), 5.5).decay_start == 0


@pytest.mark.parametrize(("total", "rho"), [(None, 0.02), (10, 0.02), (300, 0.02), (675, 0.02 / 1.5), (10**6, 0.01)])
def test_the_cap_falls_with_the_root_of_a_long_run(total: int | None, rho: float) -> None:
    assert default_rho(total) == pytest.approx(rho)


def test_without_it_doubles_from_the_floor_whatever_the_losses() -> None:
    schedule = Schedule(TOTAL, SpectralRule(floor=0.02, hold=0.1))
    for losses in ([5.0] * 10, [None] * 10):
        state, factors = schedule.init(), []
        for loss in losses:
            factors.append(state.factor)
            state = schedule.step(state, loss)
        assert factors[:8] == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0])
        assert (state.handover, state.decay_start) == (6, 20)


def test_the_peak_is_held_then_it_decays() -> None:
    schedule = Schedule(TOTAL, SpectralRule(hold=0.25), "linear")
    state, factors, phases = schedule.first(schedule.init(), 5.0), [], []
    for step in range(TOTAL):
        factors.append(state.factor)
        phases.append(state.phase)
        state = schedule.step(state, 5.0 - 0.01 * step)
    assert factors[:51] == [1.0] * 51
    assert factors[50:] == pytest.approx([1.0 - k / 150 for k in range(150)])
    assert [name for name, _ in itertools.groupby(phases)] == ["stable", "decay"]
    assert phases.index("decay") == 50


def test_a_warm_up_that_ends_after_the_hold_decays_at_once() -> None:
    schedule = Schedule(TOTAL, SpectralRule(hold=0.0, floor=0.25))
    state = schedule.init()
    for _ in range(2):
        state = schedule.step(state, 5.0)
    assert (state.handover, state.decay_start, state.phase) == (2, 2, "decay")


def test_the_guard_can_be_left_out() -> None:
    for guard in (True, False):
        schedule = Schedule(TOTAL, SpectralRule(guard=guard))
        state = schedule.first(schedule.init(), 4.0)
        for step in range(40):
            state = schedule.step(state, 4.0 + 0.1 * max(0, step - 20))
        assert (state.factor < 1.0) == guard


def test_it_is_the_default() -> None:
    assert by_name("auto", TOTAL) == by_name("spectral", TOTAL) == SpectralRule() == Schedule(TOTAL).rule
    assert (SpectralRule().roles, SpectralRule().hold) == ("all", "auto")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hold": 1.0}, r"hold must lie in \[0, 1\), got 1.0"),
        ({"hold": -0.1}, "hold must lie"),
        ({"floor": 0.0}, "floor must lie strictly"),
        ({"guard": 1}, "guard must be True or False, got 1"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpectralRule(**settings)


def compare(losses: list[float], known: bool, hold: float, floor: float) -> None:
    schedule = Schedule(len(losses), SpectralRule(hold=hold, floor=floor))
    state, reference = schedule.init(), Reference(len(losses), hold, floor)
    if known:
        state = schedule.first(state)
        reference.first()
    for loss in losses:
        assert state.factor == pytest.approx(reference.factor(), rel=1e-9, abs=1e-12)
        state = schedule.step(state, loss)
        reference.step(loss)
    assert state.guard.off == reference.off


@pytest.mark.filterwarnings("ignore:the loss (goes on|has) ris:UserWarning")
@pytest.mark.parametrize("course", COURSES)
def test_it_is_its_reference_on_every_course(course: str) -> None:
    compare(COURSES[course][:700], True, 0.4, 0.01)


def towards(start: float, by: float, last: float) -> list[float]:
    return [start + by * (1.0 - math.exp(-t / last)) for t in range(1000)]


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param(noisy(towards(0.0, 0.02, 300), 2e-4, 0), id="GRPO, KL from the reference"),
        pytest.param(noisy(towards(0.7, 3.3, 200), 0.2, 0), id="a GAN's generator"),
        pytest.param([0.0] * 5 + noisy(towards(0.0, 1.0, 50), 0.01, 0)[:-5], id="0 at first"),
        pytest.param(noisy([math.log(1 + min(t, 300)) for t in range(1000)], 0.05, 0), id="a queue that grows"),
    ],
)
def test_a_loss_that_measures_no_progress_does_no_harm_and_the_rule_to_use_is_named(losses: list[float]) -> None:
    schedule = Schedule(len(losses))
    state, factors = schedule.first(schedule.init(), losses[0]), []
    with pytest.warns(UserWarning, match="it does not measure the progress .* rule='linear' uses no losses"):  # noqa: PT031
        for loss in losses:
            factors.append(state.factor)
            state = schedule.step(state, loss)
    assert sum(factors[:400]) > 0.75 * 400  # of the peak, until the decay
    assert factors[200:400] == [1.0] * 200


pieces = st.tuples(
    st.sampled_from([math.nan, -0.2, -0.02, 0.0, 0.02, 0.3, 3.0]),  # what a piece rises by at each step
    st.integers(1, 40),
    st.sampled_from([0.0, 0.01, 0.3]),  # its noise
)


@pytest.mark.filterwarnings("ignore:the loss (goes on|has) ris:UserWarning")
@given(
    start=st.sampled_from([-4.0, 0.0, 0.3, 5.5]),
    course=st.lists(pieces, min_size=1, max_size=12),
    seed=st.integers(0, 99),
    known=st.booleans(),
    hold=st.sampled_from([0.0, 0.4, 0.9]),
)
def test_it_is_its_reference_on_any_course(
    start: float, course: list[tuple[float, int, float]], seed: int, known: bool, hold: float
) -> None:
    losses, level, rng = [], start, random.Random(seed)  # noqa: S311
    for slope, length, noise in course:
        for _ in range(length):
            level += 0.0 if math.isnan(slope) else slope
            losses.append(math.nan if math.isnan(slope) else level + noise * rng.gauss(0.0, 1.0))
    compare(losses, known, hold, 0.03)
