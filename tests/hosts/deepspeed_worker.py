"""Trains a small model in a real DeepSpeed engine, by hand: it builds a kernel at its first start.

    torchrun --nproc-per-node 2 tests/hosts/deepspeed_worker.py STAGE OPTIMIZER

Writes the rates of each group at every optimizer step as JSON, of rank 0. STAGE is ZeRO's, 0 to 3, OPTIMIZER one of
lion, muon and adamw.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # type: ignore[import-not-found]
import torch
from torch.nn.functional import cross_entropy

from warmgap.torch import AdaptiveWarmup, Lion, Muon, split_parameters

STEPS, ACCUMULATED = 30, 2
OPTIMIZERS = {"lion": Lion, "muon": Muon, "adamw": torch.optim.AdamW}


def train(stage: int, name: str) -> list[list[float]]:
    """Return the rates of the groups, a row an optimizer step."""
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(16, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 16))
    groups = list(split_parameters(model))
    groups[0]["lr"] = 5e-3
    optimizer = OPTIMIZERS[name](groups, lr=1e-2)
    scheduler = AdaptiveWarmup(optimizer, STEPS)
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": ACCUMULATED,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config)
    rates = []
    for step in range(STEPS * ACCUMULATED):
        tokens = torch.randint(0, 16, (4,))
        loss = cross_entropy(engine(tokens), (tokens + 1) % 16)
        if step % ACCUMULATED == 0:
            rates.append([float(group["lr"]) for group in optimizer.param_groups])
        scheduler.observe(loss)
        engine.backward(loss)
        engine.step()
    assert scheduler.last_epoch == STEPS
    return rates


if __name__ == "__main__":
    rows = train(int(sys.argv[1]), sys.argv[2])
    if torch.distributed.get_rank() == 0:
        print(json.dumps(rows))
