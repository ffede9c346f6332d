"""||EF21|| of one worker at a fixed step size: fast, down to a floor that does not depend on the start.

Assumption: As for Theorem 1 (`warmgap.theory.normalized_feedback`), with one worker and L1 > 0.

Step size: `gamma = 1/(beta c_1)` with beta >= 2 and `c_1 = L1/2 + 2 sqrt(1 - alpha) L1/a`: no step count enters it.

Statement: With the growths s_1, s_2 of a step and `d_j = L_j (s_2/2 + 2 s_1 sqrt(1 - alpha)/a)`, `gamma d_1 < 1`, the
value `V = f - f_inf + (2 gamma/a) ||grad f - g||` falls as `V+ <= V - gamma (1 - gamma d_1) ||grad f|| + gamma^2 d_0`
at every step, and

    min_{k<=K} ||grad f(x_k)|| <= [V0/(gamma (K + 1)) + gamma d_0]/(1 - gamma d_1).

Source: arXiv 2410.16871, Theorem 3 (setting and step size FOUND, its formulas NOT FOUND); statement and proof DERIVED.

Proof: The two inequalities of Theorem 1's page, added up without the bound on ||grad f|| through f, which one worker
does not need. `z = L1 gamma <= 2/beta <= 1` and s_1, s_2 grow with z; for alpha = 1 and beta = 2, where z is largest,
`gamma d_1 = s_2(1)/2 = e - 2`, and it is less for smaller alpha. Sum.

Problem: the polynomial from far away, where gamma is 1/(2 c_1) as in the paper's experiment; cosh of one worker.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from warmgap._checks import check_count, check_finite, check_positive
from warmgap.theory.check import Check, excess, loosen
from warmgap.theory.normalized_feedback import constants
from warmgap.theory.norms import Array
from warmgap.theory.workers import Workers, arrival, cosh, feedback, growth, lengths, path, polynomial, shrinkage, top

__all__ = ["check", "examples", "step_size"]


def step_size(problem: Workers, alpha: float, beta: float = 2.0) -> float:
    """Return gamma = 1/(beta c_1).

    Raises:
        ValueError: If beta is under 2, L1 is 0, or there are several workers.
    """
    if check_finite("beta", beta) < 2.0:
        raise ValueError(f"beta must be at least 2, got {beta!r}: the step size would be too large")
    check_positive("L1", problem.L1, hint="without it there is no such step size; use Theorem 1's")
    return 1.0 / (beta * constants(problem, alpha)[1])


def check(problem: Workers, start: Array, k: int, steps: int, *, beta: float = 2.0, notch: float = 1.0) -> Check:
    """Run ||EF21|| of one worker at the fixed step size; measured: the least length of the gradient.

    Args:
        problem: What is minimised, by one worker.
        start: The first point.
        k: How many of the d entries are sent.
        steps: K.
        beta: By what the step size is divided, at least 2.
        notch: How many times stronger V's fall is claimed to be; above 1 it is not proved.

    Raises:
        ValueError: If `step_size` refuses, there are several workers, or a count is under 1.
    """
    alpha = min(1.0, k / start.size)
    gamma = step_size(problem, alpha, beta)
    run = path(feedback(problem, start, gamma, top(k)), check_count("steps", steps, minimum=1) + 1)
    if run.gradients.shape[-2] != 1:
        raise ValueError(f"Theorem 3 is about one worker, got {run.gradients.shape[-2]}; use Theorem 1's step size")
    lost = 2.0 * math.sqrt(1.0 - alpha) / shrinkage(alpha)
    s1, s2 = growth(problem.L1 * gamma)
    d0, d1 = (constant * (s2 / 2.0 + s1 * lost) for constant in (problem.L0, problem.L1))
    slopes = lengths(run.gradients[:, 0])
    late = lengths(run.gradients[:, 0] - run.shared[:, 0])
    v = problem.values(run.x)[:, 0] - problem.least + 2.0 * gamma / shrinkage(alpha) * late
    fall = gamma * (1.0 - gamma * d1) * slopes
    return Check(
        "||EF21||, Theorem 3",
        f"{problem.name}, {k} of {start.size} sent",
        f"least gradient in {steps} steps",
        float(slopes.min()),
        (float(v[0]) / (gamma * (steps + 1)) + gamma * d0) / (1.0 - gamma * d1),
        excess=max(excess(v[1:], (v - notch * fall + gamma**2 * d0)[:-1]), arrival(run, alpha), gamma * d1 - 1.0),
    )


def examples() -> Iterator[Check]:
    """Check it on the polynomial from the paper's start, and on cosh with and without compression."""
    far = 20.0 + np.array([0.1, -0.1, 0.6, 0.1])
    near = np.array([4.0, -3.0])
    yield _row(polynomial(1.0), far, 1, 1100)
    yield _row(_one(), near, 2, 200)
    yield _row(_one(), near, 1, 200)


def _row(problem: Workers, start: Array, k: int, steps: int) -> Check:
    return loosen(lambda factor: check(problem.shrunk(factor), start, k, steps))


def _one() -> Workers:
    """Return cosh as the function of one worker."""
    pair = cosh(np.zeros((2, 2)))
    return Workers(
        "cosh", lambda x: pair.values(x)[..., :1], lambda x: pair.gradients(x)[..., :1, :], 1.0, 1.0, 0.0, 0.0
    )
