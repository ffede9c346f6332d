from __future__ import annotations

import pytest

from warmgap import Schedule, Signal, Smoothness
from warmgap.rules import MeasuredRule

RAW = Signal(averaging=0.0)


def test_the_factor_is_the_step_size_over_its_peak() -> None:
    bound = Smoothness(K0=4.0, K1=1.0, K2=1.0)  # peak gap 2
    rule = MeasuredRule(K0=4.0, K1=1.0, K2=1.0, target_loss=1.0, signal=RAW)
    state = rule.init()
    assert state.factor == 0.01
    for gap in (10.0, 6.0, 3.0, 2.1):
        state, factor = rule.step(state, 1.0 + gap)
        assert factor == pytest.approx(bound.step_size(gap) / bound.peak_lr)
        assert factor < 1.0
        assert not state.done
    state, factor = rule.step(state, 2.99)
    assert (state.done, factor) == (True, 1.0)
    assert rule.reading(state) == pytest.approx((1.99, 1.0))


def test_a_first_gap_below_the_peak_needs_no_warm_up() -> None:
    rule = MeasuredRule(K0=4.0, K1=1.0, K2=1.0, target_loss=1.0, signal=RAW)
    state, factor = rule.step(rule.init(), 2.5)
    assert (state.done, factor) == (True, 1.0)


def test_a_schedule_takes_it_and_its_settings_are_plain() -> None:
    rule = MeasuredRule(K0=4.0, K1=1.0, K2=1.0, target_loss=1.0)
    schedule = Schedule(100, rule)
    state = schedule.init()
    factors = []
    for step in range(60):
        state, factor = schedule.step(state, 1.0 + 10.0 * 0.9**step)
        factors.append(factor)
    assert max(factors) == 1.0
    assert rule.config()["K2"] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_loss": "auto"}, "got 'auto'; give that number"),
        ({"K2": 0.0}, "it has none"),
        ({"K0": 0.0}, "it has none"),
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
        rule.step(rule.init(), 4.0)
