"""The unified parametric assumption: does the gradient point away from where the run ended?

    <grad f(x), x - x*> >= c1 * P(x) - c2

with P the loss gap or the squared gradient norm, c1 > 0 and c2 >= 0 only needed at outliers. It holds with c2 = 0 for
star-convex functions (P the gap, c1 = 1), under weak quasi-convexity and aiming (c1 < 1).

Source: arXiv 2502.12329, Assumption 1, and its protocol: x* is the last iterate. Loss, gradient and reference loss of a
point are taken on one and the same batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from warmgap._checks import check_finite

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Progress = Literal["gap", "gradient"]


@dataclass(frozen=True)
class UnifiedCheck:
    """The two sides of the inequality along a trajectory.

    Attributes:
        inner: `<grad f(x), x - x*>` of each point.
        progress: P of each point.
        dropped: Points that were not finite.
    """

    inner: NDArray[Any]
    progress: NDArray[Any]
    dropped: int = 0

    def c2(self, c1: float) -> float:
        """Return the smallest c2 >= 0 with which the inequality holds at every point: `max(c1*P - inner)`.

        Raises:
            ValueError: If c1 is not a finite number.
        """
        return max(0.0, float((check_finite("c1", c1) * self.progress - self.inner).max()))

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
        shortfall = check_finite("c1", c1) * self.progress - self.inner
        return float((shortfall > 1e-12 * abs(self.inner)).mean())

    def residual(self, c1: float) -> float:
        """Return the mean shortfall, `max(0, c1*P - inner)` averaged over the points."""
        return float((check_finite("c1", c1) * self.progress - self.inner).clip(min=0.0).mean())


class TrajectoryChecker:
    """Collects points of a run, then compares each with where the run ended.

    `record` copies parameters and gradient: take a point an epoch, or every hundred steps.

    Source: arXiv 2502.12329, the measurement protocol.
    """

    def __init__(self) -> None:
        self._points: list[tuple[NDArray[Any], NDArray[Any], float, Any]] = []

    def __len__(self) -> int:
        return len(self._points)

    def record(self, params: ArrayLike, grad: ArrayLike, loss: float, batch: Any = None) -> None:
        """Keep a point.

        Args:
            params: The parameters as one array, any shape; of a PyTorch model
                `torch.nn.utils.parameters_to_vector(model.parameters()).detach()`.
            grad: The gradient there, of the same shape, on `batch`.
            loss: The loss there, on `batch`.
            batch: Handed to `loss_fn` in `finalize`.

        Raises:
            ValueError: If the shapes of parameters, gradient and earlier points differ.
        """
        import numpy as np

        x, g = np.array(params, dtype=float), np.array(grad, dtype=float)
        expected = self._points[0][0].shape if self._points else x.shape
        if x.shape != expected or g.shape != expected:
            raise ValueError(
                f"parameters and gradient must have one shape at every point, got {x.shape} and {g.shape}, "
                f"expected {expected}"
            )
        self._points.append((x, g, float(loss), batch))

    def finalize(
        self,
        reference: ArrayLike | None = None,
        loss_fn: Callable[[NDArray[Any], Any], float] | None = None,
        *,
        progress: Progress = "gap",
    ) -> UnifiedCheck:
        """Return both sides of the inequality at every point.

        Args:
            reference: x*, the last point recorded unless given.
            loss_fn: Maps (parameters, batch) to a loss: called at x* on each point's own batch. Only `"gap"` needs it.
            progress: `"gap"`: P is the loss minus the reference's loss on the same batch; `"gradient"`: the squared
                Euclidean norm of the gradient.

        Raises:
            ValueError: If there are fewer than two points, none is finite, the reference is not, `progress` is
                unknown, or `"gap"` comes without a `loss_fn`.
        """
        import numpy as np

        if len(self._points) < 2:
            raise ValueError(f"a trajectory has at least two points, got {len(self._points)}")
        if progress not in ("gap", "gradient"):
            raise ValueError(f"progress must be 'gap' or 'gradient', got {progress!r}")
        if progress == "gap" and loss_fn is None:
            raise ValueError("the loss gap needs loss_fn, which gives the reference's loss on each point's batch")
        end = self._points[-1][0] if reference is None else np.asarray(reference, dtype=float)
        if end.shape != self._points[0][0].shape:
            raise ValueError(f"reference must have the points' shape {self._points[0][0].shape}, got {end.shape}")
        if not np.isfinite(end).all():
            where = "the last point, which is the reference," if reference is None else "the reference"
            raise ValueError(f"{where} is not finite; give a reference that is")
        # The last point itself has nothing to say about the way to it.
        points = self._points[:-1] if reference is None else self._points
        inner = np.array([float(np.vdot(g, x - end)) for x, g, _, _ in points])
        if loss_fn is not None and progress == "gap":
            sizes = np.array([loss - float(loss_fn(end, batch)) for _, _, loss, batch in points])
        else:
            sizes = np.array([float(np.vdot(g, g)) for _, g, _, _ in points])
        finite = np.isfinite(inner) & np.isfinite(sizes)
        if not finite.any():
            raise ValueError("no point of the trajectory is finite")
        return UnifiedCheck(inner[finite], sizes[finite], int((~finite).sum()))
