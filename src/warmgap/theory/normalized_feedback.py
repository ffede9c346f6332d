"""||EF21||: normalized descent from compressed gradients of several workers, with error feedback.

Assumption: Every part of f keeps `||grad f_i(x) - grad f_i(y)|| <= (L0 + L1 sup_u ||grad f_i(u)||) ||x - y||` in l2,
with the sup over the segment, and is bounded from below; so is f. The compressor is contractive,
`||C(v) - v||^2 <= (1 - alpha) ||v||^2` (in expectation where it is random). The parts may be as different as they like.

Step size: `x+ = x - gamma g/||g||` with `g = mean_i g_i` and `g_i <- g_i + C(grad f_i(x) - g_i)`;
`gamma = gamma0/sqrt(K + 1)`, for any gamma0 > 0.

Statement: With `a = 1 - sqrt(1 - alpha)`, `c_j = L_j/2 + 2 sqrt(1 - alpha) L_j/a`, `V0 = f(x_0) - f_inf + (2 gamma/a)
mean ||grad f_i(x_0) - g_i^0||` and `B = 2 c_0 + 8 c_1 L1 (f_inf - mean_i f_i,inf)`,

    min_{k<=K} ||grad f(x_k)|| <= [V0 exp(8 c_1 L1 exp(L1 gamma0) gamma0^2)/gamma0
                                   + B exp(L1 gamma0) gamma0]/sqrt(K + 1),

and at every step, with E the mean of ||grad f_i(x) - g_i||, both `f(x+) <= f(x) - gamma ||grad f(x)|| + 2 gamma E +
s_2 (gamma^2/2) M` and `E+ <= (1 - a) (E + s_1 gamma M)`, where `M = mean_i (L0 + L1 ||grad f_i(x)||)` and s_1, s_2 are
the growth of a gradient and of f over a step (`warmgap.theory.workers.growth`), at most exp(L1 gamma).

Source: arXiv 2410.16871, Theorem 1 (the text FOUND, its formulas reconstructed); proof DERIVED.

Proof: Integrate the assumption along a step (Gronwall) for s_1 and s_2, and `-<grad f, g>/||g|| <= -||grad f|| +
2 ||grad f - g||`. With `V = f - f_inf + (2 gamma/a) E` the two add up to `V+ <= V - gamma ||grad f|| + gamma^2
exp(L1 gamma) mean_i (c_0 + c_1 ||grad f_i||)`. A step down each part gives `||grad f_i|| <= 8 L1 (f_i - f_i,inf) +
L0/L1`, so that the last term is at most `gamma^2 exp(L1 gamma) (B + 8 c_1 L1 V)`. Unroll.

Problem: the polynomial, cosh and logistic regression in parts; quadratics in parts: sent whole, f falls by no more than
is promised; and from estimates that point the wrong way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from warmgap._checks import check_count, check_positive
from warmgap.theory.check import Check, excess, loosen
from warmgap.theory.norms import Array
from warmgap.theory.workers import (
    State,
    Workers,
    arrival,
    cosh,
    descent,
    feedback,
    growth,
    lengths,
    logistic,
    path,
    polynomial,
    quadratic,
    shrinkage,
    top,
)

__all__ = ["bound", "check", "constants", "examples"]


def constants(problem: Workers, alpha: float) -> tuple[float, float]:
    """Return c_0 and c_1.

    Raises:
        ValueError: If alpha does not lie in (0, 1].
    """
    lost = 2.0 * math.sqrt(1.0 - alpha) / shrinkage(alpha)
    return problem.L0 * (0.5 + lost), problem.L1 * (0.5 + lost)


def bound(problem: Workers, run: State, alpha: float, gamma0: float) -> float:
    """What Theorem 1 says about the least gradient in a run of K + 1 states; infinite where it overflows."""
    root = math.sqrt(len(run.x))
    c0, c1 = constants(problem, alpha)
    late = float(lengths(run.estimates[0] - run.shared[0]).mean())
    v0 = float(problem.values(run.x[0]).mean()) - problem.least + 2.0 * gamma0 / root / shrinkage(alpha) * late
    b = 2.0 * c0 + 8.0 * c1 * problem.L1 * (problem.least - problem.least_parts)
    with np.errstate(over="ignore"):
        grown = float(np.exp(8.0 * c1 * problem.L1 * np.exp(problem.L1 * gamma0) * gamma0**2))
        return (v0 * grown / gamma0 + b * float(np.exp(problem.L1 * gamma0)) * gamma0) / root


def check(
    problem: Workers,
    start: Array,
    k: int,
    gamma0: float,
    steps: int,
    *,
    first: Array | None = None,
    notch: float = 1.0,
) -> Check:
    """Run ||EF21|| with the k largest entries of each difference; measured: the least length of the gradient.

    Args:
        problem: What is minimised.
        start: The first point.
        k: How many of the d entries are sent; alpha is k/d.
        gamma0: The step size times sqrt(K + 1).
        steps: K.
        first: The estimates before the first message; zero by default.
        notch: How many times faster what has not arrived is claimed to shrink; above 1 it is not proved.

    Raises:
        ValueError: If gamma0 is not above 0, or steps or k is not a whole number of at least 1.
    """
    gamma = check_positive("gamma0", gamma0) / math.sqrt(check_count("steps", steps, minimum=1) + 1)
    alpha = min(1.0, k / start.size)
    run = path(feedback(problem, start, gamma, top(k), first=first), steps + 1)
    late = lengths(run.gradients - run.shared).mean(axis=-1)
    moved = growth(problem.L1 * gamma)[0] * gamma * (problem.L0 + problem.L1 * lengths(run.gradients).mean(axis=-1))
    kept = 1.0 - notch * shrinkage(alpha)
    return Check(
        "||EF21||, Theorem 1",
        f"{problem.name}, {k} of {start.size} sent",
        f"least gradient in {steps} steps",
        float(lengths(run.gradients.mean(axis=-2)).min()),
        bound(problem, run, alpha, gamma0),
        excess=max(
            descent(problem, run, gamma),
            arrival(run, alpha, notch=notch),
            excess(late[1:], kept * (late + moved)[:-1]),
        ),
    )


def examples() -> Iterator[Check]:
    """Check it on every problem."""
    rng = np.random.default_rng(0)
    shifts = np.array([[1.0, -0.5, 0.3, 0.0], [-1.0, 0.5, -0.3, 0.0]])
    flat, away = np.full(20, 3.0), np.full(20, -0.2)
    pairs = quadratic(np.stack([0.1 * flat, -0.1 * flat]))
    corner = np.array([3.0, 1.0, -2.0, 0.5])
    yield _row(polynomial(1.0), np.full(4, 3.0), 1, 0.05, 500)
    yield _row(polynomial(4.0), np.full(4, 1.0), 1, 0.01, 500)
    yield _row(cosh(shifts), np.array([2.0, -1.0, 0.5, 1.0]), 1, 0.1, 500)
    yield _row(_data(rng), np.full(6, 1.0), 2, 0.05, 300)
    yield _row(quadratic(shifts), corner, 4, 1.0, 300)
    yield _row(pairs, flat, 1, 1.0, 300, away)


def _row(problem: Workers, start: Array, k: int, gamma0: float, steps: int, first: Array | None = None) -> Check:
    return loosen(lambda factor: check(problem.shrunk(factor), start, k, gamma0, steps, first=first))


def _data(rng: np.random.Generator) -> Workers:
    """Return logistic regression on points about one of two means, each worker's about its own."""
    parts = []
    for worker in range(3):
        labels = np.where(np.arange(20) % 2, 1.0, -1.0)
        parts.append((0.5 * rng.standard_normal((20, 6)) + 0.3 * labels[:, None] + 0.2 * worker, labels))
    return logistic(parts)
