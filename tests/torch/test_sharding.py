"""Where the shards of a tensor are, and who does what; with ranks that talk to each other in `tests/hosts`."""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

from warmgap.torch import Gluon, Lion, Muon, NormalizedSGD, SmoothnessProbe
from warmgap.torch.norms import Frobenius, Max, Spectral
from warmgap.torch.optimizers._base import CHUNK_ENTRIES
from warmgap.torch.sharding import Sharding, local, owners, sharding_of


class Ranks:
    """A mesh as far as its sides go."""

    def __init__(self, *sides: int) -> None:
        self.sides, self.ndim = sides, len(sides)

    def size(self, mesh_dim: int | None = None) -> int:
        return math.prod(self.sides) if mesh_dim is None else self.sides[mesh_dim]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceMesh]:
    """A mesh of one rank."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path_factory.mktemp('ranks')}/meet", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


WAYS: list[tuple[tuple[Placement, ...], tuple[tuple[int, int], ...]]] = [
    ((Shard(0), Replicate()), ((0, 0),)),
    ((Replicate(), Shard(1)), ((1, 1),)),
    ((Shard(1), Shard(0)), ((0, 1), (1, 0))),
    ((Shard(0), Shard(0)), ((0, 0), (1, 0))),
]


@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_shards_are_where_torch_has_them(shape: tuple[int, int], sides: tuple[int, int]) -> None:
    for placements, cuts in WAYS:
        sharding = Sharding(Ranks(*sides), cuts, ())  # type: ignore[arg-type]
        for at in product(*map(range, sides)):
            wanted, offset = _compute_local_shape_and_global_offset(shape, sides, list(at), placements)
            assert sharding.shard(shape, at) == list(wanted)
            if math.prod(wanted):
                assert [sharding.span(shape, at, dim)[0] for dim in range(2)] == list(offset)


@given(st.lists(st.floats(0.1, 100.0), max_size=30), st.lists(st.floats(0.1, 100.0), max_size=30))
def test_no_rank_has_much_more_to_do_than_it_must(costs: list[float], later: list[float]) -> None:
    mesh: Any = Ranks(2, 3)
    loads: Any = {}
    done: dict[tuple[int, ...], float] = {}
    for batch in (costs, later):
        for cost, owner in zip(batch, owners(batch, mesh, loads), strict=True):
            assert owner in set(product(range(2), range(3)))
            done[owner] = done.get(owner, 0.0) + cost
    assert sorted(done.values()) == pytest.approx(sorted(load for load in loads[mesh] if load))
    # A rank gets a task only while it has the least to do, so its last one alone is more than its fair share.
    assert max(loads[mesh]) <= sum(costs + later) / 6 + max(costs + later, default=0.0) + 1e-9


def test_who_does_what_is_balanced_and_the_same_everywhere() -> None:
    mesh: Any = Ranks(2)
    assert owners([1.0, 4.0, 2.0, 3.0], mesh, {}) == [(0,), (0,), (1,), (1,)]
    assert owners([1.0], mesh, {mesh: [3.0, 2.0]}) == [(1,)]


def test_a_full_tensor_has_no_layout(alone: DeviceMesh) -> None:
    p = torch.ones(3, 2)
    assert sharding_of(p) is None
    assert local(p) is p
    cut = distribute_tensor(p, alone, [Shard(0)])
    sharding = sharding_of(cut)
    assert sharding is not None
    assert (sharding.cuts, sharding.copies, sharding.here) == (((0, 0),), (), (0,))
    local(cut).fill_(2.0)
    assert cut.full_tensor().eq(2.0).all()


@pytest.mark.parametrize("placement", [Partial(), _StridedShard(0, split_factor=2)])
def test_other_ways_to_cut_are_refused(placement: Placement, alone: DeviceMesh) -> None:
    p = nn.Parameter(DTensor.from_local(torch.ones(4, 2), alone, [placement]))
    p.grad = DTensor.from_local(torch.ones(4, 2), alone, [placement])
    with pytest.raises(ValueError, match=r"\(4, 2\) is sharded as .*use Shard or Replicate"):
        Muon([p]).step()


@pytest.mark.parametrize("cls", [Muon, Lion, Gluon])
def test_states_are_sharded_as_their_parameters(cls: Any, alone: DeviceMesh) -> None:
    p = nn.Parameter(distribute_tensor(torch.ones(3, 2), alone, [Shard(0)]))
    p.grad = distribute_tensor(torch.ones(3, 2), alone, [Shard(0)])
    optimizer = cls([p])
    optimizer.step()
    (state,) = optimizer.state.values()
    assert all(isinstance(value, DTensor) and value.placements == (Shard(0),) for value in state.values())


@pytest.mark.parametrize("cls", [NormalizedSGD, Lion])
def test_large_shards_are_stepped_as_large_tensors(cls: Any, alone: DeviceMesh) -> None:
    shapes = [(CHUNK_ENTRIES + 1, 1), (3, 2), (CHUNK_ENTRIES + 2, 1)]
    plain = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    cut = [nn.Parameter(distribute_tensor(torch.ones(shape), alone, [Shard(0)])) for shape in shapes]
    for params in (plain, cut):
        for p in params:
            p.grad = p.detach() * (1.0 + p.numel() % 5)
        cls(params, lr=0.5).step()
    for p, q in zip(plain, cut, strict=True):
        torch.testing.assert_close(local(q), p.detach())


def test_what_measures_wants_a_full_tensor(alone: DeviceMesh) -> None:
    p = nn.Parameter(distribute_tensor(torch.ones(3, 2), alone, [Shard(0)]))
    with pytest.raises(TypeError, match="full_tensor"):
        SmoothnessProbe(Lion([p]))
    for norm in (Spectral(), Max(), Frobenius()):
        for measure in (norm.norm, norm.dual, norm.lmo):
            with pytest.raises(TypeError, match="full_tensor"):
                measure(p)
