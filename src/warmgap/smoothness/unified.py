"""The unified parametric assumption: does the gradient point away from where the run ended?

    <grad f(x), x - x*> >= c1 * P(x) - c2

with P the loss gap or the squared gradient norm, c1 > 0 and c2 >= 0 only needed at outliers. It holds with c2 = 0 for
star-convex functions (P the gap, c1 = 1), under weak quasi-convexity and aiming (c1 < 1).

Source: arXiv 2502.12329, Assumption 1, and its protocol: x* is the last iterate. Loss, gradient and reference loss of a
point are taken on one and the same batch. `warmgap.torch.TrajectoryChecker` does so along a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from warmgap._checks import check_finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

Progress = Literal["gap", "gradient"]


@dataclass(frozen=True)
class UnifiedCheck:
    """The two sides of the inequality along a trajectory.

    Attributes:
        inner: `<grad f(x), x - x*>` of each point.
        progress: P of each point.
        dropped: Points that were not finite.

    Example:
        >>> check = UnifiedCheck.of(inner=[2.0, 1.0, 0.1], progress=[1.0, 0.5, 0.2])
        >>> check.largest_c1, check.c2(1.0), round(check.outliers(1.0), 2)
        (0.5, 0.1, 0.33)
    """

    inner: NDArray[Any]
    progress: NDArray[Any]
    dropped: int = 0

    @classmethod
    def of(cls, inner: ArrayLike, progress: ArrayLike) -> UnifiedCheck:
        """Return the check of these points, those that are not finite left out and counted.

        Raises:
            ValueError: If the two differ in length, or no point is finite.
        """
        import numpy as np

        left, right = np.asarray(inner, dtype=float), np.asarray(progress, dtype=float)
        if left.shape != right.shape or left.ndim != 1:
            raise ValueError(f"inner and progress need a number for each point, got shapes {left.shape}, {right.shape}")
        finite = np.isfinite(left) & np.isfinite(right)
        if not finite.any():
            raise ValueError(f"none of the {len(left)} points of the trajectory is finite")
        return cls(left[finite], right[finite], int((~finite).sum()))

    def margin(self, c1: float) -> NDArray[Any]:
        """Return `inner - c1*P` of each point: below 0 at those that need the c2 term.

        Raises:
            ValueError: If c1 is not a finite number.
        """
        margin: NDArray[Any] = self.inner - check_finite("c1", c1) * self.progress
        return margin

    def c2(self, c1: float) -> float:
        """Return the smallest c2 >= 0 with which the inequality holds at every point: `max(c1*P - inner)`.

        Raises:
            ValueError: If c1 is not a finite number.
        """
        return max(0.0, float(-self.margin(c1).min()))

    @property
    def largest_c1(self) -> float:
        """The largest c1 with which the inequality holds with c2 = 0 wherever P > 0: the smallest `inner/P` there.

        At or below zero where the assumption fails without outliers; NaN where P is nowhere above 0. A point with
        P <= 0 may need a c2 of its own: `c2(largest_c1)` tells.
        """
        rows = self.progress > 0.0
        return float((self.inner[rows] / self.progress[rows]).min()) if rows.any() else math.nan

    def outliers(self, c1: float) -> float:
        """Return the share of the points that need the c2 term: `inner < c1*P`."""
        return float((-self.margin(c1) > 1e-12 * abs(self.inner)).mean())

    def residual(self, c1: float) -> float:
        """Return the mean shortfall, `max(0, c1*P - inner)` averaged over the points."""
        return float((-self.margin(c1)).clip(min=0.0).mean())


def pooled(checks: Sequence[UnifiedCheck]) -> UnifiedCheck:
    """Return the check of the points of several runs, such as several seeds: one c1 and one c2 for all of them.

    Raises:
        ValueError: If there is none.

    Example:
        >>> pooled([UnifiedCheck.of([2.0], [1.0]), UnifiedCheck.of([0.5], [1.0])]).largest_c1
        0.5
    """
    import numpy as np

    if not checks:
        raise ValueError("nothing to pool: give the checks of at least one run")
    inner, progress = (np.concatenate([getattr(check, name) for check in checks]) for name in ("inner", "progress"))
    return UnifiedCheck(inner, progress, sum(check.dropped for check in checks))


def unified_figure(checks: Sequence[UnifiedCheck], c1: float) -> Figure:
    """Return the published picture: `inner - c1*P` along the run, mean and range over the seeds, and -c2.

    Args:
        checks: The check of each seed, with the same number of points.
        c1: The constant.

    Raises:
        ValueError: If there is no check, they differ in length, or c1 is not a finite number.

    Example:
        >>> seeds = [UnifiedCheck.of([2.0, 1.0], [1.0, 0.5]), UnifiedCheck.of([1.5, 0.9], [1.0, 0.6])]
        >>> unified_figure(seeds, c1=1.0).savefig("unified.png")
    """
    import numpy as np
    from matplotlib.figure import Figure

    c2 = pooled(checks).c2(c1)
    if len({len(check.inner) for check in checks}) > 1:
        raise ValueError(f"the seeds must have as many points each, got {[len(check.inner) for check in checks]}")
    margins = np.array([check.margin(c1) for check in checks])
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    points = np.arange(margins.shape[1])
    axes.fill_between(points, margins.min(axis=0), margins.max(axis=0), color="#5B84AB", alpha=0.3, linewidth=0)
    axes.plot(points, margins.mean(axis=0), color="#1F4E79", label=f"mean and range of {len(checks)} runs")
    axes.axhline(-c2, color="#D55E00", linestyle="--", label=f"-c2 = {-c2:.3g}")
    axes.axhline(0.0, color="#666666", linewidth=0.8)
    axes.set(xlabel="point of the run", ylabel="inner - c1 P", title=f"c1 = {c1:g}")
    axes.legend(frameon=False)
    return figure
