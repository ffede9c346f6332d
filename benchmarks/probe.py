"""What a measurement costs: nuclear norms against a decomposition, and the probe as a share of a training step.

Side by side in one process, in an order that rotates; the tables show medians over the rounds.

    python benchmarks/probe.py [--quick] [--device cuda] [--threads 1]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from warmgap.torch import Lion, Muon, NormalizedSGD, SmoothnessProbe, split_parameters
from warmgap.torch.orthogonalize import orthogonalize
from warmgap.torch.singular import gram_singular_values

SHAPE = (768, 2048)
EVERY = (1, 10, 50)

Optimizers = Mapping[str, Callable[[nn.Module], torch.optim.Optimizer]]
OPTIMIZERS: Optimizers = {
    "Muon": lambda model: Muon(split_parameters(model), lr=1e-3),
    "Lion": lambda model: Lion(model.parameters(), lr=1e-4),
    "NormalizedSGD": lambda model: NormalizedSGD(model.parameters(), lr=1e-3),
}


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes, the device's work included."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def side_by_side(
    works: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every work in every round, after one round that does not count."""
    names = list(works)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds = timed(works[name], device)
            if turn:
                found[name].append(seconds)
    return found


def matrices(device: torch.device) -> dict[str, Tensor]:
    """Matrices like gradients: spread evenly, a few directions and noise, and a power law."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = SHAPE
    noise = torch.randn(SHAPE, generator=generator)
    few = torch.randn(rows, 64, generator=generator) @ torch.randn(64, columns, generator=generator)
    left = torch.linalg.qr(torch.randn(rows, rows, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(columns, rows, generator=generator))[0]
    law = (left / torch.arange(1, rows + 1)) @ right.mT
    steep = (left / torch.arange(1, rows + 1) ** 2) @ right.mT
    found = {"Gaussian": noise, "rank 64 + noise": few + 0.3 * noise, "k-th value 1/k": law, "k-th value 1/k^2": steep}
    return {name: matrix.to(device) for name, matrix in found.items()}


def nuclear_norms(console: Console, rounds: int, device: torch.device) -> None:
    table = Table("matrix", "way", "ms", "SVD / way", "relative error", title=f"Nuclear norm, {SHAPE[0]} x {SHAPE[1]}")
    for name, matrix in matrices(device).items():
        ways: dict[str, Callable[[], Tensor]] = {
            "SVD": lambda x=matrix: torch.linalg.svd(x, full_matrices=False)[1].sum(),  # type: ignore[misc]
            "singular values only": lambda x=matrix: torch.linalg.svdvals(x).sum(),  # type: ignore[misc]
            "<G, UV^T>, Newton-Schulz": lambda x=matrix: (orthogonalize(x) * x).sum(),  # type: ignore[misc]
            "Gram (the probe's)": lambda x=matrix: gram_singular_values(x).sum(),  # type: ignore[misc]
        }
        exact = float(torch.linalg.svdvals(matrix.double()).sum())
        seconds = side_by_side(ways, rounds, device)
        for way, work in ways.items():
            ratio = statistics.median(a / b for a, b in zip(seconds["SVD"], seconds[way], strict=True))
            error = float(work()) / exact - 1.0
            table.add_row(name, way, f"{1e3 * statistics.median(seconds[way]):.1f}", f"{ratio:.1f}", f"{error:+.1e}")
        table.add_section()
    console.print(table)


class Perceptron(nn.Module):
    """Residual blocks of two matrices of `SHAPE` on a stream of vectors, embedding and head around them."""

    def __init__(self, layers: int, vocabulary: int = 4096) -> None:
        super().__init__()
        width, inner = SHAPE
        self.embedding = nn.Embedding(vocabulary, width)
        self.up = nn.ModuleList(nn.Linear(width, inner, bias=False) for _ in range(layers))
        self.down = nn.ModuleList(nn.Linear(inner, width, bias=False) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mean loss of giving back every token."""
        hidden = self.embedding(tokens)
        for up, down in zip(self.up, self.down, strict=True):
            hidden = hidden + down(nn.functional.relu(up(nn.functional.rms_norm(hidden, hidden.shape[-1:]))))
        return nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), tokens.flatten())


def shares(console: Console, rounds: int, device: torch.device, tokens: int) -> None:
    title = f"The probe's cost as a share of a training step (2 blocks of {SHAPE[0]} x {SHAPE[1]}, {tokens} tokens)"
    table = Table("optimizer", "step, ms", *(f"n = {every}" for every in EVERY), title=title)
    for name, make in OPTIMIZERS.items():
        torch.manual_seed(0)
        model = Perceptron(2).to(device)
        optimizer = make(model)
        probe = SmoothnessProbe(optimizer)
        batch = torch.randint(0, 4096, (1, tokens), device=device)

        def plain(
            model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer, batch: Tensor = batch
        ) -> None:
            model(batch).backward()
            optimizer.step()
            optimizer.zero_grad()

        def probed(
            model: nn.Module = model,
            optimizer: torch.optim.Optimizer = optimizer,
            batch: Tensor = batch,
            probe: SmoothnessProbe = probe,
        ) -> None:
            model(batch).backward()
            with probe.measure(lambda: model(batch)):
                optimizer.step()
            optimizer.zero_grad()

        seconds = side_by_side({"plain": plain, "probed": probed}, rounds, device)
        pairs = zip(seconds["plain"], seconds["probed"], strict=True)
        extra = statistics.median(slow / quick for quick, slow in pairs) - 1.0
        step = f"{1e3 * statistics.median(seconds['plain']):.0f}"
        table.add_row(name, step, *(f"{extra / every:.1%}" for every in EVERY))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens in a step")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, rounds, console = torch.device(arguments.device), 3 if arguments.quick else 9, Console()
    nuclear_norms(console, rounds, device)
    shares(console, rounds, device, arguments.tokens)


if __name__ == "__main__":
    main()
