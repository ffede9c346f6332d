"""Step times of the optimizers against their peers, side by side in one process.

Every round times one step of each optimizer of a contest, in an order that rotates, and takes the ratio of ours to each
peer within the round: load from elsewhere then hits both alike. The tables show medians over the rounds. Of Muon they
also say what a step multiplies: the operations of torch's five iterations, two for a multiplication and an addition,
and the share of them that ours makes.

    python benchmarks/optimizers.py [--quick] [--device cuda] [--threads 1] [--only Muon] [--compile]

As on a CPU that has no units for bfloat16:

    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/optimizers.py --only "Muon, 768" --rounds 3
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lion_pytorch
import pytorch_optimizer
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from warmgap.torch.optimizers import Gluon, Lion, Muon, NormalizedSGD, Scion, Signum
from warmgap.torch.orthogonalize import newton_schulz

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Contest:
    """Our optimizer and its peers, on the hidden matrices of a model or on all its parameters."""

    name: str
    ours: Make
    peers: dict[str, Make]
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def matrices_only(self) -> bool:
        """Whether it is about matrices alone."""
        return bool(self.shapes)


def layer(width: int, inner: int) -> tuple[tuple[int, ...], ...]:
    """The matrices of a layer of a LLaMA."""
    return ((width, width),) * 4 + ((inner, width),) * 2 + ((width, inner),)


TORCH_MUON: dict[str, Make] = {
    "torch.optim.Muon": lambda ps: torch.optim.Muon(ps, lr=1e-3, adjust_lr_fn="match_rms_adamw")
}
LARGE = layer(768, 2048) * 2


def fused_sgd(ps: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The cheapest optimizer with a momentum: five streams of memory, in one pass."""
    return torch.optim.SGD(ps, lr=1e-3, momentum=0.9, weight_decay=0.1, fused=True)


CONTESTS = [
    Contest(
        "Muon, 768 x 768 and 768 x 2048",
        lambda ps: Muon(ps, lr=1e-3),
        TORCH_MUON
        | {"pytorch_optimizer.Muon": lambda ps: pytorch_optimizer.Muon([{"params": ps, "use_muon": True}], lr=1e-3)},
        LARGE,
    ),
    *(
        Contest(f"Muon, {width} x {width} and {width} x {inner}", lambda ps: Muon(ps, lr=1e-3), TORCH_MUON, layers)
        for width, inner, layers in (
            (64, 176, layer(64, 176) * 2),
            (128, 344, layer(128, 344) * 2),
            (256, 688, layer(256, 688)),
        )
    ),
    Contest("Muon, 126 of 64 x 64", lambda ps: Muon(ps, lr=1e-3), TORCH_MUON, ((64, 64),) * 126),
    Contest(
        "Muon in float32, 768 x 768 and 768 x 2048",
        lambda ps: Muon(ps, lr=1e-3, compute_dtype=torch.float32),
        TORCH_MUON,
        LARGE,
    ),
    Contest(
        "Scion",
        lambda ps: Scion(ps, lr=1e-3),
        {"pytorch_optimizer.SCION": lambda ps: pytorch_optimizer.SCION(ps, lr=1e-3, momentum=0.1)},
        LARGE,
    ),
    Contest(
        "Gluon",
        lambda ps: Gluon(ps, lr=1.0, L0=0.1, L1=70.0),
        {"torch.optim.Muon": lambda ps: torch.optim.Muon(ps, lr=1e-3)},
        LARGE,
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
            "torch.optim.SGD, fused": fused_sgd,
        },
    ),
    Contest(
        "Signum",
        lambda ps: Signum(ps, lr=1e-4, weight_decay=0.1),
        {
            "pytorch_optimizer.SignSGD": lambda ps: pytorch_optimizer.SignSGD(ps, lr=1e-4, weight_decay=0.1),
            "torch.optim.AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-3, weight_decay=0.1),
            "torch.optim.SGD, fused": fused_sgd,
        },
    ),
    Contest(
        "NormalizedSGD",
        lambda ps: NormalizedSGD(ps, lr=1e-2, weight_decay=0.1),
        {
            "torch.optim.AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-3, weight_decay=0.1),
            "torch.optim.SGD, fused": fused_sgd,
        },
    ),
]


def parameters(shapes: Sequence[tuple[int, ...]], device: str) -> list[nn.Parameter]:
    """Parameters with small gradients."""
    params = [nn.Parameter(torch.randn(shape, device=device) * 0.02) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    return params


def operations(shapes: Sequence[tuple[int, ...]], device: str) -> tuple[float, float]:
    """Multiplications and additions in the products of a step: five standard iterations; what ours makes."""
    standard = ours = 0.0
    for shape in shapes:
        side, other = sorted(shape)
        standard += 5 * (4 * side * side * other + 2 * side**3)
        with FlopCounterMode(display=False) as counter:
            newton_schulz(torch.randn(shape, device=device))
        ours += counter.get_total_flops()
    return standard, ours


def seconds(step: Callable[[], object], device: str) -> float:
    """The time of one step; on one CPU thread its processor time, which other processes don't lengthen."""
    if device != "cpu":
        torch.cuda.synchronize()
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    step()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def measure(contest: Contest, shapes: Sequence[tuple[int, ...]], rounds: int, device: str, *, compiled: bool) -> Table:
    """Time a contest and return its table."""
    steps: dict[str, Callable[[], object]] = {}
    for name, make in {contest.name: contest.ours, **contest.peers}.items():
        step: Callable[[], object] = make(parameters(shapes, device)).step
        steps[name] = torch.compile(step, fullgraph=True) if compiled and name == contest.name else step
    for made_step in steps.values():
        made_step()
        made_step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for index in range(rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(seconds(steps[name], device))
    title = contest.name + (", compiled" if compiled else "")
    if contest.matrices_only:
        standard, made = operations(shapes, device)
        title += f": {standard / 1e9:.2f} GFLOP in five iterations, ours makes {made / standard:.2f} of them"
    table = Table("optimizer", "median ms", "ours / peer", title=title, title_justify="left", min_width=60)
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
    parser.add_argument("--rounds", type=int, default=0, help="how often each is timed")
    parser.add_argument("--compile", action="store_true", help="our step compiled by torch.compile")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    console = Console()
    for contest in CONTESTS:
        if arguments.only.lower() not in contest.name.lower():
            continue
        torch.manual_seed(0)
        large = bool(contest.shapes) and max(map(max, contest.shapes)) > 1000
        shapes = contest.shapes
        if not shapes:
            layers, vocabulary = (2, 1000) if arguments.quick else (4, 4096)
            shapes = (*layer(256, 688) * layers, (vocabulary, 256), *((256,),) * (2 * layers + 1))
        elif large and arguments.quick:
            shapes = layer(256, 688)
        rounds = arguments.rounds or ((9 if large else 30) if arguments.quick else (11 if large else 100))
        console.print(measure(contest, shapes, rounds, arguments.device, compiled=arguments.compile))


if __name__ == "__main__":
    main()
