"""||EF21-SGDM||: the same from noisy gradients, averaged by momentum on each worker.

Assumption: As for Theorem 1 (`warmgap.theory.normalized_feedback`); each worker's noise is unbiased, independent, and
`E ||n_i||_2^2 <= sigma^2`.

Step size: `x+ = x - gamma g/||g||` with `g = mean_i g_i`, `g_i <- g_i + C(v_i - g_i)` and `v_i <- (1 - eta) v_i + eta
(grad f_i(x) + n_i)`, v_i at first the noisy gradient itself; over K steps `eta = K^(-1/2)`, `gamma = gamma0 K^(-3/4)`.

Statement: With `q = (1 - a)/a`, `d_j = L_j (s_2/2 + 2 s_1 (q + (1 - eta)/eta))` and `r_k^2 = (1 - eta)^(2 k) + eta/(2 -
eta)`,

    E min_{k<K} ||grad f(x_k)|| <= (1 + 8 d_1 L1 gamma^2)^K [V0/(gamma K)
                                    + gamma (2 d_0 + 8 d_1 L1 (f_inf - mean_i f_i,inf))
                                    + (2 sigma/K) sum_{k<K} (r_k/sqrt(n) + q eta (1 + r_k))],

of the order `K^(-1/4)`; at every step f falls as on Theorem 1's page, what has not arrived shrinks by `1 - a`, and the
part z_i of `v_i - grad f_i(x)` that is not noise has `||z_i+|| <= (1 - eta) (||z_i|| + s_1 gamma (L0 + L1 ||grad
f_i||))`; the part w_i that is noise has `E ||w_i||^2 <= sigma^2 r_k^2` (of its mean over a run a fourth is left to
chance).

Source: arXiv 2410.16871, Theorem 2 (setting, eta, gamma and the order FOUND, constants NOT FOUND); statement and proof
DERIVED. The paper asks for `gamma0 <= min(a sqrt(K + 1), 1)/(16 L1)`; this one for nothing.

Proof: `||grad f - g|| <= ||mean w_i|| + Z + D` with w_i the averaged noise, `E ||w_i||^2 <= sigma^2 r_k^2`, Z and D the
means of ||z_i|| and ||v_i - g_i||. As `v_i+ - v_i = eta (n_i + grad f_i(x+) - grad f_i(x) - w_i - z_i)`,
`D+ <= (1 - a) (D + eta (||n|| + s_1 gamma M + ||w|| + Z))`. So `V = f - f_inf + (2 gamma/a) D + 2 gamma (1/eta + q) Z`
falls as `E V+ <= V - gamma ||grad f|| + gamma^2 (d_0 + d_1 mean ||grad f_i||) + 2 gamma sigma (r_k/sqrt(n) + q eta (1 +
r_k))`. Go on as for Theorem 1.

Problem: cosh and quadratics in parts, with normal noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from warmgap._checks import check_count, check_finite, check_positive
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
    path,
    quadratic,
    shrinkage,
    top,
)

__all__ = ["bound", "check", "examples"]


def bound(problem: Workers, run: State, alpha: float, gamma0: float, sigma: float) -> float:
    """What the statement says about the expected least length of the gradient in a run of K states."""
    steps, workers = run.gradients.shape[:2]
    eta, gamma = steps**-0.5, gamma0 * steps**-0.75
    q = (1.0 - shrinkage(alpha)) / shrinkage(alpha)
    s1, s2 = growth(problem.L1 * gamma)
    d0, d1 = (constant * (s2 / 2.0 + 2.0 * s1 * (q + (1.0 - eta) / eta)) for constant in (problem.L0, problem.L1))
    late = float(lengths(run.estimates[0] - run.shared[0]).mean())
    v0 = float(problem.values(run.x[0]).mean()) - problem.least + 2.0 * gamma / shrinkage(alpha) * late
    r = np.sqrt((1.0 - eta) ** (2.0 * np.arange(steps)) + eta / (2.0 - eta))
    noise = 2.0 * sigma * float((r / math.sqrt(workers) + q * eta * (1.0 + r)).mean())
    apart = 2.0 * d0 + 8.0 * d1 * problem.L1 * (problem.least - problem.least_parts)
    grown = math.exp(steps * math.log1p(8.0 * d1 * problem.L1 * gamma**2))
    return float(grown * (v0 / (gamma * steps) + gamma * apart + noise))


def check(
    problem: Workers,
    start: Array,
    k: int,
    gamma0: float,
    sigma: float,
    steps: int,
    *,
    noise: float | None = None,
    seeds: int = 3,
    notch: float = 1.0,
) -> Check:
    """Run ||EF21-SGDM|| once a seed; measured: the mean of the least lengths of the gradient.

    Args:
        problem: What is minimised.
        start: The first point.
        k: How many of the d entries are sent.
        gamma0: The step size times K^(3/4).
        sigma: The sigma that the bound is made for.
        steps: K.
        noise: The sigma of the noise itself, if it is another (the assumption is then broken).
        seeds: The number of runs.
        notch: How many times faster momentum is claimed to forget; above 1 it is not proved.

    Raises:
        ValueError: If gamma0 is not above 0, sigma is negative, or a count is under 1.
    """
    check_count("steps", steps, minimum=1)
    if check_finite("sigma", sigma) < 0.0:
        raise ValueError(f"sigma must be at least 0, got {sigma!r}")
    eta, gamma = steps**-0.5, check_positive("gamma0", gamma0) * steps**-0.75
    alpha = min(1.0, k / start.size)
    scale = (sigma if noise is None else noise) / math.sqrt(start.size)
    shape = problem.gradients(start).shape
    least, bounds, shares, worst = [], [], [], -math.inf
    for seed in range(check_count("seeds", seeds, minimum=1)):
        rng = np.random.default_rng(seed)
        draw = lambda _, rng=rng: scale * rng.standard_normal(shape)  # noqa: E731
        run = path(feedback(problem, start, gamma, top(k), eta=eta, noise=draw), steps)
        least.append(float(lengths(run.gradients.mean(axis=-2)).min()))
        bounds.append(bound(problem, run, alpha, gamma0, sigma))
        lag, noisy = _momentum(problem, run, gamma, eta, notch=notch)
        shares.append(noisy / sigma**2 if sigma else 0.0)
        worst = max(worst, descent(problem, run, gamma), arrival(run, alpha), lag)
    return Check(
        "||EF21-SGDM||, Theorem 2",
        f"{problem.name}, {k} of {start.size} sent, noise {sigma:g}",
        f"mean least gradient in {steps} steps",
        float(np.mean(least)),
        float(np.mean(bounds)),
        excess=max(worst, float(np.mean(shares)) - 1.25),
    )


def _momentum(problem: Workers, run: State, gamma: float, eta: float, *, notch: float) -> tuple[float, float]:
    """How far momentum lags beyond what is said, the noise left out; and the mean of ||w_i||^2 over r_k^2."""
    z = np.zeros_like(run.gradients)
    for k in range(1, len(z)):
        z[k] = (1.0 - eta) * (z[k - 1] + run.gradients[k - 1] - run.gradients[k])
    late = lengths(z)
    step = growth(problem.L1 * gamma)[0] * gamma * (problem.L0 + problem.L1 * lengths(run.gradients))
    r = (1.0 - eta) ** (2.0 * np.arange(len(z))) + eta / (2.0 - eta)
    noise = lengths(run.estimates - run.gradients - z) ** 2 / r[:, None]
    return excess(late[1:], ((1.0 - notch * eta) * (late + step))[:-1]), float(noise.mean())


def examples() -> Iterator[Check]:
    """Check it on workers that want different things, with much and little noise."""
    shifts = np.array([[1.0, -0.5, 0.3, 0.0], [-1.0, 0.5, -0.3, 0.0]])
    start = np.array([2.0, -1.0, 0.5, 1.0])
    yield _row(cosh(shifts), start, 1, 0.2, 0.5)
    yield _row(quadratic(shifts), start, 1, 1.0, 0.1)
    yield _row(quadratic(shifts), start, 4, 1.0, 1.0)


def _row(problem: Workers, start: Array, k: int, gamma0: float, sigma: float) -> Check:
    return loosen(lambda factor: check(problem.shrunk(factor), start, k, gamma0, sigma, 400))
