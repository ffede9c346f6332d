"""(H0, H1)-smoothness of sums and of affine maps.

Assumption: `||D^2 f_i(x)||_2 <= H0_i + H1_i (f_i(x) - f_i*)` for each i.

Step size: none; it is a statement about constants.

Statement: `f = sum_i f_i` has the constants `H0 = sum_i H0_i + M (f* - sum_i f_i*)` and `H1 = M = max_i H1_i`;
`f(A x + b)` has those of f times `||A||_2^2`, where the gap is taken to the least value of f.

Source: arXiv 2510.03164, section 3 (that the class is closed under both FOUND; constants and proof DERIVED: those
printed for a sum can make H0 negative).

Proof: The curvatures add, and `sum_i H1_i (f_i - f_i*) <= M sum_i (f_i - f_i*) = M (f - f*) + M (f* - sum_i f_i*)`. The
Hessian of `f(A x + b)` is `A^T D^2 f A`.

Problem: sums of cosh with different minimisers, of equal H1, where it is an equality, and of different ones; cosh of a
stretched and turned argument.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from warmgap.theory import problems
from warmgap.theory.check import Check, row
from warmgap.theory.constants import Constants
from warmgap.theory.fixed_step import cosh_of
from warmgap.theory.gradient_smoothness import curvature
from warmgap.theory.norms import Array
from warmgap.theory.problems import Problem

__all__ = ["affine", "check", "examples", "of_affine", "of_sum", "total"]


def of_sum(parts: Sequence[Constants], excess: float) -> Constants:
    """Return the constants of a sum.

    Args:
        parts: The constants of each part, `K0` and `K1` only.
        excess: The least value of the sum, less the sum of the least values: 0 for a common minimiser.

    Raises:
        ValueError: If there is no part, one has a third term, or excess is negative.
    """
    if not parts or any(part.Krho > 0.0 for part in parts):
        raise ValueError(f"the sum rule is about bounds linear in the gap, at least one, got {parts}")
    if not excess >= 0.0:
        raise ValueError(f"a sum cannot lie below the sum of the least values, got an excess of {excess!r}")
    steepest = max(part.K1 for part in parts)
    return Constants(sum(part.K0 for part in parts) + steepest * excess, steepest)


def of_affine(constants: Constants, matrix: Array) -> Constants:
    """Return the constants of `f(A x + b)` in l2."""
    return constants.shrunk(1.0 / float(np.linalg.norm(matrix, 2)) ** 2)


def total(parts: Sequence[Problem], lowest: float) -> Problem:
    """Return the sum of problems, less its least value `lowest`, with the constants of the sum rule."""
    return replace(
        parts[0],
        name=" + ".join(part.name for part in parts),
        value=lambda x: sum(part.value(x) for part in parts) - lowest,
        gradient=lambda x: np.asarray(sum(part.gradient(x) for part in parts)),
        constants=of_sum([part.constants for part in parts], lowest),
    )


def affine(problem: Problem, matrix: Array, offset: Array) -> Problem:
    """Return `f(A x + b)`, A square, with the constants of the affine rule."""
    return replace(
        problem,
        name=f"{problem.name}, affine",
        value=lambda x: problem.value(matrix @ x + offset),
        gradient=lambda x: matrix.T @ problem.gradient(matrix @ x + offset),
        constants=of_affine(problem.constants, matrix),
    )


def check(problem: Problem, points: Array) -> Check:
    """Compare the curvature at points with the bound; measured: its largest share.

    Args:
        problem: A problem in l2 with the constants in question.
        points: Where to look, of shape (count, *shape).

    Raises:
        ValueError: If there are no points.
    """
    if not len(points):
        raise ValueError("the curvature is compared at points, got none")
    # Below the error of the central difference, an excess says nothing.
    shares = [curvature(problem, x) / problem.constants(problem.value(x)) for x in points]
    return Check("Sum, affine rule", problem.name, "curvature / bound", max(shares) / (1.0 + 1e-6), 1.0)


def examples() -> Iterator[Check]:
    """Check the sum rule for equal and for different constants, and the affine rule."""
    points = np.linspace(-5.0, 5.0, 21)[:, None]
    apart = np.array([1.0])
    turned = affine(problems.cosh("frobenius", (2,)), np.array([[2.0, 1.0], [-1.0, 1.0]]), np.array([0.5, -1.0]))
    plane = np.indices((5, 5)).reshape(2, -1).T / 2.0 - 1.0
    rows = ((_pair(1.0, apart), points), (_pair(0.25, apart), points), (turned, plane))
    for problem, where in rows:
        yield row(check, problem, where)


def _pair(H1: float, apart: Array) -> Problem:
    """The sum of `cosh_of(1, 1)` and `cosh_of(2, H1)` whose minimisers lie apart on both sides of 0."""
    from scipy.optimize import minimize_scalar

    parts = [problems.shifted(cosh_of(1.0, 1.0), apart), problems.shifted(cosh_of(2.0, H1), -apart)]
    found = minimize_scalar(lambda w: sum(part.value(np.array([w])) for part in parts), (-1.0, 1.0))
    return replace(total(parts, float(found.fun)), name=f"cosh + cosh, H1 1 and {H1:g}")
