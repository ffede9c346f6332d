"""The rows of a trajectory that a fit can use, as arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from warmgap._checks import check_count, check_finite

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from warmgap.smoothness.records import Record

At = Literal["start", "end", "middle"]


@dataclass(frozen=True)
class Points:
    """Usable rows, in the order of the trajectory; `dropped` counts the others."""

    step: NDArray[Any]
    gap: NDArray[Any]
    ratio: NDArray[Any]
    step_length: NDArray[Any]
    dual_norm: NDArray[Any]
    dropped: int
    estimator: str = "same-batch"
    norm: str = ""

    def __len__(self) -> int:
        return len(self.gap)

    def take(self, rows: NDArray[Any]) -> Points:
        """Return the rows with these indices, in their order."""
        columns = (self.step, self.gap, self.ratio, self.step_length, self.dual_norm)
        step, gap, ratio, step_length, dual_norm = (column[rows] for column in columns)
        return Points(step, gap, ratio, step_length, dual_norm, self.dropped, self.estimator, self.norm)


def points_of(records: Iterable[Record], *, at: At = "start", target_loss: float | None = None) -> Points:
    """Return the rows whose numbers are finite and whose step is not of length zero.

    Raises:
        ValueError: If there is none, `at` is unknown, or the rows were measured in several ways.
    """
    import numpy as np

    records = list(records)
    if at not in ("start", "end", "middle"):
        raise ValueError(f"at must be 'start', 'end' or 'middle', got {at!r}")
    for what in ("estimator", "norm"):
        if len(seen := {getattr(record, what) for record in records}) > 1:
            raise ValueError(
                f"the records are of more than one {what} ({', '.join(sorted(seen))}), and their ratios cannot be "
                "compared; take those of one"
            )
    rows = []
    for record in sorted(records, key=lambda record: record.step):
        target = record.loss - record.gap if target_loss is None else check_finite("target_loss", target_loss)
        loss = {"start": record.loss, "end": record.loss_after, "middle": 0.5 * (record.loss + record.loss_after)}[at]
        # The gap as it was written, where it is that: taken apart and put together again it would be rounded.
        gap = record.gap if at == "start" and target_loss is None else loss - target
        rows.append((record.step, gap, record.ratio, record.step_length, record.dual_norm))
    table = np.array(rows, dtype=float).reshape(-1, 5)
    usable = np.isfinite(table).all(axis=1) & (table[:, 3] > 0.0)
    table = table[usable]
    if not len(table):
        raise ValueError(
            f"none of the {len(rows)} records can be used: a record needs a finite gap, ratio and dual norm and a step "
            "that is not of length zero; did the optimizer move these parameters?"
        )
    step, gap, ratio, step_length, dual_norm = table.T
    return Points(
        step, gap, ratio, step_length, dual_norm, len(rows) - len(table), records[0].estimator, records[0].norm
    )


def check_gaps(points: Points) -> None:
    """Raise ValueError unless every gap is above zero and they are not all the same."""
    import numpy as np

    if (below := int((points.gap <= 0.0).sum())) > 0:
        raise ValueError(
            f"the target loss lies at or above {below} of {len(points)} losses, and a gap must be above 0; give a "
            "lower target_loss"
        )
    if np.ptp(points.gap) <= 1e-12 * points.gap.max():
        raise ValueError(
            f"the gap is {points.gap[0]:g} in all {len(points)} records, so nothing can be said of how the ratio "
            "depends on it; measure while the loss falls"
        )


def check_resamples(resamples: int, seed: int) -> None:
    """Raise ValueError unless there are enough bootstrap resamples, and the seed is a whole number."""
    check_count("resamples", resamples, minimum=20, hint="an interval needs that many")
    check_count("seed", seed, minimum=0)


def resampled(points: Points, resamples: int, seed: int) -> list[Points]:
    """Moving-block bootstrap: stretches of the trajectory, drawn with replacement and put together to its length."""
    import numpy as np

    count = len(points)
    length = min(count, max(1, round(2.0 * count ** (1.0 / 3.0))))
    pieces = math.ceil(count / length)
    generator = np.random.default_rng(seed)
    starts = generator.integers(0, count, size=(resamples, pieces))
    # Round the end, so that the first and the last points are drawn as often as the others.
    picks = ((starts[:, :, None] + np.arange(length)) % count).reshape(resamples, -1)[:, :count]
    return [points.take(pick) for pick in picks]
