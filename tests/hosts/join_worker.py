"""One rank of runs in which ranks have different numbers of batches; writes what it found as JSON.

Usage: join_worker.py FOLDER, with torchrun's environment variables for the ranks.
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
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

from warmgap.torch import AdaptiveWarmup, Muon, split_parameters

RANK = int(os.environ["RANK"])
BATCHES = {"Muon": (9, 5), "AdamW": (7, 1), "AdamW, none": (6, 0), "Muon, none": (6, 0)}  # of each rank

RULES = ("auto", "loss-ratio", "linear")


def train(kind: str, rule: Any, join: bool = True) -> dict[str, Any]:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3)))
    optimizer: Any = (
        Muon(split_parameters(model), lr=1e-2) if kind.startswith("Muon") else torch.optim.AdamW(model.parameters())
    )
    scheduler = AdaptiveWarmup(optimizer, 10, rule=rule, model=model)
    rates = []
    with Join([model, scheduler] if join else [model]):  # type: ignore[list-item] # it has all that Join asks for
        for batch in range(BATCHES[kind][RANK]):
            loss = model(torch.full((2, 4), 1.0 + 0.1 * batch + RANK)).square().mean() + 1.0
            loss.backward()
            scheduler.observe(loss)
            optimizer.step()
            rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
            optimizer.zero_grad()
    state = scheduler.state_dict()["schedule"]
    return {"rates": rates, "made": scheduler.last_epoch, "state": json.dumps(state)}


def main() -> dict[str, Any]:
    dist.init_process_group("gloo")
    found: dict[str, Any] = {f"{kind}, {rule}": train(kind, rule) for kind in BATCHES for rule in RULES}
    try:
        train("Muon", "auto", join=False)
    except RuntimeError as error:
        found["refusal"] = str(error)
    return found


if __name__ == "__main__":
    answer = main()
    (Path(sys.argv[1]) / f"rank-{RANK}.json").write_text(json.dumps(answer))
    leave()
