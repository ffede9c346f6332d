"""One rank of runs under FSDP2, and of their checkpoints; writes what it found as JSON.

Usage: fsdp_worker.py FOLDER train, or fsdp_worker.py FOLDER FROM TO, with torchrun's environment. Both go through every
optimizer. The first trains beside it the same model in one piece; four ranks are a square of data and tensor
parallelism. The second goes from step FROM to step TO: from the checkpoint that is in FOLDER
unless FROM is 0, and to one unless TO is the end. One rank is one piece.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.leaving import leave
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from warmgap.torch import (
    AdaptiveWarmup,
    Gluon,
    Lion,
    Muon,
    NormalizedSGD,
    Scion,
    Signum,
    SmoothnessProbe,
    split_parameters,
)

STEPS = 8
BATCH = 12  # of which one, two and three ranks have the same number each
VOCABULARY = 11

OPTIMIZERS: dict[str, Any] = {
    "muon": (Muon, {"exact": True}),
    "muon-lion": (Muon, {"exact": True, "second": "lion"}),
    "lion": (Lion, {}),
    "signum": (Signum, {}),
    "normalized-sgd": (NormalizedSGD, {}),
    "scion": (Scion, {"exact": True, "radius": 1.0, "embedding_radius": 3.0}),
    "gluon": (Gluon, {"exact": True, "L0": 1.0, "L1": 1.0}),
    "adamw": (torch.optim.AdamW, {}),
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(6)
        self.up = nn.Linear(6, 10)
        self.down = nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.tanh(self.up(self.norm(x))))
        return out


class Model(nn.Module):
    """Tokens in, mean loss out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 6)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(6, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens[:, :-1])
        for block in self.blocks:
            x = block(x)
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), tokens[:, 1:].flatten())


def make() -> Model:
    torch.manual_seed(0)
    # In double precision, where a rounding difference of two runs does not grow into one that matters.
    return Model().double()


def shard(model: Model, mesh: DeviceMesh) -> Model:
    names = mesh.mesh_dim_names or ()
    data = mesh["data"] if "tensor" in names else mesh
    for block in model.blocks:
        if "tensor" in names:
            parallelize_module(block, mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        fully_shard(block, mesh=data)
    fully_shard(model, mesh=data)
    return model


def tokens(step: int) -> Tensor:
    return torch.randint(VOCABULARY, (BATCH, 7), generator=torch.Generator().manual_seed(step))


def full(parameter: Tensor) -> Tensor:
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach()


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def train(name: str, model: Model, share: slice) -> tuple[list[float], list[Tensor]]:
    cls, settings = OPTIMIZERS[name]
    optimizer = cls(split_parameters(model), lr=2e-2, **settings)
    scheduler = AdaptiveWarmup(optimizer, STEPS, rule="gap", norm="spectral", target_loss=0.0, cap=0.03)
    rates = []
    for step in range(STEPS):
        loss = model(tokens(step)[share])
        loss.backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(loss)
        optimizer.zero_grad()
    return rates, [full(p) for p in model.parameters()]


def compare(mesh: DeviceMesh, index: int, parts: int) -> dict[str, Any]:
    share = slice(index * BATCH // parts, (index + 1) * BATCH // parts)
    found = {}
    for name in OPTIMIZERS:
        model = shard(make(), mesh)
        ways = sorted({str(p.placements) for p in model.parameters() if isinstance(p, DTensor)})
        rates, weights = train(name, model, share)
        rates_whole, whole = train(name, make(), slice(None))
        found[name] = {
            "rates": rates,
            "rates of the whole": rates_whole,
            "apart": distance(weights, whole),
            "moved": distance(weights, [p.detach() for p in make().parameters()]),
            "ways": ways,
        }
    return found


def refusal(mesh: DeviceMesh) -> str:
    optimizer = Lion(shard(make(), mesh).parameters())
    try:
        SmoothnessProbe(optimizer)
    except TypeError as error:
        return str(error)
    return ""


def resume(mesh: DeviceMesh | None, name: str, folder: Path, start: int, stop: int) -> dict[str, Any]:
    """Train from one step to another, with losses that are prescribed so that the rates can be held to every bit."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = make() if mesh is None else shard(make(), mesh)
    cls, settings = OPTIMIZERS[name]
    optimizer = cls(split_parameters(model), lr=2e-2, **settings)
    scheduler = AdaptiveWarmup(optimizer, STEPS, rule="gap", norm="spectral", cap=0.03)
    if start > 0:
        weights, states = get_state_dict(model, optimizer)
        saved = {"model": weights, "optimizer": states, "scheduler": scheduler}
        load(saved, checkpoint_id=folder / f"{name}-{start}")
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states)
    loaded = [full(p).tolist() for p in model.parameters()]
    rates = []
    for step in range(start, stop):
        mine = tokens(step)[rank * BATCH // ranks : (rank + 1) * BATCH // ranks]
        model(mine).backward()
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step(3.0 - step / 8)
        optimizer.zero_grad()
    if stop < STEPS:
        weights, states = get_state_dict(model, optimizer)
        saved = {"model": weights, "optimizer": states, "scheduler": scheduler}
        save(saved, checkpoint_id=folder / f"{name}-{stop}")
    return {"rates": rates, "loaded": loaded, "weights": [full(p).tolist() for p in model.parameters()]}


def main(arguments: list[str]) -> dict[str, Any]:
    dist.init_process_group("gloo")
    ranks, rank = dist.get_world_size(), dist.get_rank()
    found: dict[str, Any]
    if arguments[1] != "train":
        line = None if ranks == 1 else init_device_mesh("cpu", (ranks,))
        start, stop = map(int, arguments[1:])
        found = {name: resume(line, name, Path(arguments[0]), start, stop) for name in OPTIMIZERS}
    elif ranks < 4:
        mesh = init_device_mesh("cpu", (ranks,))
        found = {"line": compare(mesh, rank, ranks), "refusal": refusal(mesh)}
    else:
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
        found = {"square": compare(square, rank // 2, 2)}
    return found


if __name__ == "__main__":
    answer = main(sys.argv[1:])
    (Path(sys.argv[1]) / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(answer))
    leave()
