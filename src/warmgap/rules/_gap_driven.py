"""What the rules that follow the loss gap share: how they see the gap, and when they end.

Repaired here against the method's published code: the loss is a clean one and only ever counts when it is the lowest
so far, so that noise neither ends the warm-up nor makes the rate jump; the first step runs at the floor; and the
target loss may be left to the run.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, field, replace
from typing import Literal

from warmgap._checks import check_finite, check_fraction
from warmgap.rules._rule import Rule, RuleState
from warmgap.signal import Signal, SignalState
from warmgap.target import estimate_target_loss

MEAN_DECAY = 0.5
"""Mean factor expected of the rest of a run, to say how far it will travel: that of a cosine or a line to 0."""


@dataclass(frozen=True)
class GapState(RuleState):
    """What a gap-driven rule knows of the run so far.

    Attributes:
        signal: The loss filter's state.
        initial_loss: The first clean loss; None before it.
        best_loss: The lowest clean loss; None before the first.
        distance: Sum of the factors of the steps made.
        total_distance: Expected sum of factors at the end of the run; None where the length is unknown.
        share: Peak gap / initial gap; None before the first loss.
    """

    signal: SignalState = field(default_factory=SignalState)
    initial_loss: float | None = None
    best_loss: float | None = None
    distance: float = 0.0
    total_distance: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class GapDriven(Rule[GapState]):
    """A rule whose factor is a function of the gap, and that ends when the gap has fallen to the peak gap."""

    floor: float = 0.01
    target_loss: float | Literal["auto"] = "auto"
    signal: Signal = field(default_factory=Signal)

    def __post_init__(self) -> None:
        check_fraction("floor", self.floor, "it is starting learning rate / peak learning rate")
        if self.target_loss != "auto":
            check_finite("target_loss", self.target_loss, "give the loss taken as optimal, or 'auto'")

    def init(self, total_iters: int | None = None) -> GapState:
        """Return the state before the first step."""
        total = None if total_iters is None else MEAN_DECAY * total_iters
        return GapState(factor=self.floor, total_distance=total)

    def step(self, state: GapState, loss: float) -> tuple[GapState, float]:
        """Take in one loss; return the new state and the factor of the next step."""
        signal, clean = self.signal.step(state.signal, loss)
        if clean is None:
            return state, state.factor
        initial = clean if state.initial_loss is None else state.initial_loss
        best = clean if state.best_loss is None else min(clean, state.best_loss)
        state = replace(
            state, signal=signal, initial_loss=initial, best_loss=best, distance=state.distance + state.factor
        )
        target = self._target(state, initial, best)
        initial_gap, gap = initial - target, best - target
        share = state.share
        if share is None:
            if initial_gap <= 0.0:
                raise ValueError(
                    f"target_loss must lie below the losses of the run, got target_loss={self.target_loss!r} "
                    f"and a first loss of {initial!r}; give a lower one, or target_loss='auto'"
                )
            share = self._share(initial_gap)
        done = gap <= share * initial_gap
        factor = 1.0 if done else self._factor(initial_gap, gap, share)
        return replace(state, share=share, factor=factor, done=done), factor

    def reading(self, state: GapState) -> tuple[float | None, float | None]:
        """Return the gap of the lowest clean loss, and the target loss."""
        if state.initial_loss is None or state.best_loss is None:
            return None, None if self.target_loss == "auto" else self.target_loss
        target = self._target(state, state.initial_loss, state.best_loss)
        return state.best_loss - target, target

    def _target(self, state: GapState, initial: float, best: float) -> float:
        if self.target_loss != "auto":
            return self.target_loss
        total = state.distance if state.total_distance is None else state.total_distance
        return estimate_target_loss(initial, best, state.distance, total)

    @abc.abstractmethod
    def _share(self, initial_gap: float) -> float:
        """Return peak gap / initial gap, in (0, 1)."""

    @abc.abstractmethod
    def _factor(self, initial_gap: float, gap: float, share: float) -> float:
        """Return the factor at a gap between peak gap and initial gap."""
