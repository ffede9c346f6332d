"""One rank of a run under FSDP2: writes its learning rates and a digest of the full weights as JSON.

Usage: fsdp_worker.py RANK RANKS FOLDER OPTIMIZER, with OPTIMIZER the name of a class of warmgap.torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import warmgap.torch
from warmgap.torch import AdaptiveWarmup

STEPS = 20
BATCH = 8


def full(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def main(rank: int, ranks: int, folder: Path, name: str) -> dict[str, Any]:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{name}-{ranks}", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
    x = torch.randn(STEPS * BATCH, 6)
    y = torch.sin(x.sum(1, keepdim=True)) + 3.0
    if ranks > 1:
        mesh = dist.device_mesh.init_device_mesh("cpu", (ranks,))
        fully_shard(model, mesh=mesh)
    optimizer = getattr(warmgap.torch, name)(model.parameters(), lr=1e-2)
    scheduler = AdaptiveWarmup(optimizer, STEPS, rule="gap", target_loss=0.0)
    rates = []
    for step in range(STEPS):
        mine = slice(step * BATCH + rank * BATCH // ranks, step * BATCH + (rank + 1) * BATCH // ranks)
        loss = nn.functional.mse_loss(model(x[mine]), y[mine])
        loss.backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(loss)
        optimizer.zero_grad()
    weights = [full(parameter).detach().flatten().tolist() for parameter in model.parameters()]
    sharded = [isinstance(parameter, DTensor) for parameter in model.parameters()]
    dist.destroy_process_group()
    return {"rates": rates, "weights": weights, "sharded": all(sharded)}


if __name__ == "__main__":
    rank, ranks, folder, name = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    answer = main(rank, ranks, folder, name)
    (folder / f"{name}-{rank}-of-{ranks}.json").write_text(json.dumps(answer))
