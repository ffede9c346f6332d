"""Where the target loss comes from: given by the user, or estimated while the model trains.

The paper fixes it by hand for each optimizer (3.2 for Muon, 3.51 for Lion, 4.3 for normalized SGD) and shows that a
bad one costs: with target 0 its Muon run ends at 3.717 where the best hand-tuned warm-up ends at 3.471 (arXiv
2602.05813, section 6.3).
"""

from __future__ import annotations

import math

LOWEST_SHARE = 0.2
"""The estimate never lies below this share of a positive initial loss; the paper's own targets are 0.30 to 0.40 of
it.
"""

MARGIN = 0.05
"""The estimate stays below the best loss seen by at least this share of what the run has gained so far."""


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
    slack = (
        MARGIN * max(gain, 0.01 * abs(initial_loss)) or MARGIN
    )  # a loss of 0 that has gained nothing has no scale of its own
    highest = best_loss - slack
    stretch = max(1.0, math.log1p(max(total_distance, distance)) / math.log1p(distance)) if distance > 0.0 else math.inf
    if initial_loss > 0.0:
        lowest = LOWEST_SHARE * initial_loss
        ratio = max(best_loss, lowest) / initial_loss
        reached = initial_loss * ratio**stretch if ratio < 1.0 else best_loss
        return min(highest, max(lowest, reached))
    return min(highest, initial_loss - gain * stretch if gain > 0.0 else highest)
