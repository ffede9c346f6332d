"""Sharded parameters (DTensor): which shard this rank holds, sums over all shards, and full matrices.

A parameter is sharded along the dimensions of its mesh of ranks, as `fully_shard` and tensor parallelism do it. Rules
that go entry by entry work on the shards as they are. What a norm needs of the full tensor is computed here, in one of
two ways: sums, exchanged by an all-gather of a few numbers and added in rank order, so that every rank has the same
bits; and full matrices, each of which is gathered on one rank, its owner, and scattered again.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

Loads = dict["DeviceMesh", list[float]]
"""What the ranks of each mesh have to do in a step."""


def is_sharded(x: Tensor) -> TypeGuard[DTensor]:
    """Whether x is a DTensor, without the import, which takes half a second."""
    return hasattr(x, "device_mesh")


def local(x: Tensor) -> Tensor:
    """This rank's shard of x, all of it where x is not sharded; writing to it writes to x."""
    return x.to_local() if is_sharded(x) else x


def whole(x: Tensor, p: Tensor) -> Tensor:
    """x, this rank's shard of p or of what belongs to it, as the full tensor; every rank of p's mesh must call it."""
    if not is_sharded(p) or x.is_meta:
        return x
    from torch.distributed.tensor import DTensor

    sharded = (
        x
        if is_sharded(x)
        else DTensor.from_local(x, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
    )
    full: Tensor = sharded.full_tensor()
    return full


def sharded_alike(x: Tensor, p: Tensor) -> Tensor:
    """x, such as a gradient, sharded as p is."""
    if is_sharded(x) and is_sharded(p) and x.placements != p.placements:
        return x.redistribute(placements=p.placements)
    return x


@dataclass(frozen=True)
class Sharding:
    """How tensors of one mesh are sharded; all of them alike.

    Attributes:
        mesh: The ranks.
        cuts: (dimension of the mesh, dimension of the tensor), in the order in which the full tensor is cut.
        copies: Dimensions of the mesh along which all ranks hold the same.
    """

    mesh: DeviceMesh
    cuts: tuple[tuple[int, int], ...]
    copies: tuple[int, ...]

    @property
    def here(self) -> tuple[int, ...]:
        """This rank's coordinate in the mesh."""
        coordinate = self.mesh.get_coordinate()
        assert coordinate is not None  # noqa: S101 (a rank outside the mesh holds no shard)
        return tuple(coordinate)

    def span(self, shape: Sequence[int], at: Sequence[int], dim: int, depth: int | None = None) -> tuple[int, int]:
        """Start and stop, along one of the tensor's dimensions, of the shard at this coordinate after `depth` cuts."""
        start, stop = 0, shape[dim]
        for mesh_dim, cut in self.cuts[:depth]:
            if cut == dim:
                step = -(-(stop - start) // self.mesh.size(mesh_dim))
                start, stop = min(start + at[mesh_dim] * step, stop), min(start + (at[mesh_dim] + 1) * step, stop)
        return start, stop

    def shard(self, shape: Sequence[int], at: Sequence[int], depth: int | None = None) -> list[int]:
        """Shape of the shard at this coordinate after `depth` cuts; after all of them by default."""
        spans = (self.span(shape, at, dim, depth) for dim in range(len(shape)))
        return [stop - start for start, stop in spans]


def sharding_of(p: Tensor) -> Sharding | None:
    """How p is sharded; None where it is not.

    Raises:
        ValueError: If it is sharded in a way that is not supported.
    """
    if not is_sharded(p):
        return None
    plain: list[tuple[int, int]] = []
    last: list[tuple[int, int]] = []
    copies: list[int] = []
    for mesh_dim, placement in enumerate(p.placements):
        if placement.is_replicate():
            copies.append(mesh_dim)
            continue
        dim, factor = getattr(placement, "dim", None), getattr(placement, "split_factor", None)
        if dim is None:
            raise _unknown(p)
        if factor is None:
            plain.append((mesh_dim, dim))
            continue
        # Cut after the later dimensions of the mesh: tensor parallelism first, `fully_shard` what that leaves.
        later = range(mesh_dim + 1, p.device_mesh.ndim)
        if factor != math.prod(p.device_mesh.size(k) for k in later if getattr(p.placements[k], "dim", None) == dim):
            raise _unknown(p)
        last.insert(0, (mesh_dim, dim))
    sharding = Sharding(p.device_mesh, (*plain, *last), tuple(copies))
    if list(local(p).shape) != sharding.shard(p.shape, sharding.here):
        raise _unknown(p)
    return sharding


def _unknown(p: DTensor) -> ValueError:
    return ValueError(
        f"a parameter of shape {tuple(p.shape)} is sharded as {p.placements}, which is not supported; use Shard or "
        "Replicate, as fully_shard and parallelize_module do"
    )


def full_sums(
    partial: Sequence[Tensor], sharding: Sharding | None, dims: Collection[int] | None = None
) -> list[Tensor]:
    """Add up sums that each rank has taken over its shards: one all-gather a dimension of the mesh for all of them.

    Args:
        partial: Sums over the shards, of any shapes.
        sharding: How the tensors are sharded.
        dims: The tensors' dimensions that were summed over; all by default.
    """
    across = _cut_across(sharding, dims)
    if sharding is None or not across or not partial:
        return list(partial)
    flat = torch.cat([x.reshape(-1) for x in partial])
    for mesh_dim in across:
        gathered = [torch.empty_like(flat) for _ in range(sharding.mesh.size(mesh_dim))]
        dist.all_gather(gathered, flat, group=sharding.mesh.get_group(mesh_dim))
        flat = torch.stack(gathered).sum(0)
    return _cut(flat, [x.shape for x in partial])


def full_norms(lengths: list[Tensor], sharding: Sharding | None, dims: Collection[int] | None = None) -> list[Tensor]:
    """The Euclidean lengths of full tensors from those of their shards; arguments as for `full_sums`."""
    if not _cut_across(sharding, dims):
        return lengths
    return [total.sqrt() for total in full_sums([length.square() for length in lengths], sharding, dims)]


def _cut_across(sharding: Sharding | None, dims: Collection[int] | None) -> list[int]:
    """The dimensions of the mesh over which the tensors' dimensions `dims` are spread."""
    if sharding is None:
        return []
    return [k for k, dim in sharding.cuts if (dims is None or dim in dims) and sharding.mesh.size(k) > 1]


def owners(costs: Sequence[float], mesh: DeviceMesh, loads: Loads) -> list[tuple[int, ...]]:
    """Choose a rank for each task: the largest first, each to the rank with the least to do so far.

    Every rank comes to the same choice.

    Args:
        costs: What each task costs.
        mesh: The ranks.
        loads: What the ranks of each mesh have to do already; added to.

    Returns:
        The coordinate of each task's rank.
    """
    load = loads.setdefault(mesh, [0.0] * mesh.size())
    heap = [(cost, rank) for rank, cost in enumerate(load)]
    heapq.heapify(heap)
    ranks = [0] * len(costs)
    for task in sorted(range(len(costs)), key=lambda index: -costs[index]):
        busy, rank = heapq.heappop(heap)
        ranks[task] = rank
        load[rank] = busy + costs[task]
        heapq.heappush(heap, (load[rank], rank))
    return [_coordinate(rank, mesh) for rank in ranks]


def _coordinate(rank: int, mesh: DeviceMesh) -> tuple[int, ...]:
    found = []
    for mesh_dim in reversed(range(mesh.ndim)):
        rank, at = divmod(rank, mesh.size(mesh_dim))
        found.append(at)
    return tuple(reversed(found))


def on_owners(
    shards: Sequence[Tensor],
    shapes: Sequence[Sequence[int]],
    owned: Sequence[tuple[int, ...]],
    sharding: Sharding,
    compute: Callable[[list[Tensor]], list[Tensor]],
) -> list[Tensor]:
    """Gather each full tensor on its owner, compute there, and scatter the results.

    Every rank of the mesh must call it. It takes two all-to-alls for each dimension of the mesh that cuts, and one for
    each along which there are copies; the host does not wait.

    Args:
        shards: This rank's shards, all of one dtype, which is what is sent.
        shapes: The shapes of the full tensors.
        owned: The coordinate of the rank that each is computed on.
        sharding: How they are sharded.
        compute: From the full tensors of which this rank is the owner to results of the same shapes and dtype.

    Returns:
        This rank's shard of each result, fresh.
    """
    here, like = sharding.here, shards[0]
    held = dict(enumerate(shards))
    for mesh_dim in sharding.copies:
        held = {m: x for m, x in held.items() if owned[m][mesh_dim] == here[mesh_dim]}
    for depth in reversed(range(len(sharding.cuts))):
        mesh_dim, dim = sharding.cuts[depth]
        ranks = range(sharding.mesh.size(mesh_dim))
        mine = [m for m in held if owned[m][mesh_dim] == here[mesh_dim]]
        arrived = _all_to_all(
            [[x for m, x in held.items() if owned[m][mesh_dim] == rank] for rank in ranks],
            [[sharding.shard(shapes[m], _at(here, mesh_dim, rank), depth + 1) for m in mine] for rank in ranks],
            sharding.mesh.get_group(mesh_dim),
            like,
        )
        held = {m: torch.cat(parts, dim) for m, *parts in zip(mine, *arrived, strict=True)}

    held = dict(zip(held, compute(list(held.values())), strict=True))

    closed = {mesh_dim for mesh_dim, _ in sharding.cuts} | set(sharding.copies)
    for depth, (mesh_dim, dim) in [
        *enumerate(sharding.cuts),
        *((len(sharding.cuts), (k, -1)) for k in sharding.copies),
    ]:
        closed.discard(mesh_dim)
        ranks = range(sharding.mesh.size(mesh_dim))
        coming = [m for m, owner in enumerate(owned) if all(owner[k] == here[k] for k in closed)]
        by_rank = [[m for m in coming if owned[m][mesh_dim] == rank] for rank in ranks]
        if dim < 0:
            sent = [list(held.values()) for _ in ranks]
        else:
            sent = [_slices(held, shapes, sharding, _at(here, mesh_dim, rank), depth, dim) for rank in ranks]
        arrived = _all_to_all(
            sent,
            [[sharding.shard(shapes[m], here, depth + 1) for m in of_rank] for of_rank in by_rank],
            sharding.mesh.get_group(mesh_dim),
            like,
        )
        came = {m: x for ms, got in zip(by_rank, arrived, strict=True) for m, x in zip(ms, got, strict=True)}
        held = dict(sorted(came.items()))
    return list(held.values())


def _slices(
    held: Mapping[int, Tensor],
    shapes: Sequence[Sequence[int]],
    sharding: Sharding,
    at: Sequence[int],
    depth: int,
    dim: int,
) -> list[Tensor]:
    """What the rank at this coordinate gets of each tensor in the cut after the first `depth`."""
    found = []
    for m, x in held.items():
        begin, _ = sharding.span(shapes[m], at, dim, depth)
        start, stop = sharding.span(shapes[m], at, dim, depth + 1)
        found.append(x.narrow(dim, start - begin, stop - start))
    return found


def _at(here: Sequence[int], mesh_dim: int, rank: int) -> tuple[int, ...]:
    return (*here[:mesh_dim], rank, *here[mesh_dim + 1 :])


def _all_to_all(
    sent: Sequence[Sequence[Tensor]],
    shapes: Sequence[Sequence[Sequence[int]]],
    group: dist.ProcessGroup,
    like: Tensor,
) -> list[list[Tensor]]:
    """Send lists of tensors to every rank of a group and return what came from each, in these shapes."""
    if len(sent) == 1:
        return [list(sent[0])]
    going = [sum(x.numel() for x in to_rank) for to_rank in sent]
    coming = [sum(map(math.prod, of_rank)) for of_rank in shapes]
    outgoing = torch.cat([like.new_empty(0), *(x.reshape(-1) for to_rank in sent for x in to_rank)])
    arrived = outgoing.new_empty(sum(coming))
    # As bytes: not every backend knows every precision.
    width = like.element_size()
    dist.all_to_all_single(
        arrived.view(torch.uint8),
        outgoing.view(torch.uint8),
        [count * width for count in coming],
        [count * width for count in going],
        group=group,
    )
    return [_cut(part, of_rank) for part, of_rank in zip(arrived.split(coming), shapes, strict=True)]


def _cut(flat: Tensor, shapes: Iterable[Sequence[int]]) -> list[Tensor]:
    """Take a vector apart into tensors of these shapes."""
    sizes = [math.prod(shape) for shape in shapes]
    return [part.view(tuple(shape)) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
