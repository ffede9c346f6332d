from __future__ import annotations

import math

import pytest

from warmgap import LossFilter, Schedule
from warmgap.rules import LinearRule, LossRatioRule, PowerRule, by_name

RAW = LossFilter(averaging=0.0)


@pytest.mark.parametrize("iters", [0, 1, 2, 7, 100])
def test_linear_is_a_line_that_ends_at_one_and_at_most_doubles(iters: int) -> None:
    rule = LinearRule(iters)
    state = rule.init(1000)
    factors = [state.factor]
    for _ in range(iters):
        assert not state.done
        state = rule.step(state, 0.0)
        factors.append(state.factor)
    assert state.done
    assert factors == pytest.approx([(t + 1) / (iters + 1) for t in range(iters + 1)])
    assert rule.step(state, 0.0) == state


def test_the_loss_ratio_is_one_over_the_loss_above_its_level() -> None:
    rule = LossRatioRule(level=4.0, loss_filter=RAW)
    state = rule.init(100)
    assert state.factor == 0.01
    for loss, expected in [(10.0, 0.4), (8.0, 0.5), (6.4, 0.625), (5.0, 0.8)]:
        state = rule.step(state, loss)
        assert state.factor == pytest.approx(expected)
        assert not state.done
    state = rule.step(state, 3.9)
    assert (state.done, state.factor) == (True, 1.0)
    assert rule.reading(state) == pytest.approx((-0.1, 4.0))
    assert rule.step(state, 9.0).factor == 1.0
    assert rule.reading(rule.init(100)) == (math.inf, 4.0)
    assert rule.step(rule.init(100), -2.0).factor == 1.0


def test_the_loss_ratio_without_a_level_takes_half_the_first_loss() -> None:
    rule = LossRatioRule()
    state = rule.step(rule.init(100), 10.0)
    assert (state.level, state.factor) == (5.0, 0.5)
    assert rule.reading(rule.init(100)) == (math.inf, math.inf)
    for loss in (-1.0, 0.0):
        with pytest.raises(ValueError, match=rf"the first loss must be above 0, got {loss}; the loss-ratio rule"):
            rule.step(rule.init(100), loss)


def test_the_loss_that_the_loss_ratio_starts_on_is_yet_to_come() -> None:
    rule = LossRatioRule()
    assert rule.first(rule.init(100), None) == rule.init(100)
    state = rule.first(rule.init(100), 10.0)
    assert (state.level, state.factor, state.done) == (5.0, 0.5, False)
    assert state.losses == rule.init(100).losses
    for loss in (10.0, 6.0):
        state = rule.step(state, loss)
    assert state.factor == rule.step(rule.step(rule.init(100), 10.0), 6.0).factor


def test_the_power_rule_is_a_power_of_the_gap() -> None:
    rule = PowerRule(rho=2.0, floor=0.04, target_loss=1.0, loss_filter=RAW)
    state = rule.init(100)
    for gap, expected in [(5.0, 0.04), (4.0, 0.0625), (2.5, 0.16), (2.0, 0.25)]:
        state = rule.step(state, 1.0 + gap)
        assert state.factor == pytest.approx(expected)
        assert not state.done
    state = rule.step(state, 1.99)
    assert (state.done, state.factor) == (True, 1.0)


@pytest.mark.parametrize("rho", [0.5, 2.0, 3.0])
def test_the_power_rule_with_known_constants_is_the_papers_step_size(rho: float) -> None:
    K0, K_rho, c = 2.0, 0.01, 0.5
    rule = PowerRule(rho=rho, K0=K0, K_rho=K_rho, target_loss=1.0, loss_filter=RAW)
    state = rule.init(100)
    for gap in (90.0, 40.0, 12.0, 5.0, 1.0):
        state = rule.step(state, 1.0 + gap)
        step_size = c * min(1.0 / K0, gap**-rho / (3.0**rho * K_rho))
        assert state.factor * rule.peak_lr(c) == pytest.approx(step_size)
    assert rule.peak_lr(c) == 0.25


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PowerRule(K0=1.0), "K0 and K_rho go together, got 1.0 and None: give both or none"),
        (lambda: PowerRule(K_rho=1.0), "K0 and K_rho go together"),
        (lambda: PowerRule(K0=0.0, K_rho=1.0), "K0 must be above 0"),
        (lambda: PowerRule(K0=1.0, K_rho=0.0), "K_rho must be above 0"),
        (lambda: PowerRule().peak_lr(0.5), "this rule has no K0"),
        (lambda: PowerRule(K0=1.0, K_rho=1.0).peak_lr(0.0), "c must be above 0"),
        (lambda: PowerRule(rho=0.0), "rho must be above 0"),
        (lambda: by_name("power(roles='head')", 100), "roles must be 'hidden' or 'all', got 'head'"),
        (lambda: LossRatioRule(level=0.0), "level must be above 0"),
        (lambda: LossRatioRule(max_warmup=1.0), "max_warmup must lie strictly"),
        (lambda: LinearRule(-1), "iters must be at least 0"),
        (lambda: Schedule(10, LinearRule(10)), "does not end within total_iters=10"),
    ],
)
def test_bad_settings_are_named(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()
