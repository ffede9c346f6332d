"""Linear warm-up of a length set by hand.

What everyone uses (arXiv 1706.02677), and what the other rules are measured against.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from warmgap._checks import check_count, plain_fields
from warmgap.rules._rule import Rule, RuleState


@dataclass(frozen=True)
class LinearState(RuleState):
    """State of a `LinearRule`: the steps made so far."""

    steps: int = 0


@dataclass(frozen=True)
class LinearRule(Rule[LinearState]):
    """The factor of step t = 0, 1, ... is `(t + 1) / (iters + 1)`, and 1 from step `iters` on.

    `LinearRule(0)` is no warm-up. It never more than doubles from one step to the next, whatever the length. The
    losses are not looked at: there need not be any.

    Attributes:
        iters: Length of the warm-up in optimizer steps, >= 0.

    Raises:
        ValueError: If `iters` is not a whole number >= 0.
    """

    iters: int

    name: ClassVar[str] = "linear"
    bounded: ClassVar[bool] = False
    needs_loss: ClassVar[bool] = False

    def __post_init__(self) -> None:
        plain_fields(self)
        check_count("iters", self.iters, minimum=0, hint="it is the length of the warm-up in optimizer steps")

    def init(self, total_iters: int | None = None) -> LinearState:
        """Return the state before the first step."""
        if total_iters is not None and self.iters >= total_iters:
            raise ValueError(
                f"a linear warm-up of {self.iters} steps does not end within total_iters={total_iters}; "
                "give fewer iters"
            )
        return LinearState(factor=1.0 / (self.iters + 1), done=self.iters == 0)

    def step(self, state: LinearState, loss: float) -> tuple[LinearState, float]:
        """Count one step; the loss is not looked at."""
        del loss
        steps = min(state.steps + 1, self.iters)
        factor = (steps + 1) / (self.iters + 1)
        return replace(state, steps=steps, factor=factor, done=steps == self.iters), factor
