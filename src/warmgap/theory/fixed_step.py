"""The lower bound of one fixed step size on the class of (H0, H1)-smooth functions.

Assumption: One step size eta for the whole class `||D^2 f(x)||_2 <= H0 + H1 gap(x)`, from a start with the gap gap_0.

Step size: eta, fixed.

Statement: Gradient descent on `(H0/H1) (cosh(sqrt(H1) w) - 1)` from w_0 converges if and only if
`eta < 2 w_0/f'(w_0) = 2 arccosh(1 + u)/(H0 sqrt(u^2 + 2 u))` with `u = H1 gap_0/H0`, about `2 ln(2 u)/(H1 gap_0)`. A
step size that does needs at least `(1 - eta mu)/(2 eta mu) ln(gap_0/eps)` steps on `mu w^2/2`: a factor of about
`H1 gap_0/ln(gap_0)` more than the step size of the gap, which depends on the gap of the moment.

Source: arXiv 2510.03164, section 4 (the factor FOUND); functions and constants DERIVED.

Proof: `f'(w)/w` grows with |w|, so that |w - eta f'(w)| < |w| if and only if `eta < 2 w/f'(w)`, and then for ever. On
the quadratic the gap shrinks by `(1 - eta mu)^2` a step, and `-ln(1 - z) <= z/(1 - z)`.

Problem: these two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache, partial

import numpy as np

from warmgap._checks import check_positive
from warmgap.theory.check import Check, loosen
from warmgap.theory.constants import Constants, check_eps
from warmgap.theory.descent import Trajectory, descend
from warmgap.theory.norms import frobenius
from warmgap.theory.problems import Problem

__all__ = ["check_steps", "check_threshold", "cosh_of", "examples", "run", "threshold"]


def cosh_of(H0: float, H1: float) -> Problem:
    """Return `(H0/H1) (cosh(sqrt(H1) w) - 1)`, whose curvature is `H0 + H1 gap`, no less.

    Raises:
        ValueError: If a constant is not above 0.
    """
    root, share = math.sqrt(check_positive("H1", H1)), check_positive("H0", H0) / H1
    return Problem(
        f"cosh, H0 {H0:g}, H1 {H1:g}",
        frobenius,
        lambda x: float(share * (2.0 * np.sinh(root * x / 2.0) ** 2).sum()),
        lambda x: share * root * np.sinh(root * x),
        Constants(H0, H1),
        lambda gap: math.acosh(1.0 + gap / share) / root,
    )


def threshold(H0: float, H1: float, initial_gap: float) -> float:
    """Return the step size below which, and only below which, gradient descent converges on `cosh_of(H0, H1)`.

    Raises:
        ValueError: If an argument is not above 0.
    """
    u = check_positive("H1", H1) * check_positive("initial_gap", initial_gap) / check_positive("H0", H0)
    return 2.0 * math.acosh(1.0 + u) / (H0 * math.sqrt(u * (u + 2.0)))


def run(problem: Problem, w: float, eta: float, *, eps: float, steps: float) -> Trajectory:
    """Run gradient descent with the step size eta from w."""
    return descend(problem, np.array([w]), lambda _: eta, steps=steps, eps=eps, direction=lambda it: -it.gradient)


def check_threshold(H0: float, H1: float, w: float, *, problem: Problem | None = None, notch: float = 1.0) -> Check:
    """Search by bisection for the largest step size that converges from w; measured: that one.

    `excess` is positive where a step size below the threshold does not converge.

    Args:
        H0: The constant term of the curvature.
        H1: The linear term.
        w: The start.
        problem: Another function than `cosh_of(H0, H1)` (the assumption is then broken).
        notch: How many times lower the threshold is claimed to be.

    Raises:
        ValueError: If a constant is not above 0, or w is the minimiser.
    """
    own = cosh_of(H0, H1)
    gap = own.value(np.array([w]))
    true = threshold(H0, H1, gap)
    problem, found = (own, _largest(H0, H1, w)) if problem is None else (problem, _search(problem, w, gap, true))
    # The search ends within a millionth part of four times its width.
    short = (1.0 - 1e-5) - found / true
    return Check("Fixed step, threshold", problem.name, f"largest step from {w:g}", found, true / notch, excess=short)


def _search(problem: Problem, w: float, gap: float, about: float) -> float:
    """Return the largest step size that converges from w, up to four times `about`."""
    low, high = 0.0, 4.0 * about
    for _ in range(20):
        eta = (low + high) / 2.0
        path = run(problem, w, eta, eps=1e-3 * gap, steps=20_000)
        low, high = (eta, high) if path.gaps[-1] < path.gaps[0] else (low, eta)
    return low


@cache
def _largest(H0: float, H1: float, w: float) -> float:
    problem = cosh_of(H0, H1)
    gap = problem.value(np.array([w]))
    return _search(problem, w, gap, threshold(H0, H1, gap))


def check_steps(
    H0: float,
    H1: float,
    initial_gap: float,
    eps: float,
    mu: float,
    *,
    step_size: float | None = None,
    notch: float = 1.0,
) -> Check:
    """Take the threshold as step size on `mu w^2/2`; measured: steps to a gap of eps, at least the bound.

    Args:
        H0: The constant term of the class's curvature.
        H1: The linear term.
        initial_gap: The gap at the start.
        eps: The gap to reach.
        mu: The curvature of the quadratic.
        step_size: Another step size than the threshold (the assumption is then broken).
        notch: How many times more steps are claimed to be needed.

    Raises:
        ValueError: If a number is not above 0, eps is not below the initial gap, or the threshold is not below 1/mu.
    """
    eta = threshold(H0, H1, initial_gap)
    contraction = eta * check_positive("mu", mu)
    if contraction >= 1.0:
        raise ValueError(f"the bound needs eta*mu < 1, got {contraction}; raise the initial gap or lower mu")
    bound = notch * (1.0 - contraction) / (2.0 * contraction) * math.log(initial_gap / check_eps(eps, initial_gap))
    flat = Problem(
        f"quadratic, mu {mu:g}",
        frobenius,
        lambda x: 0.5 * mu * float(x @ x),
        lambda x: mu * x,
        Constants(mu),
        lambda gap: math.sqrt(2.0 * gap / mu),
    )
    path = run(
        flat, flat.radius(initial_gap), eta if step_size is None else step_size, eps=eps, steps=4.0 * bound + 10.0
    )
    return Check("Fixed step, lower bound", flat.name, f"steps to {eps:g}", path.steps_to(eps), bound, ">=")


def examples() -> Iterator[Check]:
    """Check the threshold from three starts, and the steps it costs; the bounds are tightened, not the constants."""
    for w in (2.0, 4.0, 8.0):
        yield loosen(partial(_threshold_row, w))
    yield loosen(lambda factor: check_steps(1.0, 1.0, 100.0, 1e-3, 0.5, notch=factor))


def _threshold_row(w: float, factor: float) -> Check:
    return check_threshold(1.0, 1.0, w, notch=factor)
