"""Lemmas 2 and 3: how large a gradient and a gap can be, where curvature is bounded by the gap.

Assumption: f has curvature at most `K(gap)` (A2-H), K not falling; for the second line f is star-convex too.

Step size: none; it is a statement about points.

Statement: With `W(gap) = int_0^gap K = K0 gap + K1 gap^2/2 + Krho gap^(rho+1)/(rho+1)`,

    ||grad f(x)||_*^2 <= 2 W(gap) <= 2 gap K(gap)                                   (Lemma 2)
    ||grad f(x)||_* <= K(gap) ||x - x*||   and   gap <= K(gap) ||x - x*||^2/2       (Lemma 3).

Source: DERIVED. arXiv 2510.03164 has Lemma 2's `2 H0 gap + H1 gap^2` for rho = 1 (FOUND).

Proof: Along the LMO of the gradient, phi(s) = gap(x + s u) has `phi'(0) = -||g||_*` and, while it falls,
`(phi'^2/2)' = phi' phi'' >= phi' K(phi) = (W(phi))'`; integrate to where phi' is 0. On the straight way from x* to x a
star-convex f is nowhere above its end, so that the curvature there is at most `K(gap(x))`, and the gradient at x* is 0.

Problem: cosh, on which Lemma 2 is an equality; the quadratic, on which Lemma 3 is; the star-convex one; the barrier.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from warmgap.theory import problems
from warmgap.theory.check import Check, excess, row
from warmgap.theory.constants import Constants
from warmgap.theory.norms import Array
from warmgap.theory.problems import Problem

__all__ = ["check", "check_distances", "examples", "scattered"]


def scattered(norm: str, shape: tuple[int, ...], size: float, count: int = 60, seed: int = 0) -> Array:
    """Return points of many lengths in random directions, of shape (count, *shape); the last has equal entries."""
    points = np.random.default_rng(seed).standard_normal((count, *shape))
    points[-1] = np.eye(shape[0], shape[1]) if norm == "spectral" else 1.0
    lengths = [problems.quadratic(norm, shape).norm.norm(x) for x in points]
    scale = size * np.linspace(0.05, 1.0, count) / np.array(lengths)
    return np.asarray(points * scale.reshape(-1, *[1] * len(shape)))


def check(problem: Problem, points: Array) -> Check:
    """Compare gradients with Lemma 2; measured: the largest, as a share of its bound.

    `excess` is positive where W(gap) is above gap K(gap).

    Args:
        problem: What is looked at.
        points: Where to look, of shape (count, *shape).

    Raises:
        ValueError: If there are no points.
    """
    gaps, duals = _seen(problem, points)
    whole = _integral(problem.constants, gaps)
    shares = duals / np.sqrt(2.0 * whole)
    over = excess(whole, gaps * problem.constants.along(gaps))
    return Check("Lemma 2", problem.name, "gradient / bound", float(shares.max()), 1.0, excess=over)


def check_distances(problem: Problem, points: Array) -> Check:
    """Compare gradients and gaps with Lemma 3; measured: the largest, as a share of its bound.

    Args:
        problem: A star-convex problem with its minimiser at 0.
        points: Where to look, of shape (count, *shape).

    Raises:
        ValueError: If there are no points.
    """
    gaps, duals = _seen(problem, points)
    distances = np.array([problem.norm.norm(x) for x in points])
    curvature = problem.constants.along(gaps)
    shares = np.maximum(duals / (curvature * distances), 2.0 * gaps / (curvature * distances**2))
    return Check("Lemma 3", problem.name, "gradient, gap / bounds", float(shares.max()), 1.0)


def _seen(problem: Problem, points: Array) -> tuple[Array, Array]:
    """The gaps and the gradients' dual norms."""
    if not len(points):
        raise ValueError("the lemmas are about points, got none")
    gaps = np.array([problem.value(x) for x in points])
    return gaps, np.array([problem.norm.dual(problem.gradient(x)) for x in points])


def _integral(constants: Constants, gaps: Array) -> Array:
    power = constants.rho + 1.0
    return np.asarray(constants.K0 * gaps + constants.K1 * gaps**2 / 2.0 + constants.Krho * gaps**power / power)


def examples() -> Iterator[Check]:
    """Check both, each where it is an equality and where it is not."""
    yield row(check, problems.cosh("frobenius", (1,)), scattered("frobenius", (1,), 5.0))
    yield row(check, problems.cosh("max", (3,)), scattered("max", (3,), 5.0))
    yield row(check, problems.barrier("spectral", (2, 3)), scattered("spectral", (2, 3), 0.9))
    yield row(check_distances, problems.quadratic("spectral", (2, 2)), scattered("spectral", (2, 2), 2.0))
    yield row(check_distances, problems.star("frobenius"), scattered("frobenius", (2,), 3.0))
    yield row(check_distances, problems.barrier("max", (3,)), scattered("max", (3,), 0.9))
