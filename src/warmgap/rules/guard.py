"""The divergence guard: it halves the common rate where the loss rises, and lets it come back.

A loss rises for many reasons that are no fault of the rate (harder data, a first loss that was low by chance), so that
an alarm costs little: half the rate for some steps, then back within a twentieth of the run. Where alarms come again,
the way back takes twice as long each time. And where the loss rises whatever the rate, as the divergence from the start
does in reinforcement learning, or the loss of a generator against its critic, it says nothing about the rate: then the
guard goes off.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from warmgap._ops import Floats, Ops
from warmgap.signal import FilterState, LossFilter

TOLERANCE = 3.0  # standard deviations of a single loss by which the average may lie above its lowest
TOLERATED = 2.0  # the same is multiplied by this with each rise that was followed by no higher one
ROUNDING = 2.0**-7  # share of a loss that is no rise: a step of bfloat16
BURST = 0.5  # share of the level of the first losses by which the average may lie above it
SWING = 5.0  # the same in standard deviations, for a level that hardly differs from 0, or is negative
JUDGED = 8  # losses that make that level
MATURE = 0.5  # weight of the average below which it is too noisy to have a lowest value
FORGOTTEN = 0.01  # share of the largest noise that is forgotten at each loss
MISSING = 3  # losses in a row that are not finite and make an alarm
REST = 10  # steps after an alarm without another
LOWEST = 0.125  # the least scale: three halvings
HOPELESS = 4  # alarms in a row, each at a higher loss, that show a loss that rises whatever the rate
RECOVERY, QUICKEST = 20, 20  # which part of the run, and steps at least, in which the rate doubles on its way back


class GuardState(NamedTuple):
    """State of a `DivergenceGuard`."""

    losses: FilterState  # the loss filter's state
    scale: float = 1.0  # what the rate is multiplied with, in [1/8, 1]
    best: float = 0.0  # the lowest average since the last alarm
    noise: float = 0.0  # the largest standard deviation of a single loss, slowly forgotten
    level: float = 0.0  # the median of the first losses; 0 until they were seen
    seen: int = 0  # losses seen, up to those that make the level
    missing: int = 0  # losses in a row that were not finite
    rest: int = 0  # steps until the next alarm may come
    pause: int = 0  # steps in which the rate doubles on its way back; 0 before the first alarm
    low: float = 1.0  # the scale right after the last alarm
    back: int = 0  # steps made since on its way back
    last: float = 0.0  # the loss at the last alarm
    rises: int = 0  # alarms because the loss rose
    blackouts: int = 0  # alarms because there was no finite loss
    higher: int = 0  # alarms in a row, each at a higher loss than the one before
    off: bool = False  # whether the guard has given up


@dataclass(frozen=True)
class DivergenceGuard:
    """Alarms where the loss rises, and a scale in [1/8, 1] for the rate that follows from them.

    There is an alarm where the averaged loss lies more than three standard deviations of a single loss (and more than
    bfloat16 rounds) above its lowest since the last alarm; or above one and a half times the first losses, or, where
    those lie around or below 0, above them by half of their size and by five standard deviations; or where three losses
    in a row were not finite. Each alarm of a rise that is no higher than the one before, so that the loss had come down
    again in between, doubles these three standard deviations. An alarm halves the scale, but never below 1/8; the
    average starts anew, and for ten steps there is no other alarm. Then the scale rises geometrically: it doubles in a
    twentieth of the run (at least 20 steps), and in twice as many after each alarm that comes once it had recovered.
    After four alarms in a row, each at a higher loss, the guard goes off for good, and the scale doubles at every step
    up to 1.

    Attributes:
        loss_filter: How the raw losses are cleaned.

    Example:
        >>> guard = DivergenceGuard()
        >>> state = guard.init()
        >>> for loss in [5.0] * 20 + [9.0] * 10:
        ...     state = guard.step(state, loss, finite=True, total_iters=1000)
        >>> print(state.rises, state.low)
        1 0.5
    """

    loss_filter: LossFilter = field(default_factory=LossFilter)

    def init(self) -> GuardState:
        """Return the state before the first loss."""
        return GuardState(self.loss_filter.init())

    def step(self, state: GuardState, loss: float, finite: bool, total_iters: int, ops: Ops = Floats) -> GuardState:
        """Return the state after a step whose loss is given.

        Args:
            state: The state before.
            loss: The loss; any number where it is not finite.
            finite: Whether it is.
            total_iters: Optimizer steps in the whole run.
            ops: The operations to compute with.
        """
        old = state.losses
        losses = ops.when(finite, lambda: self.loss_filter.step(old, loss, ops), old)
        clean, mature = losses.clean, losses.weight >= MATURE
        # the noise that is averaged over a few losses is now and then far too small
        noise = ops.maximum(losses.noise, (1.0 - FORGOTTEN) * state.noise)
        seen = ops.minimum(state.seen + ops.where(finite, 1, 0), JUDGED)
        level = ops.when(seen > state.seen, lambda: ops.median(losses.window, losses.filled), state.level)
        best = ops.where(old.weight >= MATURE, ops.minimum(state.best, clean), clean)
        rest = ops.maximum(0, state.rest - 1)
        missing = ops.where(finite, 0, state.missing + 1)

        # losses of data in order, or of several kinds, vary far more than neighbouring ones differ
        tolerance = TOLERANCE * ops.power(TOLERATED, state.rises - state.higher)
        risen = clean > best + ops.maximum(tolerance * noise, ROUNDING * abs(best))
        higher = (state.rises == 0) | (clean > state.last + noise)  # one that stays high after an alarm is no other
        high = ops.when(higher & (clean > level), lambda: self._high(clean, level, noise, ops), higher & False)
        awake = (rest == 0) & ops.no(state.off)
        rose = awake & finite & mature & (risen | (high & (seen == JUDGED)))
        lost = awake & (missing >= MISSING) & (state.scale > LOWEST)

        back = state.back + ops.where((rest == 0) & finite, 1, 0)
        scale = ops.when(state.scale < 1.0, lambda: self._recovered(state, back, ops), state.scale)
        after = GuardState(
            losses, scale, best, noise, level, seen, missing, rest, state.pause, state.low, back, state.last,
            state.rises, state.blackouts, state.higher, state.off,
        )  # fmt: skip
        alarmed: GuardState = ops.when(
            rose | lost, lambda: self._alarmed(state, after, rose, higher, total_iters, ops), after
        )
        return alarmed

    def _high(self, clean: float, level: float, noise: float, ops: Ops) -> bool:
        """Return whether a loss lies far above the level of the first ones."""
        # where a share of the level says nothing, by many deviations
        swing = ops.where(level > noise, 0.0, SWING * noise)
        far: bool = clean > level + ops.maximum(BURST * abs(level), swing)
        return far

    def _alarmed(
        self, before: GuardState, after: GuardState, rose: bool, higher: bool, total_iters: int, ops: Ops
    ) -> GuardState:
        """Return the state after an alarm: that of a loss that rose, or of none that is finite."""
        losses, rises = after.losses, ops.where(higher, before.higher + 1, 1)
        off = rose & (rises >= HOPELESS)
        quickest = ops.maximum(QUICKEST, total_iters // RECOVERY)
        again = before.scale >= 2.0 * before.low  # it had come back: no part of the same rise
        longer = ops.where(again, ops.minimum(2 * before.pause, ops.maximum(quickest, total_iters)), before.pause)
        scale = ops.where(off, before.scale, ops.maximum(LOWEST, 0.5 * before.scale))
        return after._replace(
            losses=losses._replace(weight=0.0),  # what rose before the alarm is no rise after it
            scale=scale,
            missing=0,
            rest=REST,
            pause=ops.where(before.pause == 0, quickest, longer),
            low=scale,
            back=0,
            last=ops.when(
                rose, lambda: ops.maximum(losses.clean, ops.median(losses.window, losses.filled)), before.last
            ),
            rises=before.rises + ops.where(rose, 1, 0),
            blackouts=before.blackouts + ops.where(rose, 0, 1),
            higher=ops.where(rose, rises, before.higher),
            off=off,
        )

    def _recovered(self, state: GuardState, back: int, ops: Ops) -> float:
        """Return the scale after that many steps on its way back to 1."""
        slowly = state.low * ops.power(2.0, back / ops.maximum(1, state.pause))
        scale: float = ops.minimum(1.0, ops.where(state.off, 2.0 * state.scale, slowly))
        return scale
