"""(H0, H1)-smoothness under aiming: gradient descent with the step size of the gap.

Assumption: `||D^2 f(x)||_2 <= H0 + H1 gap(x)` and `<grad f(x), x - proj(x)> >= theta gap(x)`, proj onto the minimisers;
star-convex functions have theta = 1, others that aim have less.

Step size: `eta = 1/(10 H0 + 20 H1 gap)`, times theta, along the negative gradient; or, sharper,
`theta/(2 H0 + H1 gap)`.

Statement: `gap_T <= eps` after at most `T = (40 H0/eps + 40 H1) dist_0^2/theta^2` steps as printed (FOUND); DERIVED is
`(50/9) H0/eps + (100/9) H1` in place of the 40s, with `dist_{t+1}^2 <= dist_t^2 - (9/5) eta theta gap_t`, and for the
sharper step size `2 H0/eps + H1`, with `dist_{t+1}^2 <= dist_t^2 - eta theta gap_t`. Both allow one step more, to
round up. Without theta in the step size the proof needs theta > 1/10.

Source: arXiv 2510.03164, section 4; step size and printed bound FOUND, the others DERIVED.

Proof: `||g||^2 <= 2 H0 gap + H1 gap^2`, so that `dist_{t+1}^2 <= dist_t^2 - 2 eta theta gap + eta^2 ||g||^2` and the
last term is at most a tenth (half) of the one before. Sum, with `eta gap` growing in the gap.

Problem: cosh; the star-convex problem that is not convex; the wavy one, which is not star-convex: theta = .496.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from warmgap._checks import check_positive
from warmgap.theory import problems
from warmgap.theory.check import Check, excess, row
from warmgap.theory.constants import check_eps
from warmgap.theory.descent import descend
from warmgap.theory.norms import Array
from warmgap.theory.problems import Problem

__all__ = ["check", "examples", "linear_constants"]


def linear_constants(problem: Problem) -> tuple[float, float]:
    """Return H0 and H1 of a problem.

    Raises:
        ValueError: If the problem is not in l2 or its bound has a third term.
    """
    constants = problem.constants
    if problem.norm.name != "frobenius" or constants.Krho > 0.0:
        raise ValueError(f"(H0, H1)-smoothness is about l2 and a bound linear in the gap, got {problem}")
    return constants.K0, constants.K1


def check(
    problem: Problem, start: Array, eps: float, theta: float = 1.0, *, sharp: bool = False, notch: float = 1.0
) -> Check:
    """Run gradient descent under aiming; measured: steps to a gap of eps.

    Args:
        problem: A problem in l2 whose bound is linear in the gap.
        start: The first point.
        eps: The gap to reach, below the one at the start.
        theta: The constant of aiming.
        sharp: Whether to take the sharper step size.
        notch: How many times faster the squared distance is claimed to fall; above 1 it is not proved.

    Raises:
        ValueError: If the problem is not of that kind, theta is not above 0, or eps is not above 0 and below the gap at
            the start.
    """
    h0, h1 = linear_constants(problem)
    check_positive("theta", theta)
    flat, steep, share = (2.0, 1.0, 1.0) if sharp else (10.0, 20.0, 1.8)
    price = (flat * h0 / check_eps(eps, problem.value(start)) + steep * h1) / share
    bound = 1.0 + price * problem.norm.norm(start) ** 2 / theta**2
    path = descend(
        problem,
        start,
        lambda it: theta / (flat * h0 + steep * h1 * it.gap),
        steps=bound,
        eps=eps,
        direction=lambda it: -it.gradient,
    )
    squares = path.distances**2
    worst = excess(squares[1:], squares[:-1] - notch * share * theta * path.step_sizes * path.gaps[:-1])
    name = "Aiming, sharper" if sharp else "Aiming"
    return Check(name, problem.name, f"steps to {eps:g}", path.steps_to(eps), bound, excess=worst)


def examples() -> Iterator[Check]:
    """Check it with both step sizes, on a convex problem, a star-convex one and one that only aims."""
    start = np.array([0.5, 1.0, -2.0])
    for sharp in (False, True):
        for problem, x, theta in (
            (problems.cosh("frobenius", (3,)), start, 1.0),
            (problems.star("frobenius"), start[1:], 1.0),
            (problems.wavy(2), 2.0 * start[1:], 0.496),
        ):
            yield row(check, problem, x, 1e-2, theta, sharp=sharp)
