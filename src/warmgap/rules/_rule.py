"""What every warm-up rule is."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Generic, TypeVar

from warmgap._state import State


@dataclasses.dataclass(frozen=True)
class RuleState(State):
    """What every rule's state holds.

    Attributes:
        factor: The factor of the next step; the schedule writes back the one it really applied.
        done: Whether the rule has found the end of warm-up.
    """

    factor: float
    done: bool = False


S = TypeVar("S", bound=RuleState)


class Rule(abc.ABC, Generic[S]):
    """A warm-up rule: a frozen dataclass of its settings, with a pure `init` and `step`.

    Attributes:
        name: The name in checkpoints and messages.
        bounded: Whether a schedule keeps the rule between its envelopes: at most doubling, and at an end within
            `max_warmup`. A rule that keeps those promises by construction, or is here to show what happens without
            them, sets False.
        max_warmup: Share of the run within which a schedule ends the warm-up, in (0, 1).
        needs_loss: Whether a step without a finite loss is kept from the rule; a rule by the clock alone sets False.
    """

    name: ClassVar[str]
    bounded: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = True
    max_warmup: float = 0.4

    @abc.abstractmethod
    def init(self, total_iters: int | None = None) -> S:
        """Return the state before the first step; its `factor` is that step's.

        Args:
            total_iters: Optimizer steps in the whole run, for rules that look ahead.
        """

    @abc.abstractmethod
    def step(self, state: S, loss: float) -> tuple[S, float]:
        """Take in the mean training loss of the step just made; return the new state and the factor of the next step.

        A loss that is NaN or infinite changes nothing.
        """

    def calibrate(self, state: S, loss: float) -> S:
        """Return the state before the first step, given the loss there: a rule may start above its floor on it.

        Most rules gain nothing from it and return the state as it is.
        """
        del loss
        return state

    def least(self, share: float) -> float:
        """Return the factor that a schedule keeps a bounded rule above: a straight line, unless a rule says otherwise.

        Args:
            share: Steps made / the most that warm-up may take, in [0, 1] (a number, or an array of any library).

        Returns:
            A factor that rises with `share` and is 1 at 1.
        """
        return share

    def reading(self, state: S) -> tuple[float | None, float | None]:
        """Return the (gap, target loss) the rule sees, each None where it has none (yet)."""
        del state
        return None, None

    def config(self) -> dict[str, Any]:
        """Return the rule's name and settings as plain Python values, for checkpoints."""
        return {"name": self.name, **_plain_settings(self)}


def _plain_settings(item: Any) -> dict[str, Any]:
    return {
        field.name: _plain_settings(value) if dataclasses.is_dataclass(value := getattr(item, field.name)) else value
        for field in dataclasses.fields(item)
    }
