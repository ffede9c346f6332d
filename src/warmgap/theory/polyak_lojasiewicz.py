"""(H0, H1)-smoothness under the Polyak-Lojasiewicz inequality: linear convergence after a bounded phase.

Assumption: `||D^2 f(x)||_2 <= H0 + H1 gap(x)` and `||grad f(x)||^2 >= 2 mu gap(x)`.

Step size: `eta = 1/(10 H0 + 20 H1 gap)` along the negative gradient; `1/(H0 + H1 gap)` is allowed too, and faster.

Statement: `gap_{t+1} <= gap_t (1 - mu (2 - eta H) eta)` with `H = H0 + H1 gap_t`, and for the printed step size

    T = (40 H1/(1.9 mu)) gap_0 + (20 H0/(1.9 mu)) max(0, ln(H0/(2 H1 eps)))

steps to eps (DERIVED; the printed bound, FOUND, has 1 in place of 1.9 and lacks the maximum with 0, without which it
is negative for a large eps).

Source: arXiv 2510.03164, section 4; DERIVED as said.

Proof: `f(x - eta g) <= f(x) - eta ||g||^2 (1 - eta H/2)`, and the inequality. Above a gap of `H0/(2 H1)` a step takes
at least `1.9 mu/(40 H1)`, below it a share of `1.9 mu/(20 H0)`.

Problem: cosh, mu = 1; the star-convex problem that is not convex, mu = 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from warmgap._checks import check_positive
from warmgap.theory import problems
from warmgap.theory.aiming import linear_constants
from warmgap.theory.check import Check, excess, row
from warmgap.theory.constants import check_eps
from warmgap.theory.descent import descend
from warmgap.theory.norms import Array
from warmgap.theory.problems import Problem

__all__ = ["check", "examples"]


def check(problem: Problem, start: Array, eps: float, mu: float, *, sharp: bool = False, notch: float = 1.0) -> Check:
    """Run gradient descent under the Polyak-Lojasiewicz inequality; measured: steps to a gap of eps.

    Args:
        problem: A problem in l2 whose bound is linear in the gap, with K1 > 0.
        start: The first point.
        eps: The gap to reach, below the one at the start.
        mu: The constant of the inequality.
        sharp: Whether to take the step size `1/(H0 + H1 gap)`; its bound is DERIVED like the other.
        notch: How many times more the gap is claimed to shrink; above 1 it is not proved.

    Raises:
        ValueError: If the problem is not of that kind, mu is not above 0, or eps is not above 0 and below the gap at
            the start.
    """
    h0, h1 = linear_constants(problem)
    check_positive("K1", h1, "the bound has two phases only where the curvature grows with the gap")
    flat, steep = (1.0, 1.0) if sharp else (10.0, 20.0)
    # Where the two terms of the step size are equal, the phases change.
    turn = flat * h0 / (steep * h1)
    share = check_positive("mu", mu) * (1.0 if sharp else 1.9)
    initial_gap = problem.value(start)
    fast = max(0.0, math.log(turn / check_eps(eps, initial_gap)))
    bound = (2.0 * steep * h1 * initial_gap + 2.0 * flat * h0 * fast) / share
    path = descend(
        problem,
        start,
        lambda it: 1.0 / (flat * h0 + steep * h1 * it.gap),
        steps=bound,
        eps=eps,
        direction=lambda it: -it.gradient,
    )
    gaps, sizes = path.gaps[:-1], path.step_sizes
    shrink = 1.0 - notch * mu * sizes * (2.0 - sizes * problem.constants.along(gaps))
    name = "PL, sharper" if sharp else "PL"
    return Check(
        name, problem.name, f"steps to {eps:g}", path.steps_to(eps), bound, excess=excess(path.gaps[1:], gaps * shrink)
    )


def examples() -> Iterator[Check]:
    """Check it with both step sizes, on a convex problem and on one that is not."""
    start = np.array([0.5, 1.0, -2.0])
    for sharp in (False, True):
        for problem, x, mu in (
            (problems.cosh("frobenius", (3,)), start, 1.0),
            (problems.star("frobenius"), start[1:], 0.5),
        ):
            yield row(check, problem, x, 1e-3, mu, sharp=sharp)
