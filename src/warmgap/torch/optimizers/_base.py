"""One optimizer: momentum, linear minimisation oracle (LMO) of the group's norm, decoupled weight decay, step."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer, ParamsT

from warmgap._checks import check_at_least_zero, check_choice, check_count, check_finite, check_flag, check_positive
from warmgap.torch.layout import (
    Group,
    block_shapes,
    check_layout,
    input_dims,
    is_stack,
    join_blocks,
    matrix_blocks,
    matrix_sides,
    outputs_first,
)
from warmgap.torch.norms import BATCH_ENTRIES, Frobenius, Max, Rows, Spectral
from warmgap.torch.orthogonalize import as_matrix, largest_singular_value
from warmgap.torch.sharding import Loads, Sharding, full_sums, local, on_owners, owners, sharded_alike, sharding_of
from warmgap.torch.split import KINDS

LayerNorm = Spectral | Max | Rows | Frobenius
Tensors = list[Tensor]

# What a core's own cache holds of a parameter, its state, its gradient and a temporary.
CHUNK_ENTRIES = 2**18

# A weight decay by which a step of length one would be this much longer does not fit in float32.
LARGEST = 1e30

_NORM_OF = {
    "spectral": "spectral", "row": None, "rms": "frobenius", "sum": "frobenius", "sign": "max", "lion": "max",
    "adamw": None,
}  # fmt: skip
"""A rule: the norm that it writes into the group."""

_ADAMW_FUSED = ("cpu", "cuda", "xpu")


class NormConstrainedOptimizer(Optimizer):
    """An optimizer for the whole model whose step is, group by group, the LMO of a norm.

    Every group carries `norm`: `"spectral"`, `"max"`, `"frobenius"`, or None where the group's rule is not constrained
    in one of these. Weight decay is decoupled: x <- (1 - lr * weight_decay) x before the step. `step` reads gradients,
    in the precision of their parameters, and never changes them, and on an accelerator it does not wait for the host. A
    rate and a weight decay that are tensors are read where they are: a step that was captured or compiled follows them.
    `torch.compile(optimizer.step, fullgraph=True)` makes one graph; give it a tensor rate, since every float is a graph
    of its own.

    Parameters may be sharded (DTensor): a step is that of the full tensor, and every rank of their mesh must make it.
    Each matrix is orthogonalized on one rank.

    A subclass names its rule, or says which one a group takes (`_complete_group`) and the norm of a block (`norm_of`);
    where the length of a step follows from the momentum, that too (`_radii`).
    """

    # The rule of all groups, where they have none of their own.
    _rule: ClassVar[str] = ""
    # Whether averages begin at the first gradient, and not at zero.
    _from_gradient: ClassVar[bool] = False
    # Whether what a step leaves of the momentum is kept for the next, and how much further than its rate it goes.
    _feedback: bool = False
    _factor: float | Tensor = 1.0

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        if isinstance(params, nn.Module):
            name = type(self).__name__
            raise TypeError(
                f"{name} takes parameters, got the module {type(params).__name__}: write "
                f"{name}(split_parameters(model), ...), with split_parameters from warmgap.torch"
            )
        super().__init__(params, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            if "ns_steps" in group:  # checkpoints of version 1 have neither
                group.setdefault("polynomial", "jordan")
                group.setdefault("compute_dtype", None)

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
            for name, check in _CHECKS.items():
                if name in group:
                    check(name, group[name])
            self._complete_group(group, frozenset(param_group))
            check_rate("weight_decay", group["weight_decay"])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
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
        loads: Loads = {}  # what the ranks have to do, for matrices to be shared out evenly
        with torch.set_grad_enabled(False):
            for group in self.param_groups:
                params: Tensors = []
                grads: Tensors = []
                states: Tensors = []
                self._init_group(group, params, grads, states)
                if params:
                    step = self._step_of(group, group["lr"], group["weight_decay"], self._factor)
                    self._advance(step, loads, params, params, grads, states)
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
        moving = [(p, x) for p, x in zip(params, found, strict=True) if p.grad is not None and p.numel()]
        if moving:
            chosen, targets = map(list, zip(*moving, strict=True))
            grads = [gradient(p) for p in chosen]
            states = self._copied_states(group, chosen, grads)
            self._advance(self._step_of(group), {}, chosen, targets, grads, states)
            torch._foreach_neg_(targets)
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
        step = self._step_of(group)
        if step.rule != "spectral" or step.adapts:
            return None
        norm, *others = self._norms(step, param.shape)
        if any(other.scale != norm.scale for other in others):
            return None
        largest = 1.0 if group["exact"] else largest_singular_value(group["polynomial"], group["ns_steps"])
        return float(step.radius / norm.scale * largest)

    def norm_of(self, group: Group, shape: Sequence[int]) -> LayerNorm:
        """Return the norm that a group's steps are the LMO of, for a block of this shape, outputs first.

        Of a stack of matrices it is each one's. The radius of Scion and Gluon is no part of it; AdamW has no norm.
        """
        if self._rule_of(group) == "spectral" and len(shape) > 1:
            return spectral_of(group)
        return Frobenius() if group.get("norm") == "frobenius" else Max()

    # ------------------------------------------------------------------------------------------------- for subclasses

    def _complete_group(self, group: Group, given: frozenset[str]) -> None:  # noqa: ARG002
        """Check a new group, already filled with the defaults, and set what follows; `given` is what the user set."""
        if "betas" in group:
            check_betas(group["betas"])
        rule = self._rule_of(group)
        check_choice("rule", rule, (self._rule,) if self._rule else tuple(_NORM_OF))
        norm = _NORM_OF[rule]
        if group.setdefault("norm", norm) != norm:
            raise ValueError(
                f"this group's steps are constrained in norm={norm!r}, got norm={group['norm']!r}; leave norm out"
            )
        if rule == "spectral":
            group["polynomial"] = spectral_of(group).polynomial
            check_layout(group)
            vectors = [tuple(p.shape) for p in group["params"] if p.ndim < 2]
            if vectors:
                raise ValueError(
                    f"a parameter of shape {vectors[0]} is not a matrix and can't be orthogonalized; pass "
                    "split_parameters(model), which gives every parameter the rule that fits it"
                )

    def _rule_of(self, group: Group) -> str:
        rule: str = group.get("rule", self._rule)
        return rule

    def _state_names(self, group: Group) -> tuple[str, ...]:
        rule = self._rule_of(group)
        if rule == "adamw":
            return ("exp_avg", "exp_avg_sq", "step")
        if rule == "lion":
            return ("exp_avg",)
        return ("momentum_buffer",) * bool(group["momentum"]) + ("error",) * self._feedback

    def _radii(
        self, group: Group, norm: LayerNorm, sources: Tensors, directions: Tensors, cut: Sharding | None
    ) -> Sequence[Tensor | float]:
        """How long steps along the directions, steepest at the sources, are at rate 1, where that depends on both."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------------ state

    def _fresh(self, name: str, p: Tensor, grad: Tensor) -> Tensor:
        """State before the first step, sharded as the parameter is."""
        if name == "step":
            return torch.zeros((), dtype=torch.float32, device=p.device if p.device.type in _ADAMW_FUSED else None)
        state = torch.zeros_like(p)
        if self._from_gradient:
            local(state).copy_(grad)
        return state

    def _init_group(self, group: Group, params: Tensors, grads: Tensors, states: Tensors) -> None:
        """Fill the lists with the parameters that have a gradient, these, and the states, parameter by parameter.

        `torch.compile` knows this name and calls it as it is, so that making state is no part of the graph.
        """
        names = self._state_names(group)
        for p in group["params"]:
            if p.grad is None or p.numel() == 0:
                continue
            cut = hasattr(p, "device_mesh")
            grad = p.grad
            if cut or grad.layout != torch.strided or grad.dtype != p.dtype:
                grad = gradient(p)
            params.append(p)
            grads.append(grad)
            state = self.state[p] if names else {}
            for name in names:
                if name not in state:
                    state[name] = self._fresh(name, p, grad)
                elif name == "step" and state[name].device != p.device and p.device.type in _ADAMW_FUSED:
                    # Loaded from elsewhere: the fused kernel counts on the parameter's device.
                    state[name] = state[name].to(p.device)
                states.append(local(state[name]) if cut else state[name])

    def _copied_states(self, group: Group, params: Tensors, grads: Tensors) -> Tensors:
        """Copies of the states, as `_init_group` lists them."""
        names, states = self._state_names(group), [self.state.get(p, {}) for p in params]
        return [
            local(state[name] if name in state else self._fresh(name, p, grad)).clone()
            for p, grad, state in zip(params, grads, states, strict=True)
            for name in names
        ]

    # ------------------------------------------------------------------------------------------------------------- step

    def _step_of(self, group: Group, lr: Any = 1.0, weight_decay: Any = 0.0, factor: Any = 1.0) -> Step:
        eager, adapts = not torch.compiler.is_compiling(), self._feedback or group.get("L0") is not None
        lr = scalar(lr, eager) if isinstance(lr, Tensor) else lr
        weight_decay = scalar(weight_decay, eager) if isinstance(weight_decay, Tensor) else weight_decay
        radius = factor if adapts else factor * group.get("radius", 1.0)
        # Looked up at every step, as a group's values may be changed.
        key = type(self), str([*map(group.get, _NORMS_FOLLOW)])
        norms = _NORMS.setdefault(key, {}) if eager else {}
        return Step(group, self._rule_of(group), adapts, eager, norms, lr, weight_decay, radius)

    def _advance(
        self, step: Step, loads: Loads, params: Tensors, targets: Tensors, grads: Tensors, states: Tensors
    ) -> None:
        """Step the targets, which are the parameters or stand for them, and move the states.

        Of sharded parameters, gradients and states are this rank's shards.
        """
        lr, weight_decay, count = step.lr, step.weight_decay, len(states) // len(params)
        by_name = [states[index::count] for index in range(count)]
        for rows in _batches(step, params, targets, grads, *by_name):
            some, xs, gs, *kept = map(list, zip(*rows, strict=True))
            if step.rule == "adamw":
                _adamw(step, xs, gs, kept)
                continue
            estimates = self._average(step, gs, kept)
            spectral = step.rule == "spectral" and some[0].ndim > 1
            gathered = spectral and hasattr(some[0], "device_mesh")
            if gathered:
                directions = self._on_owners(step, loads, some, estimates)
            else:
                directions, length = self._steepest(step, some[0], estimates)
            if self._feedback:
                torch._foreach_copy_(kept[-1], torch._foreach_sub(estimates, directions))
                descend_(xs, directions, 1.0, lr * weight_decay)
            elif gathered:
                for members in _by_shape(some):
                    norm, *_ = self._norms(step, some[members[0]].shape)
                    of_shape = [xs[i] for i in members], [directions[i] for i in members]
                    descend_(*of_shape, lr, weight_decay, step.radius / norm.scale)
            else:
                # Matrices not in one pass: a shard may be contiguous where the full tensor is not.
                by_passes = step.eager and xs[0].device.type == "cpu" and not spectral
                descend_(xs, directions, lr, weight_decay, length, by_passes)

    def _average(self, step: Step, gs: Tensors, kept: list[Tensors]) -> Tensors:
        """Move the averages; return what the LMO is taken at, perhaps these or the gradients themselves."""
        if step.rule == "lion":
            beta1, beta2 = step.group["betas"]
            estimates = list(torch._foreach_lerp(kept[0], gs, 1 - beta1))
            torch._foreach_lerp_(kept[0], gs, 1 - beta2)
            return estimates
        momentum, estimates = step.group["momentum"], gs
        if momentum:
            estimates = kept[0]
            if step.rule != "sum":
                torch._foreach_lerp_(estimates, gs, 1 - momentum)
            elif step.eager and gs[0].device.type == "cpu":  # in one pass
                for m, g in zip(estimates, gs, strict=True):
                    torch.add(g, m, alpha=momentum, out=m)
            else:
                torch._foreach_mul_(estimates, momentum)
                torch._foreach_add_(estimates, gs)
            if step.group.get("nesterov"):
                estimates = list(torch._foreach_lerp(gs, estimates, momentum))
        if self._feedback:
            estimates = list(torch._foreach_add(torch._foreach_mul(estimates, step.lr * step.radius), kept[-1]))
        return estimates

    def _steepest(self, step: Step, p: Tensor, estimates: Tensors) -> tuple[Tensors, float | Tensor]:
        """The steepest directions for parameters like p, or for shards of them, and the length to step along them.

        The length is that of the first block; directions of the others are as much shorter or longer as their steps
        are. Fresh tensors, but for Lion's signs, and for a large one on the CPU that need only be scaled.
        """
        group, first = step.group, estimates[0]
        norms = step.norms.get(p.shape) or self._norms(step, p.shape)
        norm, length = norms[0], step.radius / norms[0].scale
        if step.rule == "lion":
            torch._foreach_sign_(estimates)  # which are not kept
            return estimates, length
        cut = sharding_of(p) if hasattr(p, "device_mesh") else None
        large = len(estimates) == 1 and first.numel() > CHUNK_ENTRIES and first.device.type == "cpu"
        if large and isinstance(norm, Frobenius) and step.eager and not step.adapts:
            return estimates, length / float(norm.lengths(estimates, cut)[0])
        spectral = isinstance(norm, Spectral)
        apart = spectral and (len(norms) > 1 or group.get("transposed"))
        blocks = zip(*(matrix_blocks(x, group) for x in estimates), strict=True) if apart else [estimates]
        found: list[Tensors] = []
        for norm, sources in zip(norms, blocks, strict=True):
            first = sources[0]
            flat = spectral and first.ndim != 2 and not is_stack(first.ndim, group)
            matrices = [as_matrix(source) for source in sources] if flat else list(sources)
            if isinstance(norm, Rows):
                directions = norm.steepest(matrices, cut, input_dims(first.ndim, group))
            elif isinstance(norm, Frobenius):
                directions = norm.steepest(matrices, cut)
            else:
                directions = norm.steepest(matrices)
            share = norms[0].scale / norm.scale
            if step.adapts:
                radii = self._radii(group, norm, matrices, directions, cut)
                trios = zip(directions, matrices, radii, strict=True)
                directions = [(d.to(g.dtype) * (radius * share)).to(g.dtype) for d, g, radius in trios]
            elif share != 1.0:
                directions = [direction.to(first.dtype) * share for direction in directions]
            found.append([direction.reshape(first.shape) for direction in directions] if flat else directions)
        return [join_blocks(parts, group) for parts in zip(*found, strict=True)] if apart else found[0], length

    def _on_owners(self, step: Step, loads: Loads, params: Tensors, estimates: Tensors) -> Tensors:
        """The steepest directions for shards of matrices of any shapes, each gathered and computed on one rank."""
        cut = sharding_of(params[0])
        assert cut is not None  # noqa: S101 (they are sharded)

        def compute(full: Tensors) -> Tensors:
            found = list(full)
            for members in _by_shape(full):
                directions, _ = self._steepest(step, full[members[0]], [full[i] for i in members])
                for i, direction in zip(members, directions, strict=True):
                    found[i] = direction.to(full[i].dtype)
            return found

        owned = owners([_cost(p, step.group) for p in params], cut.mesh, loads)
        # On accelerators Newton-Schulz begins by rounding to bfloat16: nothing is lost where that is done before.
        whole = step.group["exact"] or estimates[0].device.type == "cpu"
        sent = estimates if whole else [estimate.to(torch.bfloat16) for estimate in estimates]
        shards = on_owners(sent, [p.shape for p in params], owned, cut, compute)
        return [shard.to(estimate.dtype) for shard, estimate in zip(shards, estimates, strict=True)]

    def _norms(self, step: Step, shape: Sequence[int]) -> list[LayerNorm]:
        """The norms of a parameter of this shape: one for each block in a spectral group, else one for all of it."""
        if shape not in step.norms:
            several = step.rule == "spectral" and len(shape) > 1
            shapes = block_shapes(shape, step.group) if several else [outputs_first(shape, step.group)]
            norms = [self.norm_of(step.group, block) for block in shapes]
            if len(shape) < 2 and isinstance(norms[0], Spectral | Rows):
                raise ValueError(
                    f"a parameter of shape {tuple(shape)} stands where a matrix did: something has flattened the "
                    "parameters since the optimizer was made (DeepSpeed's ZeRO, FSDP with use_orig_params=False); "
                    "shard them with FSDP2, or take Lion or AdamW"
                )
            step.norms[shape] = norms
        return step.norms[shape]


# What a group's norms depend on beside shapes.
_NORMS_FOLLOW = (
    "kind", "role", "rule", "blocks", "transposed", "scale", "exact", "ns_steps", "polynomial", "compute_dtype",
)  # fmt: skip

_NORMS: dict[Hashable, dict[Sequence[int], list[LayerNorm]]] = {}


class Step(NamedTuple):
    """What a group is stepped with; a rate and a decay are 0-d tensors where they are to be read on the device."""

    group: Group
    rule: str
    adapts: bool  # whether the lengths of steps follow from the momentum
    eager: bool  # whether it is not being compiled
    norms: dict[Sequence[int], list[LayerNorm]]  # by the shapes of parameters, as far as they are known
    lr: float | Tensor
    weight_decay: float | Tensor
    radius: float | Tensor  # how long a step at rate 1 is in the norm


def inner_products(xs: Tensors, ys: Tensors, norm: LayerNorm, cut: Sharding | None = None) -> Tensors:
    """<x, y> of each pair of full tensors, of each matrix in the spectral norm; in float32 at least."""
    dims = (-2, -1) if isinstance(norm, Spectral) else None
    wide = torch.promote_types(xs[0].dtype, torch.float32)
    products = [(x.to(wide) * y).sum(dim=dims, keepdim=dims is not None) for x, y in zip(xs, ys, strict=True)]
    return full_sums(products, cut) if cut else products


def _adamw(step: Step, xs: Tensors, gs: Tensors, kept: list[Tensors]) -> None:
    lr, weight_decay, (beta1, beta2) = step.lr, step.weight_decay, step.group["betas"]
    if isinstance(weight_decay, Tensor):  # which torch's kernels do not take
        torch._foreach_mul_(xs, 1 - lr * weight_decay)
        weight_decay = 0.0
    exp_avgs, exp_avg_sqs, counters = kept
    options = {
        "lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": weight_decay, "eps": step.group["eps"],
        "amsgrad": False, "maximize": False,
    }  # fmt: skip
    if xs[0].device.type in _ADAMW_FUSED:
        torch._foreach_add_(counters, 1.0)
        torch._fused_adamw_(xs, gs, exp_avgs, exp_avg_sqs, [], counters, **options)
    else:
        adamw(xs, gs, exp_avgs, exp_avg_sqs, [], counters, foreach=False, fused=False, **options)


def _batches(step: Step, params: Tensors, targets: Tensors, *others: Tensors) -> list[list[tuple[Tensor, ...]]]:
    """What one multi-tensor call can take, row by row: of one device and dtype, and for layers of one shape.

    On the CPU it is only as much as stays in the cache from pass to pass, elsewhere as one batch may hold. Where each
    entry goes its own way a large parameter comes chunk by chunk: a chunk stays in the cache, and temporaries are small
    enough for the allocator to use them again, without which it takes three times as long. Sharded parameters that are
    cut alike come together, matrices of any shapes, so that they are exchanged at once, each with the shards.
    """
    by_shape = step.rule == "spectral" or "radius" in step.group
    in_chunks = step.eager and step.rule in ("sign", "lion") and not step.adapts
    latest: dict[Hashable, list[tuple[Tensor, ...]]] = {}
    entries: dict[Hashable, int] = {}
    found: list[list[tuple[Tensor, ...]]] = []
    for p, *rest in zip(params, targets, *others, strict=True):
        unlimited, shape = step.rule == "adamw", p.shape if by_shape else None
        key: Hashable = (p.device, p.dtype, shape)
        if hasattr(p, "device_mesh"):
            rest[0] = local(rest[0])
            cut = sharding_of(p) if step.rule == "spectral" and is_stack(p.ndim, step.group) else None
            if cut and {dim for _, dim in cut.cuts} == {0}:
                p = local(p)  # a stack of experts that are spread over the ranks: full matrices
                key = (p.device, p.dtype, p.shape)
            else:
                unlimited, shape = True, None if step.rule == "spectral" else shape
                key = (p.device, p.dtype, shape, p.device_mesh, p.placements, p.ndim)
        size, on_cpu = p.numel(), p.device.type == "cpu"
        most = CHUNK_ENTRIES if on_cpu else BATCH_ENTRIES
        if in_chunks and on_cpu and size > most and not unlimited and all(map(Tensor.is_contiguous, rest)):
            chunks = (x.detach().view(-1).split(CHUNK_ENTRIES) for x in rest)
            found += ([(p, *chunk)] for chunk in zip(*chunks, strict=True))
        elif key in latest and (unlimited or entries[key] + size <= most):
            latest[key].append((p, *rest))
            entries[key] += size
        else:
            latest[key], entries[key] = [(p, *rest)], size
            found.append(latest[key])
    return found


def gradient(p: Tensor) -> Tensor:
    """The gradient of p, which has one, in p's precision; of a sharded parameter, this rank's shard.

    Raises:
        TypeError: If it is sparse.
    """
    grad = p.grad
    assert grad is not None  # noqa: S101 (for the type checker)
    if grad.layout != torch.strided:
        raise TypeError(f"sparse gradients are not supported, got layout {grad.layout}; use sparse=False")
    return local(sharded_alike(grad, p)).to(p.dtype)


def scalar(value: Tensor, eager: bool = True) -> float | Tensor:
    """A rate as a float, or as a 0-d tensor where it lives on a device that reading it would wait for."""
    return float(value) if eager and value.device.type == "cpu" else value.reshape(())


def descend_(
    xs: list[Tensor],
    directions: list[Tensor],
    lr: float | Tensor,
    weight_decay: float | Tensor = 0.0,
    length: float | Tensor = 1.0,
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
        and not isinstance(length, Tensor)
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
    else:
        torch._foreach_add_(xs, directions, alpha=-rate)


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
    # EF-Muon's groups have none of these.
    options = {name: group[name] for name in ("polynomial", "compute_dtype") if name in group}
    return Spectral(scale, "svd" if group["exact"] else "newton-schulz", steps=group["ns_steps"], **options)


def check_rate(name: str, value: Any) -> None:
    """Raise ValueError unless it is a number of at least 0 or a tensor of one; a device tensor is not read."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"a tensor {name} must have one element, got shape {tuple(value.shape)}")
        if value.device.type != "cpu":
            return
        value = float(value)
    check_at_least_zero(name, value)


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


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "lr": check_rate, "momentum": check_momentum, "nesterov": check_flag, "exact": check_flag,
    "ns_steps": partial(check_count, minimum=1), "radius": check_positive, "embedding_radius": check_positive,
    "constrained": check_flag, "eps": check_positive, "second_momentum": check_momentum, "second_eps": check_positive,
}  # fmt: skip
"""What a group may have, before it is completed, and what it must be."""
