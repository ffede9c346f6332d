import math

import pytest

from warmgap import Schedule
from warmgap.lab.published import PublishedRule, published_peak_gap

MUON = 65280.0
LION = 1.24e8
NORMALIZED_SGD = 85.0


@pytest.mark.parametrize(
    ("initial_loss", "share"),
    [(10.80, 0.4031), (10.85, 0.4031), (10.90, 0.577), (10.95, 0.4031), (11.00, 0.7848), (11.05, 0.4031)],
)
def test_the_published_solver_scatters_for_muon(initial_loss: float, share: float) -> None:
    gap = initial_loss - 3.2
    assert published_peak_gap(gap, 0.01, MUON, 1e-3) / gap == pytest.approx(share, abs=1e-4)


def test_the_published_solver_at_the_anchored_settings() -> None:
    assert published_peak_gap(7.8, 0.01, MUON, 1e-3) == pytest.approx(6.12, abs=0.005)
    assert published_peak_gap(7.5, 0.01, LION, 1e-3) == pytest.approx(0.384, abs=0.001)
    assert published_peak_gap(7.8, 0.01, NORMALIZED_SGD, 1e-3) == pytest.approx(1.5223, abs=1e-4)


def test_a_larger_rate_moves_the_published_solution_though_the_objective_has_no_rate_in_it() -> None:
    assert published_peak_gap(7.8, 0.01, MUON, 0.1) / 7.8 == pytest.approx(0.327, abs=1e-3)


def test_first_step_at_the_peak_then_the_floor() -> None:
    rule = PublishedRule(kappa=MUON, target_loss=3.2, peak_lr=1e-3)
    state = rule.init(1000)
    assert state.factor == 1.0
    assert not state.done
    state, factor = rule.step(state, 11.0)
    assert factor == pytest.approx(0.01)
    gap, target = rule.reading(state)
    assert gap == pytest.approx(7.8)
    assert target == 3.2


def test_one_lucky_batch_ends_the_warm_up_for_good() -> None:
    schedule = Schedule(1000, PublishedRule(kappa=NORMALIZED_SGD, target_loss=3.2, peak_lr=1e-3))
    state = schedule.init()
    for loss in (11.0, 10.9, 10.8):
        state, factor = schedule.step(state, loss)
    assert factor < 0.02
    state, factor = schedule.step(state, 4.0)
    assert factor == 1.0
    assert state.phase == "decay"


def test_a_flat_loss_deadlocks() -> None:
    schedule = Schedule(1000, PublishedRule(kappa=MUON, target_loss=3.2, peak_lr=1e-3))
    state = schedule.init()
    for _ in range(999):
        state, factor = schedule.step(state, 11.0)
    assert state.phase == "warmup"
    assert factor == pytest.approx(0.01)


def test_the_factor_rises_with_the_falling_gap_and_nan_changes_nothing() -> None:
    rule = PublishedRule(kappa=NORMALIZED_SGD, target_loss=3.2, peak_lr=1e-3)
    state = rule.init(1000)
    factors = []
    for loss in (11.0, 9.0, 7.0, 5.5):
        state, factor = rule.step(state, loss)
        factors.append(factor)
    assert factors == sorted(factors)
    assert rule.step(state, math.nan) == (state, factors[-1])


def test_a_target_above_the_first_loss_is_refused() -> None:
    rule = PublishedRule(kappa=MUON, target_loss=12.0, peak_lr=1e-3)
    with pytest.raises(ValueError, match="target_loss must lie well below the first loss"):
        rule.step(rule.init(1000), 11.0)
