"""The courses of losses that every rule is run on: short, and each with something that a rule must bear."""

from __future__ import annotations

import math
import random

TOTAL, LONG = 160, 2400

Course = list[float]


def noisy(losses: Course, scale: float, seed: int) -> Course:
    """The losses with noise of that standard deviation: the same on every machine."""
    rng = random.Random(seed)  # noqa: S311 - nothing secret
    return [loss + scale * rng.gauss(0.0, 1.0) for loss in losses]


def _short() -> dict[str, Course]:
    steps = range(TOTAL)
    falling = [3.2 + 7.8 * math.exp(-t / 50) for t in steps]
    burst = [9.0 - 0.05 * t if t < 30 else 9.0 + 0.4 * (t - 30) if t < 45 else 15.0 - 0.08 * (t - 45) for t in steps]
    return {
        "falls": falling,
        "falls fast": [3.2 + 7.8 * math.exp(-t / 6) for t in steps],
        "falls slowly": [11.0 - 0.012 * t for t in steps],
        "falls, noisy": noisy(falling, 0.3, 1),
        "stays": [9.0] * TOTAL,
        "stays, noisy": noisy([9.0] * TOTAL, 0.2, 2),
        "steps down late": noisy([9.0 if t < 90 else 5.0 for t in steps], 0.05, 3),
        "spikes": [1e4 if t in (7, 40, 41, 100) else loss for t, loss in enumerate(noisy(falling, 0.05, 4))],
        "not a number": [
            (math.nan, math.inf, -math.inf)[t % 3] if t in (0, 5, 20, 21) or 60 <= t < 66 else loss
            for t, loss in enumerate(falling)
        ],
        "no number at all": [math.nan] * TOTAL,
        "rises, then falls": noisy(burst, 0.05, 5),
        "only rises": noisy([4.0 + 0.05 * t for t in steps], 0.02, 6),
        "starts again": [falling[t] if t < 80 else falling[t - 80] for t in steps],
        "has learned before": noisy([4.2 - 0.002 * t for t in steps], 0.25, 7),
        "negative": noisy([-3.0 - 2.0 * (1.0 - math.exp(-t / 40)) for t in steps], 0.02, 8),
        "rises from 0": noisy([0.02 * (1.0 - math.exp(-t / 60)) for t in steps], 2e-4, 9),
        "high and noisy": noisy([5.0 if t < 25 else 9.0 for t in steps], 1.5, 10),
    }


def _long() -> dict[str, Course]:
    steps = range(LONG)
    return {
        "long: stays": noisy([9.0] * LONG, 0.2, 11),
        "long: stays after a fall": noisy([max(7.0, 9.0 - 0.01 * t) for t in steps], 0.1, 12),
        "long: jumps up twice": noisy([4.0 + 1.0 * (t > 300) + 1.0 * (t > 900) - 1e-4 * t for t in steps], 0.05, 13),
    }


COURSES = _short() | _long()
