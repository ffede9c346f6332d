"""One rank of a run under Accelerate: prints its learning rates, losses and a digest of its weights as JSON.

Usage: accelerate_worker.py FOLDER STEPS SAVE_AT [resume], with torchrun's environment variables for the ranks.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tests.leaving import leave
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from warmgap.torch import AdaptiveWarmup, Lion

ACCUMULATION = 2
BATCH = 4  # of one rank and micro-batch
TOTAL = 16
NAN_STEP = 5


def main(folder: Path, steps: int, save_at: int, resume: bool) -> dict[str, Any]:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION)
    set_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
    optimizer = Lion(model.parameters(), lr=1e-2)
    x = torch.randn(TOTAL * ACCUMULATION * BATCH * accelerator.num_processes, 6)
    data = TensorDataset(x, torch.sin(x.sum(1, keepdim=True)) + 3.0)
    warmup = AdaptiveWarmup(optimizer, TOTAL, rule="gap", target_loss=0.0)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, DataLoader(data, BATCH), warmup)
    start = 0
    if resume:
        accelerator.load_state(str(folder / "state"))
        start = save_at
        loader = accelerator.skip_first_batches(loader, start * ACCUMULATION)
    rates, losses = [], []
    for micro, (inputs, targets) in enumerate(loader, start * ACCUMULATION):
        if micro == steps * ACCUMULATION:
            break
        step, part = divmod(micro, ACCUMULATION)
        with accelerator.accumulate(model):
            loss = nn.functional.mse_loss(model(inputs), targets)
            if part == 0:
                rates.append(optimizer.param_groups[0]["lr"])
            bad = step == NAN_STEP and accelerator.is_main_process  # on one rank only
            warmup.observe(loss * math.nan if bad else loss)
            losses.append(accelerator.reduce(loss.detach(), "mean").item())
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if micro + 1 == save_at * ACCUMULATION and not resume:
            accelerator.save_state(str(folder / "state"))
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    return {
        "ranks": accelerator.num_processes,
        "rates": rates,
        "losses": losses,
        "weights": hashlib.sha256(weights).hexdigest(),
        "last_epoch": warmup.last_epoch,
        "wrapped": type(scheduler).__name__,
    }


if __name__ == "__main__":
    answer = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), "resume" in sys.argv)
    (Path(sys.argv[1]) / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(answer))
    leave()
