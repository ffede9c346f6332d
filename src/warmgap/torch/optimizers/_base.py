"""One optimizer: average, linear minimisation oracle (LMO) of the group's norm, decoupled weight decay, descent."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer, ParamsT

from warmgap._checks import check_at_least_zero, check_choice, check_count, check_finite
from warmgap.torch.layout import (
    Group,
    block_shapes,
    check_layout,
    is_stack,
    join_blocks,
    matrix_blocks,
    matrix_sides,
    output_dim,
    outputs_first,
)
from warmgap.torch.norms import BATCH_ENTRIES, Frobenius, Max, Rows, Spectral
from warmgap.torch.orthogonalize import (
    Polynomial,
    as_matrix,
    check_compute_dtype,
    check_polynomial,
    largest_singular_value,
)
from warmgap.torch.sharding import (
    Loads,
    Sharding,
    full_norms,
    full_sums,
    is_sharded,
    local,
    on_owners,
    owners,
    sharded_alike,
    sharding_of,
)
from warmgap.torch.split import KINDS

LayerNorm = Spectral | Max | Rows | Frobenius

# What a core's own cache holds of a parameter, its state, its gradient and a temporary.
CHUNK_ENTRIES = 2**18

# A weight decay by which a step of length one would be this much longer does not fit in float32.
LARGEST = 1e30

_SIGNS = ("lion", "signum", "sign")

_NORM_OF = {
    "spectral": "spectral", "row": None, "rms": "frobenius", "sum": "frobenius",
    "sign": "max", "signum": "max", "lion": "max", "adamw": None,
}  # fmt: skip
"""A rule: the norm that it writes into the group."""

_ADAMW_FUSED = ("cpu", "cuda", "xpu")


class CheckedOptimizer(Optimizer):
    """An optimizer that checks every group when it comes; a subclass says what for (`_complete_group`)."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        if isinstance(params, nn.Module):
            name = type(self).__name__
            raise TypeError(
                f"{name} takes parameters, got the module {type(params).__name__}: write "
                f"{name}(split_parameters(model), ...), with split_parameters from warmgap.torch"
            )
        super().__init__(params, defaults)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, completed with the optimizer's defaults.

        Args:
            param_group: A dict with `params` and whatever is to differ from the defaults. Not changed.

        Raises:
            TypeError: If a parameter is complex or not a tensor.
            ValueError: If a value is out of range.
        """
        super().add_param_group({**param_group})
        group = self.param_groups[-1]
        try:
            for p in group["params"]:
                if not p.is_floating_point():
                    raise TypeError(
                        f"parameters must be real floating-point tensors, got {p.dtype} of shape {tuple(p.shape)}; "
                        "keep the two parts of a complex one as two parameters"
                    )
            if group.get("kind", "matrix") not in KINDS:
                raise ValueError(
                    f"kind must be one of {', '.join(map(repr, KINDS))}, got {group['kind']!r}; leave it out where all "
                    "parameters of the group are matrices"
                )
            check_rate(group["lr"])
            self._complete_group(group, frozenset(param_group))
            check_rate(group["weight_decay"], "weight_decay")
            if "momentum" in group:
                check_momentum("momentum", group["momentum"])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _complete_group(self, group: Group, given: frozenset[str]) -> None:
        """Check a new group, already filled with the defaults, and set what follows; `given` is what the user set."""
        raise NotImplementedError


class NormConstrainedOptimizer(CheckedOptimizer):
    """An optimizer for the whole model whose step is, group by group, the LMO of a norm.

    Every group carries `norm`: `"spectral"`, `"max"`, `"frobenius"`, or None where the group's rule is not constrained
    in one of these. Weight decay is decoupled: x <- (1 - lr * weight_decay) x before the step. `step` reads gradients
    and never changes them, and on an accelerator it does not wait for the host. A rate and a weight decay that are
    tensors are read where they are: a step that was captured or compiled follows them. `torch.compile(optimizer.step,
    fullgraph=True)` makes one graph; give it a tensor rate, since every float is a graph of its own.

    Parameters may be sharded (DTensor): a step is that of the full tensor, and every rank of their mesh must make it.
    Each matrix is orthogonalized on one rank.

    A subclass names its rule, or says which one a group takes (`_complete_group`) and the norm of a block (`norm_of`).
    """

    # What a group's steps go by where groups have no rule of their own.
    _rule: ClassVar[str] = ""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            if "ns_steps" in group:  # checkpoints of version 1 have neither
                group.setdefault("polynomial", "jordan")
                group.setdefault("compute_dtype", None)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step.

        Args:
            closure: Evaluates the model anew and returns the loss.

        Returns:
            The closure's loss, None without one.

        Raises:
            TypeError: If a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # What the ranks have to do in this step, for matrices to be shared out evenly.
        loads: Loads = {}
        eager = not torch.compiler.is_compiling()
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            states: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
            sharded = self._init_group(group, params, grads, *states)
            if params:
                lr, weight_decay = group["lr"], group["weight_decay"]
                lr = _scalar(lr, eager) if isinstance(lr, Tensor) else lr
                weight_decay = _scalar(weight_decay, eager) if isinstance(weight_decay, Tensor) else weight_decay
                self._advance(group, params, params, grads, states, _Step(lr, weight_decay, loads, eager), sharded)
        return loss

    @torch.no_grad()
    def directions(self, group: Group, params: Sequence[Tensor]) -> list[Tensor]:
        """Return what the next `step` would add at rate 1, changing nothing.

        A step is x <- (1 - lr * weight_decay) x - lr * direction.

        Args:
            group: One of the optimizer's `param_groups`.
            params: Some of its parameters. Where they are sharded, every rank must call it alike.

        Returns:
            For each parameter the direction from its present gradient and state, of its shape and dtype, fresh; of a
            sharded parameter this rank's shard. Zeros where it has no gradient.

        Example:
            >>> p = torch.nn.Parameter(torch.zeros(2))
            >>> optimizer = Signum([p], lr=0.1)
            >>> p.grad = torch.tensor([3.0, -1.0])
            >>> optimizer.directions(optimizer.param_groups[0], [p])
            [tensor([ 1., -1.])]
        """
        found = [torch.zeros_like(local(p)) for p in params]
        moving = [index for index, p in enumerate(params) if p.grad is not None and p.numel()]
        if not moving:
            return found
        chosen = [params[index] for index in moving]
        grads = [_gradient(p) for p in chosen]
        states: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for p, grad in zip(chosen, grads, strict=True):
            state = self.state.get(p, {})
            for name, kept in zip(self._state_names(group), states, strict=False):
                kept.append(local(state[name]).clone() if name in state else self._fresh(group, name, local(p), grad))
        sharded = any(map(is_sharded, chosen))
        step = _Step(1.0, 0.0, {}, not torch.compiler.is_compiling())
        self._advance(group, chosen, [found[index] for index in moving], grads, states, step, sharded)
        for index in moving:
            found[index].neg_()
        return found

    def direction_norm(self, group: Group, param: Tensor) -> float | None:
        """Return the most that the spectral norm of each matrix of a parameter's direction at rate 1 can be.

        It follows from the shape in spectral groups: singular values of U V^T are 1 with `exact`, and at most 1.2 with
        the polynomial `"jordan"`.

        Args:
            group: One of the optimizer's `param_groups`.
            param: One of its parameters.

        Returns:
            The norm; None where it must be measured: under any other rule, with radii that follow from gradients, and
            where the matrices of a parameter have several.
        """
        if group["norm"] != "spectral" or group.get("L0") is not None:
            return None
        norms, length = self._plan(group, param.shape)
        if any(share != 1.0 for _, share in norms):
            return None
        largest = 1.0 if group["exact"] else largest_singular_value(group["polynomial"], group["ns_steps"])
        return length * largest

    def norm_of(self, group: Group, shape: Sequence[int]) -> LayerNorm:  # noqa: ARG002
        """Return the norm that a group's steps are the LMO of, for a block of this shape, outputs first.

        Of a stack of matrices it is each one's. The radius of Scion and Gluon is no part of it; AdamW has no norm.
        """
        return Frobenius() if group["norm"] == "frobenius" else Max()

    def _complete_group(self, group: Group, given: frozenset[str]) -> None:  # noqa: ARG002
        if "betas" in group:
            check_betas(group["betas"])
        rule = group.get("rule", self._rule)
        check_choice("rule", rule, (self._rule,) if self._rule else tuple(_NORM_OF))
        norm = _NORM_OF[rule]
        if group.setdefault("norm", norm) != norm:
            raise ValueError(
                f"this group's steps are constrained in norm={norm!r}, got norm={group['norm']!r}; leave norm out"
            )

    # ------------------------------------------------------------------------------------------------------------ state

    def _state_names(self, group: Group) -> tuple[str, ...]:
        rule = group.get("rule", self._rule)
        if rule == "adamw":
            return ("exp_avg", "exp_avg_sq", "step")
        if rule == "lion":
            return ("exp_avg",)
        return ("momentum_buffer",) if group["momentum"] or rule not in ("signum", "sum") else ()

    def _fresh(self, group: Group, name: str, p: Tensor, grad: Tensor) -> Tensor:  # noqa: ARG002
        """State before the first step."""
        if name == "step":
            return torch.zeros((), dtype=torch.float32, device=p.device if p.device.type in _ADAMW_FUSED else None)
        return torch.zeros_like(p)

    def _init_group(
        self,
        group: Group,
        params: list[Tensor],
        grads: list[Tensor],
        firsts: list[Tensor],
        seconds: list[Tensor],
        counters: list[Tensor],
    ) -> bool:
        """Fill the lists with the parameters that have a gradient, these, and their state; say if any is sharded.

        `torch.compile` knows this name and calls it as it is, so that making state is no part of the graph.
        """
        sharded = False
        names = self._state_names(group)
        for p in group["params"]:
            if p.grad is None or p.numel() == 0:
                continue
            cut = hasattr(p, "device_mesh")
            sharded |= cut
            grad = _gradient(p) if cut or p.grad.layout != torch.strided else p.grad
            params.append(p)
            grads.append(grad)
            if not names:
                continue
            state = self.state[p]
            for name, kept in zip(names, (firsts, seconds, counters), strict=False):
                if name not in state and cut and name != "step":
                    state[name] = torch.zeros_like(p)
                    local(state[name]).copy_(self._fresh(group, name, local(p), grad))
                elif name not in state:
                    state[name] = self._fresh(group, name, p, grad)
                elif name == "step" and state[name].device != p.device and p.device.type in _ADAMW_FUSED:
                    # Loaded from elsewhere: the fused kernel counts on the parameter's device.
                    state[name] = state[name].to(p.device)
                kept.append(local(state[name]) if cut else state[name])
        return sharded

    # ------------------------------------------------------------------------------------------------------------- step

    def _advance(
        self,
        group: Group,
        params: list[Tensor],
        targets: list[Tensor],
        grads: list[Tensor],
        states: Sequence[list[Tensor]],
        step: _Step,
        sharded: bool,
    ) -> None:
        """Step the targets, which are the parameters or stand for them, and move the states.

        Of sharded parameters, gradients and states are this rank's shards.
        """
        rule, adaptive = group.get("rule", self._rule), group.get("L0") is not None
        if sharded:
            targets = [local(x) for x in targets]
            params = [_whole_here(p, group) for p in params] if rule == "spectral" else params
        in_chunks = step.eager and rule in _SIGNS and not adaptive
        for some, xs, gs, *kept in _batches(rule, in_chunks, params, targets, grads, *filter(None, states)):
            if rule == "adamw":
                _adamw(group, xs, gs, kept, step)
                continue
            cut = sharding_of(some[0]) if sharded else None
            by_passes = step.eager and xs[0].device.type == "cpu"
            estimates = self._average(group, rule, gs, kept, by_passes)
            if rule != "spectral":
                directions, length = self._directions(group, some[0].shape, estimates, cut, step.eager)
                descend_(xs, directions, step.lr, step.weight_decay, length, by_passes)
            elif cut:
                self._descend_on_owners(group, some, xs, estimates, cut, step)
            else:
                # Not in one pass: a shard may be contiguous where the full tensor is not, and digits would differ.
                directions, length = self._polar_factors(group, some[0].shape, estimates, step.eager)
                descend_(xs, directions, step.lr, step.weight_decay, length)

    def _average(
        self, group: Group, rule: str, gs: list[Tensor], kept: list[list[Tensor]], by_passes: bool
    ) -> list[Tensor]:
        """Move the averages; return what the LMO is taken at, perhaps these or gradients themselves."""
        if not kept:
            return gs
        (ms,) = kept
        if rule == "lion":
            beta1, beta2 = group["betas"]
            estimates = torch._foreach_lerp(ms, gs, 1 - beta1)
            torch._foreach_lerp_(ms, gs, 1 - beta2)
            return list(estimates)
        momentum = group["momentum"]
        if rule != "sum":
            torch._foreach_lerp_(ms, gs, 1 - momentum)
            return list(torch._foreach_lerp(gs, ms, momentum)) if group.get("nesterov") else ms
        if by_passes:
            for m, g in zip(ms, gs, strict=True):
                torch.add(g, m, alpha=momentum, out=m)
        else:
            torch._foreach_mul_(ms, momentum)
            torch._foreach_add_(ms, gs)
        return ms

    def _directions(
        self, group: Group, shape: Sequence[int], estimates: list[Tensor], cut: Sharding | None, eager: bool
    ) -> tuple[list[Tensor], float]:
        """The steepest directions at full tensors of this shape, or at their shards, and the length to step along them.

        Fresh tensors, but for a large one on the CPU that need only be scaled.
        """
        ((norm, _),), length = self._plan(group, shape, eager)
        adaptive, first = group.get("L0") is not None, estimates[0]
        reduce = partial(full_norms, sharding=cut) if cut else None
        if isinstance(norm, Rows):
            others = {output_dim(first, group)} | ({0} if is_stack(first.ndim, group) else set())
            directions = norm.steepest(estimates, reduce, {*range(first.ndim)} - others)
        elif isinstance(norm, Frobenius):
            alone = len(estimates) == 1 and first.numel() > CHUNK_ENTRIES
            if alone and eager and first.device.type == "cpu" and not adaptive:
                return estimates, length / float(norm.lengths(estimates, reduce)[0])
            directions = norm.steepest(estimates, reduce)
        elif group.get("rule", self._rule) == "lion" and not adaptive:
            torch._foreach_sign_(estimates)  # which are not kept
            directions = estimates
        else:
            directions = norm.steepest(estimates)
        return (_by_duals(group, norm, estimates, directions, cut) if adaptive else directions), length

    def _polar_factors(
        self, group: Group, shape: Sequence[int], estimates: list[Tensor], eager: bool
    ) -> tuple[list[Tensor], float]:
        """U V^T of the matrices that full tensors of this shape are, and the length to step along them.

        The length is that of the longest block; directions of the others are as much shorter as their steps are.
        """
        norms, length = self._plan(group, shape, eager)
        adaptive = group.get("L0") is not None
        several = len(norms) > 1 or group.get("transposed")
        blocks = zip(*(matrix_blocks(x, group) for x in estimates), strict=True) if several else [estimates]
        found: list[list[Tensor]] = []
        for (norm, share), sources in zip(norms, blocks, strict=True):
            first = sources[0]
            flat = first.ndim != 2 and not is_stack(first.ndim, group)
            matrices = [as_matrix(source) for source in sources] if flat else sources
            directions = norm.steepest(matrices)
            if first.device.type != "cpu" and directions[0].dtype != first.dtype:
                # On the CPU the sum with the parameter converts at less cost.
                directions = [direction.to(first.dtype) for direction in directions]
            if adaptive:
                directions = _by_duals(group, norm, matrices, directions)
            elif share != 1.0:
                directions = [direction.to(first.dtype) * share for direction in directions]
            found.append([direction.reshape(first.shape) for direction in directions] if flat else directions)
        return [join_blocks(parts, group) for parts in zip(*found, strict=True)] if several else found[0], length

    def _descend_on_owners(
        self,
        group: Group,
        params: list[Tensor],
        xs: list[Tensor],
        estimates: list[Tensor],
        cut: Sharding,
        step: _Step,
    ) -> None:
        """Step sharded matrices: each parameter is gathered and orthogonalized on one rank."""

        def compute(full: list[Tensor]) -> list[Tensor]:
            found = list(full)
            for members in _by_shape(full):
                directions, _ = self._polar_factors(
                    group, full[members[0]].shape, [full[i] for i in members], step.eager
                )
                for i, direction in zip(members, directions, strict=True):
                    found[i] = direction.to(full[i].dtype)
            return found

        owned = owners([_cost(p, group) for p in params], cut.mesh, step.loads)
        # On accelerators Newton-Schulz begins by rounding to bfloat16: nothing is lost where that is done before.
        whole = group["exact"] or xs[0].device.type == "cpu"
        sent = estimates if whole else [estimate.to(torch.bfloat16) for estimate in estimates]
        directions = on_owners(sent, [p.shape for p in params], owned, cut, compute)
        for members in _by_shape(params):
            _, length = self._plan(group, params[members[0]].shape, step.eager)
            some = [xs[i] for i in members]
            descend_(some, [directions[i].to(some[0].dtype) for i in members], step.lr, step.weight_decay, length)

    def _plan(
        self, group: Group, shape: Sequence[int], eager: bool = True
    ) -> tuple[list[tuple[LayerNorm, float]], float]:
        """The norms of a parameter of this shape, and how long a step of rate 1 is in that of the longest block.

        A spectral group's parameter has one for each block, any other has one for all of it; each comes with its share
        of the longest one's length.
        """
        key = None
        if eager:
            # Looked up at every step, as a group's values may be changed.
            key = (type(self), shape, str([*map(group.get, _NORMS_FOLLOW)]))
        found = _PLANS.get(key)
        if found is None:
            rule = group.get("rule", self._rule)
            if len(shape) < 2 and rule in ("spectral", "row"):
                raise ValueError(
                    f"a parameter of shape {tuple(shape)} stands where a matrix did: something has flattened the "
                    "parameters since the optimizer was made (DeepSpeed's ZeRO, FSDP with use_orig_params=False); "
                    "shard them with FSDP2, or take Lion or AdamW"
                )
            shapes = block_shapes(shape, group) if rule == "spectral" else [outputs_first(shape, group)]
            norms = [self.norm_of(group, block) for block in shapes]
            least = min(norm.scale for norm in norms)
            found = [(norm, least / norm.scale) for norm in norms], least
            if eager:
                _PLANS[key] = found
        norms_and_shares, scale = found
        return norms_and_shares, 1.0 if group.get("L0") is not None else group.get("radius", 1.0) / scale


# What a group's norms depend on beside shapes.
_NORMS_FOLLOW = ("kind", "rule", "blocks", "transposed", "scale", "exact", "ns_steps", "polynomial", "compute_dtype")

_PLANS: dict[Hashable, tuple[list[tuple[LayerNorm, float]], float]] = {}


class _Step(NamedTuple):
    """What a step is made with.

    Attributes:
        lr: Learning rate; a 0-d tensor where it is to be read on the device.
        weight_decay: The same.
        loads: What the ranks have to do in it.
        eager: Whether it is not being compiled.
    """

    lr: float | Tensor
    weight_decay: float | Tensor
    loads: Loads
    eager: bool


def _by_duals(
    group: Group, norm: LayerNorm, sources: Sequence[Tensor], directions: list[Tensor], cut: Sharding | None = None
) -> list[Tensor]:
    """Directions of the length that follows from L0, L1 and the dual norm of each, or of each matrix of a stack."""
    dims = (-2, -1) if isinstance(norm, Spectral) else None
    wide = torch.promote_types(sources[0].dtype, torch.float32)
    # The part of <m, -lmo(m)> = ||m||_* that is here.
    partial_duals = [
        (source.to(wide) * direction).sum(dim=dims, keepdim=dims is not None) / norm.scale
        for source, direction in zip(sources, directions, strict=True)
    ]
    L0, L1 = group["L0"], group["L1"]
    # Without L0 the radius is 1 / L1 whatever the dual norm is, and 0 / 0 is avoided where that vanishes.
    radii = [1 / L1 if L0 == 0 else dual / (L0 + L1 * dual) for dual in full_sums(partial_duals, cut)]
    return [
        (direction.to(source.dtype) * (radius / norm.scale)).to(source.dtype)
        for source, direction, radius in zip(sources, directions, radii, strict=True)
    ]


def _adamw(group: Group, xs: list[Tensor], gs: list[Tensor], kept: list[list[Tensor]], step: _Step) -> None:
    lr, weight_decay = step.lr, step.weight_decay
    if isinstance(weight_decay, Tensor):  # which torch's kernels do not take
        torch._foreach_mul_(xs, 1 - lr * weight_decay)
        weight_decay = 0.0
    exp_avgs, exp_avg_sqs, counters = kept
    beta1, beta2 = group["betas"]
    options = {
        "lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": weight_decay, "eps": group["eps"],
        "amsgrad": False, "maximize": False,
    }  # fmt: skip
    if xs[0].device.type not in _ADAMW_FUSED:
        adamw(xs, gs, exp_avgs, exp_avg_sqs, [], counters, foreach=False, fused=False, **options)
        return
    torch._foreach_add_(counters, 1.0)
    torch._fused_adamw_(xs, gs, exp_avgs, exp_avg_sqs, [], counters, **options)


def _batches(rule: str, in_chunks: bool, params: list[Tensor], *others: list[Tensor]) -> list[list[list[Tensor]]]:
    """What one multi-tensor call can take, column by column: of one device and dtype, and for layers of one shape.

    On the CPU it is only as much as stays in the cache from pass to pass, elsewhere as one batch may hold; with
    `in_chunks` a large parameter comes in several. Sharded parameters that are cut alike come all together, matrices of
    any shapes, so that they are exchanged at once.
    """
    by_shape = rule not in ("adamw", "lion", "signum", "sum")
    latest: dict[Hashable, list[tuple[Tensor, ...]]] = {}
    entries: dict[Hashable, int] = {}
    found: list[list[tuple[Tensor, ...]]] = []
    for row in zip(params, *others, strict=True):
        p = row[0]
        device, size, shape = p.device, p.numel(), p.shape if by_shape else None
        key: Hashable = (device, p.dtype, shape)
        unlimited = rule == "adamw"
        if hasattr(p, "device_mesh"):
            unlimited, shape = True, None if rule == "spectral" else shape
            key = (device, p.dtype, shape, p.device_mesh, p.placements, p.ndim)
        most = CHUNK_ENTRIES if device.type == "cpu" else BATCH_ENTRIES
        if in_chunks and size > most and device.type == "cpu" and not unlimited:
            found += ([chunk_of_each] for chunk_of_each in _chunks(*row))
        elif key in latest and (unlimited or entries[key] + size <= most):
            latest[key].append(row)
            entries[key] += size
        else:
            latest[key], entries[key] = [row], size
            found.append(latest[key])
    return [[*map(list, zip(*rows, strict=True))] for rows in found]


def _chunks(p: Tensor, *others: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """A large parameter with what belongs to it, chunk by chunk where all are contiguous.

    A chunk stays in the cache from pass to pass, and temporaries stay small enough for the allocator to use them again,
    without which large parameters take three times as long.
    """
    if not all(x.is_contiguous() for x in others):
        return [(p, *others)]
    chunks = (x.detach().view(-1).split(CHUNK_ENTRIES) for x in others)
    return ((p, *chunk_of_each) for chunk_of_each in zip(*chunks, strict=True))


def dense_gradient(p: Tensor) -> Tensor:
    """The gradient of p, which has one; TypeError where it is sparse."""
    grad = p.grad
    assert grad is not None  # noqa: S101 (for the type checker)
    if grad.layout != torch.strided:
        raise TypeError(f"sparse gradients are not supported, got layout {grad.layout}; use sparse=False")
    return grad


def _gradient(p: Tensor) -> Tensor:
    """The gradient of p, which has one; of a sharded parameter, this rank's shard."""
    return local(sharded_alike(dense_gradient(p), p))


def _scalar(value: Tensor, eager: bool) -> float | Tensor:
    """A rate as a float, or as a 0-d tensor where it lives on a device that reading it would wait for."""
    return float(value) if eager and value.device.type == "cpu" else value.reshape(())


def descend_(
    xs: list[Tensor],
    directions: list[Tensor],
    lr: float | Tensor,
    weight_decay: float | Tensor = 0.0,
    length: float = 1.0,
    by_passes: bool = False,
) -> None:
    """Step: x <- (1 - lr * weight_decay) x - lr * length * direction.

    Where lr is a tensor the directions must be the caller's own temporaries: they are overwritten. `by_passes` says
    that every operation is a pass over memory at once, as on the CPU where nothing is compiled.
    """
    x, direction = xs[0], directions[0]
    if (
        by_passes
        and not isinstance(lr, Tensor)
        and not isinstance(weight_decay, Tensor)
        and x.dtype == direction.dtype
        # In half precision it is wrong (torch 2.13).
        and x.dtype.itemsize >= 4
        and weight_decay < LARGEST * length
        and False not in map(Tensor.is_contiguous, (*xs, *directions))
    ):
        # In one pass, x - rate (direction + decay x): the step of plain SGD.
        torch._fused_sgd_(
            xs, directions, [], lr=lr * length, weight_decay=weight_decay / length,
            momentum=0.0, dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
        )  # fmt: skip
        return
    if isinstance(weight_decay, Tensor) or weight_decay:
        torch._foreach_mul_(xs, 1 - lr * weight_decay)
    rate = lr * length
    if isinstance(rate, Tensor):
        torch._foreach_mul_(directions, rate)
        torch._foreach_sub_(xs, directions)
    elif x.dtype == direction.dtype:
        torch._foreach_add_(xs, directions, alpha=-rate)
    else:
        for x, direction in zip(xs, directions, strict=True):
            x.add_(direction, alpha=-rate)


def _whole_here(p: Tensor, group: Group) -> Tensor:
    """p, or this rank's shard where that holds full matrices: of a stack of experts that are spread over the ranks."""
    cut = sharding_of(p)
    return local(p) if cut and is_stack(p.ndim, group) and {dim for _, dim in cut.cuts} == {0} else p


def _by_shape(tensors: list[Tensor]) -> Iterable[list[int]]:
    """The places of tensors of equal shape."""
    places: dict[Sequence[int], list[int]] = {}
    for index, x in enumerate(tensors):
        places.setdefault(x.shape, []).append(index)
    return places.values()


def _cost(p: Tensor, group: Group) -> float:
    """What it takes to orthogonalize a parameter, up to a factor: products of a matrix with its smaller Gram matrix."""
    return float(sum(math.prod(shape) * min(matrix_sides(shape, group)) for shape in block_shapes(p.shape, group)))


# ------------------------------------------------------------------------------------------------------ groups, checked


def spectral_of(group: Group, scale: float = 1.0) -> Spectral:
    """How a spectral group's directions are computed."""
    return Spectral(
        scale,
        "svd" if group["exact"] else "newton-schulz",
        steps=group["ns_steps"],
        # EF-Muon's groups have neither.
        polynomial=group.get("polynomial", "jordan"),
        compute_dtype=group.get("compute_dtype"),
    )


def check_rate(lr: Any, name: str = "lr") -> None:
    """Raise ValueError unless lr is a number of at least 0 or a tensor of one element; a device tensor is not read."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"a tensor {name} must have one element, got shape {tuple(lr.shape)}")
        if lr.device.type != "cpu":
            return
        lr = float(lr)
    check_at_least_zero(name, lr)


def check_momentum(name: str, value: Any) -> None:
    """Raise ValueError unless 0 <= value < 1."""
    if not 0.0 <= check_finite(name, value) < 1.0:
        raise ValueError(f"{name} must be at least 0 and under 1, got {value!r}")


def check_betas(betas: Any) -> None:
    """Raise ValueError unless betas are two numbers, each at least 0 and under 1."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"betas must be two numbers, got {betas!r}")
    for index, beta in enumerate(betas):
        check_momentum(f"betas[{index}]", beta)


def check_spectral(group: Group) -> None:
    """Raise ValueError unless a group can be stepped by orthogonalisation."""
    check_count("ns_steps", group["ns_steps"], minimum=1)
    polynomial: Polynomial = group["polynomial"]
    group["polynomial"] = check_polynomial(polynomial, group["ns_steps"])
    check_compute_dtype(group["compute_dtype"])
    for p in group["params"]:
        if p.ndim < 2:
            raise ValueError(
                f"a parameter of shape {tuple(p.shape)} is not a matrix and can't be orthogonalized; pass "
                "split_parameters(model), which gives every parameter the rule that fits it"
            )
    check_layout(group)
