"""The norms of the field on NumPy arrays: norm, dual norm and linear minimisation oracle (LMO).

    name         dual(g)      lmo(g)         euclidean
    frobenius    Frobenius    -g / ||g||     1
    max          l1           -sign(g)       sqrt(number of entries)
    spectral     nuclear      -U V^T         sqrt(min(rows, columns))

lmo(g) minimises <g, q> over ||q|| <= 1, so <g, lmo(g)> = -dual(g), and lmo(0) = 0. On a vector, "frobenius" is the
Euclidean norm, l2.

Source: arXiv 2602.05813, section 1 and appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from warmgap.geometry import NormName, kappa

__all__ = ["Array", "Norm", "frobenius", "maximum", "singular_values", "spectral"]

Array = NDArray[np.float64]
"""What the theory computes on: float64 arrays of any shape; the spectral norm asks for matrices."""


@dataclass(frozen=True)
class Norm:
    """A norm with what the proofs use of it.

    Attributes:
        name: Its name, as in `warmgap.kappa`.
        norm: The norm of an array.
        dual: The dual norm of an array.
        lmo: The point of the unit ball that minimises the inner product with an array.
    """

    name: NormName
    norm: Callable[[Array], float]
    dual: Callable[[Array], float]
    lmo: Callable[[Array], Array]

    def euclidean(self, shape: tuple[int, ...]) -> float:
        """Return the sup of dual norm / l2 norm over arrays of this shape."""
        return math.sqrt(kappa(self.name, [shape]))


def _l2(x: Array) -> float:
    return float(np.linalg.norm(x.ravel()))


def _l2_lmo(g: Array) -> Array:
    length = _l2(g)
    return -g / length if length > 0.0 else np.zeros_like(g)


def singular_values(x: Array) -> Array:
    """Return the singular values of a matrix, the largest first."""
    return np.asarray(np.linalg.svd(x, compute_uv=False), dtype=float)


def _spectral_lmo(g: Array) -> Array:
    u, s, vt = np.linalg.svd(g, full_matrices=False)
    # A singular value at rounding level has no direction of its own.
    kept = s > s[0] * max(g.shape) * np.finfo(float).eps
    return np.asarray(-(u[:, kept] @ vt[kept]))


frobenius = Norm("frobenius", _l2, _l2, _l2_lmo)
"""The root of the sum of squares; normalized SGD."""

maximum = Norm(
    "max",
    lambda x: float(np.abs(x).max()),
    lambda g: float(np.abs(g).sum()),
    lambda g: -np.sign(g),
)
"""The largest absolute entry; signSGD and Lion."""

spectral = Norm(
    "spectral",
    lambda x: float(singular_values(x).max()),
    lambda g: float(singular_values(g).sum()),
    _spectral_lmo,
)
"""The largest singular value of a matrix; Muon."""
