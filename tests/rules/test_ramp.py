from __future__ import annotations

import math

import numpy as np
import pytest

from warmgap import Schedule, Signal
from warmgap.rules import RampRule

TOTAL = 400


def run(losses: list[float], rule: RampRule | None = None) -> tuple[list[float], int | None]:
    schedule = Schedule(len(losses), rule or RampRule())
    state = schedule.init()
    factors = [state.factor]
    for loss in losses:
        state, factor = schedule.step(state, loss)
        factors.append(factor)
    return factors, state.handover


def noisy(losses: list[float], scale: float = 0.05, seed: int = 0) -> list[float]:
    """The losses with noise, moved below 0: there the loss ratio means nothing, and the line stands alone."""
    rng = np.random.default_rng(seed)
    return [loss - 100.0 + scale * float(rng.normal()) for loss in losses]


def line(step: int) -> float:
    return 0.5 + 0.5 * step / (0.4 * TOTAL)


def test_it_doubles_to_the_line_and_follows_it() -> None:
    factors, handover = run([2.0 - 1e-4 * t for t in range(TOTAL)])
    assert factors[:6] == pytest.approx([0.01 * 2**t for t in range(6)])
    assert factors[6:160] == pytest.approx([line(t) for t in range(6, 160)])
    assert handover == math.ceil(0.4 * TOTAL)


def test_a_fallen_loss_lifts_it_above_the_line() -> None:
    losses = [8.0 * 0.98**t for t in range(TOTAL)]
    factors, handover = run(losses, RampRule(signal=Signal(averaging=0.0)))
    for t in range(8, 50):
        assert factors[t + 1] == pytest.approx(max(line(t + 1), min(1.0, 0.5 * losses[0] / losses[t])))
    reached = next(t for t, loss in enumerate(losses) if loss <= 0.5 * losses[0])
    assert factors.index(1.0) == reached + 1
    assert handover == reached + 1 + math.ceil(0.05 * TOTAL)


def test_with_a_loss_measured_before_it_starts_where_the_line_does() -> None:
    schedule = Schedule(TOTAL, RampRule())
    assert schedule.calibrate(schedule.init(), 8.0).factor == 0.5
    assert schedule.calibrate(schedule.init(), -8.0).factor == 0.5
    assert schedule.step(schedule.calibrate(schedule.init(), 8.0), 5.0)[1] == pytest.approx(0.8)


@pytest.mark.parametrize("seed", range(10))
def test_a_loss_at_once_far_below_the_first_lets_it_up_at_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    losses = [8.0] + [1.0 + math.exp(-t / 100) + 0.05 * float(rng.normal()) for t in range(TOTAL)]
    factors, handover = run(losses)
    assert factors.index(1.0) < 20
    assert handover == factors.index(1.0) + math.ceil(0.05 * (TOTAL + 1))
    assert set(factors[factors.index(1.0) : handover + 1]) == {1.0}


def test_noise_around_a_plateau_is_hardly_ever_taken_for_resistance() -> None:
    runs = [run(noisy([6.0] * TOTAL, seed=seed))[0] for seed in range(50)]
    assert sum(factors[100] != pytest.approx(line(100)) for factors in runs) <= 2


def test_a_rise_makes_it_back_off_and_come_back_slowly() -> None:
    losses = [7.0 - 0.05 * t for t in range(12)] + [6.45 + 0.08 * t for t in range(1, 20)]
    losses += [7.9 - 0.01 * t for t in range(TOTAL - len(losses))]
    factors, handover = run(noisy(losses, 0.02))
    assert min(factors[12:40]) <= 0.6 * max(factors[:20])
    assert factors[60] < line(60)
    assert handover == math.ceil(0.4 * TOTAL)
    assert factors[handover] == 1.0


def test_a_rise_at_the_peak_takes_the_peak_back() -> None:
    losses = [9.0 * 0.8**t for t in range(12)]  # at the peak in a few steps
    losses += [losses[-1] + 0.2 * t for t in range(1, TOTAL)]
    factors, handover = run(losses, RampRule(hold=0.1))
    top = factors.index(1.0)
    assert top < 20
    assert min(factors[top : top + 40]) <= 0.5
    assert handover is not None
    assert handover > top + 40


def test_every_rise_counts_while_the_peak_is_on_trial() -> None:
    rising = [6.0 + 0.05 * t for t in range(TOTAL)]
    factors, handover = run(noisy(rising, 0.01))
    assert handover == math.ceil(0.4 * TOTAL)  # the schedule's envelope ends it
    # and until then the rate stays near that envelope, not at the line
    assert np.mean(factors[40:120]) < 0.55


def test_spikes_and_what_is_no_number_change_next_to_nothing() -> None:
    losses = noisy([3.0 + 4.0 * math.exp(-t / 100) for t in range(TOTAL)])
    spiked = [1e6 if t in (13, 20) else math.nan if t == 16 else loss for t, loss in enumerate(losses)]
    assert run(spiked)[0] == pytest.approx(run(losses)[0], abs=0.01)  # the line waits for the loss that was none


def test_without_a_length_it_doubles_and_holds_for_one_step() -> None:
    rule = RampRule(floor=0.1)
    state = rule.init()
    factors = [state.factor]
    while not state.done:
        state, factor = rule.step(state, -1.0)
        factors.append(factor)
    assert factors == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


@pytest.mark.parametrize("name", ["floor", "start", "climb", "level", "power", "hold", "tolerance"])
def test_bad_settings_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must"):
        RampRule(**{name: -0.1})  # type: ignore[arg-type]
