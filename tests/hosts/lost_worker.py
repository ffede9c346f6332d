"""One rank of a run whose last rank is lost in warm-up, with torchrun's environment variables for the ranks.

Usage: lost_worker.py (kill|stop) FOLDER, in which the first rank keeps a checkpoint of the last step.
"""

from __future__ import annotations

import datetime
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from warmgap.torch import AdaptiveWarmup, Lion

RANK, RANKS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
TOTAL = 24
LOST_AT = 5
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def main(how: str, checkpoint: Path) -> None:
    dist.init_process_group("gloo")
    # the ranks meet without haste; one that stops is then missed soon
    group = dist.new_group(timeout=datetime.timedelta(seconds=5))
    model = nn.Linear(3, 1)
    optimizer = Lion(model.parameters(), lr=1e-3)
    scheduler = AdaptiveWarmup(optimizer, TOTAL, rule="gap", target_loss=0.0, process_group=group)
    dist.barrier()
    for step in range(TOTAL):
        if step == LOST_AT and RANK == RANKS - 1:
            os.kill(os.getpid(), SIGNALS[how])
        (model(torch.ones(3)).sum() * 0.0).backward()
        optimizer.step()
        scheduler.step(7.0 - 0.125 * step)
        if RANK == 0:
            torch.save(scheduler.state_dict(), checkpoint)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]) / "checkpoint.pt")
