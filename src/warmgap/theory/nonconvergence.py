"""Muon does not converge on convex Lipschitz functions: a counterexample.

Assumption: f is convex and Lipschitz, and no more: there is no bound on its curvature, so that no guarantee on the
other pages applies.

Step size: `1/(t + 1)`, along the LMO of the max norm of `M = beta M + (1 - beta) G`, M from 0; on a diagonal matrix
this is Muon.

Statement: On `f(w) = c |w_1 + w_2| + |w_1 - w_2|` with `c = (1 - beta)/(2 (1 + beta))`, from `(1 + ln 2, 1 - ln 2)`,
the sum `w_1 + w_2` stays 2 and `f >= 2 c` for ever, while the least value is 0.

Source: arXiv 2605.08980 (FOUND); proof DERIVED.

Proof: `w_1 - w_2` alternates in sign, since `2 ln 2 = 2 sum (-1)^t/(t + 1)`. The average of an alternating +-1 has
modulus `((1 - beta)/(1 + beta)) (1 - (-beta)^(t+1))`, that of the common part of G is `c (1 - beta^(t+1))`, which
is smaller: `sign(M) = +-(1, -1)`, and the sum is frozen.

Problem: this one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from warmgap._checks import check_count, check_finite
from warmgap.theory import problems
from warmgap.theory.check import Check, excess, loosen
from warmgap.theory.descent import Iterate, descend
from warmgap.theory.norms import Array

__all__ = ["START", "check", "examples", "frozen_weight"]

START = np.array([1.0 + math.log(2.0), 1.0 - math.log(2.0)])
"""The start from which the difference of the entries changes its sign at every step."""


def frozen_weight(beta: float) -> float:
    """Return the weight c of the sum that momentum beta does not see.

    Raises:
        ValueError: If beta does not lie in [0, 1).
    """
    if not 0.0 <= check_finite("beta", beta) < 1.0:
        raise ValueError(f"beta must lie between 0 and 1, 1 not included, got {beta!r}")
    return (1.0 - beta) / (2.0 * (1.0 + beta))


def check(steps: int, beta: float = 0.9, c: float | None = None, *, notch: float = 1.0) -> Check:
    """Run Muon on the counterexample; measured: f at the end, at least the bound 2c.

    Args:
        steps: The number of steps.
        beta: The momentum.
        c: The weight of the sum; `frozen_weight(beta)` unless given.
        notch: How many times higher the floor is claimed to be; above 1 it is not proved.

    Raises:
        ValueError: If steps is not a whole number of at least 1, or beta does not lie in [0, 1).
    """
    weight = frozen_weight(beta) if c is None else c
    problem = problems.absolute(weight)
    momentum = np.zeros(2)

    def direction(it: Iterate) -> Array:
        nonlocal momentum
        momentum = beta * momentum + (1.0 - beta) * it.gradient
        return problem.norm.lmo(momentum)

    path = descend(
        problem,
        START,
        lambda it: 1.0 / (it.step + 1),
        steps=check_count("steps", steps, minimum=1),
        direction=direction,
    )
    return Check(
        "Muon's counterexample",
        problem.name,
        f"f after {steps} steps",
        float(path.gaps[-1]),
        2.0 * weight * notch,
        ">=",
        excess=excess(np.abs(path.points.sum(axis=1) - 2.0), np.zeros(len(path.points))),
    )


def examples() -> Iterator[Check]:
    """Check it after 1500 and after 5000 steps."""
    yield loosen(lambda notch: check(1500, notch=notch))
    yield loosen(lambda notch: check(5000, notch=notch))
