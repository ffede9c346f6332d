"""Trains small models, kills the training at random moments, and resumes: the same bits in the end.

Usage: kills_worker.py KILLS; writes `{"kills": ..., "runs": ..., "between": ...}`, of which `between` counts the kills
that came while a checkpoint was being written. Each run is another optimizer under another rule, with accumulation, a
loss that is not a number and a step that the gradient scaler skips.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from warmgap.torch import AdaptiveWarmup, Lion, Muon, Scion, split_parameters

STEPS = 60
OPTIMIZERS = {"Muon": Muon, "Lion": Lion, "Scion": Scion, "AdamW": torch.optim.AdamW}
RULES = ("auto", "gap", "loss-ratio")
MOST = 6  # checkpoints between two kills, at most


def train(name: str, rule: str, checkpoint: Path) -> None:
    """Train to the end, from the checkpoint if there is one, and save after each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9))
    optimizer: Any = OPTIMIZERS[name](split_parameters(model), lr=1e-2)
    scheduler = AdaptiveWarmup(optimizer, STEPS, rule=rule, norm="spectral")
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=20)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    rates: list[float] = []
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        for part in parts:
            parts[part].load_state_dict(saved[part])
        rates = saved["rates"]
    while len(rates) < STEPS:
        step = len(rates)
        draw = torch.Generator().manual_seed(step)
        for half in range(2):
            tokens = torch.randint(0, 9, (16,), generator=draw)
            loss = nn.functional.cross_entropy(model(tokens), (2 * tokens + 1) % 9)
            scaler.scale(loss / 2).backward()
            scheduler.observe(math.nan if (step, half) == (23, 1) else loss)
        if step == 11:
            model[1].weight.grad.fill_(math.inf)  # type: ignore[union-attr, operator]
        rates.append(float(optimizer.param_groups[0]["lr"]))
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.zero_grad()
        states = {part: parts[part].state_dict() for part in parts}
        torch.save({**states, "rates": rates}, checkpoint.with_suffix(".part"))
        checkpoint.with_suffix(".part").replace(checkpoint)


def start(name: str, rule: str, checkpoint: Path) -> int:
    """Train in a process of its own; return its number."""
    child = os.fork()
    if child == 0:
        train(name, rule, checkpoint)
        os._exit(0)
    return child


def wait(child: int, checkpoint: Path, saves: int) -> None:
    """Wait until so many checkpoints were written, or the child has ended."""
    seen = None
    while saves >= 0 and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        stamp = checkpoint.stat().st_mtime_ns if checkpoint.is_file() else 0
        saves -= stamp != seen
        seen = stamp
        time.sleep(0.0005)


def plain(checkpoint: Path) -> str:
    """What a finished run's checkpoint holds, as text that is equal where all bits are."""

    def bits(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return str(x.dtype), tuple(x.shape), x.numpy().tobytes()
        if isinstance(x, dict):
            return [(key, bits(value)) for key, value in x.items()]
        return [bits(value) for value in x] if isinstance(x, list | tuple) else x

    return repr(bits(torch.load(checkpoint, weights_only=True)))


def main(kills: int) -> dict[str, int]:
    draw = random.Random(0)  # noqa: S311 - no secret
    done = runs = between = 0
    for name, rule in itertools.cycle(itertools.product(OPTIMIZERS, RULES)):
        with tempfile.TemporaryDirectory() as folder:
            whole, killed = Path(folder) / "whole.pt", Path(folder) / "killed.pt"
            assert os.waitpid(start(name, rule, whole), 0)[1] == 0
            while True:
                child = start(name, rule, killed)
                if done < kills:
                    wait(child, killed, draw.randrange(MOST))
                    time.sleep(draw.uniform(0.0, 0.01))
                    os.kill(child, signal.SIGKILL)
                status = os.waitpid(child, 0)[1]
                if status == 0:
                    break
                assert os.WTERMSIG(status) == signal.SIGKILL
                done += 1
                between += killed.with_suffix(".part").is_file()
            assert plain(whole) == plain(killed), f"{name} under {rule} differs after {done} kills"
            runs += 1
            sys.stderr.write(f"{done} kills, {runs} runs with the bits of the same run without\n")
            if done >= kills:
                return {"kills": done, "runs": runs, "between": between}
    raise AssertionError


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(main(int(sys.argv[1]))))
