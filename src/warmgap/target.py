"""Where the target loss comes from: given by the user, or estimated while the model trains.

The paper fixes it by hand for each optimizer (3.2 for Muon, 3.51 for Lion, 4.3 for normalized SGD) and shows that a
bad one costs: with target 0 its Muon run ends at 3.717 where the best hand-tuned warm-up ends at 3.471 (arXiv
2602.05813, section 6.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from warmgap._checks import check_finite, plain_fields
from warmgap._state import State

MEAN_DECAY = 0.5
"""Mean factor expected over a run, to say how far it will travel: that of a cosine or a line to 0."""

LOWEST_SHARE = 0.2
"""The estimate never lies below this share of a positive initial loss; the paper's own are 0.30 to 0.40 of it."""

MARGIN = 0.05
"""The estimate stays below the best loss seen by at least this share of what the run has gained so far."""


@dataclass(frozen=True)
class Descent(State):
    """What is known of the run so far.

    Attributes:
        initial_loss: The first clean loss; None before it.
        best_loss: The lowest clean loss; None before the first.
        distance: Sum of the factors of the steps made.
        total_distance: Expected sum of factors at the end of the run; None where the length is unknown.
    """

    initial_loss: float | None = None
    best_loss: float | None = None
    distance: float = 0.0
    total_distance: float | None = None


class Gap(NamedTuple):
    """The gap at the start, the gap of the lowest clean loss, and the target loss that both are taken to."""

    initial: float
    now: float
    target_loss: float


@dataclass(frozen=True)
class Target:
    """The target loss: a number, or `"auto"` to estimate it from the descent so far.

    Attributes:
        loss: The loss taken as optimal, or `"auto"`.

    Raises:
        ValueError: If it is neither.
    """

    loss: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.loss != "auto":
            check_finite("target_loss", self.loss, "give the loss taken as optimal, or 'auto'")

    def init(self, total_iters: int | None = None) -> Descent:
        """Return the descent before the first step of a run of `total_iters` steps."""
        return Descent(total_distance=None if total_iters is None else MEAN_DECAY * total_iters)

    def step(self, descent: Descent, clean: float, factor: float) -> tuple[Descent, Gap]:
        """Return the descent after a step that ran at `factor` and showed the clean loss `clean`, and its gap."""
        initial = clean if descent.initial_loss is None else descent.initial_loss
        best = clean if descent.best_loss is None else min(clean, descent.best_loss)
        descent = replace(descent, initial_loss=initial, best_loss=best, distance=descent.distance + factor)
        return descent, self._gap(initial, best, descent)

    def reading(self, descent: Descent) -> tuple[float | None, float | None]:
        """Return (gap of the lowest loss, target loss), each None where a loss is needed for it and there was none."""
        if descent.initial_loss is None or descent.best_loss is None:
            return None, None if self.loss == "auto" else self.loss
        gap = self._gap(descent.initial_loss, descent.best_loss, descent)
        return gap.now, gap.target_loss

    def _gap(self, initial: float, best: float, descent: Descent) -> Gap:
        target = self.loss
        if target == "auto":
            total = descent.distance if descent.total_distance is None else descent.total_distance
            target = estimate_target_loss(initial, best, descent.distance, total)
        return Gap(initial - target, best - target, target)


def estimate_target_loss(initial_loss: float, best_loss: float, distance: float, total_distance: float) -> float:
    """Return an estimate of the loss that the run will reach, from what it has reached so far.

    A positive loss is taken to fall as a power of the distance travelled, `initial_loss * (1 + distance)**-a`, any
    other one as its logarithm; either is followed from the start through the best loss so far to the end of the run.
    The result is held between `LOWEST_SHARE * initial_loss` (for a positive initial loss) and `MARGIN` under the best
    loss, so that the gap is never zero.

    Args:
        initial_loss: The first clean loss.
        best_loss: The lowest clean loss so far.
        distance: Sum of the factors of all steps so far (steps at the peak learning rate), >= 0.
        total_distance: The same sum at the end of the run, or an estimate of it.

    Returns:
        The target loss, below `best_loss`.
    """
    gain = initial_loss - best_loss
    # a loss of 0 that has gained nothing has no scale of its own
    slack = MARGIN * max(gain, 0.01 * abs(initial_loss)) or MARGIN
    highest = best_loss - slack
    stretch = max(1.0, math.log1p(max(total_distance, distance)) / math.log1p(distance)) if distance > 0.0 else math.inf
    if initial_loss > 0.0:
        lowest = LOWEST_SHARE * initial_loss
        ratio = max(best_loss, lowest) / initial_loss
        reached = initial_loss * ratio**stretch if ratio < 1.0 else best_loss
        return min(highest, max(lowest, reached))
    return min(highest, initial_loss - gain * stretch if gain > 0.0 else highest)
