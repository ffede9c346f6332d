"""The power rule: gradient descent with a step size in the gap's power.

Assumption: `||D^2 f(x)||_2 <= K0 + Krho gap(x)^rho`.

Step size: `eta_t = c min(1/K0, 1/(3^rho Krho gap_t^rho))` along the negative gradient; c is NOT FOUND, c = 1/2 is
DERIVED, and enough without the 3^rho too.

Statement: `gap_{t+1} <= gap_t - (eta_t/2) ||g_t||^2`; the step size never falls; and
`min_t ||g_t||^2 sum_t eta_t <= 2 gap_0`.

Source: arXiv 2509.07972 (step size and statements FOUND, the value of c NOT FOUND).

Proof: `f(x - eta g) <= f(x) - eta ||g||^2 (1 - eta K/2)`, and `min(1/a, 1/b) <= 2/(a + b)`, so that `eta <= 1/K`.

Problem: cosh, rho = 1; the barrier, rho = 2, its linear term shared out by `18 gap <= 9 + 9 gap^2`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from warmgap._checks import check_count, check_positive
from warmgap.theory import problems
from warmgap.theory.check import Check, excess, loosen
from warmgap.theory.constants import Constants
from warmgap.theory.descent import descend
from warmgap.theory.norms import Array
from warmgap.theory.problems import Problem

__all__ = ["check", "examples"]


def check_power(problem: Problem) -> Constants:
    """Return the constants of a problem, or raise ValueError unless it is in l2 and has K0 and Krho only."""
    constants = problem.constants
    if problem.norm.name != "frobenius" or constants.K1 > 0.0 or not (constants.K0 > 0.0 and constants.Krho > 0.0):
        raise ValueError(f"the power rule is about l2 and a bound K0 + Krho gap^rho, got {problem}")
    return constants


def check(
    problem: Problem, start: Array, steps: int, *, c: float = 0.5, three: bool = True, notch: float = 1.0
) -> Check:
    """Run the power rule for a number of steps; measured: the least squared gradient norm times the sum of step sizes.

    Args:
        problem: A problem in l2 whose bound has the terms K0 > 0 and Krho > 0 only.
        start: The first point.
        steps: The number of steps.
        c: The factor on the step size.
        three: Whether to keep the printed 3^rho.
        notch: How many times stronger the descent is claimed to be; above 1 it is not proved.

    Raises:
        ValueError: If the problem is not of that kind, steps is not a whole number of at least 1, or c is not above 0.
    """
    constants = check_power(problem)
    check_count("steps", steps, minimum=1)
    check_positive("c", c)
    steep = constants.Krho * (3.0**constants.rho if three else 1.0)
    path = descend(
        problem,
        start,
        lambda it: c / max(constants.K0, steep * it.gap**constants.rho),
        steps=steps,
        direction=lambda it: -it.gradient,
    )
    squares = path.duals[:-1] ** 2
    worst = max(
        excess(path.gaps[1:], path.gaps[:-1] - notch * path.step_sizes / 2.0 * squares),
        excess(path.step_sizes[:-1], path.step_sizes[1:]),
    )
    return Check(
        "Power rule" if three else "Power rule, without 3^rho",
        problem.name,
        "min ||g||^2 sum eta",
        float(squares.min() * path.step_sizes.sum()),
        2.0 * float(path.gaps[0]),
        excess=worst,
    )


def examples() -> Iterator[Check]:
    """Check it for rho = 1 and rho = 2."""
    start = np.array([0.5, 1.0, -2.0])
    linear = replace(problems.cosh("frobenius", (3,)), constants=Constants(1.0, 0.0, 1.0, 1.0))
    square = replace(problems.barrier("frobenius", (3,)), constants=Constants(13.0, 0.0, 33.0))
    yield loosen(lambda factor: check(linear.shrunk(factor), start, 5))
    yield loosen(lambda factor: check(linear.shrunk(factor), start, 5, three=False))
    yield loosen(lambda factor: check(square.shrunk(factor), 0.3 * start, 5))
