"""The divergence guard: what is an alarm, what none, and the way back."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
from tests.golden.courses import noisy

from warmgap.rules import DivergenceGuard
from warmgap.rules.guard import GuardState

TOTAL = 400
STAYS = [6.0] * TOTAL


def watched(losses: list[float], total: int | None = None) -> list[GuardState]:
    guard = DivergenceGuard()
    state, out = guard.init(), []
    for loss in losses:
        state = guard.step(state, loss, math.isfinite(loss), total or len(losses))
        out.append(state)
    return out


def bfloat16(value: float) -> float:
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 256.0) / 256.0, exponent)


def alarms(losses: list[float]) -> list[int]:
    counts = [0] + [state.rises + state.blackouts for state in watched(losses)]
    return [step for step, (before, after) in enumerate(itertools.pairwise(counts)) if after > before]


@pytest.mark.parametrize("loss", [5.545177, 6.9, 10.82, 4.0, -3.3, 0.1, 0.0])
def test_rounding_is_no_rise(loss: float) -> None:
    assert alarms([loss] * TOTAL) == []
    assert alarms([loss * (1.0 + 1e-7 * (t % 3)) for t in range(TOTAL)]) == []
    for seed in range(10):
        assert alarms([bfloat16(value) for value in noisy([loss] * TOTAL, 0.002 * abs(loss), seed)]) == []


@pytest.mark.parametrize("level", [6.0, 0.02, 0.0, -5.0])
def test_noise_around_a_level_is_no_rise(level: float) -> None:
    for seed in range(10):
        assert alarms(noisy([level] * 2000, 0.05, seed)) == []
        assert alarms(noisy([level - 1e-4 * t for t in range(2000)], 0.05, seed)) == []


def test_noise_with_heavy_tails_is_hardly_ever_one() -> None:
    rng = np.random.default_rng(0)
    runs = [[6.0 + 0.05 * float(x) for x in rng.standard_t(3, size=1000)] for _ in range(20)]
    assert sum(bool(alarms(losses)) for losses in runs) <= 1


def in_order(seed: int) -> list[float]:
    """Losses of data in order: neighbours are alike, so that they wander by far more than they differ."""
    rng, wander, losses = random.Random(seed), 0.0, []  # noqa: S311
    for t in range(1000):
        wander = 0.9 * wander + rng.gauss(0.0, 0.022)
        losses.append((2.0 + 3.0 * math.exp(-t / 80)) * (1.0 + wander))
    return losses


def in_blocks(seed: int) -> list[float]:
    """Losses of two kinds of data, ten steps each."""
    return noisy([(2.0 + 3.0 * math.exp(-t / 80)) * (1.0 if t // 10 % 2 else 0.5) for t in range(1000)], 0.04, seed)


def of_two_kinds(seed: int) -> list[float]:
    """Losses of two kinds of data, by chance."""
    rng = random.Random(seed)  # noqa: S311
    return [(2.0 + 3.0 * math.exp(-t / 80)) * rng.choice((0.5, 1.0)) for t in range(1000)]


@pytest.mark.parametrize("course", [in_order, in_blocks, of_two_kinds])
def test_losses_that_rise_and_fall_with_the_data_soon_count_as_usual(course: Callable[[int], list[float]]) -> None:
    for seed in range(8):
        states = watched(course(seed))
        assert states[-1].rises <= 4
        assert sum(state.scale for state in states) > 0.7 * len(states)  # of the rate, on average over the run


@pytest.mark.parametrize(("at", "spike"), [(0, 1e4), (0, 1e30), (3, 1e4), (3, -1e6), (30, 1e30), (30, -1e6)])
def test_a_spike_is_no_rise(at: int, spike: float) -> None:
    assert alarms([spike if at <= t < at + 2 else 7.0 - 0.01 * t for t in range(TOTAL)]) == []


def test_a_first_loss_that_is_low_by_chance_is_no_ground() -> None:
    runs = [noisy([1.5 - 0.0004 * t for t in range(TOTAL)], 0.3, seed) for seed in range(30)]
    assert sum(bool(alarms([0.9, *losses[1:]])) for losses in runs) <= 1


@pytest.mark.parametrize("level", [8.0, 0.0, -8.0])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_rise_halves_the_scale_within_some_steps(level: float, noise: float) -> None:
    losses = noisy([level - 0.01 * min(t, 60) + 0.1 * max(0, t - 60) for t in range(90)], noise, 1)
    states = watched(losses, TOTAL)
    found = alarms(losses)
    assert 60 < found[0] < 75
    assert states[found[0]].scale == 0.5
    assert states[found[0]].rest == 10
    assert found[1] - found[0] >= 10
    assert states[-1].scale < 0.3


def test_half_as_much_again_as_the_first_losses_is_too_high_however_noisy() -> None:
    for level, rises in ((6.0, False), (10.0, True)):  # half as high again as 5 is 7.5
        losses = noisy([5.0] * 12, 0.3, 1) + noisy([level] * 60, 2.0, 2)
        assert bool(alarms(losses)) == rises


def test_around_0_the_first_losses_have_no_such_level() -> None:
    losses = noisy([0.0] * 12 + [0.3] * 60, 0.3, 1)  # one standard deviation
    assert alarms(losses) == []
    assert alarms(noisy([0.0] * 12 + [2.4] * 60, 0.3, 1)) != []  # eight


def test_a_jump_of_the_level_is_one_alarm_and_costs_a_twentieth_of_the_run() -> None:
    losses = noisy([4.0 if t < 500 else 9.0 - 1e-3 * t for t in range(2000)], 0.05, 3)
    states = watched(losses)
    assert len(alarms(losses)) == 1
    scales = [state.scale for state in states]
    assert min(scales) == 0.5
    assert 100 <= sum(scale < 1.0 for scale in scales) <= 112
    lost = sum(1.0 - scale for scale in scales)
    assert lost < 0.02 * 2000


def test_it_comes_back_by_the_same_part_at_every_step_and_later_after_each_alarm() -> None:
    guard = DivergenceGuard()
    state, pauses, level = guard.init(), [], 5.0
    for length in (50, 100, 200):
        scales = []
        for t in range(40):
            state = guard.step(state, level - 1e-3 * t, True, 1000)
        while state.scale == 1.0:
            state = guard.step(state, 9.0, True, 1000)
        while state.scale < 1.0:
            state = guard.step(state, level - 0.1, True, 1000)
            scales.append(state.scale)
        assert scales[:9] == [0.5] * 9
        assert np.diff(np.log2(scales[9:-1])) == pytest.approx(1.0 / length)
        pauses.append(state.pause)
        level -= 0.2
    assert pauses == [50, 100, 200]


def test_the_way_back_takes_20_steps_at_least() -> None:
    losses = [5.0] * 30 + [9.0] * 70
    assert watched(losses)[-1].pause == 20


def test_the_scale_never_falls_below_an_eighth_and_a_flat_loss_is_never_stuck_there() -> None:
    states = watched(noisy([5.0 + 0.2 * max(0, min(t - 30, 40)) for t in range(600)], 0.02, 5))
    scales = [state.scale for state in states]
    assert min(scales) >= 0.125
    assert scales[-1] == 1.0


def kl(t: float) -> float:
    return 0.02 * (1.0 - math.exp(-t / 300))


def generator(t: float) -> float:
    return 0.7 + 3.3 * (1.0 - math.exp(-t / 200))


@pytest.mark.parametrize(("course", "noise"), [(kl, 2e-4), (generator, 0.05)])
def test_a_loss_that_rises_whatever_the_rate_puts_it_off(course, noise: float) -> None:  # type: ignore[no-untyped-def]
    states = watched(noisy([course(t) for t in range(1000)], noise, 0))
    off = next(step for step, state in enumerate(states) if state.off)
    assert off < 150
    assert [state.scale for state in states[off : off + 4]] == pytest.approx([0.25, 0.5, 1.0, 1.0], rel=0.5)
    assert {state.scale for state in states[off + 4 :]} == {1.0}
    assert sum(1.0 - state.scale for state in states) < 100


def test_a_loss_that_falls_between_its_rises_does_not() -> None:
    saw = [
        6.0 - 0.02 * t + 0.15 * (t % 40 if t % 40 < 12 else 0) + (1.8 if 12 <= t % 40 < 14 else 0) for t in range(400)
    ]
    assert not watched(saw)[-1].off


def test_losses_that_are_no_numbers_are_an_alarm_after_three_in_a_row() -> None:
    for length, blackouts in ((2, 0), (3, 1), (12, 1), (13, 2)):
        losses = [math.nan if 50 <= t < 50 + length else 5.0 for t in range(TOTAL)]
        assert watched(losses)[-1].blackouts == blackouts
    states = watched([5.0] * 20 + [math.nan] * 100)
    assert (states[-1].scale, states[-1].blackouts, states[-1].off) == (0.125, 3, False)
    assert watched([5.0] * 20 + [math.nan] * 100 + [5.0] * 200)[-1].scale == 1.0


def test_it_is_blind_for_seven_losses_and_no_longer() -> None:
    explodes = [5.0 * 1.3**t for t in range(40)]
    assert alarms(explodes)[0] == 7


def test_the_largest_noise_is_forgotten_slowly() -> None:
    rng = random.Random(0)  # noqa: S311
    losses = [5.0 + rng.gauss(0.0, 0.5 if t < 100 else 0.05) for t in range(400)]
    states = watched(losses)
    ratios = [after.noise / before.noise for before, after in itertools.pairwise(states[101:])]
    assert min(ratios) >= 0.99 - 1e-12
    assert states[-1].noise < 0.2
