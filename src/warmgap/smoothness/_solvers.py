"""The ways to find the constants of a bound that is linear in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from warmgap._checks import check_fraction

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

Solve = Callable[["Array", "Array"], "Array"]

HINGE = 5.0
"""Extra weight of a ratio above the fit, in the layer-wise assumption's published fit (lambda)."""


def solver(method: str, quantile: float) -> Solve:
    """Return the function that finds the constants, given the columns of the bound and the ratios.

    Raises:
        ValueError: If the method is unknown or the quantile out of range.
    """
    check_fraction("quantile", quantile, "it is the share of the ratios that the envelope covers")
    if method == "nnls":
        return _nnls
    if method == "lstsq":
        return _lstsq
    if method == "envelope":
        return lambda basis, ratio: _envelope(basis, ratio, quantile)
    if method == "hinge":
        return _hinge
    raise ValueError(f"method must be 'nnls', 'lstsq', 'envelope' or (layers) 'hinge', got {method!r}")


def cost_of(method: str, quantile: float) -> Callable[[Array], float]:
    """What the method makes small, of the residuals ratio - fit."""
    import numpy as np

    if method == "envelope":
        return lambda residual: float(np.where(residual > 0, quantile, quantile - 1.0) @ residual)
    return lambda residual: float(residual @ residual)


def _scaled(solve: Solve, basis: Array, ratio: Array) -> Array:
    """Solve with columns and right side of size one: gap**rho and the ratio may differ by many orders."""
    import numpy as np

    # A resample can miss the only points at which a column is not zero.
    sizes = np.where((sizes := np.abs(basis).max(axis=0)) > 0.0, sizes, 1.0)
    size = np.abs(ratio).max() or 1.0
    return cast("Array", solve(basis / sizes, ratio / size) * size / sizes)


def _nnls(basis: Array, ratio: Array) -> Array:
    return _scaled(_nnls_reduced, basis, ratio)


def _nnls_reduced(basis: Array, ratio: Array) -> Array:
    import numpy as np
    from scipy import optimize

    # The triangle of a QR decomposition has the same solution, in as many rows as there are constants.
    q, r = np.linalg.qr(basis)
    solution: Array = optimize.nnls(r, q.T @ ratio)[0]
    return solution


def _lstsq(basis: Array, ratio: Array) -> Array:
    import numpy as np

    return _scaled(lambda b, y: np.linalg.lstsq(b, y, rcond=None)[0], basis, ratio)


def _envelope(basis: Array, ratio: Array, quantile: float) -> Array:
    return _scaled(lambda b, y: _quantile_regression(b, y, quantile), basis, ratio)


def _quantile_regression(basis: Array, ratio: Array, quantile: float) -> Array:
    """Constants >= 0 that minimise sum(quantile * above + (1 - quantile) * below), through the dual linear programme.

    The dual has as many rows as there are constants, and is solved in a fraction of the primal's time.
    """
    import numpy as np
    from scipy import optimize

    # primal: min q 1.u + (1-q) 1.v, B c + u - v = y, c, u, v >= 0;  dual: max y.d, B'd <= 0, q - 1 <= d <= q
    found = optimize.linprog(-ratio, A_ub=basis.T, b_ub=np.zeros(basis.shape[1]), bounds=(quantile - 1.0, quantile))
    if found.status != 0:
        raise ValueError(f"the envelope could not be fitted: {found.message}")
    constants: Array = -found.ineqlin.marginals
    return constants


def _hinge(basis: Array, ratio: Array) -> Array:
    return _scaled(_hinge_scaled, basis, ratio)


def _hinge_scaled(basis: Array, ratio: Array) -> Array:
    """Reweighted until the set of ratios above the fit no longer changes: a convex problem, solved exactly."""
    import numpy as np

    constants = _nnls_reduced(basis, ratio)
    above = ratio > basis @ constants
    for _ in range(100):
        weight = np.sqrt(np.where(above, 1.0 + HINGE, 1.0))
        constants = _nnls_reduced(basis * weight[:, None], ratio * weight)
        now = ratio > basis @ constants
        if (now == above).all():
            break
        above = now
    return constants
