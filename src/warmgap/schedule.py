"""A schedule: a warm-up rule until it hands over, then a decay over the steps that remain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from warmgap import decay as decays
from warmgap._checks import check_count, check_finite, check_fraction, plain_fields
from warmgap._state import State
from warmgap.rules import Rule, RuleState

STATE_VERSION = 1

_PROBES = (0.0, 0.25, 0.5, 0.75, 0.85, 0.95)  # where a decay is evaluated to tell it from another one


@dataclass(frozen=True)
class ScheduleState(State):
    """Where a schedule stands.

    Attributes:
        step: Optimizer steps made.
        factor: Learning rate / peak learning rate of the next step, in (0, 1].
        handover: The step at which warm-up ended and the factor was exactly 1; None while it lasts.
        rule: The rule's own state.
        config: Name and settings of the schedule that made this state, to refuse another one's.
        version: Version of this form.
    """

    step: int
    factor: float
    handover: int | None
    rule: Any
    config: dict[str, Any]
    version: int = STATE_VERSION

    @property
    def phase(self) -> Literal["warmup", "decay"]:
        """`"warmup"` until the hand-over, `"decay"` from it on."""
        return "warmup" if self.handover is None else "decay"


@dataclass(frozen=True)
class Schedule:
    """Losses in, learning-rate factors out: a warm-up rule, then a decay over the steps that remain.

    `init` and `step` are pure. Whatever the losses do, the factor lies in (0, 1], is exactly 1 at the hand-over, and on
    its way up at most doubles in a step. A rule that is `bounded` (all that look at the loss) is kept above a curve of
    its own (`Rule.least`) that is 1 after the share `rule.max_warmup` of the steps: where a low rate can't lower the
    loss, the rate rises all the same, and warm-up ends within that share of the run (or within the `log2(1/floor)`
    steps that doubling takes, if that is longer).

    Attributes:
        total_iters: Optimizer steps in the whole run, >= 1.
        rule: The warm-up rule.
        decay: A name of `warmgap.decay.NAMES`, or a callable from progress in [0, 1] to a factor in (0, 1] that is 1
            at 0.

    Raises:
        ValueError: If an attribute is outside its range, or the rule's warm-up does not fit in `total_iters`.
    """

    total_iters: int
    rule: Rule[Any]
    decay: str | Callable[[float], float] = "cosine"
    _decay: Callable[[float], float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        plain_fields(self)
        check_count(
            "total_iters", self.total_iters, minimum=1, hint="it is the number of optimizer steps in the whole run"
        )
        if not isinstance(self.rule, Rule):
            raise ValueError(f"rule must be a rule of warmgap.rules, got {self.rule!r}")
        if not (isinstance(self.decay, str) or callable(self.decay)):
            raise ValueError(f"decay must be a name of {decays.NAMES} or a callable, got {self.decay!r}")
        object.__setattr__(self, "_decay", decays.by_name(self.decay) if isinstance(self.decay, str) else self.decay)
        if self._decay(0.0) != 1.0:
            raise ValueError(
                f"a decay must be exactly 1 at progress 0, for a continuous hand-over, got {self._decay(0.0)!r}"
            )
        check_fraction("the rule's max_warmup", self.rule.max_warmup)
        self.rule.init(self.total_iters)  # raises if the rule does not fit

    def init(self) -> ScheduleState:
        """Return the state before the first step; its `factor` is that step's."""
        rule = self.rule.init(self.total_iters)
        return ScheduleState(
            step=0, factor=rule.factor, handover=0 if rule.done else None, rule=rule, config=self.config()
        )

    def calibrate(self, state: ScheduleState, loss: float) -> ScheduleState:
        """Return the state before the first step, given the loss measured there.

        Raises:
            ValueError: If a step was made already, or the loss is not finite.
        """
        if state.step > 0:
            raise ValueError(f"calibrate looks before the first step, and {state.step} were made; call it first")
        if state.handover is not None:
            return state
        rule = self.rule.calibrate(state.rule, check_finite("the loss to calibrate on", loss))
        return replace(state, rule=rule, factor=rule.factor, handover=0 if rule.done else None)

    def step(self, state: ScheduleState, loss: float | None = None) -> tuple[ScheduleState, float]:
        """Take in the mean training loss of the step just made.

        Args:
            state: The state before.
            loss: The loss of the step that ran at `state.factor`, unscaled; None, NaN or infinite if there is none to
                be had: then the rule does not see this step, but time goes on.

        Returns:
            The new state, and the factor of the next step.

        Raises:
            ValueError: If a callable decay leaves (0, 1], or the rule refuses the first loss.
        """
        step = state.step + 1
        rule: RuleState = state.rule
        seen = math.nan if loss is None else float(loss)
        if math.isfinite(seen) or not self.rule.needs_loss:
            rule = self.rule.step(rule, seen)[0]
        if state.handover is not None:
            factor = self._decayed(step - state.handover, state.handover)
            # the rule looks on, so that the gap can still be read
            return replace(state, step=step, factor=factor, rule=replace(rule, factor=factor, done=True)), factor
        factor = self._bound(step, state, rule) if self.rule.bounded else rule.factor
        handover = step if factor == 1.0 and (rule.done or self._ended(step)) else None
        rule = replace(rule, factor=factor, done=rule.done or handover is not None)
        return replace(state, step=step, factor=factor, handover=handover, rule=rule), factor

    def reading(self, state: ScheduleState) -> tuple[float | None, float | None]:
        """Return the (gap, target loss) that the rule sees, each None where it has none (yet)."""
        return self.rule.reading(state.rule)

    def config(self) -> dict[str, Any]:
        """Return the settings as plain Python values; a callable decay is told by its values at a few points."""
        known = self.decay if isinstance(self.decay, str) else [float(self._decay(progress)) for progress in _PROBES]
        return {
            "total_iters": self.total_iters,
            "decay": known,
            "rule": self.rule.config(),
        }

    def from_dict(self, data: dict[str, Any]) -> ScheduleState:
        """Return the state that `ScheduleState.to_dict` described.

        Raises:
            ValueError: If it is no such state, of another version, or of a schedule with other settings.
        """
        if not isinstance(data, dict) or "version" not in data:
            raise ValueError(f"this is not the state of a warmgap schedule: it has no version, got {data!r:.80}")
        if data["version"] != STATE_VERSION:
            raise ValueError(
                f"this state has version {data['version']!r} and this warmgap reads version {STATE_VERSION}: "
                "load it with the warmgap that saved it"
            )
        _refuse_other_config(data.get("config"), self.config())
        state = ScheduleState.from_dict({**data, "rule": None})
        if not 0.0 < state.factor <= 1.0 or state.step < 0:
            raise ValueError(
                f"a factor lies in (0, 1] and a step at 0 or above, got {state.factor!r} and {state.step!r}: "
                "this state is damaged or was edited"
            )
        return replace(state, rule=type(self.rule.init(self.total_iters)).from_dict(data.get("rule")))

    def _line(self) -> int:
        """Steps from the start to the latest hand-over."""
        return max(1, math.ceil(self.rule.max_warmup * self.total_iters))

    def _ended(self, step: int) -> bool:
        return self.rule.bounded and step >= self._line()

    def _bound(self, step: int, state: ScheduleState, rule: RuleState) -> float:
        wanted = 1.0 if rule.done or self._ended(step) else max(rule.factor, self.rule.least(step / self._line()))
        return min(1.0, wanted, 2.0 * state.factor)

    def _decayed(self, steps: int, handover: int) -> float:
        remaining = max(1, self.total_iters - handover)
        factor = float(self._decay(min(steps, remaining - 1) / remaining))
        if not 0.0 < factor <= 1.0:
            raise ValueError(
                f"a decay must stay in (0, 1], got {factor!r} at progress {min(steps, remaining - 1) / remaining:.4f}"
            )
        return factor


def _refuse_other_config(saved: Any, own: dict[str, Any]) -> None:
    if saved == own:
        return
    if not isinstance(saved, dict):
        raise ValueError(f"this is not the state of a warmgap schedule: its config is {saved!r:.80}")
    differing = sorted(key for key in saved.keys() | own.keys() if saved.get(key) != own.get(key))
    what = "; ".join(f"{key}: saved {saved.get(key)!r}, here {own.get(key)!r}" for key in differing)
    raise ValueError(
        f"this state belongs to a schedule with other settings ({what}): give the same ones, or start afresh"
    )
