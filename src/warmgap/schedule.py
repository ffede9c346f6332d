"""A schedule: a warm-up rule until it hands over, the peak, then a decay over the steps that remain."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from warmgap import decay as decays
from warmgap._checks import check_count, check_finite, plain_fields, warn
from warmgap._ops import Floats, Ops
from warmgap._state import from_plain, to_plain
from warmgap._version_1 import of_version_1
from warmgap.rules import DivergenceGuard, Rule, by_name
from warmgap.rules.deadlock import DeadlockState, watch
from warmgap.rules.guard import GuardState
from warmgap.rules.spectral import HOLD, HOLD_LOW

STATE_VERSION = 2

MOST_EVENTS = 64

REASONS = (
    "first loss seen",
    "step size known",
    "peak reached",
    "descent over",
    "loss rose: rate halved",
    "no finite loss: rate halved",
    "rate recovered",
    "loss rises at any rate: guard off",
    "deadlock: rate raised",
    "deadline: warm-up ended",
    "peak is low: held longer",
    "decay began",
    "extended",
    "decay moved up",
)
"""What an event's reason can be."""

_PROBES = (0.0, 0.25, 0.5, 0.75, 0.85, 0.95)  # where a decay is evaluated to tell it from another one
_NEVER = 2**30  # a step that no run reaches, and that fits an int32
_SWINGS = 4  # rises, each followed by a fall, that are worth a warning
_GUARD = DivergenceGuard()


class Event(NamedTuple):
    """Something that a schedule did.

    Attributes:
        step: Optimizer steps made when it happened; 0 is before the first.
        loss: The raw loss of the last of them, or the one seen before the first; None where there was none.
        before: The factor before: `ScheduleState.factor`.
        after: The factor after.
        reason: One of `REASONS`.
        role: The role that it concerns, `"hidden"`; None for all.

    Example:
        >>> print(Event(step=40, loss=5.1, before=1.0, after=0.5, reason="loss rose: rate halved"))
        step 40, loss 5.1: loss rose: rate halved, factor from 1 to 0.5
        >>> print(Event(step=0, loss=5.5, before=0.01, after=1.0, reason="first loss seen"))
        step 0, loss 5.5: first loss seen, factor 1
    """

    step: int
    loss: float | None
    before: float
    after: float
    reason: str
    role: str | None = None

    def __str__(self) -> str:
        loss = "" if self.loss is None else f", loss {self.loss:.4g}"
        role = "" if self.role is None else f" ({self.role} weights)"
        moved = f"at {self.after:.3g}" if self.before == self.after else f"from {self.before:.3g} to {self.after:.3g}"
        moved = moved if self.step > 0 else f"{self.after:.3g}"  # no step was made at the one before
        return f"step {self.step}{loss}: {self.reason}{role}, factor {moved}"


class ScheduleState(NamedTuple):
    """Where a schedule stands: numbers of fixed size, and the events.

    Attributes:
        step: Optimizer steps made.
        total_iters: Optimizer steps in the whole run, as `extend` and `decay_now` left it.
        factor: Learning rate / peak learning rate of the next step, in (0, 1], of the roles that the rule governs.
        base: The same of all other roles: no warm-up but that of a start without evidence; the same decay.
        ramp: `base` without guard and decay.
        rule: The rule's state; its factor is that without guard and decay.
        guard: The divergence guard's state.
        hold_until: The step before which it does not decay.
        deadline: The step at which warm-up ends at the latest.
        deadlock: The deadlock watch's state.
        seen: Whether a loss was seen, or the size of the first step was known.
        ended: The step at which warm-up ended; -1 while it lasts.
        decaying: The step from which it decays; -1 while that is not known.
        anchor: The step at which the present stretch of the decay begins.
        progress: Progress of the decay there.
        events: What happened, the latest last, at most `MOST_EVENTS`.

    Example:
        >>> state = Schedule(100, "linear").init()
        >>> print(state.step, round(state.factor, 2), state.phase, state.handover, state.decay_start)
        0 0.09 warmup None None
    """

    step: int
    total_iters: int
    factor: float
    base: float
    ramp: float
    rule: Any
    guard: GuardState
    hold_until: int
    deadline: int
    deadlock: DeadlockState = DeadlockState()
    seen: bool = False
    ended: int = -1
    decaying: int = -1
    anchor: int = 0
    progress: float = 0.0
    events: tuple[Event, ...] = ()

    @property
    def phase(self) -> Literal["warmup", "stable", "decay"]:
        """`"warmup"` while the rule's factor is on its way up, `"stable"` at the peak, then `"decay"`."""
        if self.ended < 0:
            return "warmup"
        return "stable" if self.step < self.decaying else "decay"

    @property
    def handover(self) -> int | None:
        """The step at which warm-up ended; None while it lasts."""
        return None if self.ended < 0 else self.ended

    @property
    def decay_start(self) -> int | None:
        """The step from which the rate decays; None while warm-up lasts, or where it never does."""
        return self.decaying if 0 <= self.decaying < _NEVER else None


@dataclass(frozen=True)
class Schedule:
    """Losses in, learning-rate factors out: a warm-up rule, the peak, then a decay over the steps that remain.

    `init`, `first`, `step`, `extend` and `decay_now` are pure. Whatever the losses do, each factor lies in (0, 1] and
    on its way up at most doubles in a step, and warm-up ends within the share `rule.max_warmup` of the steps, if the
    rule has that (or within the `log2(1/floor)` steps that doubling takes, if that is longer).

    Attributes:
        total_iters: Optimizer steps in the whole run, >= 1.
        rule: A rule of `warmgap.rules`, or a name for `warmgap.rules.by_name`.
        decay: A name of `warmgap.decay.NAMES`, or a callable from progress in [0, 1] to a factor in (0, 1] that is 1
            at 0. `"constant"` stays at the peak until `decay_now`, which then decays by a cosine.

    Raises:
        ValueError: If an attribute is outside its range, or the rule's warm-up does not fit in `total_iters`.

    Example:
        >>> schedule = Schedule(total_iters=100)
        >>> state = schedule.first(schedule.init(), 5.5)
        >>> for step in range(80):
        ...     state = schedule.step(state, 5.5 - 0.01 * step)
        >>> print(f"{state.factor:.2f} {state.phase}; {state.events[-1]}")
        0.50 decay; step 60, loss 4.91: decay began, factor at 1
    """

    total_iters: int
    rule: Rule[Any] = "auto"  # type: ignore[assignment]  # a name becomes its rule
    decay: str | Callable[[float], float] = "cosine"
    _decay: Callable[[float], float] = field(init=False, repr=False, compare=False)

    if TYPE_CHECKING:

        def __init__(
            self, total_iters: int, rule: str | Rule[Any] = "auto", decay: str | Callable[[float], float] = "cosine"
        ) -> None: ...

    def __post_init__(self) -> None:
        plain_fields(self)
        object.__setattr__(self, "rule", by_name(self.rule, self.total_iters))
        if not isinstance(self.decay, str) and not callable(self.decay):
            raise ValueError(f"decay must be a name or a callable, got {self.decay!r}")
        named = "cosine" if self.decay == "constant" else self.decay  # for `decay_now`
        decay = decays.by_name(named) if isinstance(named, str) else named
        if check_finite("decay(0)", decay(0.0)) != 1.0:
            raise ValueError(f"a decay must be exactly 1 at progress 0, got {decay(0.0)!r}: divide by that value")
        object.__setattr__(self, "_decay", decay)
        self.rule.init(self.total_iters)  # raises where it does not fit

    def init(self) -> ScheduleState:
        """Return the state before the first step."""
        rule = self.rule.init(self.total_iters)
        ramp = rule.factor if self.rule.roles == "all" else self.rule.floor
        marks = self._marks(self.total_iters)
        state = ScheduleState(0, self.total_iters, 1.0, 1.0, ramp, rule, _GUARD.init(), *marks)
        return self._settled(state, 0, rule, ramp, state.guard, state.deadlock, seen=False)

    def first(self, state: ScheduleState, loss: float | None = None) -> ScheduleState:
        """Return the state before the first step, given evidence there: the first factors may then lie above the floor.

        Args:
            state: What `init` returned.
            loss: The loss of the first step, which comes again with `step`; None where it is not known, but the size of
                the step is: under the spectral cap.

        Raises:
            ValueError: If a step was made already, the loss is not finite, or the rule refuses it.
        """
        if state.step > 0:
            raise ValueError(f"first is for the time before the first step, and {state.step} were made")
        if loss is not None:
            loss = check_finite("the first loss", loss)
        after = self.started(state, loss)
        return _noted(state, after, loss, self._happened(state, after, loss))

    def step(self, state: ScheduleState, loss: float | None = None) -> ScheduleState:
        """Return the state after a step that ran at the factors of `state`.

        Args:
            state: The state before.
            loss: The mean training loss of that step, unscaled. NaN and infinite losses never reach the rule; several
                in a row are an alarm for the guard. None where no loss is to be had: then time goes on, no more.

        Raises:
            ValueError: If a callable decay leaves (0, 1], or the rule refuses the first loss.

        Warns:
            UserWarning: Once past the end of the run; once where the guard goes off, or the loss has risen and come
                down again for the fourth time.
        """
        if state.step == state.total_iters:
            warn(
                f"the schedule's {state.total_iters} steps are over, and another was made; the rate stays where it is: "
                "give the number of optimizer steps in the whole run as total_iters, or call extend(total_iters)"
            )
        after = self.advanced(state, 0.0 if loss is None else float(loss), loss is not None)
        if not 0.0 < after.factor <= 1.0:
            raise ValueError(
                f"a decay must stay in (0, 1], and the factor of step {after.step} came to {after.factor!r}"
            )
        if after.guard.off and not state.guard.off:
            warn(
                "the loss goes on rising whatever the learning rate: it does not measure the progress of this training "
                "(as in reinforcement learning, or against a critic), and the guard is off from here on; rule='linear' "
                "uses no losses"
            )
        elif state.guard.rises < _SWINGS <= after.guard.rises and after.guard.higher < _SWINGS:
            warn(
                f"the loss has risen {_SWINGS} times and come down again, and each time the rate was halved for a "
                "while: the peak is too high, or the loss swings by itself (a generator against its critic, data in "
                "order) and does not measure progress; rule='linear' uses no losses"
            )
        return _noted(state, after, loss, self._happened(state, after, loss))

    def extend(self, state: ScheduleState, total_iters: int) -> ScheduleState:
        """Return the state of a run that is to have `total_iters` steps in all, more or fewer; the rate goes on.

        What is left of the decay is stretched or pressed to the new end, whatever its form.

        Raises:
            ValueError: If `total_iters` does not lie above the steps made.
        """
        total_iters = check_count("total_iters", total_iters, minimum=1)
        if total_iters <= state.step:
            raise ValueError(f"total_iters must lie above the {state.step} steps made, got {total_iters}")
        low = state.hold_until > self._marks(state.total_iters)[0]  # as `hold_on` left it
        hold_until, deadline = self._marks(total_iters, low)
        longer = state._replace(
            total_iters=total_iters,
            hold_until=hold_until,
            deadline=deadline,
            rule=self.rule.extended(state.rule, total_iters),
        )
        if state.phase == "warmup":  # what a deadline near by has raised, stays raised
            lift = max(state.deadlock.lift, state.rule.factor) if self.rule.max_warmup else 0.0
            longer = longer._replace(deadlock=state.deadlock._replace(lift=lift))
        elif state.phase == "stable":
            start = max(state.step, longer.hold_until)
            longer = longer._replace(decaying=start, anchor=start)
        else:
            longer = longer._replace(anchor=state.step, progress=_progress_of(state))
        return _noted(state, longer, None, [("extended", None)])

    def hold_on(self, state: ScheduleState) -> ScheduleState:
        """Return the state of a run whose peak is low, and is held to 80 % of the run in place of 60 %.

        The state is the same where the rule's `hold` is a number, or the decay has begun.
        """
        hold_until = self._marks(state.total_iters, low=True)[0]
        if hold_until <= state.hold_until or state.phase == "decay":
            return state
        longer = state._replace(hold_until=hold_until)
        if state.phase == "stable":
            longer = longer._replace(decaying=hold_until, anchor=hold_until)
        return _noted(state, longer, None, [("peak is low: held longer", None)])

    def decay_now(self, state: ScheduleState, steps: int) -> ScheduleState:
        """Return the state of a run that decays from the present factor over the next `steps` steps, and ends there.

        Raises:
            ValueError: If `steps` is no whole number >= 1.
        """
        steps = check_count("steps", steps, minimum=1, hint="it is the number of steps that the decay is to take")
        decays = state.phase == "decay"
        now = state._replace(
            total_iters=state.step + steps,
            ended=state.step if state.ended < 0 else state.ended,
            decaying=state.decaying if decays else state.step,
            anchor=state.step,
            progress=self._level_until(_progress_of(state) if decays else 0.0),
        )
        return _noted(state, now, None, [("decay moved up", None)])

    def factor_of(self, state: ScheduleState, role: str | None) -> float:
        """Return the factor of weights in that role; None is the role of weights that have none."""
        return state.factor if self.rule.roles == "all" or role in ("hidden", None) else state.base

    def reading(self, state: ScheduleState) -> tuple[float | None, float | None]:
        """Return the (gap, target loss) that the rule follows, as warm-up left them; None where it has none (yet)."""
        gap, target = self.rule.reading(state.rule)
        return gap if gap < math.inf else None, target if target < math.inf else None

    def config(self) -> dict[str, Any]:
        """Return the settings as plain Python values; a callable decay as its values at a few points."""
        decay = self.decay if isinstance(self.decay, str) else [float(self._decay(progress)) for progress in _PROBES]
        return {"total_iters": self.total_iters, "decay": decay, "rule": self.rule.config()}

    def to_dict(self, state: ScheduleState) -> dict[str, Any]:
        """Return a state, with the settings that it belongs to, as plain Python values."""
        return {"version": STATE_VERSION, "config": self.config(), "state": to_plain(state)}

    def from_dict(self, data: dict[str, Any]) -> ScheduleState:
        """Return the state that `to_dict` described; one of another length goes on as in `extend`.

        Raises:
            ValueError: If it is no such state, of another version, or of a schedule with other settings.
        """
        if not isinstance(data, dict) or "version" not in data:
            raise ValueError(f"this is not the state of a warmgap schedule: it has no version, got {data!r:.80}")
        if data["version"] == 1:
            data = of_version_1(data, self)
        if data["version"] != STATE_VERSION:
            raise ValueError(
                f"this state has version {data['version']!r} and this warmgap reads versions 1 and {STATE_VERSION}: "
                "load it with the warmgap that saved it"
            )
        config, fields = data.get("config", {}), data.get("state")
        _refuse_other_config(config, self.config())
        state = from_plain(ScheduleState, fields)
        state = state._replace(rule=from_plain(type(self.rule.init(self.total_iters)), state.rule))
        if not 0.0 < min(state.factor, state.base) <= max(state.factor, state.base) <= 1.0 or state.step < 0:
            raise ValueError(
                f"a factor lies in (0, 1] and a step at 0 or above, got {state.factor!r}, {state.base!r} and "
                f"{state.step!r}: this state is damaged or was edited"
            )
        if self.total_iters in (config.get("total_iters"), state.total_iters):
            return state
        return self.extend(state, self.total_iters)

    # What follows is written in operations: `warmgap.optax` runs the same lines on arrays.

    def started(self, state: ScheduleState, loss: float | None, ops: Ops = Floats) -> ScheduleState:
        """Return the state before the first step, given the evidence there."""
        if not self.rule.needs_loss:
            return state
        rule = self.rule.first(state.rule, loss, ops)
        ramp = rule.factor if self.rule.roles == "all" else 1.0
        return self._settled(state, state.step, rule, ramp, state.guard, state.deadlock, True, ops)

    def advanced(self, state: ScheduleState, loss: float, given: bool, ops: Ops = Floats) -> ScheduleState:
        """Return the state after a step; `loss` is any number where none was given."""
        rule, total, warms = self.rule, state.total_iters, state.ended < 0
        finite = given & ops.finite(loss)
        loss = ops.where(finite, loss, 0.0)
        before, step = state.rule, state.step + 1
        after = ops.when(warms & (finite | rule.clock), lambda: rule.step(before, loss, ops), before)
        guard, deadlock = state.guard, state.deadlock
        if rule.guard:
            guard = ops.when(given, lambda: _GUARD.step(state.guard, loss, finite, total, ops), guard)
        if rule.deadlock_exit:
            deadlock = ops.when(
                warms, lambda: watch(state.deadlock, after.losses, finite, before.factor, total, ops), deadlock
            )
        wanted = ops.maximum(after.factor, deadlock.lift)
        if rule.max_warmup is not None:  # as late as doubling allows
            wanted = ops.maximum(wanted, ops.power(2.0, ops.minimum(0, step - state.deadline)))
        factor = ops.where(warms, ops.minimum(ops.minimum(1.0, wanted), 2.0 * before.factor), before.factor)
        ramp = factor if rule.roles == "all" else ops.minimum(1.0, 2.0 * state.ramp)
        after = after if factor is after.factor else after._replace(factor=factor)
        seen = state.seen | (finite & rule.needs_loss)
        return self._settled(state, step, after, ramp, guard, deadlock, seen, ops)

    def _settled(
        self,
        old: ScheduleState,
        step: int,
        rule: Any,
        ramp: float,
        guard: GuardState,
        deadlock: DeadlockState,
        seen: bool,
        ops: Ops = Floats,
    ) -> ScheduleState:
        """Return the state with these parts and what follows from them: end of warm-up, start of the decay, factors."""
        over = (old.ended < 0) & (rule.factor == 1.0)
        start = ops.maximum(step, old.hold_until)
        ended = ops.where(over, step, old.ended)
        decaying = ops.where(over, start, old.decaying)
        anchor = ops.where(over, start, old.anchor)
        scale = guard.scale * ops.when(
            (ended >= 0) & (step > decaying),
            lambda: ops.decay(self._decay)(_progress(step, old.total_iters, anchor, old.progress, ops)),
            1.0,
        )
        return ScheduleState(
            step, old.total_iters, scale * rule.factor, scale * ramp, ramp, rule, guard, old.hold_until, old.deadline,
            deadlock, seen, ended, decaying, anchor, old.progress, old.events,
        )  # fmt: skip

    # Of the host alone.

    def _marks(self, total_iters: int, low: bool = False) -> tuple[int, int]:
        """Return the steps before which it does not decay, where the peak is `low`, and at which warm-up ends."""
        stays, latest, hold = self.decay == "constant", self.rule.max_warmup, self.rule.hold
        share = hold if hold != "auto" else HOLD_LOW if low else HOLD
        return (
            _NEVER if stays else math.ceil(share * total_iters),
            _NEVER if latest is None else max(1, math.ceil(latest * total_iters)),
        )

    def _level_until(self, progress: float) -> float:
        """Return up to where the decay stays as high as it is at `progress`."""
        level, low, high = self._decay(progress), progress, 1.0
        if self._decay(1.0 - 2.0**-30) >= level:
            return progress
        for _ in range(50):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self._decay(middle) >= level else (low, middle)
        return low

    def _happened(self, before: ScheduleState, after: ScheduleState, loss: float | None) -> Happened:
        """Return what tells two states apart."""
        guard, old = after.guard, before.guard
        hidden = None if self.rule.roles == "all" else "hidden"
        happened: Happened = []
        if after.seen and not before.seen:
            happened.append(("step size known" if loss is None else "first loss seen", None))
        if guard.off and not old.off:
            happened.append(("loss rises at any rate: guard off", None))
        elif guard.scale < old.scale:
            reason = "loss rose: rate halved" if guard.rises > old.rises else "no finite loss: rate halved"
            happened.append((reason, None))
        elif guard.scale == 1.0 > old.scale:
            happened.append(("rate recovered", None))
        if after.deadlock.lifts > before.deadlock.lifts:
            happened.append(("deadlock: rate raised", hidden))
        if after.ended >= 0 > before.ended and not (happened and after.step == 0):
            reason = "descent over" if self.rule.needs_loss and not self.rule.clock else "peak reached"
            if not after.rule.done:
                reason = "peak reached" if after.deadlock.lift == 1.0 else "deadline: warm-up ended"
            happened.append((reason, hidden))
        if 0 <= after.decaying <= after.step and not 0 <= before.decaying <= before.step:
            happened.append(("decay began", None))
        return happened


Happened = list[tuple[str, str | None]]
"""The reasons of what has happened, in its order, each with the role that it concerns."""


def _noted(before: ScheduleState, after: ScheduleState, loss: float | None, happened: Happened) -> ScheduleState:
    """Return the state after with what has happened among its events."""
    if not happened:
        return after
    events = [Event(after.step, loss, before.factor, after.factor, *what) for what in happened]
    return after._replace(events=(*after.events, *events)[-MOST_EVENTS:])


def _refuse_other_config(saved: Any, own: dict[str, Any]) -> None:
    """Raise ValueError unless the settings are the same, but for the length of the run."""
    if not isinstance(saved, dict):
        raise ValueError(f"this is not the state of a warmgap schedule: its config is {saved!r:.80}")
    keys = sorted((saved.keys() | own.keys()) - {"total_iters"})
    if differing := [key for key in keys if saved.get(key) != own.get(key)]:
        what = "; ".join(f"{key}: saved {saved.get(key)!r}, here {own.get(key)!r}" for key in differing)
        raise ValueError(
            f"this state belongs to a schedule with other settings ({what}): give the same ones, or start afresh"
        )


def _progress(step: int, total: int, anchor: int, progress: float, ops: Ops) -> float:
    """Return the progress of a decay that was at `progress` at the step `anchor`; past the end, that of the last."""
    length = ops.maximum(1, total - anchor)
    left = (length - ops.minimum(step - anchor, length - 1)) / length
    now: float = 1.0 - (1.0 - progress) * left
    return now


def _progress_of(state: ScheduleState) -> float:
    return _progress(state.step, state.total_iters, state.anchor, state.progress, Floats)
