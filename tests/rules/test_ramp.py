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
    """The losses with noise, moved below 0: there the loss ratio means nothing, and the ramp stands alone."""
    rng = np.random.default_rng(seed)
    return [loss - 100.0 + scale * float(rng.normal()) for loss in losses]


def test_it_stays_under_the_loss_ratio() -> None:
    losses = [8.0 * 0.99**t for t in range(TOTAL)]
    factors, handover = run(losses, RampRule(signal=Signal(averaging=0.0)))
    ratios = [0.5 * losses[0] / loss for loss in losses]
    assert factors[:6] == pytest.approx([0.01 * 2**t for t in range(6)])
    for t in range(8, 60):
        assert factors[t + 1] == pytest.approx(min(1.0, ratios[t]))
    halved = next(t for t, ratio in enumerate(ratios) if ratio >= 1.0)
    assert handover == halved + 1 + math.ceil(0.05 * TOTAL)


def test_with_a_loss_measured_before_it_starts_at_the_loss_ratio() -> None:
    schedule = Schedule(TOTAL, RampRule())
    assert schedule.calibrate(schedule.init(), 8.0).factor == 0.5
    assert schedule.calibrate(schedule.init(), -8.0).factor == 0.01
    factor = schedule.step(schedule.calibrate(schedule.init(), 8.0), 5.0)[1]
    assert factor == pytest.approx(0.8)


def test_a_loss_that_never_halves_is_let_up_by_the_clock() -> None:
    factors, handover = run([2.0 - 1e-4 * t for t in range(TOTAL)])
    assert handover == math.ceil(0.4 * TOTAL)
    assert factors[40] == pytest.approx(0.5, abs=0.01)
    assert factors[120] == pytest.approx(0.75)


@pytest.mark.parametrize("seed", range(10))
def test_a_loss_that_falls_lets_it_up_at_once(seed: int) -> None:
    factors, handover = run(noisy([3.0 + 4.0 * math.exp(-t / 100) for t in range(TOTAL)], seed=seed))
    assert factors.index(1.0) == 7  # 0.01 * 2**7 > 1
    assert handover == 7 + math.ceil(0.05 * TOTAL)
    assert factors[7 : handover + 1] == [1.0] * (handover - 6)


def test_noise_around_a_plateau_is_hardly_ever_taken_for_resistance() -> None:
    handovers = [run(noisy([6.0] * TOTAL, seed=seed))[1] for seed in range(50)]
    assert sum(handover != 27 for handover in handovers) <= 2


def test_a_rise_at_the_peak_makes_it_back_off_and_come_back_slowly() -> None:
    losses = [7.0 - 0.05 * t for t in range(12)] + [6.45 + 0.08 * t for t in range(1, 20)]
    losses += [7.9 - 0.01 * t for t in range(TOTAL - len(losses))]
    factors, handover = run(noisy(losses, 0.02))
    assert max(factors[:12]) == 1.0
    low = min(factors[12:40])
    assert low <= 0.5
    assert handover is not None
    assert 60 < handover <= 0.4 * TOTAL
    assert factors[handover] == 1.0


def test_every_rise_counts_while_the_peak_is_on_trial() -> None:
    rising = [6.0 + 0.05 * t for t in range(TOTAL)]
    factors, handover = run(noisy(rising, 0.01))
    assert handover == math.ceil(0.4 * TOTAL)  # the schedule's envelope ends it
    # and until then the rate stays near that envelope, not at the peak
    assert np.mean(factors[40:120]) < 0.5


def test_a_long_run_takes_its_share_for_the_way_up() -> None:
    factors, handover = run([-5.0 - 1e-4 * t for t in range(10_000)])
    assert factors.index(1.0) in (100, 101)
    assert handover is not None
    assert handover == pytest.approx(600, abs=3)


def test_spikes_and_what_is_no_number_change_nothing() -> None:
    losses = noisy([3.0 + 4.0 * math.exp(-t / 100) for t in range(TOTAL)])
    spiked = [1e6 if t in (13, 20) else math.nan if t == 16 else loss for t, loss in enumerate(losses)]
    assert run(spiked)[0][:20] == run(losses)[0][:20]


def test_without_a_length_it_doubles_and_holds_for_one_step() -> None:
    rule = RampRule(floor=0.1)
    state = rule.init()
    factors = [state.factor]
    while not state.done:
        state, factor = rule.step(state, -1.0)
        factors.append(factor)
    assert factors == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


@pytest.mark.parametrize("name", ["floor", "share", "ramp", "hold", "tolerance"])
def test_bad_settings_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must"):
        RampRule(**{name: -0.1})  # type: ignore[arg-type]
