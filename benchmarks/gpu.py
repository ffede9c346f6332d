"""On a CUDA device: that no step waits, and what the scheduler adds to a training step.

A LLaMA is trained by each optimizer under `AdaptiveWarmup`, with torch told to raise where the host waits for the
device: after the first step, which reads its own loss, none may. Then the same training steps are timed under it and
under a constant rate, in blocks that take turns; the table shows medians over the blocks, and of their ratios.

    python benchmarks/gpu.py [--model medium] [--blocks 20] [--device cuda]
    python benchmarks/gpu.py --corpus FOLDER

The second form only writes the text of the larger model's runs: the Python files of some installed packages.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from warmgap.lab.model import SIZES, build_model
from warmgap.lab.optimizers import OPTIMIZERS
from warmgap.torch import AdaptiveWarmup

NAMES = ("muon", "scion", "gluon", "lion", "signum", "normalized-sgd", "torch-muon")
BATCH = 16
STEPS = 20  # of a block
PACKAGES = ("numpy", "scipy", "sklearn", "sympy", "jax", "matplotlib")

Step = Callable[[], None]


def write_corpus(folder: Path) -> None:
    """Copy the Python files of `PACKAGES` as they are installed here."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        package = Path(spec.origin).parent
        for path in package.rglob("*.py"):
            copy = folder / name / path.relative_to(package)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def training(name: str, size: str, device: str, *, scheduled: bool) -> Step:
    """Return one training step on random tokens."""
    shape = SIZES[size]
    made = build_model(
        size, vocab_size=shape.vocab_size, sequence_length=shape.sequence_length, tied=shape.tied, seed=0
    )
    model: nn.Module = made.to(device)
    optimizers = OPTIMIZERS[name].build(model, OPTIMIZERS[name].lr, 0.1)
    schedulers: list[AdaptiveWarmup] = []
    for optimizer in optimizers if scheduled else ():
        rule = schedulers[0].schedule.rule if schedulers else "auto"  # of the optimizer whose norm counts
        schedulers.append(AdaptiveWarmup(optimizer, 10_000, rule=rule))
    tokens = torch.randint(shape.vocab_size, (BATCH, shape.sequence_length + 1), device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            logits: Tensor = model(input_ids=tokens[:, :-1]).logits
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        if device == "cuda" and schedulers and schedulers[0].last_epoch > 0:
            torch.cuda.set_sync_debug_mode("error")
        for scheduler in schedulers:
            scheduler.observe(loss)
        for optimizer in optimizers:
            optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        for optimizer in optimizers:
            optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")

    return step


def seconds(step: Step, device: str) -> float:
    """The time of a training step, over a block of them."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(STEPS):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="medium", choices=tuple(SIZES))
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--corpus", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.corpus is not None:
        write_corpus(options.corpus)
        return
    console = Console(width=120)
    table = Table(title=f"{options.model}, {BATCH} sequences a step: milliseconds a training step")
    for heading in ("optimizer", "constant rate", "AdaptiveWarmup", "ratio", "range of ratios"):
        table.add_column(heading, justify="left" if heading == "optimizer" else "right")
    for name in NAMES:
        plain = training(name, options.model, options.device, scheduled=False)
        ours = training(name, options.model, options.device, scheduled=True)
        seconds(plain, options.device), seconds(ours, options.device)  # to warm up
        times = [(seconds(plain, options.device), seconds(ours, options.device)) for _ in range(options.blocks)]
        ratios = sorted(b / a for a, b in times)
        table.add_row(
            name,
            *(f"{1e3 * statistics.median(each):.2f}" for each in zip(*times, strict=True)),
            f"{statistics.median(ratios):.3f}",
            f"{ratios[0]:.3f} to {ratios[-1]:.3f}",
        )
    console.print(table)
    if options.device == "cuda":
        console.print(
            f"{torch.cuda.get_device_name()}, torch {torch.__version__}: after the first step nothing waited."
        )


if __name__ == "__main__":
    main()
