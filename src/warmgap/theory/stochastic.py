"""Theorem 3: noisy gradients, averaged by momentum.

Assumption: f is star-convex and keeps A2 as printed, with rho <= 2; `||x_t - x*|| <= D`, given or from weight decay
(`D = 2/lambda`); unbiased noise with `E ||n_t||_2^2 <= sigma^2`, and a first batch with `E ||n_0||_2^2 <= alpha
sigma^2/(2 - alpha)`. `k2` is the sup of dual norm / l2 norm.

Step size: `eta_t = c gap_t / (D K(gap_t))` along the LMO of `m_t = (1 - alpha) m_{t-1} + alpha g_t`, `m_0 = g_0`,
with `c = min(1/18, eps^2/(576 D^2 k2^2 sigma^2))` and `alpha = 18 c`. With weight decay lambda, `eta_t = c lambda
gap_t / (4 K)`.

Statement: With a probability of at least 1/2 the gap has been at most eps within

    T = (8 D^2/c) [K0 (1/eps - 1/gap_0) + K1 ln(gap_0/eps) + Krho (gap_0^(rho-1) - eps^(rho-1))/(rho-1)]
        + 14.4 D^2 K(eps)/eps

steps, of the order eps^-3; and at every step, with N_t the averaged noise in m_t, the rest of `m_t - grad f(x_t)` is
at most `gap_t/(16.5 D)` and `gap_{t+1} <= gap_t - (c/2) gap_t^2/(D^2 K) + 4 c ||N_t||_*^2/K`. Training differs: its
gap is that of a mini-batch, and its momentum is fixed.

Source: arXiv 2602.05813, Theorem 3 (setting FOUND, constants NOT FOUND); statement and proof DERIVED.

Proof: One step moves the gradient by at most `K eta = c gap/D`: K cancels. The gap falls by a factor of at most
`1 - 1.5 c` a step, which sums the drift to `gap/(16.5 D)`. Then `gap_{t+1} <= gap_t - (c/2) gap_t^2/(D^2 K) + 4 c
||N_t||_*^2/K` for the averaged noise `E ||N_t||_2^2 <= alpha sigma^2`; sum `int_eps^gap K(d)/d^2 dd` (concave for
rho <= 2), take expectations, and Markov's inequality.

Problem: quadratics, in l2, the max norm, the spectral norm; the rough one; the Huber function, on which the rest is
within a tenth of its bound, and what is promised a step within a factor of three. The bound on the steps is 30 to 60
times what they are, so that more noise than assumed would not show in them: the noise drawn is compared with sigma.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from warmgap._checks import check_count, check_positive
from warmgap.theory import problems
from warmgap.theory.check import Check, excess, row
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
    notch: float = 1.0,
    drift_notch: float = 1.0,
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
        notch: How many times stronger the descent is claimed to be; above 1 it is not proved.
        drift_notch: How many times smaller what momentum lags behind is claimed to be; above 1 it is not proved.

    Raises:
        ValueError: If not exactly one of distance and weight_decay is given, or one of `bound`'s conditions fails.
    """
    if (distance is None) == (weight_decay == 0.0):
        raise ValueError(f"give either distance or weight_decay, got {distance!r} and {weight_decay!r}")
    limit = 1.0 / weight_decay if distance is None else check_positive("distance", distance)
    reach = 2.0 * limit if distance is None else limit
    c, steps = bound(problem, start, eps, reach, sigma)
    scale = (sigma if noise is None else noise) / np.sqrt(start.size)
    run = partial(_run, problem, start, eps, reach, c, steps, scale, weight_decay, limit, notch, drift_notch)
    runs = [run(np.random.default_rng(seed)) for seed in range(check_count("seeds", seeds, minimum=1))]
    # What was drawn keeps to sigma, up to five standard deviations of the mean of so many squares.
    squares = np.concatenate([found for _, _, found in runs])
    seen = float(squares.mean()) / sigma**2 - 1.0 - 5.0 * math.sqrt(2.0 / (len(squares) * start.size))
    return Check(
        "Theorem 3" + (", weight decay" if weight_decay else ""),
        f"{problem.name}, noise {sigma:g}",
        f"median steps to {eps:g}",
        float(np.median([hit for hit, _, _ in runs])),
        steps,
        excess=max(seen, *(worst for _, worst, _ in runs)),
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
    limit: float,
    notch: float,
    drift_notch: float,
    rng: np.random.Generator,
) -> tuple[float, float, Array]:
    """Return the steps to eps, the worst violation of a single step, and the squared lengths of the noise drawn."""
    alpha = 18.0 * c
    mean = drift = noise = before = np.zeros_like(start)
    drifts, noises, drawn = [], [], []

    def direction(it: Iterate) -> Array:
        nonlocal mean, drift, noise, before
        draw = scale * rng.standard_normal(start.shape)
        drawn.append(float(np.vdot(draw, draw)))
        if it.step == 0:
            noise = np.sqrt(alpha / (2.0 - alpha)) * draw
            mean = it.gradient + noise
        else:
            mean = (1.0 - alpha) * mean + alpha * (it.gradient + draw)
            noise = (1.0 - alpha) * noise + alpha * draw
            drift = (1.0 - alpha) * (drift + before - it.gradient)
        before = it.gradient
        drifts.append(problem.norm.dual(drift))
        noises.append(problem.norm.dual(noise))
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
    gaps = path.gaps[: len(drifts)]
    curvature = problem.constants.along(gaps)
    promised = 0.5 * c * notch * gaps**2 / (reach**2 * curvature)
    worst = max(
        excess(np.array(drifts), gaps / (16.5 * drift_notch * reach)),
        excess(path.gaps[1:], gaps - promised + 4.0 * c * np.array(noises) ** 2 / curvature),
        excess(path.distances, np.full_like(path.distances, limit)),
    )
    return path.steps_to(eps), worst, np.array(drawn)


def examples() -> Iterator[Check]:
    """Check it in every norm, with the distance given and with weight decay."""
    start = np.array([[0.5, -0.3], [0.2, 0.4]])
    near = {"distance": 1.0}
    rows: tuple[tuple[Problem, Array, float, float, dict[str, Any]], ...] = (
        (problems.quadratic("frobenius", (2, 2)), start, 0.05, 0.05, near),
        (problems.quadratic("max", (2, 2)), start, 0.1, 0.05, {"distance": 0.6}),
        (problems.quadratic("spectral", (2, 2)), start, 0.1, 0.05, near),
        (problems.quadratic("spectral", (2, 2)), start, 0.1, 0.02, {"weight_decay": 1.0}),
        (problems.rough(2), np.array([0.6, -0.5]), 0.1, 0.05, near),
        (problems.huber(2), np.array([3.0, -4.0]), 2.0, 0.1, {"distance": 5.1}),
    )
    for problem, x, eps, sigma, given in rows:
        # The looseness is that of the first seed.
        loose = row(check, problem, x, eps, sigma, **given, seeds=1).looseness
        yield replace(check(problem, x, eps, sigma, **given), looseness=loose)
