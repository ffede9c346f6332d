"""The way out of a deadlock: only where the loss does not move, and not on a curve that it follows."""

from __future__ import annotations

import math

import pytest
from tests.golden.courses import noisy

from warmgap import LossFilter
from warmgap.rules.deadlock import DeadlockState, watch


def watched(losses: list[float], total: int | None = None) -> list[DeadlockState]:
    loss_filter = LossFilter()
    losses_seen, state, factor, out = loss_filter.init(), DeadlockState(), 0.01, []
    for loss in losses:
        if math.isfinite(loss):
            losses_seen = loss_filter.step(losses_seen, loss)
        state = watch(state, losses_seen, math.isfinite(loss), factor, total or len(losses))
        factor = max(factor, state.lift)
        out.append(state)
    return out


def lifts(losses: list[float], total: int | None = None) -> list[int]:
    counts = [0] + [state.lifts for state in watched(losses, total)]
    return [step + 1 for step in range(len(losses)) if counts[step + 1] > counts[step]]


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_loss_that_stays_doubles_the_rate_after_every_other_stretch(noise: float) -> None:
    states = watched(noisy([9.0] * 1000, noise, 4))
    assert lifts(noisy([9.0] * 1000, noise, 4))[:3] == [20, 40, 60]
    assert states[19].lift == 0.02
    assert states[-1].lift == 1.0
    assert lifts(noisy([9.0] * 200, noise, 1), total=5000)[:2] == [100, 200]  # a hundredth of the run each


@pytest.mark.parametrize("total", [60, 1000, 20_000])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_loss_that_falls_never_does(total: int, noise: float) -> None:
    losses = [3.2 + 7.8 * math.exp(-3.0 * t / total) for t in range(min(total, 4000))]
    assert lifts(noisy(losses, noise, 5), total) == []


def test_the_stretch_grows_while_the_loss_falls_up_to_a_twentieth_of_the_run() -> None:
    lengths = [state.length for state in watched([9.0 - 0.001 * t for t in range(2000)])]
    assert sorted(set(lengths)) == [20, 40, 80, 100]
    assert lengths.index(40) == 39
    assert lengths.index(80) == 79


def test_a_fall_within_the_noise_is_none() -> None:
    slow = [9.0 - 0.0005 * t for t in range(400)]
    assert lifts(slow) == []
    assert lifts(noisy(slow, 0.3, 6)) != []


def test_a_plateau_after_a_fall_is_found_by_the_longer_stretch() -> None:
    found = lifts([max(7.0, 9.0 - 0.01 * t) for t in range(2000)])
    assert found[0] == 460  # falls up to 200; stretches end at 20, 40, 80, 160, 260, 360, 460
    assert found[1] == 660


def test_without_any_loss_nothing_shows_that_it_moves() -> None:
    assert lifts([math.nan] * 100) == [20, 40, 60, 80, 100]


def test_a_stretch_without_losses_says_nothing_of_a_run_that_falls() -> None:
    losses = [math.nan if 20 <= t < 40 else 9.0 - 0.05 * t for t in range(120)]
    assert lifts(losses) == []


def test_the_lift_doubles_the_rate_that_was_run_at_and_ends_at_1() -> None:
    state = DeadlockState(length=10, steps=9, losses=9, mean=5.0, before=10, mean_before=5.0)
    filled = LossFilter().step(LossFilter().init(), 5.0)
    assert watch(state, filled, True, 0.3, 1000).lift == 0.6
    assert watch(state, filled, True, 0.8, 1000).lift == 1.0


@pytest.mark.parametrize(("errors", "stuck"), [(1.98, True), (2.02, False)])
def test_a_fall_is_one_beyond_two_standard_errors(errors: float, stuck: bool) -> None:
    losses = LossFilter().init()._replace(noise=0.3, accepted=5.0, filled=11)
    fall = errors * 0.3 * math.sqrt(1 / 10 + 1 / 5)
    state = DeadlockState(length=10, steps=9, losses=9, mean=5.0, before=5, mean_before=5.0 + fall)
    assert (watch(state, losses, True, 0.1, 1000).lifts == 1) == stuck


@pytest.mark.parametrize(("share", "stuck"), [(0.99e-5, True), (1.01e-5, False)])
def test_without_noise_it_is_one_beyond_a_hundred_thousandth(share: float, stuck: bool) -> None:
    losses = LossFilter().init()._replace(accepted=-5.0, filled=11)
    state = DeadlockState(length=10, steps=9, losses=9, mean=-5.0, before=5, mean_before=-5.0 + 5.0 * share)
    assert (watch(state, losses, True, 0.1, 1000).lifts == 1) == stuck
