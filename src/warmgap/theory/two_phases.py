"""The smallest network with a warm-up: curvature falls while it learns the first half, then rises.

Assumption: The network `u v x` of one input x > 0, one hidden unit and one output y > 0 under squared error,
`f(u, v) = (u v x - y)^2/2`, from a small balanced start, u = v > 0.

Step size: any that is short against the curvature, along the negative gradient; u = v remains.

Statement: The Hessian's norm is `u^2 x^2 + x |2 u^2 x - y|`: it falls from x y while `2 u v x < y`, is least, x y/2,
where `2 u v x = y`, and rises to 2 x y at the minimum. Along the way it is at most `H0 + H1 gap` with `H0 = 2 x y`
and `H1 = x/y`.

Source: arXiv 2510.03164, section 3 (that curvature falls until `2 u v x = y` FOUND; values and constants DERIVED:
those printed for deep linear networks fail).

Proof: `f_uu = v^2 x^2`, `f_vv = u^2 x^2` and `f_uv = x (2 u v x - y)`; for u = v the eigenvectors are (1, 1) and (1,
-1). With `p = u^2 x` in (0, y] the norm is `x (y - p)` up to p = y/2 and `x (3 p - y) <= 2 x y` beyond, and `x (y -
p) = x sqrt(2 gap) <= x y/2 + x gap/y`.

Problem: itself. The rate may rise in the first phase and should fall in the second: a warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache, partial

import numpy as np

from warmgap._checks import check_positive
from warmgap.theory.check import Check, loosen
from warmgap.theory.constants import Constants
from warmgap.theory.descent import Trajectory, descend
from warmgap.theory.gradient_smoothness import curvature
from warmgap.theory.norms import Array, frobenius
from warmgap.theory.problems import Problem

__all__ = ["check", "check_turn", "examples", "network", "run"]


def network(x: float, y: float) -> Problem:
    """Return `(u v x - y)^2/2` of the array (u, v), with the constants of the statement.

    Raises:
        ValueError: If x or y is not above 0.
    """
    x, y = check_positive("x", x), check_positive("y", y)
    return Problem(
        f"network u v x, x {x:g}, y {y:g}",
        frobenius,
        lambda w: 0.5 * float(w[0] * w[1] * x - y) ** 2,
        lambda w: float(w[0] * w[1] * x - y) * x * w[::-1],
        Constants(2.0 * x * y, x / y),
        lambda gap: math.sqrt(2.0 * (y + math.sqrt(2.0 * gap)) / x),
    )


@cache
def run(x: float, y: float, start: float) -> tuple[Trajectory, Array]:
    """Run gradient descent from u = v = start, each step a thirtieth of 1/curvature; return it and the curvatures.

    Raises:
        ValueError: If x, y or start is not above 0, or start lies beyond the minimum.
    """
    problem = network(x, y)
    if check_positive("start", start) ** 2 * x >= y:
        raise ValueError(f"start must lie below sqrt(y/x) = {math.sqrt(y / x):g}, got {start!r}")
    path = descend(
        problem,
        np.array([start, start]),
        lambda it: 1.0 / (30.0 * curvature(problem, it.x)),
        steps=1000,
        eps=1e-6 * problem.value(np.zeros(2)),
        direction=lambda it: -it.gradient,
    )
    return path, np.array([curvature(problem, w) for w in path.points])


def check(x: float, y: float, start: float, factor: float = 1.0) -> Check:
    """Compare the curvature along the way with `H0 + H1 gap`; measured: its largest share.

    Args:
        x: The input.
        y: The output to learn.
        start: Where u and v start, above 0 and below where u v x = y.
        factor: What the constants are divided by.

    Raises:
        ValueError: If x, y or start is not above 0, or start lies beyond the minimum.
    """
    problem, (path, seen) = network(x, y), run(x, y, start)
    shares = seen / problem.shrunk(factor).constants.along(path.gaps)
    return Check("Two phases, bound", problem.name, "curvature / bound", float(shares.max()) / (1.0 + 1e-6), 1.0)


def check_turn(x: float, y: float, start: float, notch: float = 1.0) -> Check:
    """Find where the curvature is least; measured: how far `2 u v x/y` is from 1 there, at most a step's change of it.

    `excess` is positive where the least and the last curvature are not `x y/2` and `2 x y`, to six percent.

    Args:
        x: The input.
        y: The output to learn.
        start: Where u and v start, above 0 and below where 2 u v x = y.
        notch: How many times nearer to 1 it is claimed to be.

    Raises:
        ValueError: If x, y or start is not above 0, or start lies beyond the minimum.
    """
    problem, (path, seen) = network(x, y), run(x, y, start)
    phase = 2.0 * path.points.prod(axis=1) * x / y
    turn = int(seen.argmin())
    off = max(abs(seen[turn] / (x * y / 2.0) - 1.0), abs(seen[-1] / (2.0 * x * y) - 1.0)) - 0.06
    change = float(np.diff(phase)[max(0, turn - 1) : turn + 1].max())
    measured = abs(float(phase[turn]) - 1.0)
    return Check("Two phases, turn", problem.name, "|2 u v x/y - 1|", measured, change / notch, excess=off)


def examples() -> Iterator[Check]:
    """Check both for two networks."""
    for x, y, start in ((1.0, 1.0, 0.05), (2.0, 3.0, 0.1)):
        yield loosen(partial(check, x, y, start))
        yield loosen(partial(check_turn, x, y, start))
