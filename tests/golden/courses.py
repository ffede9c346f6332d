"""The courses of losses that every rule is run on: short, and each with something that a rule must bear."""

from __future__ import annotations

import math
import random

TOTAL = 160

Course = list[float]


def _noisy(losses: Course, scale: float, seed: int) -> Course:
    rng = random.Random(seed)  # noqa: S311 - the same numbers on every machine are the point
    return [loss + scale * rng.gauss(0.0, 1.0) for loss in losses]


def _made() -> dict[str, Course]:
    steps = range(TOTAL)
    falling = [3.2 + 7.8 * math.exp(-t / 50) for t in steps]
    burst = [9.0 - 0.05 * t if t < 30 else 9.0 + 0.4 * (t - 30) if t < 45 else 15.0 - 0.08 * (t - 45) for t in steps]
    courses: dict[str, Course] = {
        "falls": falling,
        "falls fast": [3.2 + 7.8 * math.exp(-t / 6) for t in steps],
        "falls slowly": [11.0 - 0.012 * t for t in steps],
        "falls, noisy": _noisy(falling, 0.3, 1),
        "stays": [9.0] * TOTAL,
        "stays, noisy": _noisy([9.0] * TOTAL, 0.2, 2),
        "steps down late": _noisy([9.0 if t < 90 else 5.0 for t in steps], 0.05, 3),
        "spikes": [1e4 if t in (7, 40, 41, 100) else loss for t, loss in enumerate(_noisy(falling, 0.05, 4))],
        "not a number": [
            (math.nan, math.inf, -math.inf)[t % 3] if t in (0, 5, 20, 21) or 60 <= t < 66 else loss
            for t, loss in enumerate(falling)
        ],
        "no number at all": [math.nan] * TOTAL,
        "rises, then falls": _noisy(burst, 0.05, 5),
        "only rises": _noisy([4.0 + 0.05 * t for t in steps], 0.02, 6),
        "starts again": [falling[t] if t < 80 else falling[t - 80] for t in steps],
        "has learned before": _noisy([4.2 - 0.002 * t for t in steps], 0.25, 7),
        "negative": _noisy([-3.0 - 2.0 * (1.0 - math.exp(-t / 40)) for t in steps], 0.02, 8),
        "rises from 0": _noisy([0.02 * (1.0 - math.exp(-t / 60)) for t in steps], 2e-4, 9),
    }
    return courses


COURSES = _made()
