"""One of four ranks that exchange compressed gradients in every way there is; writes what it found.

Usage: feedback_worker.py FOLDER, with torchrun's environment.
"""

from __future__ import annotations

import faulthandler
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.leaving import leave
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from warmgap.torch import EFMuon
from warmgap.torch.compression import (
    Compressor,
    ErrorFeedback,
    LowRank,
    NormalizedGD,
    ScaledSign,
    SimulatedWorkers,
    TopK,
)

STEPS, SAVED = 6, 3
COMPRESSORS: dict[str, tuple[Compressor, dict[str, Any]]] = {
    "few": (TopK(0.05), {"momentum": 0.9}),
    "many": (TopK(0.4), {"first": "compressed"}),  # most of it is less traffic as a sum
    "signs": (ScaledSign(), {"momentum": 0.5}),
    "low rank": (LowRank(1), {"seed": 3}),
}


def build(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 31), nn.Tanh(), nn.Linear(31, 9), nn.Tanh(), nn.Linear(9, 1))


def loss(model: nn.Module, rank: int, step: int) -> Tensor:
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(1000 * step + rank))
    error: Tensor = model(x) - torch.sin(x.sum(1, keepdim=True))
    return error.square().mean()


def weights(model: nn.Module) -> list[Tensor]:
    return [(p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for p in model.parameters()]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def simulated(compressor: Compressor, settings: dict[str, Any]) -> tuple[list[Tensor], dict[str, int]]:
    model, ranks = build(), dist.get_world_size()
    workers = SimulatedWorkers(model, ranks, compressor, **settings)
    optimizer = NormalizedGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        for rank in range(ranks):
            optimizer.zero_grad()
            loss(model, rank, step).backward()
            workers.collect(rank)
        workers.exchange()
        optimizer.step()
    return weights(model), vars(workers.last)


class Run:
    """A rank's run with the hook of DDP, or with feedback before the optimizer's step."""

    def __init__(self, compressor: Compressor, settings: dict[str, Any], *, hooked: bool) -> None:
        self.model = build()
        self.parallel: nn.Module = self.model
        self.optimizer = NormalizedGD(self.model.parameters(), lr=0.1)
        self.feedback = ErrorFeedback(self.model, compressor, **settings)
        if hooked:
            # Several buckets, which DDP fills anew after the first step.
            parallel = DistributedDataParallel(self.model, bucket_cap_mb=0.0005)
            parallel.register_comm_hook(self.feedback, ErrorFeedback.hook)
            self.parallel = parallel
        else:
            self.feedback.attach(self.optimizer)

    def go(self, start: int, stop: int) -> None:
        for step in range(start, stop):
            self.optimizer.zero_grad()
            loss(self.parallel, dist.get_rank(), step).backward()
            self.optimizer.step()


def resumed(run: Run, other: Run, folder: Path | None) -> bool:
    """Whether a run that goes on in fresh objects has the bits of one that was not interrupted."""
    run.go(0, SAVED)
    if folder is None:
        file = io.BytesIO()
        torch.save({"model": run.model.state_dict(), "feedback": run.feedback.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        other.feedback.load_state_dict(saved["feedback"])
        other.model.load_state_dict(saved["model"])
    else:
        save({"model": run.model.state_dict(), "feedback": run.feedback}, checkpoint_id=folder)
        state: dict[str, Any] = {"model": other.model.state_dict(), "feedback": other.feedback}
        load(state, checkpoint_id=folder)
    for one in (run, other):
        one.go(SAVED, STEPS)
    return same(weights(run.model), weights(other.model))


def sharded(mesh: DeviceMesh, compressor: Compressor, folder: Path) -> dict[str, Any]:
    """Two workers of two ranks each, in which the model is sharded."""

    def start() -> tuple[nn.Module, ErrorFeedback, NormalizedGD]:
        model = build()
        fully_shard(model, mesh=mesh["inner"])
        optimizer = NormalizedGD(model.parameters(), lr=0.1)
        feedback = ErrorFeedback(model, compressor, momentum=0.5, process_group=mesh["outer"].get_group())
        feedback.attach(optimizer)
        return model, feedback, optimizer

    def go(model: nn.Module, optimizer: NormalizedGD, first: int, last: int) -> None:
        for step in range(first, last):
            optimizer.zero_grad()
            loss(model, dist.get_rank(), step).backward()
            optimizer.step()

    model, feedback, optimizer = start()
    go(model, optimizer, 0, SAVED)
    save({"model": get_model_state_dict(model), "feedback": feedback}, checkpoint_id=folder)
    go(model, optimizer, SAVED, STEPS)
    other, fresh, second = start()
    state: dict[str, Any] = {"model": get_model_state_dict(other), "feedback": fresh}
    load(state, checkpoint_id=folder)
    set_model_state_dict(other, state["model"])
    go(other, second, SAVED, STEPS)

    # One process with two workers, each with the mean gradient of its two ranks.
    reference = build()
    workers = SimulatedWorkers(reference, 2, compressor, momentum=0.5)
    descent = NormalizedGD(reference.parameters(), lr=0.1)
    for step in range(STEPS):
        for worker in range(2):
            descent.zero_grad()
            (sum(loss(reference, 2 * worker + inner, step) for inner in range(2)) / 2.0).backward()  # type: ignore[union-attr]
            workers.collect(worker)
        workers.exchange()
        descent.step()
    apart = [float((a - b).abs().max()) for a, b in zip(weights(model), weights(reference), strict=True)]
    return {
        "resumed": same(weights(model), weights(other)),
        "apart": max(apart),
        "deviation": feedback.deviation(),
        "worker": feedback.rank,
    }


def ef_muon(mesh: DeviceMesh) -> float:
    """How far EF-Muon on pieces is from EF-Muon on the whole."""
    whole, cut = build(), build()
    fully_shard(cut, mesh=mesh["inner"])
    for model in (whole, cut):
        optimizer = EFMuon(model.parameters(), lr=0.1, exact=True, target_loss=0.0)
        for step in range(2):
            optimizer.zero_grad()
            value = loss(model, 0, step)
            value.backward()
            optimizer.step(loss=value)
    return max(float((a - b).abs().max()) for a, b in zip(weights(whole), weights(cut), strict=True))


def refusal(make: Any) -> str:
    try:
        make()
    except ValueError as error:
        return str(error)
    return ""


def main(folder: Path) -> dict[str, Any]:
    dist.init_process_group("gloo")
    found: dict[str, Any] = {}
    for name, (compressor, settings) in COMPRESSORS.items():
        expected, traffic = simulated(compressor, settings)
        runs = [Run(compressor, settings, hooked=hooked) for hooked in (True, False)]
        for run in runs:
            run.go(0, STEPS)
        deviation = runs[0].feedback.deviation()
        runs[0].feedback.synchronize()
        found[name] = {
            "hook": same(weights(runs[0].model), expected),
            "attached": same(weights(runs[1].model), expected),
            "traffic": all(vars(run.feedback.last) == traffic for run in runs),
            "sent": [traffic["sent"], traffic["dense"]],
            "deviation": [deviation, runs[0].feedback.deviation()],
        }
    compressor, settings = COMPRESSORS["few"]
    for hooked in (True, False):
        for kind in ("files", "checkpoint"):
            run, other = (Run(compressor, settings, hooked=hooked) for _ in range(2))
            where = folder / f"{kind}-{hooked}" if kind == "checkpoint" else None
            found[f"resumed {kind} {hooked}"] = resumed(run, other, where)

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    found["sharded"] = sharded(mesh, TopK(1.0), folder / "sharded-whole")
    found["sharded few"] = sharded(mesh, TopK(0.1), folder / "sharded-few")
    model = build()
    fully_shard(model, mesh=mesh["inner"])
    found["ef muon"] = ef_muon(mesh)
    found["refused"] = [
        refusal(lambda: ErrorFeedback(model, compressor)),
        refusal(lambda: ErrorFeedback(model, compressor, process_group=mesh["inner"].get_group())),
        refusal(lambda: different(compressor)),
    ]
    return found


def different(compressor: Compressor) -> None:
    """Workers that start from different weights."""
    model = build(seed=dist.get_rank() // 3)
    optimizer = NormalizedGD(model.parameters())
    ErrorFeedback(model, compressor).attach(optimizer)
    loss(model, 0, 0).backward()
    optimizer.step()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(200, exit=True)
    answer = main(Path(sys.argv[1]))
    (Path(sys.argv[1]) / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(answer))
    leave()
