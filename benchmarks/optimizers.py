"""Step times of the optimizers against their peers, side by side in one process.

Every round times one step of each optimizer of a contest, in an order that rotates, and takes the ratio of ours to each
peer within the round: load from elsewhere then hits both alike. The tables show medians over the rounds. Of Muon they
also say what a step multiplies: the operations of torch's five iterations, two for a multiplication and an addition,
and the share of them that ours makes.

    python benchmarks/optimizers.py [--quick] [--device cuda] [--threads 1] [--only Muon] [--compile]

As on a CPU that has no units for bfloat16:

    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/optimizers.py --only "Muon, one 768" --rounds 1

The rules that go entry by entry against torch's fused SGD on the parameters of a 124m LLaMA, where memory is what
counts, with the bytes that each passes:

    python benchmarks/optimizers.py --full

What share of a training step of a 124m LLaMA is the optimizer's, and the spectral cap's:

    python benchmarks/optimizers.py --training 1x512 --threads 2
"""

import argparse
import itertools
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

from warmgap.lab.model import SIZES, build_model
from warmgap.torch import SpectralCap, split_parameters
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


# The tied embedding, the matrices and the norms.
FULL = ((50304, 768), *layer(768, 2048) * 12, *((768,),) * 25)

# Bytes a parameter in float32: from and to memory at least, where each piece stays in the cache until it is done with;
# and through the cache, pass by pass. Fused SGD makes one pass: gradient, momentum in and out, weight in and out.
TRAFFIC = {
    "torch.optim.SGD, fused": (20, 20),
    "Signum": (20, 12 + 8 + 12),  # average; sign; step
    "Lion": (20, 12 + 8 + 12 + 12),  # estimate; sign; average; step
    "NormalizedSGD": (28, 12 + 4 + 12),  # sum; length; step, which must wait for the length of the whole
}

CONTESTS = [
    Contest(
        "Muon, 768 x 768 and 768 x 2048",
        lambda ps: Muon(ps, lr=1e-3),
        TORCH_MUON
        | {"pytorch_optimizer.Muon": lambda ps: pytorch_optimizer.Muon([{"params": ps, "use_muon": True}], lr=1e-3)},
        LARGE,
    ),
    Contest(
        "Muon, one 768 x 768 and one 768 x 2048", lambda ps: Muon(ps, lr=1e-3), TORCH_MUON, ((768, 768), (768, 2048))
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


def share_of_training(batch: int, length: int, rounds: int) -> Table:
    """Time forward and backward pass, step, and spectral cap of a 124m LLaMA apart, on the CPU."""
    size = SIZES["124m"]
    model = build_model("124m", vocab_size=size.vocab_size, sequence_length=length, tied=size.tied, seed=0)
    tokens = torch.randint(0, size.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))
    title = f"124m LLaMA, {batch} x {length} tokens, {torch.get_num_threads()} threads: s of processor time, medians"
    columns = ("optimizer", "forward and backward", "step", "spectral cap", "cap / all")
    table = Table(*columns, title=title, title_justify="left")
    optimizers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "Muon": Muon, "Lion": Lion, "torch.optim.AdamW": torch.optim.AdamW,
    }  # fmt: skip
    for name, make in optimizers.items():
        optimizer = make(split_parameters(model), lr=1e-4)
        cap = SpectralCap(optimizer, total_iters=1000, apply=False)
        parts: list[list[float]] = []
        for _ in range(rounds + 1):
            times = [time.process_time()]
            model(input_ids=tokens, labels=tokens).loss.backward()
            times.append(time.process_time())
            cap.before()
            times.append(time.process_time())
            optimizer.step()
            times.append(time.process_time())
            cap.after()
            times.append(time.process_time())
            optimizer.zero_grad()
            passes, before, step, after = (b - a for a, b in itertools.pairwise(times))
            parts.append([passes, step, before + after])
        medians = [statistics.median(part) for part in zip(*parts[1:], strict=True)]
        table.add_row(name, *(f"{median:.3f}" for median in medians), f"{medians[2] / sum(medians):.3f}")
    return table


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
    if shapes == FULL:
        (memory, cache), (peer, _) = TRAFFIC[contest.name], TRAFFIC["torch.optim.SGD, fused"]
        title += f": {memory} bytes a parameter from and to memory, {cache} through the cache; fused SGD {peer}"
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
    parser.add_argument("--full", action="store_true", help="rules entry by entry, on 124m parameters, against SGD")
    parser.add_argument("--training", default="", help="batch x length, such as 1x512: the share of a training step")
    parser.add_argument("--compile", action="store_true", help="our step compiled by torch.compile")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    console = Console()
    if arguments.training:
        batch, length = map(int, arguments.training.split("x"))
        console.print(share_of_training(batch, length, arguments.rounds or 3))
        return
    for contest in CONTESTS:
        if arguments.only.lower() not in contest.name.lower():
            continue
        torch.manual_seed(0)
        if arguments.full:
            if contest.name in TRAFFIC:
                alone = Contest(contest.name, contest.ours, {"torch.optim.SGD, fused": fused_sgd})
                rounds = arguments.rounds or 11
                console.print(measure(alone, FULL, rounds, arguments.device, compiled=arguments.compile))
            continue
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
