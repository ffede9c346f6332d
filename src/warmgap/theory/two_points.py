"""Lemma 4: a bound on the curvature at points is one on the gradient's change between neighbours.

Assumption: f has curvature at most `K(gap)` (A2-H), K not falling.

Step size: `||y - x|| <= (1/2) sqrt(gap(x)/K(2 gap(x)))`.

Statement: `gap(y) <= 2 gap(x)` and `||grad f(x) - grad f(y)||_* <= K(2 gap(x)) ||x - y||`: within that radius A2-H is
A2 with the constants K0, 2 K1 and 2^rho Krho.

Source: DERIVED. arXiv 2509.07972 has 3^rho Krho for the same purpose (FOUND).

Proof: The gap changes by at most `sqrt(2 W(gap))` per unit of length (`warmgap.theory.self_bounding`), so that it
takes at least `gap/sqrt(2 W(2 gap)) >= (1/2) sqrt(gap/K(2 gap))` to double; up to there the curvature is at most K(2
gap).

Problem: cosh and the barrier, y in the direction of the gradient and in random ones. Near the minimiser the second
line is an equality.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from warmgap.theory import problems
from warmgap.theory.check import Check, row
from warmgap.theory.norms import Array
from warmgap.theory.problems import Problem
from warmgap.theory.self_bounding import scattered

__all__ = ["check", "examples"]


def check(problem: Problem, points: Array, *, reach: float = 1.0, seed: int = 0) -> Check:
    """Compare each point with neighbours at the radius; measured: largest change of the gradient over its bound.

    `excess` is positive where the gap more than doubles.

    Args:
        problem: What is looked at.
        points: The points x, of shape (count, *shape).
        reach: How many times longer than stated the radius is; above 1 nothing is proved.
        seed: Seed of the random directions.

    Raises:
        ValueError: If there are no points.
    """
    if not len(points):
        raise ValueError("the lemma is about points, got none")
    generator = np.random.default_rng(seed)
    shares, doubled = [], []
    for x in points:
        gap, slope = problem.value(x), problem.gradient(x)
        curvature = problem.constants(2.0 * gap)
        radius = reach * 0.5 * math.sqrt(gap / curvature)
        away = -problem.norm.lmo(slope)
        random = generator.standard_normal(x.shape)
        for direction in (away, -away, random / problem.norm.norm(random)):
            y = x + radius * direction
            shares.append(problem.norm.dual(problem.gradient(y) - slope) / (curvature * radius))
            doubled.append(problem.value(y) / (2.0 * gap) - 1.0)
    return Check("Lemma 4", problem.name, "change / bound", max(shares), 1.0, excess=max(doubled))


def examples() -> Iterator[Check]:
    """Check it in every norm."""
    for problem, points in (
        (problems.cosh("frobenius", (1,)), scattered("frobenius", (1,), 8.0)),
        (problems.cosh("max", (3,)), scattered("max", (3,), 4.0)),
        (problems.barrier("spectral", (2, 3)), scattered("spectral", (2, 3), 0.9)),
    ):
        yield row(check, problem, points)
