"""What the rules that follow the loss gap share: how they see the gap, and when they end.

Repaired here against the method's published code: the loss is a clean one and only ever counts when it is the lowest
so far, so that noise neither ends the warm-up nor makes the rate jump; the first step runs at the floor; and the
target loss may be left to the run.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from warmgap._checks import check_finite
from warmgap._ops import Floats, Ops
from warmgap.rules._rule import LossDriven
from warmgap.signal import FilterState
from warmgap.target import MEAN_DECAY, Descent


class GapState(NamedTuple):
    """State of a rule that follows the gap; `share` is peak gap / initial gap, 0 before the first loss."""

    factor: float
    losses: FilterState
    descent: Descent
    share: float = 0.0
    done: bool = False


@dataclass(frozen=True, kw_only=True)
class GapDriven(LossDriven[GapState]):
    """A rule whose factor is a function of the gap, and that ends when the gap has fallen to the peak gap."""

    target_loss: float | Literal["auto"] = "auto"

    uses: ClassVar[frozenset[str]] = frozenset({"loss", "target"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_loss != "auto":
            check_finite("target_loss", self.target_loss, "give the loss taken as optimal, or 'auto'")

    def init(self, total_iters: int) -> GapState:
        """Return the state before the first step."""
        return GapState(self.floor, self.loss_filter.init(), Descent(MEAN_DECAY * total_iters))

    def first(self, state: GapState, loss: float | None, ops: Ops = Floats) -> GapState:
        """Return the state that starts at the rule's own factor for the loss before the first step."""
        if loss is None:
            return state
        seen = self._follow(state, state.losses, state.descent.step(loss, 0.0, ops), ops)
        return state._replace(factor=ops.maximum(self.floor, seen.factor), share=seen.share, done=seen.done)

    def step(self, state: GapState, loss: float, ops: Ops = Floats) -> GapState:
        """Return the state after one more loss."""
        losses = self.loss_filter.step(state.losses, loss, ops)
        descent = state.descent.step(losses.clean, state.factor, ops)
        return self._follow(state, losses, descent, ops)

    def extended(self, state: GapState, total_iters: int) -> GapState:
        """Return the state in a run that is now to have `total_iters` steps."""
        return state._replace(descent=state.descent._replace(total=MEAN_DECAY * total_iters))

    def reading(self, state: GapState, ops: Ops = Floats) -> tuple[float, float]:
        """Return the gap of the lowest clean loss, and the target loss."""
        gap = state.descent.gap(self.target_loss, ops)
        given = math.inf if self.target_loss == "auto" else self.target_loss
        seen = state.descent.seen
        return ops.where(seen, gap.now, math.inf), ops.where(seen, gap.target_loss, given)

    def _follow(self, state: GapState, losses: FilterState, descent: Descent, ops: Ops) -> GapState:
        gap = descent.gap(self.target_loss, ops)
        usable = gap.initial > 0.0
        ops.require(
            usable,
            lambda: (
                f"target_loss must lie below the losses of the run, got target_loss={self.target_loss!r} and a first "
                f"loss of {descent.initial_loss!r}; give a lower one, or target_loss='auto'"
            ),
        )
        initial = ops.where(usable, gap.initial, 1.0)
        new = usable & (state.share == 0.0)
        share = ops.once(new, lambda: self._share(initial, ops), state.share)
        done = state.done | (usable & (gap.now <= share * initial))
        # where it is done, or there is no share, any gap that gives no NaN
        peak = ops.where(share > 0.0, share, 0.5) * initial
        curve = self._factor(ops.maximum(gap.now, peak), initial, peak, ops)
        factor = ops.where(done, 1.0, ops.where(usable, ops.minimum(1.0, curve), self.floor))
        return GapState(factor, losses, descent, share, done)

    @abc.abstractmethod
    def _share(self, initial_gap: float, ops: Ops) -> float:
        """Return peak gap / initial gap, > 0; at 1 or above warm-up is over with the first loss."""

    @abc.abstractmethod
    def _factor(self, gap: float, initial_gap: float, peak_gap: float, ops: Ops) -> float:
        """Return the factor at a gap from the peak gap on."""
