"""Appendix E: a curvature bound in the gradient's norm is one in the gap.

Assumption: `||D^2 f(x)|| <= L0 + Lrho ||grad f(x)||_*^rho` for all x, with 0 < rho < 2; rho = 1 is (L0,
L1)-smoothness.

Step size: Theorem 1's, with the constants below.

Statement: `||D^2 f(x)|| <= K0 + Kq gap(x)^q` with `q = rho/(2 - rho)`, `K0 = 2 L0` and
`Kq = 2^(rho (2+rho)/(2-rho)) Lrho^(2/(2-rho))`. rho = 1 gives `2 L0 + 8 L1^2 gap`; rho = 4/3 is what gives q = 2.

Source: arXiv 2602.05813, appendix E (heading FOUND), the exponent in arXiv 2509.07972, Lemma 1 (FOUND); constants and
proof DERIVED.

Proof: With `G = ||grad f(x)||_*` and `l(z) = L0 + Lrho z^rho`, the gradient at most doubles within `r = G/l(2 G)`; a
step of that length shows `G^2 <= 2 l(2 G) gap`. If `Lrho (2 G)^rho <= L0`, then `Lrho G^rho <= L0` and K0 is
enough; else `G^(2-rho) <= 2^(2+rho) Lrho gap`, and K0 + Kq gap^q is what `l(G)` becomes.

Problem: cosh, with L0 = L1 = 1, of one and of several variables; the barrier, with rho = 4/3, L0 = 4, Lrho =
24/4^(4/3), in the max norm L0 = 4 times the number of entries; the star-convex problem, with L1 = sqrt(2) L0. Where
the curvature at the minimiser is L0, `K0 = 2 L0` is twice what it need be. Far out the constants are looser: Kq =
5486 for the barrier, where 24 is true.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from warmgap._checks import check_positive
from warmgap.theory import problems
from warmgap.theory.check import Check, loosen
from warmgap.theory.constants import Constants
from warmgap.theory.norms import Array
from warmgap.theory.problems import Problem
from warmgap.theory.self_bounding import scattered

__all__ = ["check", "curvature", "examples", "to_gap"]


def to_gap(L0: float, Lrho: float, rho: float) -> Constants:
    """Return the constants in the gap for those in the gradient's norm.

    Raises:
        ValueError: If a constant is negative or rho does not lie between 0 and 2.
    """
    if not 0.0 < check_positive("rho", rho) < 2.0:
        raise ValueError(f"rho must lie strictly between 0 and 2, got {rho!r}")
    if not (L0 >= 0.0 and Lrho >= 0.0):
        raise ValueError(f"L0 and Lrho must not be negative, got {L0!r} and {Lrho!r}")
    steep = 2.0 ** (rho * (2.0 + rho) / (2.0 - rho)) * Lrho ** (2.0 / (2.0 - rho))
    return Constants(2.0 * L0, steep) if rho == 1.0 else Constants(2.0 * L0, 0.0, steep, rho / (2.0 - rho))


def check(problem: Problem, points: Array, L0: float, Lrho: float, rho: float, factor: float = 1.0) -> Check:
    """Compare the curvature at points with both bounds; measured: its largest share of the second.

    `excess` is positive where the assumption itself, the first bound, fails at one of the points.

    Args:
        problem: A problem in l2 or the max norm, of a handful of variables: the Hessian is taken by differences.
        points: Where to look, of shape (count, *shape).
        L0: The constant term in the gradient's norm.
        Lrho: The term of the power rho.
        rho: The power.
        factor: What the constants of `to_gap` are divided by; above 1 the statement is not proved.

    Raises:
        ValueError: If `to_gap` refuses the constants, the norm is another, there are no points, or one lies outside the
            domain.
    """
    if not len(points):
        raise ValueError("the curvature is compared at points, got none")
    bound = to_gap(L0, Lrho, rho).shrunk(factor)
    shares, over = [], []
    for x in points:
        if not np.isfinite(gap := problem.value(x)):
            raise ValueError(f"every point must lie in the domain, got {x} for {problem.name}")
        found = curvature(problem, x)
        # Below the error of the central difference, an excess says nothing.
        assumed = (L0 + Lrho * problem.norm.dual(problem.gradient(x)) ** rho) * (1.0 + 1e-6)
        shares.append(found / bound(gap))
        over.append((found - assumed) / assumed)
    return Check("Appendix E", problem.name, "curvature / bound", max(shares), 1.0, excess=max(over))


def curvature(problem: Problem, x: Array, h: float = 1e-6) -> float:
    """Return the norm of the Hessian at x, from the problem's norm to its dual, by central differences.

    Raises:
        ValueError: If the norm is neither l2 nor the max norm, or x has more than 12 entries.
    """
    if problem.norm.name not in ("frobenius", "max") or x.size > 12:
        raise ValueError(f"the Hessian's norm is known in l2 and the max norm, up to 12 entries, got {problem.name}")
    units = h * np.eye(x.size).reshape(x.size, *x.shape)
    hessian = np.array([(problem.gradient(x + u) - problem.gradient(x - u)).ravel() for u in units]) / (2.0 * h)
    if problem.norm.name == "frobenius":
        return float(np.linalg.norm(hessian, 2))
    # A convex function of u is largest at a corner of the cube.
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=x.size)))
    return float(np.abs(corners @ hessian).sum(axis=1).max())


def examples() -> Iterator[Check]:
    """Check it for rho = 1 and rho = 4/3, of one variable and of several, in both norms."""
    steep = 24.0 / 4.0 ** (4 / 3)
    rows = (
        (problems.cosh("frobenius", (1,)), np.linspace(-6.0, 6.0, 241)[:, None], 1.0, 1.0, 1.0),
        (problems.barrier("frobenius", (1,)), np.linspace(-0.95, 0.95, 381)[:, None], 4.0, steep, 4 / 3),
        (problems.cosh("max", (3,)), scattered("max", (3,), 4.0), 3.0, 1.0, 1.0),
        (problems.star("frobenius"), scattered("frobenius", (2,), 3.0), 4.5, 4.5 * math.sqrt(2.0), 1.0),
        (problems.barrier("max", (3,)), scattered("max", (3,), 0.9), 12.0, steep, 4 / 3),
    )
    for problem, points, L0, Lrho, rho in rows:
        yield loosen(partial(check, problem, points, L0, Lrho, rho))
