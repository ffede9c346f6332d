"""The matrices that the spectral cap follows: those of each parameter, and which of them are measured together."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from warmgap.rules.spectral import directions_of
from warmgap.torch.layout import matrices_of
from warmgap.torch.orthogonalize import as_matrix
from warmgap.torch.sharding import is_sharded, local, sharded_alike, sharding_of, whole

_SMALL = 2**16  # entries of a matrix
_EXPERTS = 8  # matrices of a stack that are measured


class Matrix:
    """A matrix that is measured: a parameter, or one of several in it.

    Attributes:
        member: The parameter.
        index: Which of its matrices it is.
        shape: Rows and columns.
        scale: sqrt(outputs / inputs) (of a convolution, its channels).
        ratios: Smallest and largest singular value followed, over the scale; NaN before, and where it stands still.
        start: What the last measurement left for the next, shape (k, columns); None before.
    """

    def __init__(self, member: Member, index: int, shape: tuple[int, int], scale: float) -> None:
        self.member, self.index, self.shape, self.scale = member, index, shape, scale
        self.ratios = (member.norm / torch.tensor(scale)).expand(2).to(local(member.param).device)
        self.start: Tensor | None = None


class Member:
    """A parameter with matrices that are measured.

    Attributes:
        param: The parameter.
        shape: Its shape.
        group: Its group.
        norm: The norm of its direction where that follows from its shape, else NaN.
        sampled: Whether only eight matrices of a large stack of experts are measured.
        sharded: Whether it is a DTensor.
        plain: Whether it is one matrix as it lies, all of it here.
        matrices: Its matrices.
    """

    def __init__(self, param: Tensor, group: dict[str, Any], norm: float | None, *, sampled: bool) -> None:
        self.param, self.shape, self.group, self.sampled = param, param.shape, group, sampled
        self.norm = math.nan if norm is None else norm
        self.sharded = is_sharded(param)
        self.plain = param.ndim == 2 and not (self.sharded or group.get("blocks") or group.get("transposed"))
        taps = math.prod(param.shape[2:]) if group.get("kind") == "conv" else 1
        self.matrices: list[Matrix] = []
        for index, matrix in enumerate(self.matrices_of(torch.empty(param.shape, device="meta"))):
            rows, columns = matrix.shape
            self.matrices.append(Matrix(self, index, (rows, columns), math.sqrt(taps * rows / columns)))

    def gradient(self) -> Tensor:
        """Its gradient, this rank's shard of it; zeros where it has none."""
        p, gradient = self.param, self.param.grad
        if gradient is None:
            return torch.zeros_like(local(p))
        return local(sharded_alike(gradient, p)) if self.sharded else gradient

    def matrices_of(self, x: Tensor) -> list[Tensor]:
        """Its matrices, or those of what belongs to it."""
        matrices = [as_matrix(matrix) for matrix in matrices_of(whole(x, self.param), self.group)]
        return matrices[:: max(1, len(matrices) // _EXPERTS)] if self.sampled else matrices

    def add(self, corrections: dict[int, tuple[Tensor, Tensor]]) -> None:
        """Add to some of its matrices, each the product of a flat matrix's transpose and of a flat one."""
        p = self.param.detach()
        full = next(iter(corrections.values()))[0].new_zeros(p.shape) if self.sharded else p
        for index, matrix in enumerate(matrices_of(full, self.group)):
            if index in corrections:
                add_product(matrix, *corrections[index])
        if self.sharded and (sharding := sharding_of(p)) is not None:
            spans = [slice(*sharding.span(p.shape, sharding.here, dim)) for dim in range(p.ndim)]
            local(p).add_(full[tuple(spans)])

    def packed(self) -> str:
        """The starts of its matrices as text; none where one is missing."""
        flat = [matrix.start.cpu().reshape(-1) for matrix in self.matrices if matrix.start is not None]
        return base64.b64encode(torch.cat(flat).numpy().tobytes()).decode() if len(flat) == len(self.matrices) else ""

    def load(self, ratios: list[list[float]], text: str, rank: int) -> None:
        """Take up ratios, and the starts that a text holds, unless they are of another rank or precision."""
        sizes = [(directions_of(matrix.shape, rank), matrix.shape[1]) for matrix in self.matrices]
        counts = [math.prod(size) for size in sizes]
        kept, device = bytearray(base64.b64decode(text)), local(self.param).device
        dtype = torch.promote_types(self.param.dtype, torch.float32)
        fits = len(kept) == sum(counts) * dtype.itemsize
        starts = torch.frombuffer(kept, dtype=dtype).to(device).split(counts) if fits else [None] * len(counts)
        for matrix, size, start, values in zip(self.matrices, sizes, starts, zip(*ratios, strict=True), strict=True):
            matrix.ratios = torch.tensor(values, device=device)
            matrix.start = None if start is None else start.view(size)


class Batch:
    """Matrices of one shape that are measured together, each the `indices`-th of its run; the rest as in `Matrix`."""

    def __init__(self, indices: list[int], matrices: list[Matrix]) -> None:
        self.indices, self.matrices = indices, matrices
        self.scale = torch.tensor(matrices[0].scale)
        self.ratios = torch.stack([matrix.ratios for matrix in matrices], dim=1)
        starts = [matrix.start for matrix in matrices if matrix.start is not None]
        self.start = torch.stack(starts) if len(starts) == len(matrices) else None


class Run:
    """Parameters of one group in a row, no more at once than are measured in a step, and their matrices by shape."""

    def __init__(self, members: list[Member]) -> None:
        self.members, self.group = members, members[0].group
        self.measured = math.isnan(members[0].norm)
        self.plain = all(member.plain for member in members)
        self.entries = sum(member.param.numel() for member in members)
        matrices = [matrix for member in members for matrix in member.matrices]
        alike: dict[Any, list[int]] = {}
        for index, matrix in enumerate(matrices):
            p = matrix.member.param
            # Large ones each by itself on a CPU, where stacking costs more than it spares.
            alone = p.device.type == "cpu" and math.prod(matrix.shape) > _SMALL
            key = p.device, p.dtype, matrix.shape, matrix.scale, index if alone else None
            alike.setdefault(key, []).append(index)
        self.batches = [Batch(indices, [matrices[index] for index in indices]) for indices in alike.values()]


def runs_of(members: list[Member], budget: int) -> list[Run]:
    """Lay parameters out in runs of so many entries, none of which holds measured ones and others."""
    entries = 0

    def run(member: Member) -> tuple[int, bool, int]:
        nonlocal entries
        entries += member.param.numel()
        return id(member.group), math.isnan(member.norm), entries // budget

    return [Run([*some]) for _, some in itertools.groupby(members, run)]


def settle(runs: Iterable[Run]) -> None:
    """Hand what is known of the matrices measured together back to each."""
    for batch in (batch for run in runs for batch in run.batches):
        for k, matrix in enumerate(batch.matrices):
            matrix.ratios, matrix.start = batch.ratios[:, k], None if batch.start is None else batch.start[k]


def add_product(matrix: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left^T right to a matrix, or to a kernel."""
    if matrix.ndim == 2 and matrix.dtype == left.dtype:
        matrix.addmm_(left.mT, right)
    else:
        matrix += (left.mT @ right).view(matrix.shape)


def matrices_in(group: dict[str, Any]) -> list[Tensor]:
    """The parameters of a group that are measured."""
    return [p for p in group["params"] if p.ndim >= 2 and p.numel()]
