"""What a scheduler costs per step: AdaptiveWarmup with each rule, beside torch's own warm-up and cosine.

All are stepped in turn in one process, so that the machine's noise falls on all alike; medians, and ratios to
`LinearLR` + `CosineAnnealingLR`.

    python benchmarks/scheduler.py [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from warmgap.torch import AdaptiveWarmup, Lion

TOTAL = 1_000_000  # so long that warm-up, the dearer phase, lasts throughout


def peer(optimizer: Lion) -> LRScheduler:
    warm, cool = LinearLR(optimizer, 0.01, total_iters=TOTAL // 10), CosineAnnealingLR(optimizer, TOTAL)
    return SequentialLR(optimizer, [warm, cool], milestones=[TOTAL // 10])


def steppers() -> dict[str, Callable[[torch.Tensor], None]]:
    def make(rule: str) -> Callable[[torch.Tensor], None]:
        optimizer = Lion(nn.Linear(4, 4).parameters(), lr=1e-3)
        scheduler = AdaptiveWarmup(optimizer, TOTAL, rule=rule)

        def step(loss: torch.Tensor) -> None:
            scheduler.after_step()  # what the optimizer's hook does; its own time is not the scheduler's
            scheduler.step(loss)

        return step

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no optimizer steps are made here
        torchs = peer(Lion(nn.Linear(4, 4).parameters(), lr=1e-3))
        torchs.step()
    return {"LinearLR + CosineAnnealingLR": lambda _: torchs.step()} | {
        f"AdaptiveWarmup, {rule}": make(rule) for rule in ("auto", "gap", "loss-ratio", "power", "linear")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 200 if parser.parse_args().quick else 3000
    torch.set_num_threads(1)
    candidates = steppers()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for t in range(rounds):
        loss = torch.tensor(10.0 - 1e-5 * t)
        for name, step in candidates.items():
            start = time.perf_counter()
            step(loss)
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians.values()))
    table = Table(
        "scheduler", "median, us a step", "ratio", title=f"{rounds} rounds, one parameter group, a CPU loss tensor"
    )
    for name, median in medians.items():
        table.add_row(name, f"{1e6 * median:.1f}", f"{median / first:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
