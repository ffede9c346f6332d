from __future__ import annotations

import pytest

from warmgap import Signal
from warmgap.rules import LinearRule, LossRatioRule, PowerRule

RAW = Signal(averaging=0.0)


@pytest.mark.parametrize("iters", [0, 1, 2, 7, 100])
def test_linear_is_a_line_that_ends_at_one_and_at_most_doubles(iters: int) -> None:
    rule = LinearRule(iters)
    state = rule.init()
    factors = [state.factor]
    for _ in range(iters):
        assert not state.done
        state, factor = rule.step(state, float("nan"))
        factors.append(factor)
    assert state.done
    assert factors == pytest.approx([(t + 1) / (iters + 1) for t in range(iters + 1)])


def test_the_loss_ratio_is_one_over_the_loss_above_its_level() -> None:
    rule = LossRatioRule(level=4.0, signal=RAW)
    state = rule.init()
    assert state.factor == 0.01
    for loss, expected in [(10.0, 0.4), (8.0, 0.5), (6.4, 0.625), (5.0, 0.8)]:
        state, factor = rule.step(state, loss)
        assert factor == pytest.approx(expected)
        assert not state.done
    state, factor = rule.step(state, 3.9)
    assert (state.done, factor) == (True, 1.0)
    gap, target = rule.reading(state)
    assert (gap, target) == pytest.approx((-0.1, 4.0))


def test_the_loss_ratio_without_a_level_takes_half_the_first_loss() -> None:
    rule = LossRatioRule()
    state, factor = rule.step(rule.init(), 10.0)
    assert (state.level, factor) == (5.0, 0.5)
    with pytest.raises(ValueError, match=r"the first loss must be above 0, got -1.0; the loss-ratio rule"):
        rule.step(rule.init(), -1.0)


def test_the_loss_that_the_loss_ratio_starts_on_is_yet_to_come() -> None:
    rule = LossRatioRule()
    state = rule.calibrate(rule.init(), 10.0)
    assert (state.level, state.factor, state.done) == (5.0, 0.5, False)
    assert state.signal == rule.init().signal
    for loss in (10.0, 6.0):
        state, factor = rule.step(state, loss)
    assert factor == rule.step(rule.step(rule.init(), 10.0)[0], 6.0)[1]


def test_the_power_rule_is_a_power_of_the_gap() -> None:
    rule = PowerRule(rho=2.0, floor=0.04, target_loss=1.0, signal=RAW)
    state = rule.init()
    for gap, expected in [(5.0, 0.04), (4.0, 0.0625), (2.5, 0.16), (2.0, 0.25)]:
        state, factor = rule.step(state, 1.0 + gap)
        assert factor == pytest.approx(expected)
        assert not state.done
    state, factor = rule.step(state, 1.99)
    assert (state.done, factor) == (True, 1.0)
