"""Appendix E: a curvature bound in the gradient's norm is one in the gap.

Assumption: `||D^2 f(x)|| <= L0 + Lrho ||grad f(x)||_*^rho` for all x, with 0 < rho < 2; rho = 1 is (L0, L1)-smoothness.

Step size: Theorem 1's, with the constants below.

Statement: `||D^2 f(x)|| <= K0 + Kq gap(x)^q` with `q = rho/(2 - rho)`, `K0 = 2 L0` and
`Kq = 2^(rho (2+rho)/(2-rho)) Lrho^(2/(2-rho))`. rho = 1 gives `2 L0 + 8 L1^2 gap`; rho = 4/3 is what gives q = 2.

Source: arXiv 2602.05813, appendix E (heading FOUND), the exponent in arXiv 2509.07972, Lemma 1 (FOUND); constants and
proof DERIVED.

Proof: With `G = ||grad f(x)||_*` and `l(z) = L0 + Lrho z^rho`, the gradient at most doubles within `r = G/l(2 G)`; a
step of that length shows `G^2 <= 2 l(2 G) gap`. If `Lrho (2 G)^rho <= L0`, then `Lrho G^rho <= L0` and K0 is
enough; else `G^(2-rho) <= 2^(2+rho) Lrho gap`, and K0 + Kq gap^q is what `l(G)` becomes.

Problem: cosh, with L0 = L1 = 1; the barrier, with rho = 4/3, L0 = 4, Lrho = 24/4^(4/3). The constants hold but are
loose: Kq = 5486 for the barrier, where 24 is true.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from warmgap._checks import check_positive
from warmgap.theory import problems
from warmgap.theory.check import Check
from warmgap.theory.constants import Constants
from warmgap.theory.norms import Array
from warmgap.theory.problems import Problem

__all__ = ["check", "examples", "to_gap"]


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


def check(problem: Problem, points: Array, L0: float, Lrho: float, rho: float) -> Check:
    """Compare the curvature of a function of one variable with both bounds; measured: its largest share of the second.

    `excess` is positive where the assumption itself, the first bound, fails at one of the points.

    Args:
        problem: A problem of shape (1,).
        points: Where to look, a one-dimensional array.
        L0: The constant term in the gradient's norm.
        Lrho: The term of the power rho.
        rho: The power.

    Raises:
        ValueError: If `to_gap` refuses the constants, there are no points, or one lies outside the domain.
    """
    if not len(points):
        raise ValueError("the curvature is compared at points, got none")
    bound = to_gap(L0, Lrho, rho)
    shares, over = [], []
    for point in points:
        x, h = np.array([point]), 1e-6
        if not np.isfinite(gap := problem.value(x)):
            raise ValueError(f"every point must lie in the domain, got {point} for {problem.name}")
        curvature = abs(float((problem.gradient(x + h) - problem.gradient(x - h))[0])) / (2.0 * h)
        # Below the error of the central difference, an excess says nothing.
        assumed = (L0 + Lrho * problem.norm.dual(problem.gradient(x)) ** rho) * (1.0 + 1e-6)
        shares.append(curvature / bound(gap))
        over.append((curvature - assumed) / assumed)
    return Check("Appendix E", problem.name, "curvature / bound", max(shares), 1.0, excess=max(over))


def examples() -> Iterator[Check]:
    """Check it for rho = 1 and rho = 4/3."""
    yield check(problems.cosh("frobenius", (1,)), np.linspace(-6.0, 6.0, 241), 1.0, 1.0, 1.0)
    yield check(problems.barrier("frobenius", (1,)), np.linspace(-0.95, 0.95, 381), 4.0, 24.0 / 4.0 ** (4 / 3), 4 / 3)
