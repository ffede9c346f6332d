"""Gluon: layer-wise (L0, L1)-smoothness, each layer in its own norm.

Assumption: `||grad_i f(X) - grad_i f(Y)||_(i)* <= (L0_i + L1_i ||grad_i f(X)||_(i)*) ||X_i - Y_i||_(i)` for each layer
i and every Y that a step from X can reach. For all X and Y, as printed, it makes f a sum over the layers (take
X_i = Y_i): outside such sums it can only be meant along a trajectory.

Step size: `t_i = ||g_i||_(i)* / (L0_i + L1_i ||g_i||_(i)*)`, at most `1/L1_i`, along each layer's LMO.

Statement: `f(X+) <= f(X) - sum_i ||g_i||^2/(2 (L0_i + L1_i ||g_i||))`; and with `m = mean_i 1/L1_i`,
`min_k sum_i ||g_i||_(i)*/(L1_i m) <= eps` after

    K = ceil(2 gap_0 sum_i(L0_i/L1_i^2)/(eps m)^2 + 2 gap_0/(eps m))

steps.

Source: arXiv 2505.13416, Algorithm 2 and Theorem 1 (FOUND); proof DERIVED.

Proof: Integrate the assumption along each layer's step. Then `sum a_i^2/(b_i + c_i a_i) >= S^2/(sum b_i/c_i^2 + S)` for
`S = sum a_i/c_i`, by Cauchy-Schwarz.

Problem: cosh, a layer each in l2, the max and the spectral norm. cosh has `L1 = 1/ln 2`, and `L0` the same times its
K0: over a step of length h its gradient changes by at most `(e^h - 1)/h` times the curvature at its start, and
`e^h <= 2` for `h <= 1/L1`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from warmgap._checks import check_positive
from warmgap.theory import problems
from warmgap.theory.check import Check, excess, loosen
from warmgap.theory.descent import Iterate, Trajectory, descend
from warmgap.theory.norms import Array
from warmgap.theory.problems import Problem

__all__ = ["Layer", "check", "cosh_layer", "examples"]

Layer = tuple[Problem, Array, float, float]
"""A layer's function, its start, L0 and L1."""


def check(layers: Sequence[Layer], eps: float, *, notch: float = 1.0) -> Check:
    """Run Gluon on a sum over layers; measured: steps to a weighted sum of the dual norms of at most eps.

    Args:
        layers: The layers.
        eps: What the weighted sum is to reach.
        notch: How many times stronger the descent is claimed to be; above 1 it is not proved.

    Raises:
        ValueError: If there is no layer, or eps or an L1 is not above 0.
    """
    if not layers:
        raise ValueError("a check needs at least one layer, got none")
    check_positive("eps", eps)
    inverse = np.array([1.0 / check_positive("L1", L1) for *_, L1 in layers])
    mean = float(inverse.mean())
    gap = sum(problem.value(start) for problem, start, *_ in layers)
    flat = sum(L0 / L1**2 for *_, L0, L1 in layers)
    bound = math.ceil(2.0 * gap * flat / (eps * mean) ** 2 + 2.0 * gap / (eps * mean))
    # The layers of a sum do not see each other: each has a trajectory of its own.
    paths = [_run(layer, bound) for layer in layers]
    length = max(len(path.gaps) for path in paths)
    duals, gaps = (
        np.array([np.pad(values, (0, length - len(values))) for values in columns])
        for columns in ([path.duals for path in paths], [path.gaps for path in paths])
    )
    L0, L1 = (np.array(column)[:, None] for column in zip(*(layer[2:] for layer in layers), strict=True))
    drop = (duals**2 / (2.0 * (L0 + L1 * duals))).sum(axis=0)
    hits = np.flatnonzero(inverse @ duals / mean <= eps)
    return Check(
        "Gluon, Theorem 1",
        " + ".join(problem.norm.name for problem, *_ in layers) + " cosh",
        f"steps to {eps:g}",
        float(hits[0]) if hits.size else math.inf,
        bound,
        excess=excess(gaps.sum(axis=0)[1:], (gaps.sum(axis=0) - notch * drop)[:-1]),
    )


def _run(layer: Layer, steps: float) -> Trajectory:
    problem, start, L0, L1 = layer

    def step_size(it: Iterate) -> float:
        dual = problem.norm.dual(it.gradient)
        return dual / (L0 + L1 * dual)

    return descend(problem, start, step_size, steps=steps)


def cosh_layer(norm: str, start: Array) -> Layer:
    """Return cosh as a layer, with its constants."""
    problem = problems.cosh(norm, start.shape)
    return problem, start, problem.constants.K0 / math.log(2.0), 1.0 / math.log(2.0)


def examples() -> Iterator[Check]:
    """Check it on three layers."""
    matrix = np.array([[1.0, -0.5, 0.3], [0.2, 0.8, -1.1]])
    layers = [cosh_layer(norm, matrix) for norm in ("frobenius", "max", "spectral")]
    yield loosen(lambda factor: check([(problem, x, L0 / factor, L1 / factor) for problem, x, L0, L1 in layers], 0.3))
