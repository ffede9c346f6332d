"""The (H0, H1) warm-up: the learning rate is held down in proportion to the loss until the loss falls below a level.

Source: arXiv 2510.03164 (Alimisis, Islamov, Lucchi), the practical surrogate `lr / max(1, loss/C)` of the step size
`1/(10*H0 + 20*H1*gap)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from warmgap._checks import check_fraction, check_positive, plain_fields
from warmgap.rules._rule import Rule, RuleState
from warmgap.signal import Signal, SignalState


@dataclass(frozen=True)
class LossRatioState(RuleState):
    """State of a `LossRatioRule`; `level` is C, None until the first loss where C is left to the rule."""

    signal: SignalState = field(default_factory=SignalState)
    level: float | None = None


@dataclass(frozen=True)
class LossRatioRule(Rule[LossRatioState]):
    """The factor is `1 / max(1, loss/level)`, of the clean loss; warm-up ends when the loss is at or below `level`.

    A first step that no loss precedes runs at `floor`. The schedule then lets the factor double at most to reach the
    rule's own.

    Attributes:
        level: The paper's C, a loss > 0; None takes half the first clean loss. How the paper chose C is not stated;
            useful values lie between the final and the initial loss.
        floor: Factor of a first step that no loss precedes, in (0, 1).
        signal: How the raw losses are cleaned.

    Raises:
        ValueError: If `level` or `floor` lies outside its range, or, at a step, if the first loss is not positive.
    """

    level: float | None = None
    floor: float = 0.01
    signal: Signal = field(default_factory=Signal)

    name: ClassVar[str] = "loss-ratio"

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.level is not None:
            check_positive("level", self.level, "it is the loss at which the warm-up ends")
        check_fraction("floor", self.floor)

    def init(self, total_iters: int | None = None) -> LossRatioState:
        """Return the state before the first step."""
        del total_iters
        return LossRatioState(factor=self.floor, level=self.level)

    def calibrate(self, state: LossRatioState, loss: float) -> LossRatioState:
        """Return the state that starts at the rule's own factor for the loss measured before the first step."""
        first, _ = self.step(state, loss)
        return replace(state, level=first.level, factor=first.factor, done=first.done)  # the loss itself is yet to come

    def step(self, state: LossRatioState, loss: float) -> tuple[LossRatioState, float]:
        """Take in one loss; return the new state and the factor of the next step."""
        signal, clean = self.signal.step(state.signal, loss)
        if clean is None:
            return state, state.factor
        if state.done:  # it only looks on
            return replace(state, signal=signal), 1.0
        level = state.level
        if level is None:
            level = 0.5 * check_positive(
                "the first loss", clean, "the loss-ratio rule needs positive losses; use rule='auto'"
            )
        factor = min(1.0, level / clean) if clean > 0.0 else 1.0
        return replace(state, signal=signal, level=level, factor=factor, done=factor == 1.0), factor

    def reading(self, state: LossRatioState) -> tuple[float | None, float | None]:
        """Return the distance of the clean loss to the level, and the level."""
        clean = state.signal.clean
        return (None if clean is None or state.level is None else clean - state.level), state.level
