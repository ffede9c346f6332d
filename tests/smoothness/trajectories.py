"""Trajectories with known constants: records made by hand, and steps on functions whose curvature is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmgap.smoothness import Block, Record

Array = NDArray[Any]


def records_of(
    curvature: Callable[[float], float], count: int = 60, *, noise: float = 0.0, seed: int = 0, share: float = 0.1
) -> list[Record]:
    """A run whose gap falls from 8 to 0.5 and whose ratio is `curvature(gap)`, times noise.

    A step changes the gradient by `share` of itself.
    """
    generator = np.random.default_rng(seed)
    found = []
    for step, gap in enumerate(np.geomspace(8.0, 0.5, count).tolist()):
        ratio = curvature(gap) * (1.0 + noise * float(generator.standard_normal()))
        found.append(Record(step, gap + 1.0, gap, ratio, 0.01, 0.01 * ratio / share, loss_after=gap + 1.0))
    return found


def layered(count: int = 60, noise: float = 0.0) -> list[Record]:
    """A run of three blocks: L0 = 1, L1 = 3; one with a constant ratio; one that never moves."""
    generator = np.random.default_rng(1)
    found = []
    for step, dual in enumerate(np.geomspace(20.0, 0.1, count).tolist()):
        blocks = (
            Block("good", "spectral", (1.0 + 3.0 * dual) * (1.0 + noise * generator.standard_normal()), 0.01, dual),
            Block("flat", "max", 5.0, 0.01, dual),
            Block("still", "max", math.nan, 0.0, dual),
        )
        found.append(Record(step, dual, dual, 1.0 + dual, 0.01, dual, blocks=blocks))
    return found


def walk(
    loss: Callable[[Array], float],
    gradient: Callable[[Array], Array],
    start: Array,
    *,
    length: float,
    steps: int,
    norm: Callable[[Array], float],
    dual: Callable[[Array], float],
    lmo: Callable[[Array], Array],
) -> list[Record]:
    """LMO steps of a fixed length, measured as the probe measures them."""
    x, found = start.astype(float), []
    for step in range(steps):
        g = gradient(x)
        y = x + length * lmo(g)
        change = gradient(y) - g
        moved = norm(y - x)
        found.append(Record(step, loss(x), loss(x), dual(change) / moved, moved, dual(g), loss_after=loss(y)))
        x = y
    return found
