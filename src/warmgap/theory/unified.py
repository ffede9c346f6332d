"""The unified parametric assumption: gradient descent where the gradient mostly points away from the minimiser.

Assumption: `<grad f(x), x - x*> >= c1 P(x)` but at outliers, where `c1 P(x) - c2` is enough, and
`||grad f(x)||^2 <= G P(x)`. P is the gap, with `G = 2 K(gap_0)` for a curvature of at most K(gap), or
`||grad f(x)||^2`, with `G = 1`. Star-convex functions have `c1 = 1` and `c2 = 0` for the gap, `c1 = 1/(2 K(gap_0))` for
the squared gradient.

Step size: `gamma = a c1/G` along the negative gradient, fixed, with `0 < a <= 1`; for the gap `c1 <= 2`.

Statement: `dist_{t+1}^2 <= dist_t^2 - a (2 - a) (c1^2/G) P_t`, plus `2 gamma c2` at an outlier, and for the mean over T
steps, m of them from outliers,

    mean_{t<T} P_t <= G dist_0^2/(a (2 - a) c1^2 T) + (2 c2/((2 - a) c1)) m/T.

Source: arXiv 2502.12329 (assumption FOUND, the theorem's text NOT FOUND); statement and proof DERIVED.

Proof: `dist_{t+1}^2 = dist_t^2 - 2 gamma <g, x - x*> + gamma^2 ||g||^2`; put in both inequalities and sum. For the gap,
`||g||^2 <= 2 K gap`, and the gap stays below the one at the start since `gamma <= 1/K(gap_0)` for `c1 <= 2`.

Problem: cosh; the star-convex problem that is not convex; the quadratic, `c1 = 2`, on which all of it is an equality;
the saturated one, whose outliers are its flat part.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from warmgap._checks import check_count, check_finite, check_positive
from warmgap.theory import problems
from warmgap.theory.check import Check, excess, loosen
from warmgap.theory.descent import descend
from warmgap.theory.norms import Array
from warmgap.theory.problems import Problem

__all__ = ["check", "examples"]


def check(
    problem: Problem,
    start: Array,
    steps: int,
    c1: float,
    c2: float = 0.0,
    *,
    share: float = 1.0,
    progress: Literal["gap", "gradient"] = "gap",
    notch: float = 1.0,
) -> Check:
    """Run gradient descent for a number of steps; measured: the mean of P over them.

    Args:
        problem: A problem in l2.
        start: The first point.
        steps: The number of steps.
        c1: The constant of the assumption.
        c2: What it lacks at outliers, the points with `<grad f(x), x - x*> < c1 P(x)`.
        share: The factor a on the step size.
        progress: Whether P is the gap or the squared norm of the gradient.
        notch: How many times faster the squared distance is claimed to fall; above 1 it is not proved.

    Raises:
        ValueError: If the problem is not in l2, c1 is not above 0, c2 is negative, share is not above 0 and at most 1,
            steps is not a whole number of at least 1, or progress is unknown.
    """
    if problem.norm.name != "frobenius":
        raise ValueError(f"the unified assumption is about l2, got a problem in the norm {problem.norm.name!r}")
    if progress not in ("gap", "gradient"):
        raise ValueError(f"progress must be 'gap' or 'gradient', got {progress!r}")
    if check_finite("c2", c2) < 0.0:
        raise ValueError(f"c2 must not be negative, got {c2!r}")
    if check_positive("share", share) > 1.0:
        raise ValueError(f"share must be at most 1, got {share!r}")
    G = 2.0 * problem.constants(problem.value(start)) if progress == "gap" else 1.0
    gamma = share * check_positive("c1", c1) / G
    path = descend(
        problem,
        start,
        lambda _: gamma,
        steps=check_count("steps", steps, minimum=1),
        direction=lambda it: -it.gradient,
    )
    sizes = (path.gaps if progress == "gap" else path.duals**2)[:-1]
    inner = np.array([float(np.vdot(problem.gradient(x), x)) for x in path.points[:-1]])
    outlier = inner < c1 * sizes * (1.0 - 1e-12)
    drop = share * (2.0 - share) * c1**2 / G
    squares = path.distances**2
    bound = squares[0] / (drop * steps) + 2.0 * c2 / ((2.0 - share) * c1) * outlier.sum() / steps
    return Check(
        "Unified assumption",
        f"{problem.name}, c1 {c1:.3g}" + (f", c2 {c2:.3g}" if c2 else ""),
        f"mean {'gap' if progress == 'gap' else '||g||^2'}, {steps} steps",
        float(sizes.sum()) / steps,
        float(bound),
        excess=excess(squares[1:], squares[:-1] - notch * drop * sizes + 2.0 * gamma * c2 * outlier),
    )


def examples() -> Iterator[Check]:
    """Check it with both kinds of progress, where it is an equality, and with outliers."""
    start = np.array([0.5, 1.0, -2.0])
    cosh = problems.cosh("frobenius", (3,))
    small = 0.5 / cosh.constants(cosh.value(start))
    yield loosen(lambda factor: check(cosh.shrunk(factor), start, 200, 1.0))
    # Here the constants are in c1.
    yield loosen(lambda factor: check(cosh, start, 200, factor * small, progress="gradient"))
    yield loosen(lambda factor: check(problems.star("frobenius").shrunk(factor), start[1:], 500, 1.0))
    yield loosen(lambda factor: check(problems.quadratic("frobenius", (3,)).shrunk(factor), start, 50, 2.0, share=0.5))
    yield loosen(lambda factor: check(problems.saturated().shrunk(factor), np.array([2.0]), 500, 0.5, 0.35))
