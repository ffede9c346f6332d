"""What the rules that follow the loss gap share: how they see the gap, and when they end.

Repaired here against the method's published code: the loss is a clean one and only ever counts when it is the lowest
so far, so that noise neither ends the warm-up nor makes the rate jump; the first step runs at the floor; and the
target loss may be left to the run.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field, replace
from typing import Literal

from warmgap._checks import check_fraction, plain_fields
from warmgap.rules._rule import Rule, RuleState
from warmgap.signal import Signal, SignalState
from warmgap.target import Descent, Target


@dataclass(frozen=True)
class GapState(RuleState):
    """State of a gap-driven rule; `share` is peak gap / initial gap, None before the first loss."""

    signal: SignalState = field(default_factory=SignalState)
    descent: Descent = field(default_factory=Descent)
    share: float | None = None


@dataclass(frozen=True)
class GapDriven(Rule[GapState]):
    """A rule whose factor is a function of the gap, and that ends when the gap has fallen to the peak gap."""

    floor: float = 0.01
    target_loss: float | Literal["auto"] = "auto"
    signal: Signal = field(default_factory=Signal)

    def __post_init__(self) -> None:
        plain_fields(self)
        check_fraction("floor", self.floor, "it is starting learning rate / peak learning rate")
        Target(self.target_loss)  # raises where it is neither a number nor "auto"

    def init(self, total_iters: int | None = None) -> GapState:
        """Return the state before the first step."""
        return GapState(factor=self.floor, descent=Target(self.target_loss).init(total_iters))

    def step(self, state: GapState, loss: float) -> tuple[GapState, float]:
        """Take in one loss; return the new state and the factor of the next step."""
        signal, clean = self.signal.step(state.signal, loss)
        if clean is None:
            return state, state.factor
        descent, gap = Target(self.target_loss).step(state.descent, clean, state.factor)
        if state.done:  # it only looks on
            return replace(state, signal=signal, descent=descent), 1.0
        share = state.share
        if share is None:
            if gap.initial <= 0.0:
                raise ValueError(
                    f"target_loss must lie below the losses of the run, got target_loss={self.target_loss!r} "
                    f"and a first loss of {clean!r}; give a lower one, or target_loss='auto'"
                )
            share = self._share(gap.initial)
        done = gap.now <= share * gap.initial
        factor = 1.0 if done else self._factor(gap.initial, gap.now, share)
        return replace(state, signal=signal, descent=descent, share=share, factor=factor, done=done), factor

    def reading(self, state: GapState) -> tuple[float | None, float | None]:
        """Return the gap of the lowest clean loss, and the target loss."""
        return Target(self.target_loss).reading(state.descent)

    @abc.abstractmethod
    def _share(self, initial_gap: float) -> float:
        """Return peak gap / initial gap, in (0, 1)."""

    @abc.abstractmethod
    def _factor(self, initial_gap: float, gap: float, share: float) -> float:
        """Return the factor at a gap between peak gap and initial gap."""
