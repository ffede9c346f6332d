"""A plain training loop that saves at every step: killed in the midst of one where asked, and goes on where it was.

killed_worker.py FOLDER [STEP]: the step at which it kills itself, while it writes its checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from warmgap.torch import AdaptiveWarmup, Lion, split_parameters

TOTAL = 40


def train(folder: Path, dies_at: int | None = None) -> dict[str, Any]:
    """Return every group's rate at each step that was made here, and the weights at the end."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 16))
    optimizer = Lion(split_parameters(model), lr=0.1)
    scheduler = AdaptiveWarmup(optimizer, TOTAL)
    checkpoint, first = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        first = saved["step"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
    rates = []
    for step in range(first, TOTAL):
        tokens = torch.randint(0, 16, (8, 4), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        scheduler.observe(loss)
        optimizer.step()
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        scheduler.step()
        optimizer.zero_grad()
        parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        torch.save({"step": step + 1, **{name: part.state_dict() for name, part in parts.items()}}, folder / "new.pt")
        if step == dies_at:
            (folder / "new.pt").write_bytes((folder / "new.pt").read_bytes()[:100])
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / "new.pt").replace(checkpoint)
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return {"rates": rates, "weights": weights.tolist(), "events": list(map(str, scheduler.events))}


if __name__ == "__main__":
    print(json.dumps(train(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else None)))
