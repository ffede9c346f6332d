"""The default: the peak from the first step on, held, then the decay; a guard halves the rate where the loss rises.

Only a model's hidden matrices need a slow start, and how slow, the spectral norm of their steps says: that is the
spectral cap's work, which scales those steps themselves (`warmgap.torch.SpectralCap`). What is left to the schedule is
when to go up, when to go down, and what to do where the loss explodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from warmgap._checks import check_finite, check_fraction, plain_fields
from warmgap._ops import Floats, Ops
from warmgap.rules._rule import Rule, RuleState


@dataclass(frozen=True)
class SpectralRule(Rule[RuleState]):
    """The factor is 1 from the first step, if there is evidence before it, and is held there for the share `hold`.

    Evidence is the first step's loss, or that the size of the step is known, as it is under the spectral cap. Without
    any, the first step runs at `floor`, and the factor doubles at every step up to 1.

    Attributes:
        hold: Share of the run before which the decay does not begin, in [0, 1); `"auto"` is 0.6, or 0.8 where the peak
            is low: where, up to there, the spectral cap has let more than half of a step's spectral norm pass.
        floor: Factor of a first step without evidence, in (0, 1).
        guard: Whether the rate is halved where the loss rises (`warmgap.rules.DivergenceGuard`).

    Raises:
        ValueError: If an attribute lies outside its range.

    Example:
        >>> from warmgap import Schedule
        >>> schedule = Schedule(1000, SpectralRule())
        >>> state = schedule.first(schedule.init(), 5.5)
        >>> print(state.factor, state.phase, state.decay_start)
        1.0 stable 600

    Source: this project; what it was measured against is in LOG.md.
    """

    hold: float | Literal["auto"] = "auto"
    floor: float = 0.01
    guard: bool = True

    name: ClassVar[str] = "spectral"
    title: ClassVar[str] = "the peak held for a share of the run, under a guard"
    clock: ClassVar[bool] = True

    def __post_init__(self) -> None:
        plain_fields(self)
        check_fraction("floor", self.floor, "it is the factor of a first step without evidence")
        if self.hold != "auto" and not 0.0 <= check_finite("hold", self.hold, "give a share or 'auto'") < 1.0:
            raise ValueError(f"hold must lie in [0, 1), got {self.hold!r}; it is a share of the run, or 'auto'")
        if not isinstance(self.guard, bool):
            raise ValueError(f"guard must be True or False, got {self.guard!r}")

    def init(self, total_iters: int) -> RuleState:
        """Return the state before the first step."""
        del total_iters
        return RuleState(self.floor)

    def first(self, state: RuleState, loss: float | None, ops: Ops = Floats) -> RuleState:
        """Return the state that starts at the peak."""
        del state, loss, ops
        return RuleState(1.0, done=True)

    def step(self, state: RuleState, loss: float, ops: Ops = Floats) -> RuleState:
        """Return the state of a factor twice as high, up to 1."""
        del loss
        factor = ops.minimum(1.0, 2.0 * state.factor)
        return RuleState(factor, factor == 1.0)


HOLD = 0.6  # of a run
HOLD_LOW = 0.8  # where the cap has let more than the share LOW of steps pass: the peak is low
LOW = 0.5

RHO = 0.02  # of runs of up to _STEPS steps; in longer ones it falls with the square root of their length
RHO_LEAST = 0.01
_STEPS = 300


def default_rho(total_iters: int | None = None) -> float:
    """Return the spectral cap that `rho="auto"` stands for in a run of that many steps.

    It is 0.02 up to 300 steps, or where the length is unknown, then 0.02 * sqrt(300 / total_iters), at least 0.01: the
    spectral norm of a step over sqrt(outputs / inputs).

    Source: this project; the runs are in LOG.md.

    Example:
        >>> default_rho(200), default_rho(1200)
        (0.02, 0.01)
    """
    if total_iters is None:
        return RHO
    return max(RHO_LEAST, RHO * min(1.0, math.sqrt(_STEPS / total_iters)))


LARGEST_ENTRY = 0.05  # the highest rate of what is stepped entry by entry beside Muon's matrices
ABOVE_EDGE = 0.5  # share of the cap down to which what is above `noise_edge` is cut
RANK = 8  # singular directions of a step that the cap follows
ROUNDING = 1e-5  # a singular value that is so much smaller than the largest is none


def directions_of(shape: Sequence[int], rank: int) -> int:
    """Return how many directions of a matrix of this shape are followed.

    Example:
        >>> directions_of((64, 64), 8), directions_of((3, 64), 8)
        (8, 2)
    """
    return min(rank, -(-min(shape) // 2))


def noise_edge(shape: Sequence[int]) -> float:
    """Return the spectral norm of a large matrix of independent entries, over its Frobenius norm.

    A singular value above it comes of entries that go together: the edge of the Marchenko-Pastur law, with n rows and m
    columns 1 / sqrt(n) + 1 / sqrt(m) of the Frobenius norm. Of a matrix with 16 rows or columns, or fewer, such as
    LoRA's, the eight directions that are followed are half or more, and there is no noise to tell them from: it is 2,
    above every singular value.

    Source: Marchenko and Pastur 1967; as a limit for the steps of training: this project.

    Example:
        >>> noise_edge((64, 64)), noise_edge((8, 64))
        (0.25, 2.0)
    """
    rows, columns = shape
    return 1.0 / math.sqrt(rows) + 1.0 / math.sqrt(columns) if min(rows, columns) > 2 * RANK else 2.0
