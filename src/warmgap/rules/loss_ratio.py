"""The (H0, H1) warm-up: the learning rate is held down in proportion to the loss until the loss falls below a level.

Source: arXiv 2510.03164 (Alimisis, Islamov, Lucchi), the practical surrogate `lr / max(1, loss/C)` of the step size
`1/(10*H0 + 20*H1*gap)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from warmgap._checks import check_positive
from warmgap._ops import Floats, Ops
from warmgap.rules._rule import LossDriven
from warmgap.signal import FilterState


class LossRatioState(NamedTuple):
    """State of a `LossRatioRule`; `level` is C, 0 until the first loss where C is left to the rule."""

    factor: float
    losses: FilterState
    level: float = 0.0
    done: bool = False


@dataclass(frozen=True, kw_only=True)
class LossRatioRule(LossDriven[LossRatioState]):
    """The factor is `1 / max(1, loss/level)`, of the clean loss; warm-up ends when the loss is at or below `level`.

    A first step that no loss precedes runs at `floor`. The schedule then lets the factor double at most to reach the
    rule's own.

    Attributes:
        level: The paper's C, a loss > 0; None takes half the first clean loss. How the paper chose C is not stated;
            useful values lie between the final and the initial loss.
        floor: Factor of a first step that no loss precedes, in (0, 1).
        roles, max_warmup, deadlock_exit, loss_filter: As in every rule that follows the loss (`LossDriven`).

    Raises:
        ValueError: If an attribute lies outside its range, or, at a step, if the first loss is not positive.

    Example:
        >>> rule = LossRatioRule(level=4.0)
        >>> print(rule.step(rule.init(1000), 10.0).factor)
        0.4

    Source: arXiv 2510.03164, the practical surrogate.
    """

    level: float | None = None

    name: ClassVar[str] = "loss-ratio"
    title: ClassVar[str] = "one over the loss (arXiv 2510.03164)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level is not None:
            check_positive("level", self.level, "it is the loss at which the warm-up ends")

    def init(self, total_iters: int) -> LossRatioState:
        """Return the state before the first step."""
        del total_iters
        return LossRatioState(self.floor, self.loss_filter.init(), self.level or 0.0)

    def first(self, state: LossRatioState, loss: float | None, ops: Ops = Floats) -> LossRatioState:
        """Return the state that starts at the rule's own factor for the loss before the first step."""
        if loss is None:
            return state
        return self._follow(state, state.losses, loss, ops)

    def step(self, state: LossRatioState, loss: float, ops: Ops = Floats) -> LossRatioState:
        """Return the state after one more loss."""
        losses = self.loss_filter.step(state.losses, loss, ops)
        return self._follow(state, losses, losses.clean, ops)

    def _follow(self, state: LossRatioState, losses: FilterState, loss: float, ops: Ops) -> LossRatioState:
        positive = loss > 0.0
        has_level = state.level > 0.0
        ops.require(
            has_level | positive,
            lambda: (
                f"the first loss must be above 0, got {loss!r}; the loss-ratio rule needs positive losses; "
                "use rule='auto'"
            ),
        )
        level = ops.where(has_level, state.level, ops.where(positive, 0.5 * loss, 0.0))
        ratio = ops.where(positive, ops.minimum(1.0, level / ops.where(positive, loss, 1.0)), 1.0)
        done = state.done | ((level > 0.0) & (ratio == 1.0))
        factor = ops.where(done, 1.0, ops.where(level > 0.0, ratio, self.floor))
        return LossRatioState(factor, losses, level, done)

    def reading(self, state: LossRatioState, ops: Ops = Floats) -> tuple[float, float]:
        """Return the distance of the clean loss to the level, and the level."""
        seen = state.losses.filled > 0
        return (
            ops.where(seen, state.losses.clean - state.level, math.inf),
            ops.where(state.level > 0.0, state.level, math.inf),
        )
