"""Step times of the optimizers against their peers, side by side in one process.

Every round times one step of each optimizer of a contest, in an order that rotates, and takes the ratio of ours to each
peer within the round: load from elsewhere then hits both alike. The table shows medians over the rounds.

    python benchmarks/optimizers.py [--quick] [--device cuda] [--threads 1]
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import lion_pytorch
import pytorch_optimizer
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from warmgap.torch.optimizers import Gluon, Lion, Muon, NormalizedSGD, Scion, Signum

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Contest:
    """Our optimizer and its peers, on the hidden matrices of a model or on all its parameters."""

    name: str
    ours: Make
    peers: dict[str, Make]
    matrices_only: bool = False


CONTESTS = [
    Contest(
        "Muon",
        lambda ps: Muon(ps, lr=1e-3),
        {
            "torch.optim.Muon": lambda ps: torch.optim.Muon(ps, lr=1e-3, adjust_lr_fn="match_rms_adamw"),
            "pytorch_optimizer.Muon": lambda ps: pytorch_optimizer.Muon([{"params": ps, "use_muon": True}], lr=1e-3),
        },
        matrices_only=True,
    ),
    Contest(
        "Scion",
        lambda ps: Scion(ps, lr=1e-3),
        {"pytorch_optimizer.SCION": lambda ps: pytorch_optimizer.SCION(ps, lr=1e-3, momentum=0.1)},
        matrices_only=True,
    ),
    Contest(
        "Gluon",
        lambda ps: Gluon(ps, lr=1.0, L0=0.1, L1=70.0),
        {"torch.optim.Muon": lambda ps: torch.optim.Muon(ps, lr=1e-3)},
        matrices_only=True,
    ),
    Contest(
        "Muon, AdamW rule",
        lambda ps: Muon([{"params": ps, "kind": "other"}], lr=1e-3),
        {"torch.optim.AdamW, fused": lambda ps: torch.optim.AdamW(ps, lr=1e-3, fused=True)},
    ),
    Contest(
        "Lion",
        lambda ps: Lion(ps, lr=1e-4, weight_decay=0.1),
        {
            "lion_pytorch.Lion": lambda ps: lion_pytorch.Lion(ps, lr=1e-4, weight_decay=0.1),
            "pytorch_optimizer.Lion": lambda ps: pytorch_optimizer.Lion(ps, lr=1e-4, weight_decay=0.1),
            "torch.optim.AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-3, weight_decay=0.1),
        },
    ),
    Contest(
        "Signum",
        lambda ps: Signum(ps, lr=1e-4, weight_decay=0.1),
        {
            "pytorch_optimizer.SignSGD": lambda ps: pytorch_optimizer.SignSGD(ps, lr=1e-4, weight_decay=0.1),
            "torch.optim.AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-3, weight_decay=0.1),
        },
    ),
    Contest(
        "NormalizedSGD",
        lambda ps: NormalizedSGD(ps, lr=1e-2, weight_decay=0.1),
        {"torch.optim.AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-3, weight_decay=0.1)},
    ),
]


def parameters(layers: int, width: int, inner: int, vocabulary: int, device: str) -> list[nn.Parameter]:
    """The parameters of a LLaMA with small gradients; the embedding and the vectors come last."""
    block = [(width, width)] * 4 + [(inner, width)] * 2 + [(width, inner)]
    shapes = block * layers + ([(vocabulary, width)] if vocabulary else []) + [(width,)] * (2 * layers + 1)
    params = [nn.Parameter(torch.randn(shape, device=device) * 0.02) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    return params


def seconds(optimizer: torch.optim.Optimizer, device: str) -> float:
    """The time of one step; on one CPU thread its processor time, which other processes don't lengthen."""
    if device != "cpu":
        torch.cuda.synchronize()
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    optimizer.step()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def measure(contest: Contest, make_parameters: Callable[[], list[nn.Parameter]], rounds: int, device: str) -> Table:
    """Time a contest and return its table."""
    optimizers = {}
    for name, make in {contest.name: contest.ours, **contest.peers}.items():
        params = make_parameters()
        if contest.matrices_only:
            params = [p for p in params if p.ndim == 2]
        optimizers[name] = make(params)
    for optimizer in optimizers.values():
        optimizer.step()
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    names = list(optimizers)
    for index in range(rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(seconds(optimizers[name], device))
    table = Table("optimizer", "median ms", "ours / peer", title=contest.name, title_justify="left", min_width=60)
    ours = times[contest.name]
    for name, measured in times.items():
        ratio = statistics.median(a / b for a, b in zip(ours, measured, strict=True))
        table.add_row(name, f"{1e3 * statistics.median(measured):.2f}", f"{ratio:.3f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and few rounds: seconds instead of minutes")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--only", default="", help="run the contests whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    console = Console()
    for contest in CONTESTS:
        if arguments.only.lower() not in contest.name.lower():
            continue
        torch.manual_seed(0)
        if contest.matrices_only:
            size = (1, 256, 688, 0) if arguments.quick else (2, 768, 2048, 0)
        else:
            size = (2, 256, 688, 1000) if arguments.quick else (4, 256, 688, 4096)
        rounds = (9 if contest.matrices_only else 30) if arguments.quick else (11 if contest.matrices_only else 100)
        console.print(measure(contest, partial(parameters, *size, device=arguments.device), rounds, arguments.device))


if __name__ == "__main__":
    main()
