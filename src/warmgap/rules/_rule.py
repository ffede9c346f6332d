"""What every warm-up rule is, and where the rules are known by name."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

from warmgap._checks import check_fraction, plain_fields
from warmgap._ops import Floats, Ops
from warmgap.signal import LossFilter

RULES: dict[str, type[Rule[Any]]] = {}
"""Every rule by its name; defining the class puts it here."""


class RuleState(NamedTuple):
    """What every rule's state holds, and all that some need.

    Attributes:
        factor: The factor of the next step; a schedule writes back the one that it really applies.
        done: Whether the rule has found the end of warm-up.

    Example:
        >>> RuleState(0.01)
        RuleState(factor=0.01, done=False)
    """

    factor: float
    done: bool = False


S = TypeVar("S", bound=Any)


class Rule(abc.ABC, Generic[S]):
    """A warm-up rule: a frozen dataclass of its settings, with pure `init`, `first` and `step`.

    All three are written in the operations of `warmgap._ops`, so that the same lines run on floats and, under `jit`, on
    arrays. A state is a named tuple of numbers, of fixed size, with at least the fields of `RuleState`.

    Attributes:
        name: The name in checkpoints, messages and `by_name`. A class that sets it is registered.
        title: What the rule is, in a few words.
        uses: What it needs: `"loss"`, `"target"` (a target loss), `"norm"` (the constant of the optimizer's norm, its
            setting `kappa`).
        clock: Whether its factor moves on at steps without a finite loss, too.
        roles: The roles of weights that it governs: `"hidden"` (matrices inside the model), or `"all"`.
        floor: Factor of the first step without any evidence.
        max_warmup: Share of the run within which a schedule ends the warm-up, in (0, 1); None for no such deadline.
        deadlock_exit: Whether a schedule raises the rate where the loss does not move.
        guard: Whether a schedule halves the rate where the loss rises.
        hold: Share of the run before which the decay does not begin; `"auto"` as in `SpectralRule`.

    Example:
        >>> from dataclasses import dataclass
        >>> from warmgap import Schedule
        >>> from warmgap.rules import Rule, RuleState
        >>> @dataclass(frozen=True)
        ... class Doubling(Rule[RuleState]):
        ...     name, title, uses, clock = "doubling", "twice as high at every step", frozenset(), True
        ...     def init(self, total_iters):
        ...         return RuleState(0.125)
        ...     def step(self, state, loss, ops):
        ...         factor = ops.minimum(1.0, 2.0 * state.factor)
        ...         return RuleState(factor, factor == 1.0)
        >>> schedule = Schedule(100, Doubling())
        >>> print(schedule.step(schedule.init(), 5.0).factor)
        0.25
    """

    name: ClassVar[str]
    title: ClassVar[str]
    uses: ClassVar[frozenset[str]] = frozenset({"loss"})
    clock: ClassVar[bool] = False
    roles: Literal["hidden", "all"] = "all"
    floor: float = 1.0
    max_warmup: float | None = None
    deadlock_exit: bool = False
    guard: bool = False
    hold: float | Literal["auto"] = 0.0

    def __init_subclass__(cls) -> None:
        if "name" in cls.__dict__:
            RULES[cls.name] = cls

    @property
    def needs_loss(self) -> bool:
        """Whether the rule uses the losses at all."""
        return "loss" in self.uses

    @abc.abstractmethod
    def init(self, total_iters: int) -> S:
        """Return the state before the first step of a run of that many; its `factor` is that step's."""

    def first(self, state: S, loss: float | None, ops: Ops = Floats) -> S:
        """Return the state before the first step, given evidence there: a rule may start above its floor on it.

        The loss comes again with `step`; None where only the size of the first step is known.
        """
        del loss, ops
        return state

    @abc.abstractmethod
    def step(self, state: S, loss: float, ops: Ops = Floats) -> S:
        """Return the state after a step that ran at `state.factor` and had the mean training loss `loss`, finite."""

    def extended(self, state: S, total_iters: int) -> S:
        """Return the state in a run that is now to have `total_iters` steps."""
        del total_iters
        return state

    def reading(self, state: S, ops: Ops = Floats) -> tuple[float, float]:
        """Return the (gap, target loss) that the rule follows, each infinite where it has none (yet)."""
        del state, ops
        return math.inf, math.inf

    def config(self) -> dict[str, Any]:
        """Return the rule's name and settings as plain Python values, for checkpoints."""
        return {"name": self.name, **dataclasses.asdict(self)}  # type: ignore[call-overload]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossDriven(Rule[S]):
    """What the published rules share: all of them follow the loss.

    Attributes:
        floor: Starting learning rate / peak learning rate, in (0, 1).
        roles: `"hidden"`, or `"all"` as in the rule's source.
        max_warmup: Share of the run within which warm-up ends at the latest, in (0, 1); None: when the rule ends it.
        deadlock_exit: Whether the rate is doubled where the loss has not fallen, beyond noise, over a stretch of steps.
        loss_filter: How the raw losses are cleaned.

    Raises:
        ValueError: If an attribute lies outside its range.

    Example:
        >>> from warmgap.rules import LossDriven, by_name
        >>> isinstance(by_name("power", 100), LossDriven), isinstance(by_name("linear", 100), LossDriven)
        (True, False)
    """

    floor: float = 0.01
    roles: Literal["hidden", "all"] = "hidden"
    max_warmup: float | None = 0.4
    deadlock_exit: bool = True
    loss_filter: LossFilter = dataclasses.field(default_factory=LossFilter)

    def __post_init__(self) -> None:
        plain_fields(self)
        check_fraction("floor", self.floor, "it is starting learning rate / peak learning rate")
        if self.roles not in ("hidden", "all"):
            raise ValueError(f"roles must be 'hidden' or 'all', got {self.roles!r}")
        if self.max_warmup is not None:
            check_fraction("max_warmup", self.max_warmup, "it is a share of the run; None for no deadline")
