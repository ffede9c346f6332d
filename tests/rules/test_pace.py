from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmgap import Schedule, Signal
from warmgap.rules import PaceRule, by_name
from warmgap.rules.pace import INTERVALS, JUDGED, Course, PaceState

TOTAL = 400


def run(losses: list[float], rule: PaceRule | None = None) -> tuple[list[float], list[PaceState], int | None]:
    """The factors before each loss and after the last, the rule's states after each loss, the hand-over."""
    schedule = Schedule(len(losses), rule or PaceRule())
    state = schedule.init()
    factors, states = [state.factor], []
    for loss in losses:
        state, factor = schedule.step(state, loss)
        factors.append(factor)
        states.append(state.rule)
    return factors, states, state.handover


def descend(length: float, rule: PaceRule | None = None, total: int = TOTAL, noise: float = 0.0) -> list[float]:
    """The factors on a loss that falls from 8 to 3.2 with the distance travelled: `length` steps at the peak."""
    schedule = Schedule(total, rule or PaceRule())
    state, distance, rng = schedule.init(), 0.0, np.random.default_rng(0)
    factors = [state.factor]
    for _ in range(total):
        loss = 3.2 + 4.8 * math.exp(-distance / length) + noise * float(rng.normal())
        distance += state.factor
        state, factor = schedule.step(state, loss)
        factors.append(factor)
    return factors


def noisy(losses: list[float], scale: float = 0.05, seed: int = 0) -> list[float]:
    rng = np.random.default_rng(seed)
    return [loss + scale * float(rng.normal()) for loss in losses]


# ------------------------------------------------------------------------------------------------------------- course


@given(st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(-3.0, 9.0)), min_size=3, max_size=INTERVALS))
def test_the_means_over_stretches_of_the_distance_are_exact_while_every_step_has_its_own(
    steps: list[tuple[float, float]],
) -> None:
    course = Course()
    course = course.add(1e9, steps[0][0])  # of the first loss nothing led to it
    for (_, loss), (ahead, _) in zip(steps, [*steps[1:], (1.0, 0.0)], strict=True):
        course = course.add(loss, ahead)
    ends = np.cumsum([factor for factor, _ in steps])
    low, high = 0.375 * ends[-1], 0.5 * ends[-1]
    inside = np.clip(np.minimum(ends, high) - np.maximum(ends - [f for f, _ in steps], low), 0.0, None)
    mean, count = course.mean((0.375, 0.5))
    assert mean == pytest.approx(np.average([loss for _, loss in steps], weights=inside), abs=1e-9)
    assert count == pytest.approx(max(1.0, sum(inside / [f for f, _ in steps])))


@given(st.integers(1, 3000))
def test_a_course_of_any_length_stays_small_and_loses_no_distance(steps: int) -> None:
    course = Course()
    for _ in range(steps + 1):
        course = course.add(4.0, 0.5)
    assert len(course.distances) == len(course.sums) <= INTERVALS
    assert course.steps == steps
    assert course.distance == pytest.approx(0.5 * steps)
    assert math.fsum(course.sums) == pytest.approx(2.0 * steps)
    mean, count = course.mean((0.75, 1.0))
    assert mean == pytest.approx(4.0)
    assert count == pytest.approx(max(1.0, 0.25 * steps))


def test_a_loss_beyond_reason_is_forgotten_with_its_stretch() -> None:
    course = Course().add(3.0, 0.01).add(1e30, 1.0)
    for _ in range(300):
        course = course.add(2.0, 1.0)
    assert course.mean((0.75, 1.0))[0] == 2.0


# --------------------------------------------------------------------------------------------------------------- pace


def test_it_doubles_to_the_start() -> None:
    factors, _, _ = run([8.0] * TOTAL)
    assert factors[:6] == pytest.approx([0.01, 0.02, 0.04, 0.08, 0.16, 0.25])


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("length", [12.0, 20.0, 30.0])
def test_a_steeper_descent_runs_at_a_lower_factor(length: float, noise: float) -> None:
    factors = descend(length, noise=noise)
    middle = factors[int(20 + length) : int(40 + length)]
    # depth says that 4.8 is all there is to fall: then the estimate of the length is right
    assert np.mean(middle) == pytest.approx(0.4 * length / math.sqrt(TOTAL), rel=0.25)


def test_the_length_of_the_descent_follows_the_root_of_the_run() -> None:
    def duration(total: int) -> int:
        factors = descend(20.0, total=total)
        return next(t for t, distance in enumerate(itertools.accumulate(factors)) if distance >= 20.0)

    assert duration(3200) / duration(800) == pytest.approx(2.0, rel=0.15)


def test_a_descent_without_resistance_goes_to_the_peak() -> None:
    factors = descend(300.0, noise=0.01)
    assert factors.index(1.0) < 30
    assert factors[factors.index(1.0) : 81] == [1.0] * (81 - factors.index(1.0))  # held for a fifth of the run


def test_after_the_knee_it_rises_by_the_same_part_at_every_step_to_the_end_of_warm_up() -> None:
    factors = descend(8.0)
    rule = PaceRule()
    _, states, handover = run([3.2 + 4.8 * math.exp(-t / 8) for t in range(TOTAL)])
    knee = next(state.knee_step for state in states if state.knee_step is not None)
    assert 10 < knee < 60
    assert handover == math.ceil(rule.max_warmup * TOTAL)
    rising = factors[100 : math.ceil(0.6 * TOTAL)]
    ratios = [after / before for before, after in itertools.pairwise(rising)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    assert ratios[0] > 1.0
    assert factors[math.ceil(0.6 * TOTAL)] == 1.0


def test_the_start_of_a_steep_fall_is_no_spike() -> None:
    assert max(descend(20.0)[:15]) < 0.6  # else the rate sprints to the peak before the fall is seen


def test_a_plateau_after_a_fall_is_the_knee_and_noise_alone_is_none() -> None:
    fallen, states, _ = run(noisy([7.0] * 3 + [6.0 - 0.01 * t for t in range(20)] + [5.8] * (TOTAL - 23)))
    assert states[80].knee_step is not None
    assert fallen[80] < 1.0
    plateaus = [run(noisy([6.0] * TOTAL, seed=seed))[1] for seed in range(20)]
    assert sum(states[-1].knee_step is not None for states in plateaus) <= 3


def test_with_a_loss_measured_before_it_begins_at_the_start() -> None:
    schedule = Schedule(TOTAL, PaceRule())
    assert schedule.calibrate(schedule.init(), 8.0).factor == 0.25
    assert schedule.calibrate(schedule.init(), -8.0).factor == 0.25
    assert schedule.calibrate(schedule.init(), 8.0).rule.descent.initial_loss == 8.0
    assert (
        Schedule(TOTAL, PaceRule(floor=0.4)).calibrate(Schedule(TOTAL, PaceRule(floor=0.4)).init(), 8.0).factor == 0.4
    )


def test_a_loss_that_is_not_positive_has_no_scale() -> None:
    factors, states, handover = run([-3.0 - 1e-3 * t for t in range(TOTAL)])
    assert factors[5:100] == [0.25] * 95  # then the schedule's own rise is higher
    assert states[100].knee_step is None
    assert handover == math.ceil(0.6 * TOTAL)


def test_the_spectral_norm_has_a_pace_of_its_own() -> None:
    assert by_name("auto", TOTAL) == by_name("auto", TOTAL, norm=lambda: "max") == PaceRule()
    spectral = by_name("auto", TOTAL, norm=lambda: "spectral")
    assert spectral == PaceRule.for_norm("spectral") == PaceRule(start=1.0, low=1.0)
    assert PaceRule.for_norm("spectral", floor=0.2, target_loss=1.0) == PaceRule(0.2, 1.0, 1.0, target_loss=1.0)
    assert PaceRule.for_norm("frobenius", floor=0.2, target_loss=1.0) == PaceRule(0.2, target_loss=1.0)
    assert descend(20.0, PaceRule.for_norm("spectral")).index(1.0) < 15 < descend(20.0).index(1.0)


def test_a_model_that_tells_batches_apart_has_learned_and_is_not_held_back() -> None:
    for seed in range(5):
        losses = noisy([3.2 + 1.8 * math.exp(-t / 8) for t in range(TOTAL)], 0.25, seed)
        factors, states, handover = run(losses)
        assert states[JUDGED - 1].knee_step == JUDGED
        assert factors[JUDGED + 3] == pytest.approx(0.5, rel=0.02)
        assert factors[JUDGED:handover] == sorted(factors[JUDGED:handover])
        assert handover == math.ceil(0.6 * TOTAL)


@pytest.mark.parametrize("spike", range(JUDGED))
def test_a_spike_among_the_first_losses_is_not_taken_for_variety(spike: int) -> None:
    losses = [100.0 if t == spike else 8.0 - 0.02 * t for t in range(TOTAL)]
    assert run(noisy(losses, 0.03))[1][JUDGED].knee_step is None


# -------------------------------------------------------------------------------------------------------------- safety


@pytest.mark.parametrize("loss", [5.545177, 6.9, 10.82, 4.0, -3.3, 0.1])
def test_rounding_is_no_rise(loss: float) -> None:
    _, states, _ = run([loss] * TOTAL)
    assert not any(state.rest for state in states)


def test_losses_rounded_to_few_digits_are_no_rise() -> None:
    for seed in range(10):
        losses = [round(loss * 32) / 32 for loss in noisy([5.545] * 600, 0.01, seed)]
        assert not any(state.rest for state in run(losses)[1])


def test_a_retreat_stays_above_the_floor_and_waits_for_the_average() -> None:
    losses = [8.0 - 0.01 * t for t in range(20)] + [9.0 + 0.5 * t for t in range(TOTAL - 20)]
    factors, states, handover = run(losses, PaceRule(floor=0.1))
    rests = [step for step, state in enumerate(states) if state.rest == 10]
    assert len(rests) > 3
    assert min(after - before for before, after in itertools.pairwise(rests)) >= 10
    assert min(factors[:handover]) >= 0.1


def test_noise_around_a_plateau_is_hardly_ever_taken_for_resistance() -> None:
    runs = [run(noisy([6.0] * TOTAL, seed=seed))[1] for seed in range(50)]
    assert sum(any(state.rest for state in states[:100]) for states in runs) <= 2


def test_a_rise_halves_the_factor_and_it_comes_back_by_the_clock() -> None:
    losses = [7.0 - 0.002 * t for t in range(30)] + [6.94 + 0.08 * t for t in range(1, 20)]
    losses += [8.46 - 0.001 * t for t in range(TOTAL - len(losses))]
    factors, states, handover = run(noisy(losses, 0.02))
    top = factors[30]
    assert min(factors[30:60]) <= 0.5 * top
    assert states[60].knee_step is not None
    assert factors[100:handover] == sorted(factors[100:handover])
    assert handover == math.ceil(0.6 * TOTAL)


def test_a_loss_far_above_the_first_one_sends_it_back_again_and_again_however_noisy() -> None:
    for level, backs in ((6.0, False), (10.0, True)):  # half as high again as 5.5 is 8.25
        losses = [5.5 - 0.1 * t for t in range(12)] + noisy([level] * (TOTAL - 12), 3.0, seed=4)
        factors, states, _ = run(losses, PaceRule.for_norm("spectral"))
        rests = [step for step, state in enumerate(states[:80]) if state.rest == 10]
        assert (len(rests) >= 4) == backs
        assert (min(factors[30:80]) < 0.1) == backs


def test_a_first_loss_that_is_low_by_chance_is_no_ground_to_go_back() -> None:
    backs = 0
    for seed in range(50):
        losses = noisy([1.5 - 0.0004 * t for t in range(TOTAL)], 0.3, seed)
        backs += min(run([0.9, *losses[1:]], PaceRule.for_norm("spectral"))[0][10:60]) < 0.2
    assert backs <= 2


def test_a_loss_that_only_rises_keeps_it_near_the_schedules_own_rise() -> None:
    factors, _, handover = run(noisy([6.0 + 0.05 * t for t in range(TOTAL)], 0.01))
    assert handover == math.ceil(0.6 * TOTAL)
    assert np.mean(factors[40:120]) < 0.15


def test_spikes_and_what_is_no_number_change_next_to_nothing() -> None:
    losses = noisy([3.0 + 4.0 * math.exp(-t / 100) for t in range(TOTAL)])
    spiked = [1e6 if t in (13, 20) else math.nan if t == 16 else loss for t, loss in enumerate(losses)]
    assert run(spiked)[0] == pytest.approx(run(losses)[0], abs=0.1)


def test_without_a_length_it_doubles_to_the_peak() -> None:
    rule = PaceRule(floor=0.1)
    state = rule.init()
    factors = [state.factor]
    while not state.done:
        state, factor = rule.step(state, -1.0)
        factors.append(factor)
    assert factors == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0])


def test_it_ends_where_a_user_says() -> None:
    _, _, handover = run([8.0] * TOTAL, PaceRule(max_warmup=0.3, signal=Signal(averaging=0.5)))
    assert handover == math.ceil(0.3 * TOTAL)


@pytest.mark.parametrize("name", ["start", "low", "known", "hold"])
def test_settings_above_the_peak_or_the_whole_run_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must"):
        PaceRule(**{name: 1.01})  # type: ignore[arg-type]
    if name != "hold":
        PaceRule(**{name: 1.0})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    ["floor", "start", "low", "pace", "depth", "fallen", "flat", "varied", "known", "hold", "max_warmup", "tolerance"],
)
def test_bad_settings_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must"):
        PaceRule(**{name: -0.1})  # type: ignore[arg-type]
