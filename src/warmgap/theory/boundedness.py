"""Appendix A: in l2 the iterates of Theorem 1 come nearer to the minimiser, so that D needs no assumption.

Assumption: Theorem 1's, in l2.

Step size: `eta_t = gap_t / (D K(gap_t))` with `D = ||x_0 - x*||`.

Statement: `||x_{t+1} - x*||^2 <= ||x_t - x*||^2 - eta_t^2` for all t. NOT FOUND for the max and spectral norms, where D
is the radius of the sublevel set, or weight decay bounds the iterates (`warmgap.theory.weight_decay`).

Source: arXiv 2602.05813, appendix A (heading FOUND); statement and proof DERIVED.

Proof: `||x_{t+1} - x*||^2 <= ||x_t - x*||^2 - 2 eta gap_t/||g_t|| + eta^2`, and `||g_t|| <= K ||x_t - x*|| <= K D` (see
`warmgap.theory.self_bounding`), so that `gap_t/||g_t|| >= eta_t`.

Problem: cosh, the star-convex ones, in l2; the quadratic, on which the first step does three times what is promised.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from warmgap.theory import problems
from warmgap.theory.check import Check, excess, row
from warmgap.theory.descent import descend
from warmgap.theory.norms import Array
from warmgap.theory.problems import Problem

__all__ = ["check", "examples"]


def check(problem: Problem, start: Array, eps: float, *, notch: float = 1.0) -> Check:
    """Run Theorem 1's descent in l2 to a gap of eps; measured: the largest distance to the minimiser.

    Args:
        problem: A problem in l2.
        start: The first point.
        eps: The gap to reach.
        notch: How many times faster the squared distance is claimed to fall; above 1 it is not proved.

    Raises:
        ValueError: If the problem's norm is not l2, or eps is not above 0 and below the gap at the start.
    """
    if problem.norm.name != "frobenius":
        raise ValueError(f"appendix A is about l2, got a problem in the norm {problem.norm.name!r}")
    constants, distance = problem.constants, problem.norm.norm(start)
    steps = constants.steps(problem.value(start), eps, distance)
    path = descend(problem, start, lambda it: constants.step_size(it.gap, distance), steps=steps, eps=eps)
    squares = path.distances**2
    return Check(
        "Appendix A",
        problem.name,
        "largest distance",
        float(path.distances.max()),
        distance,
        excess=excess(squares[1:], squares[:-1] - notch * path.step_sizes**2),
    )


def examples() -> Iterator[Check]:
    """Check it on two convex problems and on two that are star-convex only."""
    start = np.array([0.5, 1.0, -2.0])
    for problem in (
        problems.cosh("frobenius", (3,)),
        problems.quadratic("frobenius", (3,)),
        problems.star("frobenius"),
        problems.rough(3),
    ):
        x = start[:2] if "star" in problem.name else start
        yield row(check, problem, x, 1e-2)
