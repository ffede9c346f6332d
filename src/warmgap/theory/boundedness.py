"""Appendix A: in l2 the iterates of Theorem 1 never move away from the minimiser, so that D needs no assumption.

Assumption: Theorem 1's, in l2.

Step size: `eta_t = gap_t / (D K(gap_t))` with `D = ||x_0 - x*||`.

Statement: `||x_{t+1} - x*|| <= ||x_t - x*||` for all t. NOT FOUND for the max and spectral norms, where D is the
radius of the sublevel set, or weight decay bounds the iterates (`warmgap.theory.weight_decay`).

Source: arXiv 2602.05813, appendix A (heading FOUND); statement and proof DERIVED.

Proof: `||x_{t+1} - x*||^2 <= ||x_t - x*||^2 - 2 eta gap_t/||g_t|| + eta^2`, which does not grow while
`eta <= 2 gap_t/||g_t||`, that is while `||g_t|| <= 2 D K`. Curvature and star-convexity give it:
`||g||^2 <= 2 K gap` and `gap <= ||g|| D`, so `||g|| <= 2 K D`.

Problem: cosh, the barrier, the star-convex ones, in l2.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from warmgap.theory import problems
from warmgap.theory.check import Check, excess
from warmgap.theory.descent import descend
from warmgap.theory.norms import Array
from warmgap.theory.problems import Problem

__all__ = ["check", "examples"]


def check(problem: Problem, start: Array, eps: float) -> Check:
    """Run Theorem 1's descent in l2 to a gap of eps; measured: the largest distance to the minimiser.

    Raises:
        ValueError: If the problem's norm is not l2, or eps is not above 0 and below the gap at the start.
    """
    if problem.norm.name != "frobenius":
        raise ValueError(f"appendix A is about l2, got a problem in the norm {problem.norm.name!r}")
    constants, distance = problem.constants, problem.norm.norm(start)
    steps = constants.steps(problem.value(start), eps, distance)
    path = descend(problem, start, lambda it: constants.step_size(it.gap, distance), steps=steps, eps=eps)
    return Check(
        "Appendix A",
        problem.name,
        "largest distance",
        float(path.distances.max()),
        distance,
        excess=excess(path.distances[1:], path.distances[:-1]),
    )


def examples() -> Iterator[Check]:
    """Check it on a convex problem and on two that are star-convex only."""
    start = np.array([0.5, 1.0, -2.0])
    yield check(problems.cosh("frobenius", (3,)), start, 1e-2)
    yield check(problems.star("frobenius"), start[:2], 1e-2)
    yield check(problems.rough(3), start, 1e-2)
