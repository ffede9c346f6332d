"""The way out of a deadlock: a low rate keeps the loss high, and a high loss keeps the rate low.

Published rules that follow the loss can stay at their floor for a whole run. Here the losses of one stretch of steps
are compared with those of the next; where the second lie no lower, beyond noise, the rate is doubled, and the watch
begins anew. Where they do lie lower the loss moves, and the next stretch is twice as long.
"""

from __future__ import annotations

from typing import NamedTuple

from warmgap._ops import Floats, Ops
from warmgap.signal import FilterState

CERTAIN = 2.0  # standard errors that make a fall
ROUNDING = 1e-5  # share of a loss that is no fall
SHORTEST, SHORTEST_SHARE = 10, 100  # the first stretch: steps at least, and which part of the run
LONGEST_SHARE = 20  # which part of the run no stretch is longer than


class DeadlockState(NamedTuple):
    """State of a `watch`."""

    lift: float = 0.0  # a lower bound on the factor; 0 before the first deadlock
    lifts: int = 0  # deadlocks so far
    length: int = 0  # steps in a stretch; 0 before the first
    steps: int = 0  # steps of this stretch that were made
    losses: int = 0  # losses of this stretch that were seen
    mean: float = 0.0  # their mean
    before: int = -1  # losses seen in the stretch before; -1 where there is none to compare with
    mean_before: float = 0.0  # their mean


def watch(
    state: DeadlockState, losses: FilterState, finite: bool, factor: float, total_iters: int, ops: Ops = Floats
) -> DeadlockState:
    """Return the state after a step at `factor` that had a loss, or none; `losses` is the rule's filter after it."""
    shortest = ops.maximum(SHORTEST, total_iters // SHORTEST_SHARE)
    length = ops.maximum(state.length, shortest)
    steps = state.steps + 1
    count = state.losses + ops.where(finite, 1, 0)
    mean = state.mean + ops.where(finite, (losses.accepted - state.mean) / ops.maximum(1, count), 0.0)
    going = DeadlockState(state.lift, state.lifts, length, steps, count, mean, state.before, state.mean_before)
    compared: DeadlockState = ops.when(
        steps >= length, lambda: _compared(going, losses, factor, shortest, total_iters, ops), going
    )
    return compared


def _compared(
    state: DeadlockState, losses: FilterState, factor: float, shortest: int, total_iters: int, ops: Ops
) -> DeadlockState:
    """Return the state at the end of a stretch, compared with the one before."""
    error = losses.noise * ops.sqrt(1.0 / ops.maximum(1, state.losses) + 1.0 / ops.maximum(1, state.before))
    still = state.mean_before - state.mean <= ops.maximum(CERTAIN * error, ROUNDING * abs(state.mean))
    # where there were no losses at all, nothing shows that it moves
    still = ops.where((state.losses > 0) & (state.before > 0), still, losses.filled == 0)
    second = state.before >= 0
    stuck = second & still
    longer = ops.minimum(2 * state.length, ops.maximum(shortest, total_iters // LONGEST_SHARE))
    return DeadlockState(
        lift=ops.where(stuck, ops.minimum(1.0, 2.0 * factor), state.lift),
        lifts=state.lifts + ops.where(stuck, 1, 0),
        length=ops.where(second & ops.no(stuck), longer, state.length),
        before=ops.where(stuck, -1, state.losses),
        mean_before=state.mean,
    )
