from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from warmgap import LossFilter, ResponseCurve, Schedule
from warmgap.matching import best_share
from warmgap.rules import GapRule

RAW = LossFilter(averaging=0.0)  # no averaging: the clean loss is the last one, but for spikes
SHARE, _ = best_share(0.01, 1e-3 * 65280 * 7.8**2)
CURVE = ResponseCurve(7.8, SHARE * 7.8, 0.01)
"""That of the paper's Muon runs: target loss 3.2, kappa 65280, first loss 11, floor 1/100."""


@pytest.mark.parametrize("total", [1000, 64_000])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_in_the_papers_setting_it_is_the_papers_curve_at_every_step_and_hands_over_at_its_gap(
    total: int, noise: float
) -> None:
    schedule = Schedule(total, GapRule(kappa=65280, target_loss=3.2, loss_filter=RAW))
    rng = np.random.default_rng(0)
    state = schedule.first(schedule.init(), 11.0)
    lowest = 11.0
    for step in range(1200):
        loss = 3.2 + 7.8 * math.exp(-step / 300) + noise * float(rng.normal()) * (step > 0)
        before, state = state, schedule.step(state, loss)
        lowest = state.rule.descent.best_loss
        if state.phase != "warmup":
            break
        assert state.factor == pytest.approx(CURVE(lowest - 3.2), rel=1e-12)
        assert lowest - 3.2 > SHARE * 7.8
    assert lowest == pytest.approx(5.74, abs=0.03)
    assert (before.factor, state.rule.factor, state.factor) == pytest.approx((1.0, 1.0, 1.0), rel=0.01)
    reasons = [event.reason for event in state.events]
    assert reasons == ["first loss seen", "descent over", "decay began"]
    assert all(state.deadlock.lifts == 0 for state in (before, state))


def test_averaged_it_is_the_curve_of_the_lowest_average() -> None:
    rule = GapRule(kappa=65280, target_loss=3.2)
    state = rule.init(1000)
    assert state.factor == 0.01
    for t in range(40):
        state = rule.step(state, 3.2 + 7.8 * math.exp(-t / 60))
        assert state.factor == pytest.approx(CURVE(state.descent.best_loss - 3.2), rel=1e-9)
    assert rule.reading(state) == pytest.approx((state.descent.best_loss - 3.2, 3.2))


def test_noise_neither_lowers_the_rate_nor_ends_the_warm_up() -> None:
    rng = np.random.default_rng(0)
    rule = GapRule(kappa=65280, target_loss=3.2)
    state = rule.init(1000)
    factors = []
    for t in range(300):
        lucky = -6.0 if t == 150 else 0.0  # one batch far below the peak gap
        state = rule.step(state, 3.2 + 7.8 * math.exp(-t / 1000) + 0.1 * float(rng.normal()) + lucky)
        factors.append(state.factor)
    assert not state.done
    assert factors == sorted(factors)
    assert max(b / a for a, b in itertools.pairwise(factors)) < 1.1


def test_it_ends_at_the_peak_gap() -> None:
    rule = GapRule(kappa=65280, target_loss=3.2, loss_filter=RAW)
    state = rule.init(1000)
    peak = SHARE * 7.8
    for gap in (7.8, 7.8, 5.0, 4.0, 3.0, peak + 1e-6):
        state = rule.step(state, 3.2 + gap)
        assert not state.done
    for _ in range(3):
        state = rule.step(state, 3.2 + peak - 1e-6)
    assert (state.done, state.factor) == (True, 1.0)
    assert rule.step(state, 11.0).factor == 1.0


def test_the_first_loss_alone_changes_nothing() -> None:
    rule = GapRule(kappa=65280, target_loss=3.2)
    state = rule.first(rule.init(1000), 11.0)
    assert state.factor == pytest.approx(0.01)
    assert state.losses == rule.init(1000).losses
    assert rule.first(rule.init(1000), None) == rule.init(1000)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_an_estimated_target_ends_it_at_any_scale(scale: float) -> None:
    schedule = Schedule(1000, GapRule(kappa=65280 / scale**2))
    state = schedule.init()
    while state.handover is None:
        state = schedule.step(state, scale * (2.0 + 8.0 * (2.0 + state.step) ** -0.5))
    assert 20 < state.handover < 400  # the gap ended it, not the deadline
    assert state.events[-2].reason == "descent over"
    gap, target = schedule.reading(state)
    assert gap is not None
    assert target is not None
    assert gap > 0.0


def test_it_shows_no_gap_before_the_first_loss() -> None:
    for target, shown in ((3.2, 3.2), ("auto", None)):
        schedule = Schedule(100, GapRule(kappa=1.0, target_loss=target))  # type: ignore[arg-type]
        assert schedule.reading(schedule.init()) == (None, shown)


def test_a_longer_run_has_a_lower_estimate() -> None:
    schedule = Schedule(100, GapRule(kappa=65280))
    state = schedule.init()
    for t in range(20):
        state = schedule.step(state, 8.0 - 0.01 * t)
    (_, near), (_, far) = schedule.reading(state), schedule.reading(schedule.extend(state, 10_000))
    assert near is not None
    assert far is not None
    assert far < near


def test_a_first_loss_at_the_target_has_no_gap() -> None:
    rule = GapRule(kappa=9.0, target_loss=3.0)
    with pytest.raises(ValueError, match="target_loss must lie below the losses"):
        rule.step(rule.init(100), 3.0)
