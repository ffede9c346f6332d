"""Theorem 2: with decoupled weight decay lambda, the ball of radius 1/lambda takes the place of every other bound.

Assumption: f is star-convex with curvature at most `K(gap)` (A2-H or A2); `||x_0||` and `||x*||` at most `1/lambda`.

Step size: `eta_t = min(1/lambda, lambda gap_t / (4 K(gap_t)))`, in `x <- (1 - lambda eta) x + eta LMO(g)`: half of
Theorem 1's with `D = 2/lambda`.

Statement: `||x_t|| <= 1/lambda` and `||x_{t+1} - x_t|| <= 2 eta_t`; `gap_{t+1} <= gap_t - lambda^2 gap_t^2/(8 K)`, or
`gap_t/2` where the step size is `1/lambda`; `gap_T <= eps` after at most Theorem 1's number of steps with
`D = 2/lambda`.

Source: arXiv 2602.05813, Theorem 2 (`||x|| <= 1/lambda` FOUND, the rest NOT FOUND); statement and proof DERIVED.

Proof: The step goes the share `lambda eta` of the way to `LMO(g)/lambda`, which minimises `<g, .>` over the ball: it is
a Frank-Wolfe step, `<g, x_{t+1} - x_t> <= -lambda eta gap`, of length at most `2 eta`. So
`gap_{t+1} <= (1 - lambda eta) gap_t + 2 K eta^2`; then as in Theorem 1. The step size reaches `1/lambda` only
where `gap > K D^2`, which A2 rules out; where only A2-H holds, K0 dominates there and halving the gap pays.

Problem: cosh, the barrier, in all norms.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from warmgap._checks import check_positive
from warmgap.theory import problems
from warmgap.theory.check import Check, excess
from warmgap.theory.descent import descend
from warmgap.theory.norms import Array
from warmgap.theory.problems import Problem

__all__ = ["check", "examples"]


def check(problem: Problem, start: Array, eps: float, weight_decay: float) -> Check:
    """Run Theorem 2's descent; measured: steps to a gap of eps.

    Raises:
        ValueError: If weight_decay is not above 0, start lies outside the ball of radius 1/weight_decay, or eps is
            not above 0 and below the gap at the start.
    """
    ball = 1.0 / check_positive("weight_decay", weight_decay)
    constants = problem.constants
    if problem.norm.norm(start) > ball:
        raise ValueError(f"start must have a norm of at most 1/weight_decay = {ball}, got {problem.norm.norm(start)}")
    bound = constants.steps(problem.value(start), eps, 2.0 * ball)
    path = descend(
        problem,
        start,
        lambda it: min(ball, 0.5 * constants.step_size(it.gap, 2.0 * ball)),
        steps=bound,
        eps=eps,
        weight_decay=weight_decay,
    )
    gaps = path.gaps[:-1]
    lower = gaps - gaps**2 / (8.0 * ball**2 * constants.along(gaps))
    lengths = np.array([problem.norm.norm(move) for move in np.diff(path.points, axis=0)])
    worst = max(
        excess(path.gaps[1:], np.where(path.step_sizes < ball, lower, gaps / 2.0)),
        excess(path.distances, np.full_like(path.distances, ball)),
        excess(lengths, 2.0 * path.step_sizes),
    )
    return Check(
        "Theorem 2",
        f"{problem.name}, decay {weight_decay:.3g}",
        f"steps to {eps:g}",
        path.steps_to(eps),
        bound,
        excess=worst,
    )


def examples() -> Iterator[Check]:
    """Check it in every norm, from the border of the ball."""
    matrix = np.array([[1.0, -0.5, 0.3], [0.2, 0.8, -1.1]])
    for norm in ("frobenius", "max", "spectral"):
        problem = problems.cosh(norm, (2, 3))
        yield check(problem, matrix, 5e-2, 1.0 / problem.norm.norm(matrix))
    problem = problems.barrier("max", (3,))
    yield check(problem, np.array([0.1, 0.4, -0.5]), 5e-2, 1.0)
