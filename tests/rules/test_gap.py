from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from warmgap import ResponseCurve, Schedule, Signal
from warmgap.matching import best_share
from warmgap.rules import GapRule

RAW = Signal(averaging=0.0)  # no averaging: the clean loss is the last one, but for spikes


def test_it_is_the_response_curve_of_the_lowest_loss() -> None:
    rule = GapRule(kappa=65280, target_loss=3.2, signal=RAW)
    share, _ = best_share(0.01, 1e-3 * 65280 * 7.8**2)
    curve = ResponseCurve(7.8, share * 7.8, 0.01)
    state = rule.init()
    assert state.factor == 0.01
    for t in range(40):
        loss = 3.2 + 7.8 * math.exp(-t / 60)
        state, factor = rule.step(state, loss)
        assert factor == pytest.approx(curve(loss - 3.2), rel=1e-9)
    gap, target = rule.reading(state)
    assert (gap, target) == pytest.approx((loss - 3.2, 3.2))


def test_noise_neither_lowers_the_rate_nor_ends_the_warm_up() -> None:
    rng = np.random.default_rng(0)
    rule = GapRule(kappa=65280, target_loss=3.2)
    state = rule.init()
    factors = []
    for t in range(300):
        lucky = -6.0 if t == 150 else 0.0  # one batch far below the peak gap
        state, factor = rule.step(state, 3.2 + 7.8 * math.exp(-t / 1000) + 0.1 * float(rng.normal()) + lucky)
        factors.append(factor)
    assert not state.done
    assert factors == sorted(factors)
    assert max(b / a for a, b in itertools.pairwise(factors)) < 1.1


def test_it_ends_at_the_peak_gap() -> None:
    rule = GapRule(kappa=65280, target_loss=3.2, signal=RAW)
    state = rule.init()
    peak = best_share(0.01, 1e-3 * 65280 * 7.8**2)[0] * 7.8
    for gap in (7.8, 7.8, 5.0, 4.0, 3.0, peak + 1e-6):
        state, _ = rule.step(state, 3.2 + gap)
        assert not state.done
    for _ in range(3):
        state, factor = rule.step(state, 3.2 + peak - 1e-6)
    assert (state.done, factor) == (True, 1.0)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("shift", [0.0, -20.0])
def test_an_estimated_target_ends_it_at_any_scale_and_sign(scale: float, shift: float) -> None:
    schedule = Schedule(1000, GapRule(kappa=65280 / scale**2))
    state = schedule.init()
    while state.handover is None:
        state, _ = schedule.step(state, scale * (shift + 2.0 + 8.0 * (2.0 + state.step) ** -0.5))
    assert 20 < state.handover < 400  # the gap ended it, not the clock
    gap, target = schedule.reading(state)
    assert gap is not None
    assert target is not None
    assert gap > 0.0
