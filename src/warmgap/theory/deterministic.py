"""Theorem 1: descent with the gap-driven step size, exact gradients, no weight decay.

Assumption: f is star-convex, `<grad f(x), x - x*> >= gap(x)`, and has curvature at most `K(gap)` (A2-H or A2);
`||x_t - x*|| <= D` for all t, with D from `Problem.distance`.

Step size: `eta_t = gap_t / (D K(gap_t))`, along the LMO of the gradient; or the share a of it, `0 < a <= 1`.

Statement: `gap_{t+1} <= gap_t - gap_t^2 / (2 D^2 K(gap_t))`, and `gap_T <= eps` after at most

    T = 1 + 2 D^2 [K0 (1/eps - 1/gap_0) + K1 ln(gap_0/eps) + Krho (gap_0^(rho-1) - eps^(rho-1))/(rho-1)]

for rho <= 2 (`Constants.steps`, also for rho > 2); with a share a, `D^2/(a (2 - a))` takes the place of D^2 in both.
With one fixed step size, `eps / (D K(gap_0))`, what is guaranteed is `(K(gap_0) D^2/eps) ln(2 gap_0/eps)` steps. The
comparison is between guarantees: on an easy function the best fixed step size, if one knew it, may be faster than
either.

Source: arXiv 2602.05813, Theorem 1 (setting FOUND, constants NOT FOUND); statement and proof DERIVED.

Proof: Along u = LMO(g) the gap stays below `gap - eta ||g||_* + K eta^2/2` as long as `eta <= 2 ||g||_*/K`, since it
does not rise and K belongs to the start; star-convexity gives `||g||_* >= gap/D`; the step size is the minimiser
of `K eta^2/2 - eta gap/D`. For rho <= 2, `K(d)/d^2` falls with d, so that each step takes at least `1/(2 D^2)`
of its integral from eps to gap_0.

Problem: cosh, the barriers, the star-convex ones; the cone of the Huber function, where star-convexity is an
equality, and what is promised a step is half of what happens: less than half is never seen, since star-convexity with
equality forces the step to point at the minimiser, and there its curvature term is not needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from warmgap._checks import check_positive
from warmgap.theory import problems
from warmgap.theory.check import Check, excess, row
from warmgap.theory.descent import descend
from warmgap.theory.norms import Array
from warmgap.theory.problems import Problem

__all__ = ["check", "check_fixed", "examples"]


def check(problem: Problem, start: Array, eps: float, *, share: float = 1.0, notch: float = 1.0) -> Check:
    """Run Theorem 1's descent; measured: steps to a gap of eps.

    Args:
        problem: What is minimised.
        start: The first point.
        eps: The gap to reach.
        share: The factor a on the step size.
        notch: How many times stronger the descent is claimed to be; above 1 it is not proved.

    Raises:
        ValueError: If eps is not above 0 and below the gap at the start, or share is not above 0 and at most 1.
    """
    if check_positive("share", share) > 1.0:
        raise ValueError(f"share must be at most 1, got {share!r}")
    constants, distance = problem.constants, problem.distance(start)
    reach = distance / math.sqrt(share * (2.0 - share))
    bound = constants.steps(problem.value(start), eps, reach)
    path = descend(problem, start, lambda it: share * constants.step_size(it.gap, distance), steps=bound, eps=eps)
    gaps = path.gaps[:-1]
    descent = excess(path.gaps[1:], gaps - notch * gaps**2 / (2.0 * reach**2 * constants.along(gaps)))
    away = excess(path.distances, np.full_like(path.distances, distance))
    return Check("Theorem 1", problem.name, f"steps to {eps:g}", path.steps_to(eps), bound, excess=max(descent, away))


def check_fixed(problem: Problem, start: Array, eps: float, *, notch: float = 1.0) -> Check:
    """Run the descent with the one step size that the same constants guarantee; measured: steps to a gap of eps.

    Args:
        problem: What is minimised.
        start: The first point.
        eps: The gap to reach.
        notch: How many times stronger the descent is claimed to be; above 1 it is not proved.

    Raises:
        ValueError: If eps is not above 0 and below the gap at the start.
    """
    problem.constants.integral(problem.value(start), eps)
    distance, curvature = problem.distance(start), problem.constants(problem.value(start))
    eta = eps / (curvature * distance)
    bound = 1.0 + curvature * distance**2 / eps * math.log(2.0 * problem.value(start) / eps)
    path = descend(problem, start, lambda _: eta, steps=bound, eps=eps)
    descent = excess(path.gaps[1:], (1.0 - notch * eta / distance) * path.gaps[:-1] + curvature * eta**2 / 2.0)
    return Check("Theorem 1, fixed step", problem.name, f"steps to {eps:g}", path.steps_to(eps), bound, excess=descent)


def examples() -> Iterator[Check]:
    """Check it on every problem and norm."""
    matrix = np.array([[1.0, -0.5, 0.3], [0.2, 0.8, -1.1]])
    vector = np.array([0.5, 1.0, -2.0])
    cosh = problems.cosh("frobenius", (3,))
    yield row(check_fixed, cosh, vector, 1e-2)
    for problem, start in (
        (cosh, vector),
        (problems.barrier("frobenius", (3,)), 0.3 * vector),
        (problems.star("frobenius"), vector[:2]),
        (problems.cosh("max", (3,)), vector),
        (problems.barrier("max", (3,)), 0.3 * vector),
        (problems.star("max"), vector[:2]),
        (problems.cosh("spectral", (2, 3)), matrix),
        (problems.barrier("spectral", (2, 3), power=1), 0.5 * matrix),
        (problems.rough(3), 0.5 * vector),
        (problems.huber(2), np.array([12.0, -16.0])),
    ):
        yield row(check, problem, start, 1e-2)
