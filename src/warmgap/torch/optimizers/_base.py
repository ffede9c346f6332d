"""What the optimizers truly share: checked groups, the outer loop of a step, and rates that may be device tensors."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from warmgap._checks import check_count, check_finite, check_positive
from warmgap.geometry import matrix_shape
from warmgap.torch.optimizers._sharding import (
    Layout,
    Loads,
    is_sharded,
    layout_of,
    local,
    on_owners,
    owners,
    sharded_alike,
    whole_norms,
)
from warmgap.torch.orthogonalize import TINY, as_matrix, newton_schulz, polar
from warmgap.torch.split import KINDS

Group = dict[str, Any]

# The rule of a parameter group: the norm that its step is constrained in, as the scheduler's kappa knows it; None where
# it knows none.
RULE_NORMS: dict[str, str | None] = {
    "spectral": "spectral",
    "sign": "max",
    "lion": "max",
    "rms": "frobenius",
    "row": None,
    "adamw": None,
}

# Matrices of one shape are orthogonalised together on an accelerator, up to this many entries: beyond, a batch only
# costs memory.
_BATCH_ENTRIES = 2**27

# What a core's own cache holds of a parameter, its state, its gradient and a temporary.
_CHUNK_ENTRIES = 2**18


class NormConstrainedOptimizer(Optimizer, ABC):
    """An optimizer for the whole model whose step is, group by group, the LMO of a norm.

    Every group carries `norm`: `"spectral"`, `"max"`, `"frobenius"`, or None where the group's rule is not constrained
    in one of these. Weight decay is decoupled: x <- (1 - lr * weight_decay) x before the step. `step` reads gradients
    and never changes them, and on an accelerator it does not wait for the host.

    Parameters may be sharded (DTensor): a step is that of the whole, and every rank of their mesh must make it. Each
    matrix is orthogonalised on one rank.
    """

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, completed with the optimizer's defaults.

        Args:
            param_group: A dict with `params` and whatever is to differ from the defaults.

        Raises:
            TypeError: If a parameter is complex or not a tensor.
            ValueError: If a value is out of range.
        """
        given = frozenset(param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_params(group["params"])
            _check_kind(group)
            check_rate(group["lr"])
            self._complete_group(group, given)
            check_at_least_zero("weight_decay", group["weight_decay"])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

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
        self._loads: Loads = {}
        for group in self.param_groups:
            by_shape, alone = group["norm"] == "spectral", group.get("rule") != "adamw"
            for params in buckets(group["params"], by_shape=by_shape, alone_on_cpu=alone):
                self._update(group, params, [gradient_of(p) for p in params])
        return loss

    @abstractmethod
    def _complete_group(self, group: Group, given: frozenset[str]) -> None:
        """Check a new group, already filled with the defaults, and set what follows; `given` is what the user set."""

    @abstractmethod
    def _update(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        """Step these parameters of a group, which have one device and dtype and, in a spectral group, one shape.

        Sharded parameters instead have one mesh and as many dimensions, and are cut alike. Their gradients come as this
        rank's pieces.
        """

    def _state(self, params: list[Tensor], name: str, first: list[Tensor] | None = None) -> list[Tensor]:
        """The named state of these parameters; where there is none yet it starts as a copy of `first`, or as zero.

        Of sharded parameters it is sharded as they are, and this rank's pieces are returned.
        """
        states = [self.state[p] for p in params]
        for index, state in enumerate(states):
            if name not in state:
                state[name] = torch.zeros_like(params[index])
                if first is not None:
                    local(state[name]).copy_(first[index])
        return [local(state[name]) for state in states]


def buckets(params: Iterable[Tensor], *, by_shape: bool, alone_on_cpu: bool = True) -> Iterator[list[Tensor]]:
    """Yield the parameters that are to be stepped, gathered into lists that one multi-tensor call can take.

    A rule of several passes wants every parameter alone on the CPU: one that has just been read is still in the cache,
    and there is no launch to save. Sharded ones come all together, as what ranks exchange is exchanged at once.
    """
    bins: dict[Hashable, list[Tensor]] = {}
    for index, p in enumerate(params):
        if p.grad is None or p.numel() == 0:
            continue
        device = p.device
        alone = alone_on_cpu and device.type == "cpu"
        key: Hashable = index if alone else (device, p.dtype, p.shape if by_shape else None)
        if is_sharded(p):
            key = (device, p.dtype, p.device_mesh, p.placements, p.ndim)
        bins.setdefault(key, []).append(p)
    for members in bins.values():
        by_size = by_shape and not is_sharded(members[0])
        size = max(1, _BATCH_ENTRIES // members[0].numel()) if by_size else len(members)
        for start in range(0, len(members), size):
            yield members[start : start + size]


def chunks(*tensors: list[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Yield a large CPU parameter and what belongs to it piece by piece, and anything else as it came.

    For rules that work entry by entry in several passes: a piece stays in the cache from pass to pass, and temporaries
    stay small enough for the allocator to use them again, without which large parameters take three times as long.
    """
    first = tensors[0][0]
    cut = first.device.type == "cpu" and first.numel() > _CHUNK_ENTRIES
    if not (cut and all(len(members) == 1 and members[0].is_contiguous() for members in tensors)):
        yield tensors
        return
    pieces = (torch.split(members[0].detach().view(-1), _CHUNK_ENTRIES) for members in tensors)
    for piece_of_each in zip(*pieces, strict=True):
        yield tuple([piece] for piece in piece_of_each)


def gradient_of(p: Tensor) -> Tensor:
    """The gradient of p, which has one; of a sharded parameter, this rank's piece."""
    grad = p.grad
    assert grad is not None  # noqa: S101 (for the type checker)
    if grad.layout != torch.strided:
        raise TypeError(f"sparse gradients are not supported, got layout {grad.layout}; use sparse=False")
    return local(sharded_alike(grad, p))


def rate(group: Group) -> float | Tensor:
    """A group's learning rate: a float, or a 0-d tensor where it lives on a device that reading it would wait for."""
    lr = group["lr"]
    if not isinstance(lr, Tensor):
        return float(lr)
    return float(lr) if lr.device.type == "cpu" else lr.reshape(())


def shrink_(params: list[Tensor], lr: float | Tensor, weight_decay: float) -> None:
    """Decoupled weight decay: x <- (1 - lr * weight_decay) x."""
    if weight_decay:
        torch._foreach_mul_(params, 1 - lr * weight_decay)


def descend_(params: list[Tensor], directions: list[Tensor], lr: float | Tensor) -> None:
    """Step: x <- x - lr * direction. The directions are the caller's own temporaries: they may be overwritten."""
    if isinstance(lr, Tensor):
        torch._foreach_mul_(directions, lr)
        torch._foreach_sub_(params, directions)
    elif params[0].dtype == directions[0].dtype:
        torch._foreach_add_(params, directions, alpha=-lr)
    else:
        for p, direction in zip(params, directions, strict=True):
            p.add_(direction, alpha=-lr)


def average_(averages: list[Tensor], grads: list[Tensor], momentum: float) -> None:
    """Move averages: average <- momentum * average + (1 - momentum) * gradient."""
    torch._foreach_lerp_(averages, grads, 1 - momentum)


def frobenius_norms(tensors: list[Tensor], layout: Layout | None = None) -> list[Tensor]:
    """Norm ||x||_F of each tensor, and TINY where it is less than that, as 0-d tensors to divide by.

    With a layout the tensors are pieces, and the norms those of the wholes.
    """
    lengths = list(torch._foreach_norm(tensors, 2, dtype=torch.promote_types(tensors[0].dtype, torch.float32)))
    lengths = whole_norms(lengths, layout)
    torch._foreach_clamp_min_(lengths, TINY)
    return lengths


def unit_directions(tensors: list[Tensor], layout: Layout | None = None) -> list[Tensor]:
    """Return x / ||x||_F of each tensor, zero where x is, as fresh tensors; of pieces where there is a layout."""
    return [x / length for x, length in zip(tensors, frobenius_norms(tensors, layout), strict=True)]


def orthogonal_directions(
    params: list[Tensor], estimates: list[Tensor], group: Group, loads: Loads
) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor], Sequence[int]]]:
    """Orthogonalise the estimates of parameters of a spectral group, block by block.

    Args:
        params: Parameters of equal shape; or sharded ones, cut alike.
        estimates: One for each, this rank's pieces of sharded ones.
        group: Their group.
        loads: What the ranks have to do already; added to.

    Yields:
        For each block: its part of all parameters of one shape, as views to be stepped; of all their estimates; U V^T
        of the latter, as fresh tensors; and the shape of the whole block, of which the others may be pieces (of a stack
        of experts, the shape after the first dimension).
    """
    layout = layout_of(params[0])
    if layout is None or _holds_whole_matrices(params, group, layout):
        targets = [local(p) for p in params]
        for members in _by_shape(targets):
            yield from _orthogonal_blocks(
                [targets[index] for index in members], [estimates[index] for index in members], group
            )
        return
    owned = owners([_cost(p, group) for p in params], layout.mesh, loads)
    # On accelerators Newton-Schulz begins by rounding to bfloat16: nothing is lost where that is done before sending.
    whole = group["exact"] or params[0].device.type == "cpu"
    sent = estimates if whole else [estimate.to(torch.bfloat16) for estimate in estimates]
    directions = on_owners(sent, [p.shape for p in params], owned, layout, lambda x: _whole_directions(x, group))
    if params[0].device.type != "cpu":
        directions = [direction.to(p.dtype) for p, direction in zip(params, directions, strict=True)]
    for members in _by_shape(params):
        pieces = (
            [local_blocks(tensors[index], params[index], group) for index in members]
            for tensors in ([local(p) for p in params], estimates, directions)
        )
        shapes = block_shapes(params[members[0]], group)
        for shape, *parts in zip(shapes, *(zip(*blocks, strict=True) for blocks in pieces), strict=True):
            targets, sources, found = parts
            yield list(targets), list(sources), list(found), shape


def _orthogonal_blocks(
    targets: list[Tensor], estimates: list[Tensor], group: Group
) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor], Sequence[int]]]:
    """`orthogonal_directions` of tensors of one shape whose matrices are all here."""
    by_block = (zip(*(matrix_blocks(x, group) for x in tensors), strict=True) for tensors in (targets, estimates))
    for target, source in zip(*by_block, strict=True):
        yield list(target), list(source), _orthogonalized(source, group), target[0].shape


def _holds_whole_matrices(params: list[Tensor], group: Group, layout: Layout) -> bool:
    """Whether no matrix is in pieces, as of a stack of experts that are spread over the ranks."""
    return bool(layout.cuts) and all(is_stack(p.ndim, group) for p in params) and {dim for _, dim in layout.cuts} == {0}


def _whole_directions(wholes: list[Tensor], group: Group) -> list[Tensor]:
    """U V^T of every block of these tensors, in their place and dtype."""
    found = [torch.empty_like(x) for x in wholes]
    for members in _by_shape(wholes):
        # On the CPU a batch saves nothing; elsewhere it may be as large as in `buckets`.
        entries = _BATCH_ENTRIES if wholes[0].device.type != "cpu" else 1
        size = max(1, entries // wholes[members[0]].numel())
        for start in range(0, len(members), size):
            batch = members[start : start + size]
            sources, targets = [wholes[index] for index in batch], [found[index] for index in batch]
            for blocks, _, directions, _ in _orthogonal_blocks(targets, sources, group):
                torch._foreach_copy_(blocks, directions)
    return found


def _by_shape(tensors: list[Tensor]) -> Iterable[list[int]]:
    """The places of tensors of equal shape."""
    places: dict[Sequence[int], list[int]] = {}
    for index, x in enumerate(tensors):
        places.setdefault(x.shape, []).append(index)
    return places.values()


def _cost(p: Tensor, group: Group) -> float:
    """What it takes to orthogonalise a parameter, up to a factor: products of a matrix with its smaller Gram matrix."""
    cost = 0
    for shape in block_shapes(p, group):
        rows, columns = matrix_sides(shape, group)
        cost += math.prod(shape) * min(rows, columns)
    return float(cost)


def _orthogonalized(blocks: Sequence[Tensor], group: Group) -> list[Tensor]:
    """Return U V^T of each of these equally shaped blocks, computed in one batch, as fresh tensors of any precision."""
    first = blocks[0]
    stacked = is_stack(first.ndim, group)
    matrices = [block if stacked or block.ndim == 2 else as_matrix(block) for block in blocks]
    batch = matrices[0] if len(matrices) == 1 else torch.stack(matrices)
    factors = polar(batch) if group["exact"] else newton_schulz(batch, group["ns_steps"])
    if first.device.type != "cpu":
        # One conversion for all; on the CPU the sum with the parameter converts at less cost.
        factors = factors.to(first.dtype)
    return [factor.reshape(first.shape) for factor in (factors if len(matrices) > 1 else (factors,))]


def matrix_sides(shape: Sequence[int], group: Group) -> tuple[int, int]:
    """Rows (outputs) and columns of the matrix that a block is taken as; of one matrix where it is a stack."""
    return matrix_shape(shape[1:] if is_stack(len(shape), group) else shape)


def matrix_blocks(x: Tensor, group: Group) -> tuple[Tensor, ...]:
    """The blocks of one parameter, as views of shape (out, in), (out, in, *kernel) or (experts, out, in).

    A group from `split_parameters` may say that its weights are stored with inputs first (`transposed`) and that the
    output dimension of its matrices holds several (`blocks`, their sizes), such as queries, keys and values: each is a
    block with a spectral norm of its own.
    """
    x = x.detach()
    if group.get("transposed"):
        x = x.mT if is_stack(x.ndim, group) else x.transpose(0, 1)
    return torch.split(x, group["blocks"], dim=-2) if group.get("blocks") else (x,)


def local_blocks(x: Tensor, p: Tensor, group: Group) -> tuple[Tensor, ...]:
    """The blocks of x, this rank's piece of p or of what belongs to it: its part of each, which may be empty."""
    layout = layout_of(p)
    if layout is None or not group.get("blocks"):
        return matrix_blocks(x, group)
    start, stop = layout.span(p.shape, layout.here, output_dim(p, group))
    edges = [0, *itertools.accumulate(group["blocks"])]
    clipped = [min(max(edge, start), stop) for edge in edges]
    return matrix_blocks(x, group | {"blocks": [b - a for a, b in itertools.pairwise(clipped)]})


def block_shapes(p: Tensor, group: Group) -> list[Sequence[int]]:
    """The shapes of p's blocks, whole where p is sharded."""
    return [block.shape for block in matrix_blocks(torch.empty(p.shape, device="meta"), group)]


def output_dim(p: Tensor, group: Group) -> int:
    """The dimension of p along which a matrix's outputs lie."""
    return int(is_stack(p.ndim, group)) + int(bool(group.get("transposed")))


def matrices_of(x: Tensor, group: Group) -> Iterator[Tensor]:
    """The matrices of one parameter, each with a norm of its own: its blocks, and of a stack of experts each one's."""
    for block in matrix_blocks(x, group):
        yield from block if is_stack(block.ndim, group) else (block,)


def is_stack(ndim: int, group: Group) -> bool:
    """Whether a block of so many dimensions is a stack of matrices (experts); any other is one, (out, rest)."""
    return group.get("kind") == "matrix" and ndim == 3


def set_norm(group: Group, norm: str | None) -> None:
    """Write the norm that follows from a group's rule; refuse a different one that the user wrote."""
    if group.setdefault("norm", norm) != norm:
        raise ValueError(
            f"this group's steps are constrained in norm={norm!r}, got norm={group['norm']!r}; leave norm out"
        )


def check_rate(lr: object, name: str = "lr") -> None:
    """Raise ValueError unless lr is a number of at least 0 or a tensor of one element; a device tensor is not read."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"a tensor {name} must have one element, got shape {tuple(lr.shape)}")
        if lr.device.type != "cpu":
            return
        lr = float(lr)
    check_at_least_zero(name, lr)


def check_flag(name: str, value: object) -> None:
    """Raise ValueError unless the value is a bool: any other has a truth too, but perhaps not the one meant."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_at_least_zero(name: str, value: Any) -> None:
    """Raise ValueError unless the value is a finite number of at least 0."""
    if check_finite(name, value) < 0:
        raise ValueError(f"{name} must be at least 0, got {value!r}")


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
    check_flag("exact", group["exact"])
    for p in group["params"]:
        if p.ndim < 2:
            raise ValueError(
                f"a parameter of shape {tuple(p.shape)} is not a matrix and can't be orthogonalised; pass "
                "split_parameters(model), which gives every parameter the rule that fits it"
            )
    check_layout(group)


def check_layout(group: Group) -> None:
    """Raise ValueError unless a group's `transposed` is a bool and its `blocks` fill the output of each parameter."""
    check_flag("transposed", group.get("transposed", False))
    for p in group["params"]:
        if p.ndim < 2 and group.get("transposed"):
            raise ValueError(
                f"transposed=True speaks of weights stored with inputs first, got a parameter of shape "
                f"{tuple(p.shape)}; leave transposed out of its group"
            )
    sizes = group.get("blocks")
    if sizes is None:
        return
    if not isinstance(sizes, (tuple, list)) or not sizes:
        raise ValueError(
            f"blocks must be the sizes into which the output dimension is to be split, got {sizes!r}; leave it out "
            "where there is one block"
        )
    for index, size in enumerate(sizes):
        check_count(f"blocks[{index}]", size, minimum=1)
    for p in group["params"]:
        if p.ndim != 2 and not is_stack(p.ndim, group):
            raise ValueError(
                f"blocks={sizes!r} split the output dimension of a matrix, or of a stack of them where kind='matrix', "
                f"got a parameter of shape {tuple(p.shape)}; leave blocks out of its group"
            )
        rows = p.shape[-1 if group.get("transposed") else -2]
        if sum(sizes) != rows:
            raise ValueError(
                f"blocks={sizes!r} are {sum(sizes)} rows together, got a parameter of shape {tuple(p.shape)} with "
                f"{rows} outputs; give sizes that sum to {rows}, or say with split_parameters(fused=...) what is fused"
            )


def check_eps(value: Any) -> None:
    """Raise ValueError unless eps is above 0."""
    check_positive("eps", value)


def _check_kind(group: Group) -> None:
    if "kind" in group and group["kind"] not in KINDS:
        raise ValueError(
            f"kind must be one of {', '.join(map(repr, KINDS))}, got {group['kind']!r}; leave it out where all "
            "parameters of the group are matrices"
        )


def _check_params(params: list[Tensor]) -> None:
    for p in params:
        if not p.is_floating_point():
            raise TypeError(
                f"parameters must be real floating-point tensors, got {p.dtype} of shape {tuple(p.shape)}; "
                "keep the two parts of a complex one as two parameters"
            )
