"""Theorem 3: noisy gradients, averaged by momentum.

Assumption: f is star-convex and keeps A2 as printed, with rho <= 2; `||x_t - x*|| <= D`, given or from weight decay
(`D = 2/lambda`); unbiased noise with `E ||n_t||_2^2 <= sigma^2`, and a first batch with `E ||n_0||_2^2 <= alpha
sigma^2/(2 - alpha)`. `k2` is the sup of dual norm / l2 norm.

Step size: `eta_t = c gap_t / (D K(gap_t))` along the LMO of `m_t = (1 - alpha) m_{t-1} + alpha g_t`, `m_0 = g_0`, with
`c = min(1/18, eps^2/(576 D^2 k2^2 sigma^2))` and `alpha = 18 c`. With weight decay lambda, `eta_t = c lambda
gap_t / (4 K)`.

Statement: With a probability of at least 1/2 the gap has been at most eps within

    T = (8 D^2/c) [K0 (1/eps - 1/gap_0) + K1 ln(gap_0/eps) + Krho (gap_0^(rho-1) - eps^(rho-1))/(rho-1)]
        + 14.4 D^2 K(eps)/eps

steps, of the order eps^-3; and at every step the part of `m_t - grad f(x_t)` that is not noise is at most
`gap_t/(16.5 D)`. Training differs: its gap is that of a mini-batch, and its momentum is fixed.

Source: arXiv 2602.05813, Theorem 3 (setting FOUND, constants NOT FOUND); statement and proof DERIVED.

Proof: One step moves the gradient by at most `K eta = c gap/D`: K cancels. The gap falls by a factor of at most
`1 - 1.5 c` a step, which sums the drift to `gap/(16.5 D)`. Then `gap_{t+1} <= gap_t - (c/2) gap_t^2/(D^2 K) + 4 c
||N_t||_*^2/K` for the averaged noise `E ||N_t||_2^2 <= alpha sigma^2`; sum `int_eps^gap K(d)/d^2 dd` (concave for
rho <= 2), take expectations, and Markov's inequality.

Problem: quadratics, in l2, the max norm, the spectral norm; the rough one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from warmgap._checks import check_count, check_positive
from warmgap.theory import problems
from warmgap.theory.check import Check, excess
from warmgap.theory.descent import Iterate, descend
from warmgap.theory.norms import Array
from warmgap.theory.problems import Problem

__all__ = ["bound", "check", "examples"]


def bound(problem: Problem, start: Array, eps: float, distance: float, sigma: float) -> tuple[float, float]:
    """Return the share c of Theorem 1's step size, and the bound T on the steps.

    Args:
        problem: What is minimised.
        start: The first point.
        eps: The gap to reach.
        distance: The bound D on the distance to the minimiser.
        sigma: Root of the noise's mean squared l2 norm.

    Raises:
        ValueError: If eps is not above 0 and below the gap at the start, sigma is not above 0, or rho is above 2.
    """
    constants = problem.constants
    if constants.Krho > 0.0 and constants.rho > 2.0:
        raise ValueError(f"Theorem 3 needs rho <= 2, got {constants.rho}")
    price = constants.integral(problem.value(start), eps)
    spread = distance * problem.norm.euclidean(start.shape) * check_positive("sigma", sigma)
    c = min(1.0 / 18.0, eps**2 / (576.0 * spread**2))
    return c, 8.0 * distance**2 / c * price + 14.4 * distance**2 * constants(eps) / eps


def check(
    problem: Problem,
    start: Array,
    eps: float,
    sigma: float,
    *,
    distance: float | None = None,
    weight_decay: float = 0.0,
    noise: float | None = None,
    seeds: int = 5,
) -> Check:
    """Run Theorem 3's descent once a seed; measured: the median of the steps to a gap of eps.

    Args:
        problem: What is minimised.
        start: The first point.
        eps: The gap to reach.
        sigma: The sigma that step size and bound are made for.
        distance: The bound D, to be kept to by every run; 2/weight_decay where there is weight decay.
        weight_decay: Decoupled weight decay, or 0.
        noise: The sigma of the noise itself, if it is another (the assumption is then broken).
        seeds: The number of runs.

    Raises:
        ValueError: If not exactly one of distance and weight_decay is given, or one of `bound`'s conditions fails.
    """
    if (distance is None) == (weight_decay == 0.0):
        raise ValueError(f"give either distance or weight_decay, got {distance!r} and {weight_decay!r}")
    limit = 1.0 / weight_decay if distance is None else check_positive("distance", distance)
    reach = 2.0 * limit if distance is None else limit
    c, steps = bound(problem, start, eps, reach, sigma)
    scale = (sigma if noise is None else noise) / np.sqrt(start.size)
    runs = [
        _run(problem, start, eps, reach, c, steps, scale, weight_decay, np.random.default_rng(seed), limit)
        for seed in range(check_count("seeds", seeds, minimum=1))
    ]
    return Check(
        "Theorem 3" + (", weight decay" if weight_decay else ""),
        f"{problem.name}, noise {sigma:g}",
        f"median steps to {eps:g}",
        float(np.median([hit for hit, _ in runs])),
        steps,
        excess=max(worst for _, worst in runs),
    )


def _run(
    problem: Problem,
    start: Array,
    eps: float,
    reach: float,
    c: float,
    steps: float,
    scale: float,
    weight_decay: float,
    rng: np.random.Generator,
    limit: float,
) -> tuple[float, float]:
    alpha = 18.0 * c
    mean = drift = before = np.zeros_like(start)
    drifts = []

    def direction(it: Iterate) -> Array:
        nonlocal mean, drift, before
        draw = scale * rng.standard_normal(start.shape)
        if it.step == 0:
            mean = it.gradient + np.sqrt(alpha / (2.0 - alpha)) * draw
        else:
            mean = (1.0 - alpha) * mean + alpha * (it.gradient + draw)
            drift = (1.0 - alpha) * (drift + before - it.gradient)
        before = it.gradient
        drifts.append(problem.norm.dual(drift))
        return problem.norm.lmo(mean)

    # With weight decay it is half of Theorem 1's step size, as in Theorem 2.
    share = c / 2.0 if weight_decay else c
    path = descend(
        problem,
        start,
        lambda it: share * problem.constants.step_size(it.gap, reach),
        steps=steps,
        eps=eps,
        weight_decay=weight_decay,
        direction=direction,
    )
    drifted = excess(np.array(drifts), path.gaps[: len(drifts)] / (16.5 * reach))
    return path.steps_to(eps), max(drifted, excess(path.distances, np.full_like(path.distances, limit)))


def examples() -> Iterator[Check]:
    """Check it in every norm, with the distance given and with weight decay."""
    start = np.array([[0.5, -0.3], [0.2, 0.4]])
    yield check(problems.quadratic("frobenius", (2, 2)), start, 0.05, 0.05, distance=1.0)
    yield check(problems.quadratic("max", (2, 2)), start, 0.1, 0.05, distance=0.6)
    yield check(problems.quadratic("spectral", (2, 2)), start, 0.1, 0.05, distance=1.0)
    yield check(problems.quadratic("spectral", (2, 2)), start, 0.1, 0.03, weight_decay=1.0)
    yield check(problems.rough(2), np.array([0.6, -0.5]), 0.1, 0.05, distance=1.0)
