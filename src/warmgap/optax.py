"""The schedule for optax: a jit-safe transformation, and a stateful schedule, both fed by `value=loss`.

It is `warmgap.Schedule` itself, whose lines run on arrays here: in float32, with no wait for the host but one (the gap
rule matches its peak gap there, at the first loss), under `jit`, `scan` and `vmap`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from warmgap._checks import check_count, check_positive, warn
from warmgap._checks import not_installed as _not_installed

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from jax import Array
except ModuleNotFoundError as _error:
    raise _not_installed(_error, "warmgap.optax", "optax", "jax", "optax") from None

from warmgap import decay as decays
from warmgap._ops import LARGEST
from warmgap.rules import Rule, by_name, default_rho
from warmgap.rules.spectral import ABOVE_EDGE, RANK, ROUNDING, directions_of, noise_edge
from warmgap.schedule import Schedule, ScheduleState

__all__ = [
    "SpectralCapState",
    "WarmupSchedule",
    "WarmupState",
    "check_restored",
    "roles_of",
    "scale_by_warmup",
    "spectral_cap",
]

STATE_VERSION = 2

_EMBEDDING = frozenset({"embed", "embedding", "embeddings", "embedder", "wte", "wpe", "pos", "position"})
_HEAD = frozenset({"head", "logits", "unembed", "unembedding", "classifier", "output"})


class Arrays:
    """The operations of `warmgap._ops.Floats` on arrays."""

    minimum, maximum, where, power = jnp.minimum, jnp.maximum, jnp.where, jnp.power
    log1p, sqrt, sin, no = jnp.log1p, jnp.sqrt, jnp.sin, jnp.logical_not

    @staticmethod
    def finite(loss: Array) -> Array:
        return jnp.abs(loss) < LARGEST

    @staticmethod
    def when(condition: Array, make: Callable[[], Any], old: Any) -> Any:
        return jax.tree.map(lambda new, kept: jnp.where(condition, new, kept), make(), old)

    @staticmethod
    def once(condition: Array, make: Callable[[], Array], old: Array) -> Array:
        found: Array = jax.lax.cond(condition, lambda: jnp.float32(make()), lambda: jnp.float32(old))
        return found

    @staticmethod
    def host(function: Callable[[float], float], value: Array) -> Array:
        shape = jax.ShapeDtypeStruct((), jnp.float32)  # type: ignore[no-untyped-call]
        call = functools.partial(jax.pure_callback, vmap_method="sequential")
        found: Array = call(lambda number: np.float32(function(float(number))), shape, value)
        return found

    @staticmethod
    def decay(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        ours: Any = function
        if isinstance(ours, functools.partial) and ours.func.__module__ == decays.__name__:
            return functools.partial(ours, ops=Arrays)
        return function

    @staticmethod
    def require(holds: Array, message: Callable[[], str]) -> None:
        """Nothing can be raised here: the factor stays at its floor."""

    @staticmethod
    def push(window: Array, value: Array) -> Array:
        return jnp.append(window[1:], value)

    @staticmethod
    def median(window: Array, count: Array) -> Array:
        unused = jnp.arange(window.size) < window.size - count
        found: Array = jnp.sort(jnp.where(unused, 3.0 * LARGEST, window))[(count - 1) // 2]
        return found

    @staticmethod
    def distances(window: Array, value: Array) -> Array:
        return jnp.abs(window - value)


class WarmupState(NamedTuple):
    """Where a schedule stands: arrays only, none of them NaN, for any checkpoint format.

    Attributes:
        step: Optimizer steps made, int32.
        factor: Learning rate / peak learning rate of the next step, float32 in (0, 1], of the roles the rule governs.
        base: The same of all other roles.
        handover: The step at which warm-up ended, int32; -1 while it lasts.
        gap: Loss minus target loss as the rule follows it, float32; infinite before the first loss or where the rule
            has none.
        target_loss: The target loss in use, float32; infinite like `gap`.
        parts: The other numbers of the `warmgap.ScheduleState`, in its order.
        config: Version of this form, total_iters, and a digest of each other setting, int32 of shape (5,), for
            `check_restored`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> optimizer = optax.chain(optax.lion(1e-3), scale_by_warmup(100))
        >>> state = optimizer.init({"w": jnp.ones(4)})
        >>> int(optax.tree.get(state, "step")), round(float(optax.tree.get(state, "factor")), 3)
        (0, 0.01)
    """

    step: Array
    factor: Array
    base: Array
    handover: Array
    gap: Array
    target_loss: Array
    parts: tuple[Array, ...]
    config: Array


class WarmupSchedule:
    """An `optax` stateful schedule: a warm-up that ends itself, the peak, then a decay.

    For `optax.inject_hyperparams(optax.lion)(learning_rate=WarmupSchedule(1e-3, total_iters))`. The optimizer then
    needs `update(..., value=loss)`, the mean training loss of the step over all its tokens on all devices; no gradient
    flows through it. A value that is NaN or infinite does not reach the rule. Where a rule of the core raises at a
    first loss that it can't use (below `target_loss`, or not positive for the loss ratio), here it stays at its floor
    until the deadlock exit or the deadline. The first step's own loss is known before that step, so that it may run
    above the floor.

    Args:
        peak: The peak learning rate, > 0.
        total_iters: Optimizer steps in the whole run.
        rule: A name of `warmgap.rules.NAMES`, perhaps with settings (`"gap(kappa=65280)"`), or a rule.
        target_loss: The loss taken as optimal, or `"auto"`. For rules given by name.
        floor: Starting learning rate / peak learning rate without evidence, in (0, 1). For rules given by name.
        decay: A name of `warmgap.decay.NAMES`, one made by `warmgap.decay`, or a callable from progress in [0, 1] to a
            factor in (0, 1], written with `jax.numpy`.
        role: The role of the weights it is for: `"hidden"` or None for those that a rule governs; another one, such as
            `"embedding"` or `"head"`, for those that have no warm-up of their own.
        norm: No longer of use.

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> schedule = WarmupSchedule(1e-3, 1000)
        >>> state = schedule.update(schedule.init(), value=5.5)
        >>> print(float(schedule(state)))
        0.0010000000474974513
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
        role: str | None = None,
        norm: str | None = None,
    ) -> None:
        if norm is not None:
            warn("norm has no effect any more: leave it out", DeprecationWarning)
        rule = by_name(rule, total_iters, target_loss=target_loss, floor=floor)
        self.peak = check_positive("peak", peak)
        self.schedule = Schedule(total_iters, rule, decay)
        self.role = role
        self._config = _digests(self.schedule)
        self._start = _arrays(self.schedule.init())  # here, as it calls the decay, which a compiled function can't

    def init(self) -> WarmupState:
        """Return the state before the first step."""
        return self._packed(self._start, jnp.asarray(self._config, jnp.int32))

    def update(self, state: WarmupState, *, value: jax.typing.ArrayLike | None = None, **extra: Any) -> WarmupState:
        """Return the state after a step that ran at the rate of `self(state, value=value)` and had the loss `value`.

        Raises:
            ValueError: If the rule needs a value and there is none, or it is not a scalar.
        """
        del extra
        if value is None and self.schedule.rule.needs_loss:
            raise ValueError("a warm-up that follows the loss needs it: call update(..., value=loss)")
        if value is not None and jnp.shape(value) != ():
            raise ValueError(f"value must be a scalar, the mean loss of the step, got the shape {jnp.shape(value)}")
        state = state if value is None else self._started(state, value)
        loss: Any = 0.0 if value is None else _loss(value)
        after = self.schedule.advanced(self._unpacked(state), loss, value is not None, Arrays)
        return self._packed(after, state.config)

    def __call__(self, state: WarmupState, *, value: jax.typing.ArrayLike | None = None, **extra: Any) -> Array:
        """Return the learning rate of the next step.

        That of the first step needs its loss, as `value`, which `update` is given too: without it, it is at the floor.

        Raises:
            TypeError: If it is called with a step count, as by an optimizer that takes it for a plain schedule.
        """
        del extra
        if not isinstance(state, WarmupState):
            raise TypeError(
                "WarmupSchedule follows the loss and keeps a state, which this optimizer does not pass on: write "
                "optax.inject_hyperparams(optax.lion)(learning_rate=WarmupSchedule(...)), or chain scale_by_warmup"
            )
        state = state if value is None else self._started(state, value)
        return self.peak * self.schedule.factor_of(state, self.role)  # type: ignore[arg-type,return-value]

    def extend(self, state: WarmupState, total_iters: int) -> WarmupState:
        """Return the state of a run of `total_iters` steps in all, as `warmgap.Schedule.extend`; not under `jit`."""
        return self._moved(state, lambda own: self.schedule.extend(own, total_iters))

    def decay_now(self, state: WarmupState, steps: int) -> WarmupState:
        """Return the state of a run that decays over its last `steps` steps from here; not under `jit`."""
        return self._moved(state, lambda own: self.schedule.decay_now(own, steps))

    def _moved(self, state: WarmupState, move: Callable[[ScheduleState], ScheduleState]) -> WarmupState:
        host = jax.tree.map(lambda leaf: tuple(leaf.tolist()) if leaf.ndim else leaf.item(), self._unpacked(state))
        moved = move(host)
        config = jnp.asarray(state.config).at[1].set(moved.total_iters)
        return self._packed(_arrays(moved._replace(events=())), config)

    def _started(self, state: WarmupState, value: jax.typing.ArrayLike) -> WarmupState:
        """Return the state before the first step given the loss there, and any other as it is."""
        loss, own = _loss(value), self._unpacked(state)
        usable = (state.step == 0) & Arrays.finite(loss)
        seen = self.schedule.started(own, jnp.where(usable, loss, 0.0), Arrays)  # type: ignore[arg-type]
        return self._packed(Arrays.when(usable, lambda: seen, own), state.config)

    def _packed(self, state: ScheduleState, config: Array) -> WarmupState:
        state = jax.tree.map(lambda new, like: jnp.asarray(new, like.dtype), state, self._start)
        gap, target = (jnp.asarray(x, jnp.float32) for x in self.schedule.rule.reading(state.rule, Arrays))
        top: Any = (state.step, state.factor, state.base, state.ended)
        return WarmupState(*(*top, gap, target, tuple(jax.tree.leaves(_rest(state))), config))

    def _unpacked(self, state: WarmupState) -> ScheduleState:
        own: ScheduleState = jax.tree.unflatten(jax.tree.structure(_rest(self._start)), state.parts)
        top: Any = {"step": state.step, "factor": state.factor, "base": state.base, "ended": state.handover}
        return own._replace(**top)


def scale_by_warmup(
    total_iters: int,
    *,
    rule: str | Rule[Any] = "auto",
    target_loss: float | Literal["auto"] = "auto",
    floor: float = 0.01,
    decay: str | Callable[[Any], Any] = "cosine",
    role: str | None = None,
    norm: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Return a transformation that scales updates by the factor of a `WarmupSchedule`.

    Chain it after an optimizer built at its peak learning rate:
    `optax.chain(optax.lion(1e-3), scale_by_warmup(total_iters))`. `update` needs `value=loss`. The state is a
    `WarmupState`; `optax.tree.get(opt_state, "factor")` finds what it holds. The arguments are those of
    `WarmupSchedule`.

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> optimizer = optax.chain(optax.sgd(1.0), scale_by_warmup(100, rule="linear"))
        >>> params = {"w": jnp.ones(2)}
        >>> updates, state = optimizer.update(params, optimizer.init(params), params, value=5.0)
        >>> print(f"{float(updates['w'][0]):.3f}")
        -0.091
    """
    schedule = WarmupSchedule(
        1.0, total_iters, rule=rule, target_loss=target_loss, floor=floor, decay=decay, role=role, norm=norm
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


class SpectralCapState(NamedTuple):
    """State of `spectral_cap`.

    Attributes:
        ratio: Median of what the factor holds of the last updates, over sqrt(outputs_i / inputs_i), before it was held:
            of each update's smallest singular value followed. Updates that are zero have no part in it.
        factor: What the last updates were multiplied by, in (0, 1], besides what was cut.
        starts: The directions followed in each hidden matrix, shape (outputs, k).

    Example:
        >>> import jax.numpy as jnp
        >>> cap = spectral_cap(0.1)
        >>> updates = {"dense": {"kernel": 2.0 * jnp.eye(2)}}
        >>> _, state = cap.update(updates, cap.init(updates))
        >>> print(f"{float(state.ratio):.1f} {float(state.factor):.2f}")
        2.0 0.05
    """

    ratio: Array
    factor: Array
    starts: list[Array]


def spectral_cap(
    rho: float | Literal["auto"] = "auto",
    *,
    total_iters: int | None = None,
    roles: Callable[[optax.Params], Any] | Any = None,
    rank: int = RANK,
) -> optax.GradientTransformation:
    """Hold the updates of hidden matrices under a cap on their singular values: the last link of a chain.

    The leading `rank` singular values of each update D_i are cut down to rho * sqrt(outputs_i / inputs_i), and those
    above half of that to the largest that independent entries of the same size would give (`warmgap.rules.noise_edge`),
    or to that half; the rest is multiplied by min(1, rho / r), one factor for all: r is the median over i of the
    smallest singular value followed, over sqrt(outputs_i / inputs_i). Other updates are left alone where there is an
    embedding, and share the factor where there is none. See `warmgap.torch.SpectralCap`. A kernel has shape (...,
    inputs, outputs); one of more than two dimensions counts as a matrix of shape (product of the others, outputs), one
    of four as a convolution.

    Args:
        rho: The cap, above 0; `"auto"` takes `warmgap.rules.default_rho(total_iters)`.
        total_iters: Optimizer steps in the whole run, for the default.
        roles: A pytree of role names (`"hidden"`, `"embedding"`, `"head"`, `"other"`) with the parameters' structure,
            or a function from the parameters to it; by default `roles_of`, which goes by the paths' names.
        rank: Singular directions of an update that are cut one by one; of a small matrix at most half of its smaller
            side. With 1 updates are only scaled, as is right after SGD and other updates in proportion to gradients.

    Returns:
        A transformation; put it after the learning rate.

    Raises:
        ValueError: If rho or rank is not above 0, or, from `init`, if no parameter is a hidden matrix.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from warmgap.optax import spectral_cap
        >>> optimizer = optax.chain(optax.lion(1.0), spectral_cap(0.1))
        >>> params = {"embed": jnp.ones((4, 2)), "dense": {"kernel": jnp.eye(2)}}
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
        >>> bool(jnp.linalg.norm(updates["dense"]["kernel"], 2) < 0.11)
        True
    """
    bound = default_rho(total_iters) if rho == "auto" else check_positive("rho", rho)
    check_count("rank", rank, minimum=1)

    def labels(tree: Any) -> Any:
        return roles_of(tree) if roles is None else roles(tree) if callable(roles) else roles

    def hidden(tree: Any, names: Any) -> list[Array]:
        named = zip(jax.tree.leaves(tree), jax.tree.leaves(names), strict=True)
        return [x for x, role in named if role == "hidden"]

    def scale(x: Array) -> float:
        inputs = x.shape[2] if x.ndim == 4 else x.size // x.shape[-1]
        return math.sqrt(x.shape[-1] / inputs)

    def init(params: optax.Params) -> SpectralCapState:
        found = hidden(params, labels(params))
        if not found:
            raise ValueError(
                "spectral_cap found no hidden matrix: give roles=, a pytree of 'hidden', 'embedding', 'head' and "
                "'other' with the structure of the parameters"
            )
        starts = []
        for x in found:
            sides = x.size // x.shape[-1], x.shape[-1]
            dtype = jnp.promote_types(x.dtype, jnp.float32)
            starts.append(jax.random.normal(jax.random.key(0), (sides[1], directions_of(sides, rank)), dtype))
        return SpectralCapState(jnp.zeros(()), jnp.ones(()), starts)

    def update(
        updates: optax.Updates, state: SpectralCapState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, SpectralCapState]:
        del params
        names = labels(updates)
        held = {"hidden"} if "embedding" in jax.tree.leaves(names) else {"hidden", "head", "other"}
        measured = [
            (scale(x), _leading(jax.lax.stop_gradient(x), start, state.ratio))
            for x, start in zip(hidden(updates, names), state.starts, strict=True)
        ]
        ratios = [jnp.min(found.values) / size for size, found in measured]
        moves = [jnp.max(found.values) > 0.0 for _, found in measured]
        ratio = _median_of_moving(jnp.stack(ratios), jnp.stack(moves))
        factor = jnp.where(ratio > bound, bound / jnp.where(ratio > bound, ratio, 1.0), 1.0)
        parts = iter(measured)

        def cut(x: Array, role: str) -> Array:
            if role not in held:
                return x
            changed = x * factor.astype(x.dtype)
            if role == "hidden":
                size, found = next(parts)
                if rank > 1:
                    limit = jnp.clip(factor * found.edge, ABOVE_EDGE * bound * size, bound * size)
                    excess = jnp.maximum(factor - limit / jnp.maximum(found.values, 1e-30), 0.0)
                    changed = changed - (found.right @ (found.left * excess).T).reshape(x.shape).astype(x.dtype)
            return changed

        updates = jax.tree.map(cut, updates, names)
        return updates, SpectralCapState(ratio, factor, [found.start for _, found in measured])

    return optax.GradientTransformation(init, update)


def roles_of(params: optax.Params) -> Any:
    """Return the role of each parameter, by its path: a pytree of names with the parameters' structure.

    A leaf of two or more dimensions is `"embedding"` where a word of its path names one (such as embed or wte),
    `"head"` where one names an output layer (such as head or logits), else `"hidden"`; all others are `"other"`.
    Models with other names give their own to `spectral_cap(roles=...)`.

    Example:
        >>> import jax.numpy as jnp
        >>> roles_of({"embed": jnp.ones((8, 4)), "block": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}})
        {'block': {'bias': 'other', 'kernel': 'hidden'}, 'embed': 'embedding'}
    """

    def role(path: Any, leaf: Any) -> str:
        parts = re.findall(r"[a-z]+", jax.tree_util.keystr(path).lower())
        if leaf.ndim < 2:
            return "other"
        if not _HEAD.isdisjoint(parts):
            return "head"
        return "hidden" if _EMBEDDING.isdisjoint(parts) else "embedding"

    return jax.tree_util.tree_map_with_path(role, params)


def _median_of_moving(ratios: Array, moves: Array) -> Array:
    """The median over the matrices that move, 0 where none does."""
    ordered = jnp.sort(jnp.where(moves, ratios, -1.0))  # those that stand still come first
    still, last = jnp.sum(~moves), ratios.size - 1
    middle = [jnp.minimum((still + last + k) // 2, last) for k in (0, 1)]
    return jnp.maximum((ordered[middle[0]] + ordered[middle[1]]) / 2.0, 0.0)


class _Leading(NamedTuple):
    """As `warmgap.torch.singular.Leading`, of a kernel's transpose, with directions as columns."""

    left: Array
    right: Array
    values: Array
    start: Array
    edge: Array


def _leading(x: Array, start: Array, ratio: Array) -> _Leading:
    """The subspace method of `warmgap.torch.singular.leading`."""
    matrix = x.reshape(-1, x.shape[-1]).astype(start.dtype)  # inputs are its rows

    edge = jnp.linalg.norm(matrix) * noise_edge(matrix.shape)

    def iterate(start: Array) -> _Leading:
        right = jnp.linalg.qr(matrix @ start)[0]
        left = matrix.T @ right
        values = jnp.linalg.norm(left, axis=0)
        found = (values > jnp.maximum(1e-30, ROUNDING * jnp.max(values))) & (values < jnp.inf)
        return _Leading(left, right, values, jnp.where(found, left / jnp.where(found, values, 1.0), start), edge)

    # Three more before the first step, when nothing was measured, and always where one direction is followed.
    cold = (ratio == 0.0) | (start.shape[1] == 1)
    start = jax.lax.cond(cold, lambda s: iterate(iterate(iterate(s).start).start).start, lambda s: s, start)
    return iterate(start)


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

    Example:
        >>> saved = WarmupSchedule(1e-3, 100).init()
        >>> check_restored(saved, WarmupSchedule(1e-2, 100).init())
        >>> try:
        ...     check_restored(saved, WarmupSchedule(1e-3, 100, decay="linear").init())
        ... except ValueError as error:
        ...     print(str(error)[:81])
        this WarmupState belongs to a schedule with other settings: decay differ; give th
    """
    leaves = [jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, WarmupState)) for tree in (restored, fresh)]
    saved, own = ([leaf for leaf in tree if isinstance(leaf, WarmupState)] for tree in leaves)
    if not own or len(saved) != len(own):
        raise ValueError(
            f"the restored state holds {len(saved)} WarmupState and the optimizer's own {len(own)}: restore into "
            "the tree that optimizer.init(params) returns, with scale_by_warmup or WarmupSchedule in the optimizer"
        )
    for pair in zip(saved, own, strict=True):
        _refuse_other(*pair)


def _refuse_other(saved: WarmupState, own: WarmupState) -> None:
    found, wanted = np.asarray(saved.config), np.asarray(own.config)
    if found.shape != wanted.shape or found[0] != wanted[0]:
        raise ValueError(
            f"this WarmupState has version {found.ravel()[:1].tolist()}, this warmgap reads {wanted[:1].tolist()}: "
            "restore it with the warmgap that saved it"
        )
    if differing := [name for name, a, b in zip(_CONFIG, found, wanted, strict=True) if a != b]:
        hint = ""
        if "total_iters" in differing:
            hint = f" (saved for {found[1]} steps, here {wanted[1]}: WarmupSchedule.extend goes on with another length)"
        raise ValueError(
            f"this WarmupState belongs to a schedule with other settings: {', '.join(differing)} differ{hint}; give "
            "the same ones, or start afresh"
        )
    kinds = [jax.tree.map(lambda leaf: (np.shape(leaf), np.asarray(leaf).dtype), state) for state in (saved, own)]
    factor, step = float(saved.factor), int(saved.step)
    if kinds[0] != kinds[1] or not 0.0 < factor <= 1.0 or step < 0:
        raise ValueError(
            f"this WarmupState is damaged or was edited: its arrays are not those of this schedule, or its factor "
            f"{factor!r} or step {step!r} can't be"
        )


_CONFIG = ("version", "total_iters", "decay", "rule", "settings of the rule")


def _digests(schedule: Schedule) -> list[int]:
    """Return a number for each of `_CONFIG`: version and length as they are, digests of the others."""
    config = schedule.config()
    name = config["rule"].pop("name")
    texts = [json.dumps(part, sort_keys=True).encode() for part in (config["decay"], name, config["rule"])]
    digests = [int.from_bytes(hashlib.sha256(text).digest()[:4], "big", signed=True) for text in texts]
    return [STATE_VERSION, schedule.total_iters, *digests]


def _loss(value: jax.typing.ArrayLike) -> Array:
    loss: Array = jax.lax.stop_gradient(jnp.asarray(value, jnp.float32))
    return loss


def _arrays(state: ScheduleState) -> ScheduleState:
    """Return a state of Python's numbers as one of NumPy's arrays, in 32 bits."""
    kinds: dict[type, Any] = {float: np.float32, int: np.int32, bool: np.bool_}

    def array(value: Any) -> Any:
        return np.asarray(value, kinds[type(value[0] if type(value) is tuple else value)])

    arrays: ScheduleState = jax.tree.map(array, state, is_leaf=lambda node: type(node) is tuple and bool(node))
    return arrays


def _rest(state: ScheduleState) -> ScheduleState:
    """Return the state without what `WarmupState` holds by name: a leaf that is there twice would be donated twice."""
    top: Any = dict.fromkeys(("step", "factor", "base", "ended"), ())
    return state._replace(**top)
