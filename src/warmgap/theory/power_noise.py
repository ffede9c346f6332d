"""The power rule with noisy gradients.

Assumption: f keeps A2 as printed in l2, with `K = K0 + Krho gap^rho`; unbiased gradients with
`E ||g_xi||^2 <= A gap + B ||grad f||^2 + C` (ABC noise), B at least 1.

Step size: `eta_t = s min(1/K0, 1/(Krho gap_t^rho))` along the negative noisy gradient, `0 < s <= 1/(2 B)`; over T
steps `s = 1/sqrt(T)`.

Statement: `sum_t E eta_t ||grad f(x_t)||^2 <= 2 gap_0 + 2 s sum_t E eta_t (A gap_t + C)`: the mean squared gradient,
each step weighted with its rate, is of the order `1/(s sum of rates at s = 1) + s C`.

Source: arXiv 2509.07972 (ABC noise and that the rule gains with noise too FOUND; step size and constants NOT FOUND);
statement and proof DERIVED.

Proof: `f(x - eta g_xi) <= f - eta <grad f, g_xi> + K eta^2 ||g_xi||^2/2` and `eta K <= 2 s`; take the mean.

Problem: the rough one, the Huber function.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from warmgap._checks import check_count, check_finite
from warmgap.theory import problems
from warmgap.theory.check import Check, excess, row
from warmgap.theory.constants import Constants
from warmgap.theory.descent import Iterate, descend
from warmgap.theory.norms import Array
from warmgap.theory.power import check_power
from warmgap.theory.problems import Problem

__all__ = ["check", "examples"]


def check(
    problem: Problem,
    start: Array,
    steps: int,
    A: float,
    C: float,
    *,
    share: float | None = None,
    seeds: int = 3,
    notch: float = 1.0,
) -> Check:
    """Run it with noise of variance `A gap + C` (so that B = 1); measured: the mean over the seeds of the left side.

    Args:
        problem: A problem in l2 that keeps A2, whose bound has the terms K0 > 0 and Krho > 0 only.
        start: The first point.
        steps: The number T of steps.
        A: The noise that goes with the gap, at least 0.
        C: The noise that stays, at least 0.
        share: The s of the step size, `1/sqrt(steps)` unless given.
        seeds: The number of runs.
        notch: How many times stronger the descent is claimed to be; above 1 it is not proved.

    Raises:
        ValueError: If the problem is not of that kind, a number is out of range, or share is above 1/2.
    """
    constants = check_power(problem)
    for name, value in (("A", A), ("C", C)):
        if check_finite(name, value) < 0.0:
            raise ValueError(f"{name} must not be negative, got {value!r}")
    s = 1.0 / math.sqrt(check_count("steps", steps, minimum=1)) if share is None else share
    if not 0.0 < s <= 0.5:
        raise ValueError(f"the share of the step size must be above 0 and at most 1/2, got {s!r}; take 4 steps or more")
    left, right, worst = [], [], -math.inf
    for seed in range(check_count("seeds", seeds, minimum=1)):
        rng = np.random.default_rng(seed)
        noisy: list[Array] = []

        def direction(it: Iterate, rng: np.random.Generator = rng, noisy: list[Array] = noisy) -> Array:
            size = math.sqrt((A * it.gap + C) / it.x.size)
            noisy.append(it.gradient + size * rng.standard_normal(it.x.shape))
            return -noisy[-1]

        path = descend(
            problem,
            start,
            lambda it: s / max(constants.K0, constants.Krho * it.gap**constants.rho),
            steps=steps,
            direction=direction,
        )
        eta, gaps = path.step_sizes, path.gaps[:-1]
        slopes = np.array([problem.gradient(x) for x in path.points[:-1]])
        squares = np.array([float(np.vdot(g, g)) for g in noisy])
        inner = np.array([float(np.vdot(g, h)) for g, h in zip(slopes, noisy, strict=True)])
        promised = eta * inner - constants.along(gaps) * eta**2 * squares / 2.0
        worst = max(worst, excess(path.gaps[1:], gaps - promised - (notch - 1.0) * np.abs(promised)))
        left.append(float((eta * path.duals[:-1] ** 2).sum()))
        right.append(2.0 * s * float((eta * (A * gaps + C)).sum()))
    return Check(
        "Power rule, noise",
        f"{problem.name}, A {A:g}, C {C:g}",
        f"sum eta ||g||^2, {steps} steps",
        float(np.mean(left)),
        2.0 * problem.value(start) + float(np.mean(right)),
        excess=worst,
    )


def examples() -> Iterator[Check]:
    """Check it with noise that stays and with noise that goes with the gap."""
    rough = problems.rough(2)
    cone = replace(problems.huber(2), constants=Constants(1.0, 0.0, 0.1, 1.0))
    for problem, start, A, C in (
        (rough, np.array([0.6, -0.5]), 0.0, 0.1),
        (rough, np.array([0.6, -0.5]), 0.5, 0.0),
        (cone, np.array([3.0, -4.0]), 0.0, 0.1),
    ):
        yield row(check, problem, start, 200, A, C)
