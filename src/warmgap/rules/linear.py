"""Linear warm-up of a length set by hand.

What everyone uses (arXiv 1706.02677), and what the other rules are measured against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from warmgap._checks import check_count, check_fraction, plain_fields
from warmgap._ops import Floats, Ops
from warmgap.rules._rule import Rule


class LinearState(NamedTuple):
    """State of a `LinearRule`: beside what every rule's holds, the line."""

    factor: float  # the factor of the next step
    steps: int = 0  # steps made, up to the end of the warm-up
    done: bool = False  # whether warm-up is over
    length: int = 0  # its length in steps
    begin: int = -1  # the step at which the line begins; -1, before the first, unless the run was extended
    start: float = 0.0  # its factor there


@dataclass(frozen=True)
class LinearRule(Rule[LinearState]):
    """The factor of step t = 0, 1, ... is `(t + 1) / (iters + 1)`, and 1 from step `iters` on.

    `LinearRule(0)` is no warm-up. It never more than doubles from one step to the next, whatever the length. The losses
    do not count: there need not be any.

    Attributes:
        iters: Length of the warm-up: whole optimizer steps, >= 0, or a share of the run, a float in (0, 1). A share
            follows the length of the run: where that is extended, the line goes on from its present factor.

    Raises:
        ValueError: If `iters` is neither.

    Example:
        >>> print(LinearRule(3).init(100).factor, LinearRule(0.1).init(90).factor)
        0.25 0.1

    Source: arXiv 1706.02677, section 2.2.
    """

    iters: int | float = 0.1

    name: ClassVar[str] = "linear"
    title: ClassVar[str] = "a straight line (arXiv 1706.02677)"
    uses: ClassVar[frozenset[str]] = frozenset()
    clock: ClassVar[bool] = True

    def __post_init__(self) -> None:
        plain_fields(self)
        hint = "it is the length of the warm-up in optimizer steps, or a share of the run as a float in (0, 1)"
        if isinstance(self.iters, float):
            check_fraction("iters", self.iters, hint)
        else:
            check_count("iters", self.iters, minimum=0, hint=hint)

    def length(self, total_iters: int) -> int:
        """Return the length of the warm-up in a run of so many steps."""
        return int(self.iters * total_iters) if isinstance(self.iters, float) else self.iters

    def init(self, total_iters: int) -> LinearState:
        """Return the state before the first step."""
        length = self.length(total_iters)
        if length >= total_iters:
            raise ValueError(
                f"a linear warm-up of {length} steps does not end within total_iters={total_iters}; give fewer iters"
            )
        return LinearState(1.0 / (length + 1), done=length == 0, length=length)

    def step(self, state: LinearState, loss: float, ops: Ops = Floats) -> LinearState:
        """Count one step."""
        del loss
        steps = ops.minimum(state.steps + 1, state.length)
        done = steps == state.length
        line = state.start + (1.0 - state.start) * ((steps - state.begin) / (state.length - state.begin))
        return LinearState(ops.where(done, 1.0, line), steps, done, state.length, state.begin, state.start)

    def extended(self, state: LinearState, total_iters: int) -> LinearState:
        """Return the state in a run that is now to have `total_iters` steps."""
        if state.done or not isinstance(self.iters, float):
            return state
        length = max(state.steps + 1, self.length(total_iters))
        return state._replace(length=length, begin=state.steps, start=state.factor)
