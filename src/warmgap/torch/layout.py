"""Which matrices a parameter is: blocks of fused projections, stored either way round, stacks of experts, kernels.

A parameter group says so, as `split_parameters` writes it:

    kind           `"matrix"`: three dimensions are a stack of matrices (experts); else all after the first are inputs
    blocks         sizes of the matrices that the output dimension holds, such as queries, keys and values
    transposed     weights are stored with inputs first

Every matrix has a norm of its own. Optimizers, the spectral cap, probe and kappa all ask here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from warmgap._checks import check_count, check_flag

__all__ = [
    "Group",
    "block_shapes",
    "check_layout",
    "input_dims",
    "is_stack",
    "join_blocks",
    "matrices_of",
    "matrix_blocks",
    "matrix_shapes",
    "matrix_sides",
    "outputs_first",
]

Group = dict[str, Any]


def is_stack(ndim: int, group: Group) -> bool:
    """Whether a block of so many dimensions is a stack of matrices (experts); any other is one, (out, rest)."""
    return group.get("kind") == "matrix" and ndim == 3


def input_dims(ndim: int, group: Group) -> set[int]:
    """The dimensions of a parameter along which a matrix's inputs lie."""
    stack = is_stack(ndim, group)
    return {*range(int(stack), ndim)} - {int(stack) + int(bool(group.get("transposed")))}


def matrix_sides(shape: Sequence[int], group: Group) -> tuple[int, int]:
    """Rows (outputs) and columns of the matrix that a block is taken as; of one matrix where it is a stack."""
    sides = shape[1:] if is_stack(len(shape), group) else shape
    return (int(sides[0]) if sides else 1), math.prod(sides[1:])


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


def join_blocks(blocks: Sequence[Tensor], group: Group) -> Tensor:
    """The parameter whose `matrix_blocks` these are."""
    x = blocks[0] if len(blocks) == 1 else torch.cat(tuple(blocks), dim=-2)
    if not group.get("transposed"):
        return x
    return x.mT if is_stack(x.ndim, group) else x.transpose(0, 1)


def outputs_first(shape: Sequence[int], group: Group) -> tuple[int, ...]:
    """The shape of a parameter with its matrices' outputs before their inputs; that of a vector as it is."""
    sides = list(shape)
    if group.get("transposed") and len(sides) > 1:
        one, other = (-2, -1) if is_stack(len(sides), group) else (0, 1)
        sides[one], sides[other] = sides[other], sides[one]
    return tuple(sides)


def block_shapes(shape: Sequence[int], group: Group) -> list[Sequence[int]]:
    """The shapes of the blocks of a parameter of this shape."""
    sides = outputs_first(shape, group)
    if not group.get("blocks"):
        return [sides]
    return [(*sides[:-2], size, sides[-1]) for size in group["blocks"]]


def matrices_of(x: Tensor, group: Group) -> Iterator[Tensor]:
    """The matrices of one parameter, each with a norm of its own: its blocks, and of a stack of experts each one's."""
    for block in matrix_blocks(x, group):
        yield from block if is_stack(block.ndim, group) else (block,)


def matrix_shapes(shape: Sequence[int], group: Group) -> list[Sequence[int]]:
    """The shapes of the matrices of a parameter of this shape, in `matrices_of`'s order; kernels keep their sides."""
    found: list[Sequence[int]] = []
    for block in block_shapes(shape, group):
        found += [block[1:]] * block[0] if is_stack(len(block), group) else [block]
    return found


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
