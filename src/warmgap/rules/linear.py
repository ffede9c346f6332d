"""Linear warm-up of a length set by hand.

What everyone uses (arXiv 1706.02677), and what the other rules are measured against.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from warmgap._checks import check_count, plain_fields
from warmgap._ops import Floats, Ops
from warmgap.rules._rule import Rule


class LinearState(NamedTuple):
    """State of a `LinearRule`: besides what every rule's holds, the steps made so far."""

    factor: float
    steps: int = 0
    done: bool = False


@dataclass(frozen=True)
class LinearRule(Rule[LinearState]):
    """The factor of step t = 0, 1, ... is `(t + 1) / (iters + 1)`, and 1 from step `iters` on.

    `LinearRule(0)` is no warm-up. It never more than doubles from one step to the next, whatever the length. The
    losses are not looked at: there need not be any.

    Attributes:
        iters: Length of the warm-up in optimizer steps, >= 0.

    Raises:
        ValueError: If `iters` is not a whole number >= 0.

    Example:
        >>> print(LinearRule(3).init(100).factor)
        0.25

    Source: arXiv 1706.02677, section 2.2.
    """

    iters: int

    name: ClassVar[str] = "linear"
    title: ClassVar[str] = "a straight line (arXiv 1706.02677)"
    uses: ClassVar[frozenset[str]] = frozenset()
    clock: ClassVar[bool] = True

    def __post_init__(self) -> None:
        plain_fields(self)
        check_count("iters", self.iters, minimum=0, hint="it is the length of the warm-up in optimizer steps")

    @classmethod
    def defaults(cls, total_iters: int, kappa: Callable[[], float] | None) -> dict[str, Any]:
        """Return a tenth of the run."""
        del kappa
        return {"iters": total_iters // 10}

    def init(self, total_iters: int) -> LinearState:
        """Return the state before the first step."""
        if self.iters >= total_iters:
            raise ValueError(
                f"a linear warm-up of {self.iters} steps does not end within total_iters={total_iters}; "
                "give fewer iters"
            )
        return LinearState(1.0 / (self.iters + 1), done=self.iters == 0)

    def step(self, state: LinearState, loss: float, ops: Ops = Floats) -> LinearState:
        """Count one step."""
        del loss
        steps = ops.minimum(state.steps + 1, self.iters)
        return LinearState((steps + 1) / (self.iters + 1), steps, steps == self.iters)
