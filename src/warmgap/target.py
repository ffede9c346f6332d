"""Where the target loss comes from: given by the user, or estimated while the model trains.

The paper fixes it by hand for each optimizer (3.2 for Muon, 3.51 for Lion, 4.3 for normalized SGD) and shows that a
bad one costs: with target 0 its Muon run ends at 3.717 where the best hand-tuned warm-up ends at 3.471 (arXiv
2602.05813, section 6.3).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from warmgap._ops import Floats, Ops

MEAN_DECAY = 0.5
"""Mean factor expected over a run, for its cumulative factor: that of a cosine or a line to 0."""

LOWEST_SHARE = 0.2
"""The estimate never lies below this share of a positive initial loss; the paper's own are 0.30 to 0.40 of it."""

MARGIN = 0.05
"""The estimate stays below the best loss seen by at least this share of what the run has gained so far."""

_LEAST_GAIN = 0.01  # share of the initial loss that counts as gained at least, for that margin
_TINY = 1e-30  # the logarithm at the start is 0


class Gap(NamedTuple):
    """The gap at the start, the gap of the lowest clean loss, and the target loss that both are taken to."""

    initial: float
    now: float
    target_loss: float


class Descent(NamedTuple):
    """The descent of the loss so far."""

    total: float  # the cumulative factor expected at the end of the run
    distance: float = 0.0  # the cumulative factor: the sum of the factors of the steps made
    initial_loss: float = 0.0  # the first clean loss; 0 before it
    best_loss: float = 0.0  # the lowest clean loss; 0 before the first
    seen: bool = False  # whether there was a loss

    def step(self, clean: float, factor: float, ops: Ops) -> Descent:
        """Return the descent after a step that ran at `factor` and showed the clean loss `clean`."""
        return Descent(
            total=self.total,
            distance=self.distance + factor,
            initial_loss=ops.where(self.seen, self.initial_loss, clean),
            best_loss=ops.where(self.seen, ops.minimum(clean, self.best_loss), clean),
            seen=self.seen | True,
        )

    def gap(self, target_loss: float | Literal["auto"], ops: Ops) -> Gap:
        """Return the gaps to a target loss, or to an estimate of it, of a descent with a loss in it."""
        if target_loss == "auto":
            target_loss = estimate_target_loss(self.initial_loss, self.best_loss, self.distance, self.total, ops)
        return Gap(self.initial_loss - target_loss, self.best_loss - target_loss, target_loss)


def estimate_target_loss(
    initial_loss: float, best_loss: float, distance: float, total_distance: float, ops: Ops = Floats
) -> float:
    """Return an estimate of the loss that the run will reach, from what it has reached so far.

    A positive loss is taken to fall as a power of the cumulative factor, `initial_loss * (1 + distance)**-a`, any other
    one as its logarithm; both curves go through the first and the best loss and are extrapolated to the end of the run.
    The estimate is clipped to at least `LOWEST_SHARE * initial_loss` (for a positive initial loss) and to `MARGIN`
    below the best loss, so that the gap is never zero.

    Args:
        initial_loss: The first clean loss.
        best_loss: The lowest clean loss so far.
        distance: The cumulative factor so far (steps at the peak learning rate), >= 0.
        total_distance: The same at the end of the run, or an estimate of it.
        ops: The operations to compute with.

    Returns:
        The target loss, below `best_loss`.

    Example:
        >>> print(f"{estimate_target_loss(10.0, 6.0, distance=50.0, total_distance=500.0):.2f}")
        4.46
    """
    gain = initial_loss - best_loss
    slack = MARGIN * ops.maximum(gain, _LEAST_GAIN * abs(initial_loss))
    # a loss of 0 that has gained nothing has no scale of its own
    highest = best_loss - ops.where(slack > 0.0, slack, MARGIN)
    now = ops.log1p(distance)
    stretch = ops.maximum(1.0, ops.log1p(ops.maximum(total_distance, distance)) / ops.maximum(now, _TINY))
    lowest = LOWEST_SHARE * initial_loss
    positive = initial_loss > 0.0
    ratio = ops.where(positive, ops.maximum(best_loss, lowest), 1.0) / ops.where(positive, initial_loss, 1.0)
    falling = gain > 0.0
    reached = ops.where(falling, initial_loss * ops.power(ratio, stretch), best_loss)
    along_log = ops.where(falling, initial_loss - gain * stretch, highest)
    target: float = ops.minimum(highest, ops.where(positive, ops.maximum(lowest, reached), along_log))
    return target
