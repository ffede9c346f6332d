"""One rank that steps every optimizer on parameters cut over a mesh and, beside it, on the whole ones.

Usage: sharded_worker.py FOLDER, with torchrun's environment. Two and three ranks form a line, four a square. Writes,
for every way to cut, how far the two runs are apart, and of Muon what a step sends and orthogonalises.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from tests.leaving import leave
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from warmgap.torch import norms
from warmgap.torch.optimizers import EFMuon, Gluon, Lion, Muon, NormalizedSGD, Scion, Signum
from warmgap.torch.orthogonalize import iterate

STEPS = 3

OPTIMIZERS: dict[str, Any] = {
    "muon": (Muon, {}),
    "muon-lion": (Muon, {"second": "lion", "nesterov": False}),
    "muon-exact-sign": (Muon, {"second": "sign", "exact": True, "scale": "spectral", "second_lr": 1e-2}),
    "lion": (Lion, {}),
    "signum": (Signum, {}),
    "normalized-sgd": (NormalizedSGD, {}),
    "normalized-sgd-plain": (NormalizedSGD, {"momentum": 0.0}),
    "scion": (Scion, {"radius": 1.0, "embedding_radius": 3.0}),
    "scion-row": (Scion, {"radius": 1.0, "embedding_radius": 3.0, "embedding_rule": "row"}),
    "gluon": (Gluon, {"radius": 1.0, "embedding_radius": 3.0}),
    "gluon-adaptive": (Gluon, {"L0": 1.0, "L1": 1.0}),
    "gluon-adaptive-row": (Gluon, {"L0": 0.0, "L1": 1.0, "embedding_rule": "row"}),
    "ef-muon": (EFMuon, {"weight_decay": 0.1}),
}

# Sides that two and three ranks do not divide, and some with fewer entries than ranks.
GROUPS: list[tuple[dict[str, Any], list[tuple[int, ...]]]] = [
    ({"kind": "matrix"}, [(7, 5), (5, 9), (7, 5), (1, 4), (3, 4, 5)]),
    ({"kind": "matrix", "blocks": (2, 3, 2)}, [(7, 4), (2, 7, 3)]),
    ({"kind": "matrix", "blocks": (2, 3, 2), "transposed": True}, [(4, 7), (2, 3, 7)]),
    ({"kind": "conv"}, [(5, 3, 2, 2)]),
    ({"kind": "conv", "transposed": True}, [(3, 5, 2)]),
    ({"kind": "embedding"}, [(9, 4)]),
    ({"kind": "head", "transposed": True}, [(3, 8)]),
    ({"kind": "norm"}, [(5,), (4,)]),
    ({"kind": "bias"}, [(2,), (1,)]),
]


def placements_of(ways: tuple[Placement, ...], shape: tuple[int, ...]) -> list[Placement]:
    """These placements, with dimensions that the shape does not have taken as its last."""
    return [Shard(min(way.dim, len(shape) - 1)) if isinstance(way, Shard) else way for way in ways]


class Watch(TorchDispatchMode):
    """Counts what is sent to other ranks, in bytes by operation, and how often the host waits for a value."""

    def __init__(self, ranks: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.waits = 0
        self._ranks = ranks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name.startswith("c10d::"):
            self.calls[name] += 1
            if name == "c10d::alltoall_base_":
                lengths, here = args[4], dist.get_rank(dist.ProcessGroup.unbox(args[2]))
                self.sent[name] += sum(lengths) - lengths[here]
            else:
                self.sent[name] += sum(x.nbytes for x in args[1]) * (self._ranks - 1)
        self.waits += name in ("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero")
        return func(*args, **(kwargs or {}))


class Problem:
    """Parameters of every kind, whole or cut, under gradients that are given."""

    def __init__(self, mesh: DeviceMesh | None = None, ways: tuple[Placement, ...] = (), only: str = "") -> None:
        generator = torch.Generator().manual_seed(0)
        self.params: list[nn.Parameter] = []
        self.groups: list[dict[str, Any]] = []
        self.mesh, self.ways = mesh, ways
        for group, shapes in GROUPS:
            if only and group["kind"] != only:
                continue
            params = [nn.Parameter(self.cut(torch.randn(shape, generator=generator))) for shape in shapes]
            self.params += params
            self.groups.append({"params": params, **group})

    def cut(self, whole: Tensor) -> Tensor:
        if self.mesh is None:
            return whole
        # Every rank has the whole, so that none needs to send its pieces.
        return distribute_tensor(whole, self.mesh, placements_of(self.ways, tuple(whole.shape)), src_data_rank=None)

    def set_gradients(self, step: int) -> None:
        generator = torch.Generator().manual_seed(1000 + step)
        for p in self.params:
            p.grad = self.cut(torch.randn(p.shape, generator=generator))

    def run(self, optimizer: torch.optim.Optimizer, steps: int = STEPS) -> None:
        for step in range(steps):
            self.set_gradients(step)
            optimizer.step()

    def values(self) -> list[Tensor]:
        return [(p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for p in self.params]


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference of two entries; infinite where one is not finite."""
    largest = max(float((a.detach() - b.detach()).abs().max()) for a, b in zip(ours, theirs, strict=True))
    return largest if math.isfinite(largest) else math.inf


def compare(mesh: DeviceMesh, ways: tuple[Placement, ...]) -> dict[str, float]:
    found = {}
    for name, (cls, settings) in OPTIMIZERS.items():
        whole, cut = Problem(), Problem(mesh, ways)
        whole.run(cls(whole.groups, lr=2.0**-5, **settings))
        optimizer = cls(cut.groups, lr=2.0**-5, **settings)
        cut.run(optimizer)
        found[name] = distance(cut.values(), whole.values())
        for p, state in optimizer.state.items():
            assert all(value.placements == p.placements for key, value in state.items() if key != "step")
    return found


def costs(mesh: DeviceMesh, ways: tuple[Placement, ...], only: str) -> dict[str, Any]:
    """What a step of Muon takes."""
    cut = Problem(mesh, ways, only)
    optimizer = Muon(cut.groups)
    cut.run(optimizer, 1)
    matrices: list[int] = []

    def counted(x: Tensor, *options: Any) -> Tensor:
        matrices.append(x.shape[:-2].numel())
        return iterate(x, *options)

    with mock.patch.object(norms, "iterate", counted), Watch(mesh.size()) as watch:
        optimizer.step()
    return {
        "entries": sum(p.numel() for p in cut.params),
        "calls": dict(watch.calls),
        "sent": dict(watch.sent),
        "waits": watch.waits,
        "matrices": sum(matrices),
    }


def partial_gradient(mesh: DeviceMesh) -> float:
    """How far a step is off whose gradient is still to be summed over the ranks."""
    p, q = (distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]) for _ in range(2))
    part = torch.randn(4, 3, generator=torch.Generator().manual_seed(dist.get_rank()))
    p.grad = DTensor.from_local(part, mesh, [Partial()])
    total = part.clone()
    dist.all_reduce(total)
    q.grad = distribute_tensor(total, mesh, [Shard(0)])
    for x in (p, q):
        Muon([x]).step()
    return distance([p.full_tensor()], [q.full_tensor()])


def main() -> dict[str, Any]:
    dist.init_process_group("gloo")
    ranks = dist.get_world_size()
    found: dict[str, Any] = {}
    if ranks < 4:
        line = init_device_mesh("cpu", (ranks,))
        ways: dict[str, tuple[Placement, ...]] = {"rows": (Shard(0),), "columns": (Shard(1),), "copies": (Replicate(),)}
        found["matrices"] = costs(line, (Shard(0),), "conv")
        found["whole experts"] = costs(line, (Shard(0),), "matrix")
        found["partial"] = partial_gradient(line)
        mesh = line
    else:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
        ways = {
            "copies of rows": (Replicate(), Shard(0)),
            "rows, then copies": (Shard(0), Replicate()),
            "rows and columns": (Shard(0), Shard(1)),
            "rows of rows": (Shard(0), Shard(0)),
        }
        found["matrices"] = costs(mesh, (Replicate(), Shard(0)), "conv")
    found["distances"] = {name: compare(mesh, way) for name, way in ways.items()}
    return found


if __name__ == "__main__":
    answer = main()
    (Path(sys.argv[1]) / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(answer))
    leave()
