"""Theorem 3 without chance: gradients that are wrong by at most delta.

Assumption: Theorem 1's, but the step goes along the LMO of some m with `||m - grad f(x)||_* <= delta`.

Step size: `eta_t = gap_t / (2 D K(gap_t))`, half of Theorem 1's.

Statement: As long as `gap_t > 4 D delta`, `gap_{t+1} <= gap_t - gap_t^2/(8 D^2 K(gap_t))`, and that gap is reached in
at most `1 + 8 D^2 int K(d)/d^2 dd` steps, the integral from `4 D delta` to the gap at the start. Below it nothing is
said.

Source: DERIVED, the case of bounded errors of arXiv 2602.05813, Theorem 3.

Proof: `<grad f, LMO(m)> <= -||grad f||_* + 2 delta <= -gap/D + gap/(2 D)`, so that along the step the gap stays below
`gap - gap s/(2 D) + K s^2/2`, which does not rise up to `s = gap/(D K)`.

Problem: cosh, the star-convex ones and the Huber function, with the error that turns the direction most: in l2 across
the gradient, else against its smallest entries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from warmgap._checks import check_positive
from warmgap.theory import problems
from warmgap.theory.check import Check, excess, row
from warmgap.theory.descent import Iterate, descend
from warmgap.theory.norms import Array
from warmgap.theory.problems import Problem

__all__ = ["check", "examples", "worst_error"]


def worst_error(problem: Problem, gradient: Array, delta: float) -> Array:
    """Return an error of dual norm delta that turns the LMO as far from the gradient's as it can, or nearly so.

    In l2 the sine of the angle is delta over the length of the gradient; in the max norm as many entries as delta pays
    for change their sign, the smallest first.
    """
    if problem.norm.name == "frobenius":
        g = gradient.ravel()
        length = float(np.linalg.norm(g))
        if length <= delta or g.size == 1:
            return np.asarray(-delta / length * gradient)
        across = np.roll(g, 1) * np.where(np.arange(g.size) % 2, -1.0, 1.0)
        across -= across @ g / length**2 * g
        sine = delta / length
        turned = math.sqrt(1.0 - sine**2) * g / length + sine * across / max(float(np.linalg.norm(across)), 1e-300)
        return np.asarray((length * math.sqrt(1.0 - sine**2) * turned - g).reshape(gradient.shape))
    error, left = np.zeros_like(gradient), delta
    for index in np.argsort(np.abs(gradient), axis=None):
        place = np.unravel_index(index, gradient.shape)
        # A hair more than the entry itself turns its sign round.
        pay = min(left, 1.0001 * abs(float(gradient[place])))
        error[place] = -math.copysign(pay, float(gradient[place]))
        left -= pay
    return error


def check(problem: Problem, start: Array, delta: float, *, distance: float | None = None, notch: float = 1.0) -> Check:
    """Run the descent with the worst errors; measured: steps to a gap of `4 D delta`.

    Args:
        problem: A problem in l2 or the max norm.
        start: The first point.
        delta: The dual norm of the error.
        distance: The bound D on the distance to the minimiser, kept to by the run; `Problem.distance` unless given.
        notch: How many times stronger the descent is claimed to be; above 1 it is not proved.

    Raises:
        ValueError: If delta is not above 0, the norm is another, or the gap at the start is at most `4 D delta`.
    """
    if problem.norm.name not in ("frobenius", "max"):
        raise ValueError(f"the worst error is known in l2 and the max norm, got {problem.norm.name!r}")
    reach = problem.distance(start) if distance is None else check_positive("distance", distance)
    eps = 4.0 * reach * check_positive("delta", delta)
    constants = problem.constants
    bound = 1.0 + 8.0 * reach**2 * constants.integral(problem.value(start), eps)

    def direction(it: Iterate) -> Array:
        return problem.norm.lmo(it.gradient + worst_error(problem, it.gradient, delta))

    path = descend(
        problem,
        start,
        lambda it: 0.5 * constants.step_size(it.gap, reach),
        steps=bound,
        eps=eps,
        direction=direction,
    )
    gaps = path.gaps[:-1]
    worst = max(
        excess(path.gaps[1:], gaps - notch * gaps**2 / (8.0 * reach**2 * constants.along(gaps))),
        excess(path.distances, np.full_like(path.distances, reach)),
    )
    return Check(
        "Bounded errors",
        f"{problem.name}, delta {delta:g}",
        "steps to 4 D delta",
        path.steps_to(eps),
        bound,
        excess=worst,
    )


def examples() -> Iterator[Check]:
    """Check it in l2, where D has to be given since the distance may grow, and in the max norm."""
    start = np.array([0.5, 1.0, -2.0])
    yield row(check, problems.cosh("frobenius", (3,)), start, 0.02, distance=2.5)
    yield row(check, problems.star("frobenius"), start[1:], 0.02, distance=2.5)
    yield row(check, problems.cosh("max", (3,)), start, 0.02)
    yield row(check, problems.huber(2), np.array([12.0, -16.0]), 0.2, distance=20.0)
