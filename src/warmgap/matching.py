"""Target-shape matching: which peak gap makes the response curve look like a hand-drawn warm-up.

Source: arXiv 2602.05813, section 5 (3) and appendix D.2, step 4.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from warmgap._checks import check_fraction, check_positive, warn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_HALF_WINDOW = (
    12.0  # standard deviations of the Gaussian weight kept on each side of the peak: exp(-72) of it is left out
)
_PANELS = (0.0, 0.02, 0.1, 0.3, 1.0)  # shares of a window, graded towards the peak, where the curve is narrow
_NODES = 24  # Gauss-Legendre nodes a panel


def match_peak_gap(initial_gap: float, floor: float, kappa: float, sigma: float = 1e-3) -> float:
    """Return the peak gap whose response curve fits the target shape best.

    The target rises as a cosine from 0 to 1 between gap 0 and the peak gap, and falls as a line from 1 to `floor`
    between the peak gap and the initial gap. The squared difference to the curve is weighted by `exp(-(gap -
    peak_gap)**2 * sigma*kappa/2)` and integrated over (0, initial_gap). In units of the initial gap the minimiser
    depends on `floor` and `sigma*kappa*initial_gap**2` alone.

    This is the true minimiser, to 1e-6 of `initial_gap`, the global one where there are two. (From a floor of about 1/2
    on the objective can be lower still in the limit of a peak gap of 0, where the curve has no peak and warm-up no
    end: that limit is not an answer.) The method's published solver is not the minimiser: its adaptive quadrature stops
    at an absolute tolerance above the size of the integrand and steps over the narrow weight. For a 124M LLaMA at
    initial gap 7.8, floor 0.01 and learning rate 1e-3 it returns 6.12 for Muon (kappa 65280) where its own objective is
    smallest at 2.55, and 0.384 for Lion (kappa 1.24e8) where it is smallest at 0.763. The lab keeps that solver as the
    rule `published`.

    Args:
        initial_gap: Loss minus target loss at the start, > 0.
        floor: Starting learning rate / peak learning rate, in (0, 1).
        kappa: The constant of the optimizer's norm, from `warmgap.kappa`, > 0.
        sigma: Curvature scale of the Gaussian weight in the Euclidean norm (the paper's sigma_F), > 0.

    Returns:
        The peak gap, in (0, initial_gap).

    Raises:
        ValueError: If an argument lies outside its range.

    Warns:
        UserWarning: If a second, distant local minimum is within a factor of 2 of the best: then a small change of
            the arguments can move the answer far.

    Example:
        >>> round(match_peak_gap(7.8, floor=0.01, kappa=65_280), 1)
        2.5

    Source: arXiv 2602.05813, appendix D.2, step 4; the objective as in the method's published code.
    """
    check_positive("initial_gap", initial_gap, "the gap is loss minus target loss: give a lower target_loss")
    check_fraction("floor", floor, "it is starting learning rate / peak learning rate")
    check_positive("kappa", kappa)
    check_positive("sigma", sigma)
    share, rival = best_share(float(floor), float(sigma) * float(kappa) * float(initial_gap) ** 2)
    if rival is not None:
        warn(
            f"match_peak_gap has two nearly equal answers here, {share:.3g} and {rival:.3g} of the initial gap; "
            "the better one is returned, and a slightly different floor, sigma or target_loss may give the other"
        )
    return share * float(initial_gap)


def mismatch(share: NDArray[np.float64], floor: float, sharpness: float) -> NDArray[np.float64]:
    """Return the objective of `match_peak_gap` for peak gaps given as shares of the initial gap.

    Args:
        share: Peak gap / initial gap, any shape, each in (0, 1).
        floor: Starting learning rate / peak learning rate, in (0, 1).
        sharpness: `sigma*kappa*initial_gap**2`, the inverse variance of the weight in units of the initial gap.

    Returns:
        The weighted integral of the squared difference between curve and target, in units of the initial gap; the
        shape of `share`.
    """
    import numpy as np

    nodes, weights = _quadrature()
    width = _HALF_WINDOW / np.sqrt(sharpness)
    p = np.asarray(share, dtype=np.float64)[..., None]
    steepness = 1.0 / floor - 1.0
    total = np.zeros(np.shape(share))
    for side, reach in ((-1.0, np.minimum(p, width)), (1.0, np.minimum(1.0 - p, width))):
        offset = side * reach * nodes
        z = p + offset
        curve = 1.0 / (1.0 + steepness * (offset / (1.0 - p)) ** 2 / z)
        target = 0.5 - 0.5 * np.cos(np.pi * z / p) if side < 0 else 1.0 - (1.0 - floor) * offset / (1.0 - p)
        density = np.exp(-0.5 * sharpness * offset * offset)
        total += (density * (curve - target) ** 2 * weights).sum(-1) * reach[..., 0]
    return total


@lru_cache(maxsize=1)
def _quadrature() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Gauss-Legendre nodes and weights on (0, 1), in panels that are fine near both ends."""
    import numpy as np

    x, w = np.polynomial.legendre.leggauss(_NODES)
    half = np.asarray(_PANELS)
    edges = np.concatenate([half * 0.5, 1.0 - half[-2::-1] * 0.5])
    spans = np.diff(edges)
    nodes = edges[:-1, None] + spans[:, None] * (x + 1.0) / 2.0
    return nodes.ravel(), (spans[:, None] * w / 2.0).ravel()


@lru_cache(maxsize=256)
def best_share(floor: float, sharpness: float) -> tuple[float, float | None]:
    """Return the best peak gap / initial gap, and a rival local minimum within a factor of 2 of it, if there is one.

    Args:
        floor: Starting learning rate / peak learning rate, in (0, 1).
        sharpness: `sigma*kappa*initial_gap**2`, the inverse variance of the weight in units of the initial gap.
    """
    import numpy as np

    # outside this range the answer moves by less than the stated accuracy, and the arithmetic would overflow
    sharpness = min(max(sharpness, 1e-12), 1e30)
    smallest = min(1e-3, 0.02 / np.sqrt(sharpness))
    grid = np.unique(np.concatenate([np.geomspace(smallest, 0.05, 48), np.linspace(0.05, 0.999, 96)]))
    values = mismatch(grid, floor, sharpness)
    inner = np.flatnonzero((values[1:-1] <= values[:-2]) & (values[1:-1] <= values[2:])) + 1
    if inner.size == 0:
        inner = np.array([np.clip(values.argmin(), 1, grid.size - 2)])
    minima = sorted(_refine(float(grid[i - 1]), float(grid[i + 1]), floor, sharpness) for i in inner)
    minima.sort(key=lambda pair: pair[1])
    (share, best), rest = minima[0], minima[1:]
    rivals = [p for p, value in rest if value <= 2.0 * best and abs(p - share) > 0.01]
    return share, rivals[0] if rivals else None


def _refine(low: float, high: float, floor: float, sharpness: float) -> tuple[float, float]:
    """Return (minimiser, minimum) of the mismatch in [low, high], by narrowing a grid."""
    import numpy as np

    while True:
        grid = np.linspace(low, high, 17)
        values = mismatch(grid, floor, sharpness)
        i = int(np.clip(values.argmin(), 1, 15))
        low, high = float(grid[i - 1]), float(grid[i + 1])
        if high - low < 1e-6:
            return float(grid[i]), float(values[i])
