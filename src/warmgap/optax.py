"""The schedule for optax: a jit-safe transformation, and a stateful schedule, both fed by `value=loss`.

The rules are those of `warmgap.rules`, written once more in `jax.numpy` and held to them by tests. They compute in
float64 whatever `jax_enable_x64` says, and keep each number as a sum of three float32, so that the learning rates are
those of the PyTorch side, up to the float32 that they are handed out in. Nothing waits for the host, but for one call:
the gap rule matches its peak gap there, at the first loss.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from warmgap._checks import check_positive
from warmgap.geometry import check_norm
from warmgap.matching import best_share
from warmgap.rules import (
    GapRule,
    LinearRule,
    LossRatioRule,
    MeasuredRule,
    PaceRule,
    PowerRule,
    Rule,
    by_name,
)
from warmgap.rules._gap_driven import GapDriven
from warmgap.rules.pace import (
    BURST,
    CERTAIN,
    EARLIER,
    FORGOTTEN,
    INTERVALS,
    JUDGED,
    KNEE_CERTAIN,
    KNEE_TRAVELLED,
    LEAST_FALLEN,
    MATURE,
    MOST_FALLEN,
    RECENT,
    ROUNDING,
    SECOND_TO_DEVIATION,
    SEEN,
    TRAVELLED,
)
from warmgap.schedule import Schedule
from warmgap.signal import _CHANGE_TO_DEVIATION, _MAD_TO_DEVIATION, Signal
from warmgap.target import LOWEST_SHARE, MARGIN, MEAN_DECAY

__all__ = ["WarmupSchedule", "WarmupState", "check_restored", "scale_by_warmup"]

STATE_VERSION = 1

Values = dict[str, Any]

_DECAYS: dict[str, Callable[[Any], Any]] = {
    "cosine": lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
    "wsd": lambda progress: 1.0 - jnp.maximum(0.0, progress - 0.8) / 0.2,
    "inverse-sqrt": lambda progress: 1.0 / jnp.sqrt(1.0 + 99.0 * progress),
    "constant": jnp.ones_like,
}


class WarmupState(NamedTuple):
    """Where a schedule stands: arrays only, for any checkpoint format.

    Attributes:
        step: Optimizer steps made, int32.
        factor: Learning rate / peak learning rate of the next step, float32 in (0, 1].
        handover: The step at which warm-up ended, int32; -1 while it lasts.
        gap: Loss minus target loss as the rule sees it, float32; NaN before the first loss or where the rule has none.
        target_loss: The target loss in use, float32; NaN like `gap`.
        rule: The rule's own state; each real number is the sum of three float32.
        config: Version of this form and a digest of each setting, int32 of shape (5,), for `check_restored`.
    """

    step: Array
    factor: Array
    handover: Array
    gap: Array
    target_loss: Array
    rule: dict[str, Array]
    config: Array


class WarmupSchedule:
    """An `optax` stateful schedule: a warm-up that ends itself, then a decay.

    For `optax.inject_hyperparams(optax.lion)(learning_rate=WarmupSchedule(1e-3, total_iters))`. The optimizer then
    needs `update(..., value=loss)`, the mean training loss of the step over all its tokens on all devices. A value that
    is NaN or infinite is not seen. Where a rule of the core raises at a first loss that it can't use (below
    `target_loss`, or not positive for the loss ratio), here it stays at its floor, and the schedule warms up by the
    clock. The first step's own loss is looked at before that step, so that the default and the loss ratio may start
    above the floor.

    Args:
        peak: The peak learning rate, > 0.
        total_iters: Optimizer steps in the whole run.
        rule: `"auto"`, `"loss-ratio"`, `"power"`, `"linear"` (a tenth of the run), or a rule of `warmgap.rules`.
        target_loss: The loss taken as optimal, or `"auto"`. For rules given by name.
        floor: Starting learning rate / peak learning rate of a rule that does not start on the first loss, in (0, 1).
            For rules given by name that use one.
        decay: A name of `warmgap.decay.NAMES`, or a callable from progress in [0, 1] to a factor in (0, 1], written
            with `jax.numpy`.
        norm: The norm that bounds a step, `"spectral"` for Muon: the default goes up faster in that one.
            `"auto"` is any other: an optimizer can't be recognised here.

    Raises:
        ValueError: If an argument lies outside its range.
    """

    def __init__(
        self,
        peak: float,
        total_iters: int,
        *,
        rule: str | Rule[Any] = "auto",
        target_loss: float | Literal["auto"] = "auto",
        floor: float = 0.01,
        decay: str | Callable[[Any], Any] = "cosine",
        norm: str = "auto",
    ) -> None:
        check_norm(norm)
        if isinstance(rule, str):
            rule = by_name(rule, total_iters, target_loss=target_loss, floor=floor, norm=lambda: norm)
        self.peak = check_positive("peak", peak)
        self.schedule = Schedule(total_iters, rule, decay)
        self._decay = _DECAYS[decay] if isinstance(decay, str) else decay
        self._start, self._step = _compiled(rule, total_iters)
        self._first = self.schedule.init()  # here, as it calls the decay, which a compiled function can't
        self._look = _look(rule)
        self._config = _digests(self.schedule)

    def init(self) -> WarmupState:
        """Return the state before the first step."""
        first = self._first
        with jax.enable_x64(True):
            rule = {"applied": first.factor, "done": first.handover is not None, **self._start}
            return WarmupState(
                step=jnp.zeros((), jnp.int32),
                factor=jnp.float32(first.factor),
                handover=jnp.int32(-1 if first.handover is None else first.handover),
                gap=jnp.float32(math.nan),
                target_loss=jnp.float32(math.nan),
                rule=_packed({name: jnp.asarray(value) for name, value in rule.items()}),
                config=jnp.asarray(self._config, jnp.int32),
            )

    def update(self, state: WarmupState, *, value: jax.typing.ArrayLike | None = None, **extra: Any) -> WarmupState:
        """Return the state after a step that ran at the rate of `self(state, value=value)` and had the loss `value`.

        Raises:
            ValueError: If the rule needs a value and there is none, or it is not a scalar.
        """
        del extra
        if value is None:
            if self.schedule.rule.needs_loss:
                raise ValueError("a warm-up that looks at the loss needs it: call update(..., value=loss)")
            value = math.nan
        if jnp.shape(value) != ():
            raise ValueError(f"value must be a scalar, the mean loss of the step, got the shape {jnp.shape(value)}")
        state = self._looked(state, value)
        with jax.enable_x64(True):
            return self._next(state, jnp.asarray(value, jnp.float64))

    def __call__(self, state: WarmupState, *, value: jax.typing.ArrayLike | None = None, **extra: Any) -> Array:
        """Return the learning rate of the next step.

        That of the first step needs its loss, as `value`, which `update` is given too: without it, it is at the floor.
        """
        del extra
        return self.peak * (state if value is None else self._looked(state, value)).factor

    def _looked(self, state: WarmupState, value: jax.typing.ArrayLike) -> WarmupState:
        """Return the state before the first step given the loss there, and any other as it is."""
        if self._look is None:
            return state
        with jax.enable_x64(True):
            loss = jnp.asarray(value, jnp.float64)
            looks = (state.step == 0) & jnp.isfinite(loss.astype(jnp.float32))
            before = _unpacked(state.rule)
            seen = {name: jnp.where(looks, new, before[name]) for name, new in self._look(before, loss).items()}
            handover = jnp.where(looks & seen.get("done", False), 0, state.handover)
            return state._replace(
                factor=seen["applied"].astype(jnp.float32),
                handover=handover.astype(jnp.int32),
                rule={**state.rule, **_packed(seen)},
            )

    def _next(self, state: WarmupState, loss: Array) -> WarmupState:
        before = _unpacked(state.rule)
        seen = self._step(before, loss)
        if self.schedule.rule.needs_loss:
            finite = jnp.isfinite(loss.astype(jnp.float32))
            seen = jax.tree.map(lambda new, old: jnp.where(finite, new, old), seen, before)
        step = state.step + 1
        decaying = state.handover >= 0
        factor, ended = seen["applied"], seen["done"]
        if self.schedule.rule.bounded:
            line = self.schedule._line()
            ended = ended | (step >= line)
            least = self.schedule.rule.least(step.astype(jnp.float64) / line)  # type: ignore[arg-type]
            factor = jnp.where(ended, 1.0, jnp.maximum(factor, least))
            factor = jnp.minimum(jnp.minimum(1.0, factor), 2.0 * before["applied"])
        factor = jnp.where(decaying, self._decayed(step, state.handover), factor)
        handover = jnp.where(ended & (factor == 1.0), step, -1)
        gap, target = _reading(self.schedule.rule, seen, self.schedule.total_iters)
        return WarmupState(
            step=step,
            factor=factor.astype(jnp.float32),
            handover=jnp.where(decaying, state.handover, handover).astype(jnp.int32),
            gap=gap.astype(jnp.float32),
            target_loss=target.astype(jnp.float32),
            rule=_packed({**seen, "applied": factor}),
            config=state.config,
        )

    def _decayed(self, step: Array, handover: Array) -> Array:
        remaining = jnp.maximum(1, self.schedule.total_iters - handover)
        progress = jnp.minimum(step - handover, remaining - 1).astype(jnp.float64) / remaining
        return jnp.asarray(self._decay(progress), jnp.float64)


def scale_by_warmup(
    total_iters: int,
    *,
    rule: str | Rule[Any] = "auto",
    target_loss: float | Literal["auto"] = "auto",
    floor: float = 0.01,
    decay: str | Callable[[Any], Any] = "cosine",
    norm: str = "auto",
) -> optax.GradientTransformationExtraArgs:
    """Return a transformation that scales updates by the factor of a `WarmupSchedule`.

    Chain it after an optimizer built at its peak learning rate:
    `optax.chain(optax.lion(1e-3), scale_by_warmup(total_iters))`. `update` needs `value=loss`. The state is a
    `WarmupState`; `optax.tree.get(opt_state, "gap")` finds what it holds.

    Args:
        total_iters: Optimizer steps in the whole run.
        rule: As for `WarmupSchedule`.
        target_loss: As for `WarmupSchedule`.
        floor: As for `WarmupSchedule`.
        decay: As for `WarmupSchedule`.
        norm: As for `WarmupSchedule`.

    Raises:
        ValueError: If an argument lies outside its range.
    """
    schedule = WarmupSchedule(
        1.0,
        total_iters,
        rule=rule,
        target_loss=target_loss,
        floor=floor,
        decay=decay,
        norm=norm,
    )

    def init(params: optax.Params) -> WarmupState:
        del params
        return schedule.init()

    def update(
        updates: optax.Updates, state: WarmupState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, WarmupState]:
        del params
        after = schedule.update(state, **extra)  # first, as it checks the value
        factor = schedule(state, **extra)
        scaled = jax.tree.map(lambda update: update * factor.astype(jnp.result_type(update)), updates)
        return scaled, after

    return optax.GradientTransformationExtraArgs(init, update)


def check_restored(restored: Any, fresh: Any) -> None:
    """Refuse an optimizer state whose warm-up belongs to other settings: call it after restoring a checkpoint.

    A jitted update can't raise, and a checkpoint of arrays fits any schedule with the same rule. Reads the states on
    the host. The peak learning rate is not part of it.

    Args:
        restored: The restored state: any tree with `WarmupState` in it, as the optimizer's `init` makes it.
        fresh: What the run's own `optimizer.init(params)` returns.

    Raises:
        ValueError: If the two don't hold the same number of `WarmupState`, or one of them is of another version, of a
            schedule with other settings, or damaged.
    """
    pair = [_warmup_states(tree) for tree in (restored, fresh)]
    if not pair[1] or len(pair[0]) != len(pair[1]):
        raise ValueError(
            f"the restored state holds {len(pair[0])} WarmupState and the optimizer's own {len(pair[1])}: restore into "
            "the tree that optimizer.init(params) returns, with scale_by_warmup or WarmupSchedule in the optimizer"
        )
    for saved, own in zip(*pair, strict=True):
        _refuse_other(saved, own)


def _warmup_states(tree: Any) -> list[WarmupState]:
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, WarmupState))
    return [leaf for leaf in leaves if isinstance(leaf, WarmupState)]


_CONFIG = ("version", "total_iters", "decay", "rule", "settings of the rule")


def _digests(schedule: Schedule) -> list[int]:
    """Return a number for each of `_CONFIG`: version and length as they are, digests of the others."""

    def digest(value: Any) -> int:
        text = json.dumps(value, sort_keys=True).encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:4], "big", signed=True)

    config = schedule.config()
    name = config["rule"].pop("name")
    return [
        STATE_VERSION,
        schedule.total_iters,
        *map(digest, (config["decay"], name)),
        digest(config["rule"]),
    ]


def _refuse_other(saved: WarmupState, own: WarmupState) -> None:
    found, wanted = np.asarray(saved.config), np.asarray(own.config)
    if found.shape != wanted.shape or found[0] != wanted[0]:
        raise ValueError(
            f"this WarmupState has version {found.ravel()[:1].tolist()}, this warmgap reads {wanted[:1].tolist()}: "
            "restore it with the warmgap that saved it"
        )
    if differing := [name for name, a, b in zip(_CONFIG, found, wanted, strict=True) if a != b]:
        lengths = f" (saved for {found[1]} steps, here {wanted[1]})" if "total_iters" in differing else ""
        raise ValueError(
            f"this WarmupState belongs to a schedule with other settings: {', '.join(differing)} differ{lengths}; give "
            "the same ones, or start afresh"
        )
    like = [jax.tree.map(lambda leaf: (np.shape(leaf), str(np.asarray(leaf).dtype)), state) for state in (saved, own)]
    factor, step = float(saved.factor), int(saved.step)
    if like[0] != like[1] or not 0.0 < factor <= 1.0 or step < 0:
        raise ValueError(
            f"this WarmupState is damaged or was edited: its arrays are not those of this schedule, or its factor "
            f"{factor!r} or step {step!r} can't be"
        )


def _packed(values: Mapping[str, Array]) -> dict[str, Array]:
    """Write each float64 as three float32 whose sum it is, exactly: arrays that stay as they are where x64 is off."""

    def pack(x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x.astype(x.dtype if x.dtype == jnp.bool_ else jnp.int32)
        parts, rest = [], x
        for _ in range(3):
            parts.append(rest.astype(jnp.float32))
            rest = jnp.where(jnp.isfinite(parts[-1]), rest - parts[-1].astype(jnp.float64), 0.0)
        return jnp.stack(parts)

    return {name: pack(value) for name, value in values.items()}


def _unpacked(values: Mapping[str, Array]) -> Values:
    def unpack(x: Array) -> Array:
        return x.astype(jnp.float64).sum(0) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return {name: unpack(value) for name, value in values.items()}


def _compiled(rule: Rule[Any], total_iters: int) -> tuple[Values, Callable[[Values, Array], Values]]:
    """Return what the rule's state holds besides `applied` (its factor) and `done`, and its step."""
    if isinstance(rule, LinearRule):
        return {"steps": 0}, lambda state, _: _linear(rule, state)
    if isinstance(rule, LossRatioRule):
        level = math.nan if rule.level is None else rule.level
        return {**_signal_start(rule.signal), "level": level}, lambda state, loss: _loss_ratio(rule, state, loss)
    descent = {"initial_loss": math.nan, "lowest_loss": math.nan, "distance": 0.0}
    if isinstance(rule, PaceRule):
        own: Values = {
            "best_loss": math.nan,
            "noise": 0.0,
            "level": math.nan,
            "rest": 0,
            "knee_step": -1,
            "knee_factor": 1.0,
            "steps": 0,
        }
        none = jnp.zeros(INTERVALS)
        course: Values = {"distances": none, "sums": none, "stride": 1, "course_steps": 0, "ahead": 0.0}
        start = {**_signal_start(rule.signal), **descent, **own, **course}
        return start, lambda state, loss: _pace(rule, total_iters, state, loss)
    if isinstance(rule, GapRule | PowerRule | MeasuredRule):
        start = {**_signal_start(rule.signal), **descent, "share": math.nan}
        return start, lambda state, loss: _gap_driven(rule, total_iters, state, loss)
    raise ValueError(f"warmgap.optax knows the rules of warmgap.rules, got {type(rule).__name__}")


def _look(rule: Rule[Any]) -> Callable[[Values, Array], Values] | None:
    """Return what the rule's `calibrate` changes in its state; None for a rule that has none."""
    if isinstance(rule, LossRatioRule):

        def look(state: Values, loss: Array) -> Values:
            seen = _loss_ratio(rule, state, loss)
            return {name: seen[name] for name in ("level", "applied", "done")}

        return look
    if isinstance(rule, PaceRule):
        start = max(rule.floor, rule.start)
        return lambda _, loss: {"initial_loss": loss, "lowest_loss": loss, "applied": start}
    return None


def _signal_start(signal: Signal) -> Values:
    return {
        "window": jnp.full(signal.window, math.nan),
        "weighted": 0.0,
        "weight": 0.0,
        "accepted": math.nan,
        "change": 0.0,
        "change_weight": 0.0,
    }


def _signal(signal: Signal, state: Values, loss: Array) -> tuple[Values, Array]:
    """Return the state after a finite loss, and the clean loss."""
    window = jnp.append(state["window"][1:], loss)
    middle = _low_median(window)
    spread = _MAD_TO_DEVIATION * _low_median(jnp.abs(window - middle))
    accepted = jnp.where(jnp.abs(loss - middle) <= signal.threshold * spread, loss, middle)
    keep, new = signal.averaging, 1.0 - signal.averaging
    first = jnp.isnan(state["accepted"])
    change = jnp.where(first, 0.0, jnp.abs(accepted - state["accepted"]))
    state = {
        **state,
        "window": window,
        "weighted": keep * state["weighted"] + new * accepted,
        "weight": keep * state["weight"] + new,
        "accepted": accepted,
        "change": keep * state["change"] + new * change,
        "change_weight": jnp.where(first, 0.0, keep * state["change_weight"] + new),
    }
    return state, state["weighted"] / state["weight"]


def _low_median(values: Array) -> Array:
    """Return the lower median of the values that are not NaN."""
    count = jnp.isfinite(values).sum()
    return jnp.sort(values)[(count - 1) // 2]  # NaN come last


def _descended(state: Values, clean: Array) -> Values:
    return {
        **state,
        "initial_loss": jnp.where(jnp.isnan(state["initial_loss"]), clean, state["initial_loss"]),
        "lowest_loss": jnp.fmin(clean, state["lowest_loss"]),
        "distance": state["distance"] + state["applied"],
    }


def _target(target_loss: float | Literal["auto"], state: Values, total_iters: int) -> Array:
    """Return the target loss, given or as `warmgap.estimate_target_loss` does."""
    if target_loss != "auto":
        return jnp.asarray(target_loss, jnp.float64)
    initial, lowest, distance = state["initial_loss"], state["lowest_loss"], state["distance"]
    gain = initial - lowest
    slack = MARGIN * jnp.maximum(gain, 0.01 * jnp.abs(initial))
    highest = lowest - jnp.where(slack == 0.0, MARGIN, slack)
    total = jnp.maximum(MEAN_DECAY * total_iters, distance)
    stretch = jnp.maximum(1.0, jnp.log1p(total) / jnp.log1p(distance))
    least = LOWEST_SHARE * initial
    ratio = jnp.maximum(lowest, least) / initial
    reached = jnp.where(ratio < 1.0, initial * ratio**stretch, lowest)
    of_positive = jnp.minimum(highest, jnp.maximum(least, reached))
    of_other = jnp.where(gain > 0.0, jnp.minimum(highest, initial - gain * stretch), highest)
    return jnp.where(initial > 0.0, of_positive, of_other)


def _reading(rule: Rule[Any], state: Values, total_iters: int) -> tuple[Array, Array]:
    """Return the gap and the target loss, NaN where the rule has none."""
    if isinstance(rule, PaceRule | GapDriven):
        target = _target(rule.target_loss, state, total_iters)
        return state["lowest_loss"] - target, target
    if isinstance(rule, LossRatioRule):
        return state["weighted"] / state["weight"] - state["level"], state["level"]
    return jnp.float64(math.nan), jnp.float64(math.nan)


def _linear(rule: LinearRule, state: Values) -> Values:
    steps = jnp.minimum(state["steps"] + 1, rule.iters)
    return {"steps": steps, "applied": (steps + 1) / jnp.float64(rule.iters + 1), "done": steps == rule.iters}


def _loss_ratio(rule: LossRatioRule, state: Values, loss: Array) -> Values:
    state, clean = _signal(rule.signal, state, loss)
    half = jnp.where(clean > 0.0, 0.5 * clean, math.nan)
    level = jnp.where(jnp.isnan(state["level"]), half, state["level"])
    factor = jnp.where(clean > 0.0, jnp.minimum(1.0, level / clean), 1.0)
    factor = jnp.where(jnp.isnan(level), rule.floor, factor)
    done = state["done"] | (factor == 1.0)
    return {**state, "level": level, "applied": jnp.where(done, 1.0, factor), "done": done}


def _pace(rule: PaceRule, total_iters: int, state: Values, loss: Array) -> Values:
    state, clean = _signal(rule.signal, state, loss)
    state = _descended(state, clean)
    noise = _CHANGE_TO_DEVIATION * state["change"] / state["change_weight"]  # NaN after a single loss
    noise = jnp.where(jnp.isnan(noise), 0.0, noise)
    largest = jnp.maximum(noise, (1.0 - FORGOTTEN * (1.0 - rule.signal.averaging)) * state["noise"])
    best = jnp.where(state["weight"] >= MATURE, jnp.fmin(clean, state["best_loss"]), math.nan)
    before_knee = state["knee_step"] < 0
    course = _travelled(state)
    course = {name: jnp.where(before_knee, course[name], state[name]) for name in course}
    level = state["level"]
    judged = jnp.maximum(state["initial_loss"], state["window"][-JUDGED:].mean())
    state = {
        **state,
        **course,
        "best_loss": best,
        "noise": largest,
        "level": jnp.where(state["steps"] + 1 == JUDGED, judged, level),
        "rest": jnp.maximum(0, state["rest"] - 1),
        "steps": state["steps"] + 1,
    }

    back = jnp.maximum(rule.floor, 0.5 * state["applied"])
    retreating = {
        **state,
        "applied": back,
        "best_loss": clean,
        "rest": round(1.0 / (1.0 - rule.signal.averaging)),
        "knee_step": state["steps"],
        "knee_factor": back,
    }
    paced, over = _paced(rule, total_iters, state, noise)
    knew = _knew(rule, state)
    over = over | knew | ~before_knee
    new_knee = over & before_knee
    knee_step = jnp.where(new_knee, state["steps"], state["knee_step"])
    knee_here = jnp.where(knew, jnp.maximum(max(rule.known, rule.low), state["applied"]), state["applied"])
    knee_factor = jnp.where(new_knee, knee_here, state["knee_factor"])
    left = rule.max_warmup * total_iters - knee_step
    risen = knee_factor ** jnp.maximum(0.0, 1.0 - (state["steps"] - knee_step) / jnp.where(left > 0.0, left, 1.0))
    aim = jnp.where(over, jnp.where(left > 0.0, risen, 1.0), paced)
    factor = jnp.minimum(jnp.minimum(1.0, aim), 2.0 * state["applied"])
    done = over & (factor == 1.0) & (state["steps"] >= rule.hold * total_iters)
    going = {**state, "knee_step": knee_step, "knee_factor": knee_factor, "applied": factor, "done": done}

    most = best + jnp.maximum(rule.tolerance * largest, ROUNDING * jnp.abs(best))
    most = jnp.where(level > 0.0, jnp.minimum(most, BURST * level), most)
    rises = (clean > most) & (state["rest"] == 0)  # never with NaN
    return {name: jnp.where(rises, retreating[name], going[name]).astype(value.dtype) for name, value in state.items()}


def _knew(rule: PaceRule, state: Values) -> Array:
    """Return whether these are the first losses of a model that has learned before."""
    losses = state["window"][-JUDGED:]
    noise = SECOND_TO_DEVIATION * _low_median(jnp.abs(losses[2:] - 2.0 * losses[1:-1] + losses[:-2]))
    least: Array = rule.varied * state["initial_loss"]
    knew: Array = (state["steps"] == JUDGED) & (noise > least) & (least > 0.0)
    return knew


def _travelled(state: Values) -> Values:
    """Return the course with one more loss; the stretches not begun are 0."""
    steps, stride = state["course_steps"], state["stride"]
    full = steps == INTERVALS * stride
    stride = jnp.where(full, 2 * stride, stride)
    here = jnp.arange(INTERVALS) == steps // stride
    grown = {}
    loss = jnp.minimum(state["accepted"], jnp.fmax(state["window"][-1], state["window"][-2]))
    for name, more in (("distances", state["ahead"]), ("sums", state["ahead"] * loss)):
        values = state[name]
        halved = jnp.pad(values[::2] + values[1::2], (0, INTERVALS // 2))
        grown[name] = jnp.where(full, halved, values) + jnp.where(here, more, 0.0)
    steps = steps + (state["ahead"] > 0.0)
    return {**grown, "stride": stride, "course_steps": steps, "ahead": state["applied"]}


def _mean(state: Values, stretch: tuple[float, float]) -> tuple[Array, Array]:
    """Return the mean loss over a stretch of the distance, and the number of losses in it."""
    distances = state["distances"]
    ends = jnp.cumsum(distances)
    overlap = jnp.minimum(ends, stretch[1] * ends[-1]) - jnp.maximum(ends - distances, stretch[0] * ends[-1])
    share = jnp.where(distances > 0.0, jnp.maximum(0.0, overlap) / jnp.where(distances > 0.0, distances, 1.0), 0.0)
    steps = jnp.clip(state["course_steps"] - jnp.arange(INTERVALS) * state["stride"], 0, state["stride"])
    return (share * state["sums"]).sum() / (share * distances).sum(), jnp.maximum(1.0, (share * steps).sum())


def _paced(rule: PaceRule, total_iters: int, state: Values, noise: Array) -> tuple[Array, Array]:
    """Return the factor that keeps the descent at its pace, and whether it is over."""
    first, distance = state["initial_loss"], state["distances"].sum()
    recent, count = _mean(state, RECENT)
    earlier, earlier_count = _mean(state, EARLIER)
    drop, error = first - recent, noise / jnp.sqrt(count)
    doubt = CERTAIN * noise * jnp.sqrt(1.0 + 1.0 / count)
    fell = drop > jnp.maximum(doubt, LEAST_FALLEN * jnp.abs(first))
    scaled = first > 0.0
    way = (jnp.maximum(0.0, drop) + error) / rule.depth / jnp.where(scaled, first, 1.0)
    way = jnp.clip(way, LEAST_FALLEN, MOST_FALLEN)
    length = 0.5 * sum(RECENT) * distance / -jnp.log1p(-way)
    lowest = jnp.where(fell, rule.low, rule.start)
    aim = jnp.minimum(1.0, jnp.maximum(lowest, rule.pace * length / math.sqrt(total_iters)))
    slack = KNEE_CERTAIN * noise * jnp.sqrt(1.0 / count + 1.0 / earlier_count)
    flat = fell & (earlier - recent + slack < rule.flat * drop)
    over = (distance >= KNEE_TRAVELLED) & ((scaled & (way >= rule.fallen)) | flat)
    unseen = (state["steps"] < SEEN) | (distance < TRAVELLED)
    return jnp.where(unseen | ~scaled, rule.start, aim), over & ~unseen


def _gap_driven(rule: GapDriven, total_iters: int, state: Values, loss: Array) -> Values:
    state, clean = _signal(rule.signal, state, loss)
    state = _descended(state, clean)
    target = _target(rule.target_loss, state, total_iters)
    initial, gap = state["initial_loss"] - target, state["lowest_loss"] - target
    share = jax.lax.cond(
        jnp.isnan(state["share"]) & (initial > 0.0), lambda: _share(rule, initial), lambda: state["share"]
    )
    done = state["done"] | (gap <= share * initial)
    factor = jnp.where(done, 1.0, _factor(rule, initial, gap, share))
    return {**state, "share": share, "applied": jnp.where(jnp.isnan(share) & ~done, rule.floor, factor), "done": done}


def _share(rule: GapDriven, initial: Array) -> Array:
    if not isinstance(rule, GapRule):
        return rule._share(initial) * jnp.ones_like(initial)  # type: ignore[arg-type]

    def match(sharpness: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        share = best_share(rule.floor, float(np.asarray(sharpness, np.float64).sum()))[0]
        return np.array([share, share - float(np.float32(share))], np.float32)

    # in float32, as the host may have x64 off; two parts hold more digits than the matching is exact to
    sharpness = _packed({"sharpness": jnp.minimum(rule.sigma * rule.kappa * initial**2, 1e30)})["sharpness"]
    parts: Array = jax.pure_callback(match, jax.ShapeDtypeStruct((2,), jnp.float32), sharpness)  # type: ignore[no-untyped-call]
    return parts.astype(jnp.float64).sum()


def _factor(rule: GapDriven, initial: Array, gap: Array, share: Array) -> Array:
    if isinstance(rule, GapRule):  # ResponseCurve, whose checks a tracer can't pass
        distance = (gap - share * initial) / (initial - share * initial)
        return 1.0 / (1.0 + (1.0 / rule.floor - 1.0) * (initial / gap) * distance * distance)
    if isinstance(rule, MeasuredRule):
        return jnp.minimum(1.0, rule._smoothness.step_size(gap) / rule._smoothness.peak_lr)
    rho: float = rule.rho  # type: ignore[attr-defined]
    return jnp.minimum(1.0, (share * initial / gap) ** rho)
