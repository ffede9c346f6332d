"""One rank of a data-parallel run: prints its learning rates and a digest of its weights as JSON.

Usage: rank_worker.py RANK RANKS STORE_FILE [RESUME_FILE STOP]
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.leaving import leave
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from warmgap.rules import GapRule
from warmgap.torch import AdaptiveWarmup, Lion

STEPS = 40
BATCH = 24
NAN_STEP = 9


def main(rank: int, ranks: int, store: str, checkpoint: str | None = None, stop: int = STEPS) -> dict[str, Any]:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
    data = torch.randn(512, 6)
    target = torch.sin(data.sum(1, keepdim=True)) + 3.0
    parallel = DistributedDataParallel(model)
    optimizer = Lion(model.parameters(), lr=1e-2)
    scheduler = AdaptiveWarmup(optimizer, STEPS, rule=GapRule(kappa=90.0, target_loss=-1.0))
    start = 0
    if checkpoint is not None and Path(checkpoint).exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        start = saved["step"]
    rates = []
    for step in range(start, stop):
        batch = torch.randint(len(data), (BATCH,), generator=torch.Generator().manual_seed(step))
        mine = batch[rank::ranks]  # uneven where BATCH does not divide
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        errors = (parallel(data[mine]) - target[mine]).square()
        # DDP averages over ranks: weigh each rank's sum by its share of the batch
        (errors.sum() * ranks / BATCH).backward()
        optimizer.step()
        half = max(1, len(mine) // 2)
        for part in (errors[:half], errors[half:]):  # two micro-batches
            if len(part):
                loss = part.mean() if (step, rank) != (NAN_STEP, ranks - 1) else torch.tensor(math.nan)
                scheduler.observe(loss, weight=len(part))
        scheduler.step()
    if checkpoint is not None and rank == 0 and stop < STEPS:
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        torch.save({**saved, "step": stop}, checkpoint)
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    return {"rates": rates, "weights": hashlib.sha256(weights).hexdigest(), "warmup_iters": scheduler.warmup_iters}


if __name__ == "__main__":
    arguments = sys.argv[1:]
    resume = (arguments[3], int(arguments[4])) if len(arguments) > 3 else ()
    sys.stdout.write(json.dumps(main(int(arguments[0]), int(arguments[1]), arguments[2], *resume)))
    leave()
