from __future__ import annotations

import pytest

from warmgap import LossFilter, Schedule, Smoothness
from warmgap.rules import MeasuredRule

RAW = LossFilter(averaging=0.0)


def test_the_factor_is_the_step_size_over_its_peak() -> None:
    bound = Smoothness(K0=4.0, K1=1.0, K2=1.0)  # peak gap 2
    rule = MeasuredRule(K0=4.0, K1=1.0, K2=1.0, target_loss=1.0, loss_filter=RAW)
    state = rule.init(100)
    assert state.factor == 0.01
    for gap in (10.0, 6.0, 3.0, 2.1):
        state = rule.step(state, 1.0 + gap)
        assert state.factor == pytest.approx(bound.step_size(gap) / bound.peak_lr)
        assert state.factor < 1.0
        assert not state.done
    state = rule.step(state, 2.99)
    assert (state.done, state.factor) == (True, 1.0)
    assert rule.reading(state) == pytest.approx((1.99, 1.0))


def test_without_a_quadratic_term_it_is_the_step_size_of_h0_and_h1() -> None:
    h0, h1 = 4.0, 0.5
    rule = MeasuredRule(K0=h0, K1=h1, K2=0.0, target_loss=1.0, loss_filter=RAW)
    assert rule.peak_gap == h0 / (2 * h1) == 4.0
    assert 10 * h0 == 20 * h1 * rule.peak_gap  # both terms are equal there
    state = rule.init(100)
    for gap in (40.0, 20.0, 8.0, 4.1):
        state = rule.step(state, 1.0 + gap)
        at_peak = 1.0 / (10 * h0 + 20 * h1 * rule.peak_gap)
        assert state.factor == pytest.approx(1.0 / (10 * h0 + 20 * h1 * gap) / at_peak)
        assert not state.done
    state = rule.step(state, 1.0 + 3.9)
    assert (state.done, state.factor) == (True, 1.0)


def test_a_first_gap_below_the_peak_needs_no_warm_up() -> None:
    rule = MeasuredRule(K0=4.0, K1=1.0, K2=1.0, target_loss=1.0)
    state = rule.step(rule.init(100), 2.5)
    assert (state.done, state.factor) == (True, 1.0)
    schedule = Schedule(100, rule)
    assert schedule.first(schedule.init(), 2.5).handover == 0


def test_it_starts_on_the_first_loss() -> None:
    schedule = Schedule(100, MeasuredRule(K0=4.0, K1=1.0, K2=1.0, target_loss=1.0))
    state = schedule.first(schedule.init(), 11.0)
    bound = Smoothness(K0=4.0, K1=1.0, K2=1.0)
    assert state.factor == pytest.approx(bound.step_size(10.0) / bound.peak_lr)
    assert (state.base, state.handover) == (1.0, None)
    huge = schedule.first(schedule.init(), 1e6)
    assert huge.factor == 0.01  # the floor, and not below it


def test_a_schedule_takes_it_and_its_settings_are_plain() -> None:
    rule = MeasuredRule(K0=4.0, K1=1.0, K2=1.0, target_loss=1.0)
    schedule = Schedule(100, rule)
    state = schedule.init()
    factors = []
    for step in range(60):
        state = schedule.step(state, 1.0 + 10.0 * 0.9**step)
        factors.append(state.factor)
    assert max(factors) == 1.0
    assert rule.config()["K2"] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_loss": "auto"}, "got 'auto'; give that number"),
        ({"K2": 0.0, "K1": 0.0}, "must be positive for every gap"),
        ({"K2": 0.0, "K1": -1.0}, "must be positive for every gap"),
        ({"K0": 0.0}, "reaches no peak on the way down"),
        ({"K0": -1.0}, "K0 must not be negative"),
        ({"K1": -5.0}, "must be positive for every gap"),
        ({"floor": 0.0}, "floor must lie"),
    ],
)
def test_constants_that_make_no_rule(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeasuredRule(**({"K0": 4.0, "K1": 1.0, "K2": 1.0, "target_loss": 1.0} | changes))  # type: ignore[arg-type]


def test_a_target_above_the_losses() -> None:
    rule = MeasuredRule(K0=4.0, K1=1.0, K2=1.0, target_loss=5.0)
    with pytest.raises(ValueError, match="target_loss must lie below the losses"):
        rule.step(rule.init(100), 4.0)
