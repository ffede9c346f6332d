"""The experiments on compressed gradients and on EF-Muon; each writes its numbers and draws its picture.

    python benchmarks/compression.py polynomial | logistic | resnet | muon  [--folder benchmarks/results]

- `polynomial`: section 6.1 of arXiv 2410.16871, one worker, the largest of four entries sent. Seconds.
- `logistic`: section 6.2, logistic regression with a regularizer that is not convex, on the breast-cancer data that
  come with scikit-learn (569 rows, 30 features, standardized), five workers, one of 30 entries sent. Seconds.
- `resnet`: section 6.3, a ResNet-20 on images, five workers, each a process; here the 8 x 8 digits that come with
  scikit-learn. About ten minutes of two cores; what has been run is not run again. Every method at every rate of its
  grid, and the best of each is drawn: accuracy against bits sent by a worker, places included.
- `muon`: the counterexample of arXiv 2605.08980: Muon and EF-Muon, each also with Polyak's step. Seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from warmgap.theory import error_feedback, normalized_feedback_fixed
from warmgap.theory.workers import Workers, feedback, logistic, polynomial, top
from warmgap.torch.compression import Compressor, ErrorFeedback, Identity, NormalizedGD, TopK

PICTURES = Path(__file__).parents[1] / "docs" / "images"
TARGET = 1e-4


# Section 6.1


def squares(problem: Workers, start: np.ndarray, gamma: float, k: int, steps: int, *, normalized: bool) -> list[float]:
    """The squared length of the gradient at each step, from estimates that are exact at first."""
    states = feedback(problem, start, gamma, top(k), first=problem.gradients(start), normalized=normalized)
    return [float((s.gradients.mean(0) ** 2).sum()) for s in itertools.islice(states, steps)]


def first_below(values: list[float], target: float) -> int | None:
    return next((step for step, value in enumerate(values) if value < target), None)


def run_polynomial() -> dict[str, Any]:
    start = 20.0 + np.random.default_rng(0).standard_normal(4)
    found: dict[str, Any] = {"target": TARGET, "runs": {}}
    for L1, count in ((1.0, 2000), (4.0, 3000), (8.0, 10500)):
        problem = polynomial(L1)
        weight = 4.0 / (72.0 / L1**2 + 2.0)
        smooth, a = weight * 2.0 * 200.0 + 2.0 * weight, 1.0 - math.sqrt(0.75)
        gammas = {
            "||EF21||, 1/sqrt(K + 1)": (1.0 / math.sqrt(count + 1), True),
            "||EF21||, 1/(2 c1)": (normalized_feedback_fixed.step_size(problem, 0.25), True),
            "EF21": (1.0 / (smooth + smooth * math.sqrt(0.75) / a), False),
        }
        for name, (gamma, normalized) in gammas.items():
            values = squares(problem, start, gamma, 1, 18_000, normalized=normalized)
            found["runs"][f"L1 {L1:g}: {name}"] = {
                "gamma": gamma,
                "steps": first_below(values, TARGET),
                "squares": thin(values),
            }
    return found


def draw_polynomial(found: dict[str, Any], axes: Any) -> None:
    for (name, run), color in zip(
        found["runs"].items(), [c for c in ("C0", "C1", "C2") for _ in range(3)], strict=True
    ):
        style = "-" if "sqrt" in name else "--" if "c1" in name else ":"
        axes.plot(*zip(*run["squares"], strict=True), style, color=color, linewidth=1.2, label=name)
    axes.axhline(found["target"], color="gray", linewidth=0.6)
    axes.set(yscale="log", xlabel="step", ylabel="||grad f||^2", title="Polynomial, one of four entries sent")


# Section 6.2


def run_logistic() -> dict[str, Any]:
    from sklearn.datasets import load_breast_cancer

    rows, labels = load_breast_cancer(return_X_y=True)
    rows = (rows - rows.mean(0)) / rows.std(0)
    signs = np.where(labels > 0, 1.0, -1.0)
    workers, lam, steps = 5, 0.1, 100
    each = len(rows) // workers
    problem = logistic(
        [(rows[i * each : (i + 1) * each], signs[i * each : (i + 1) * each]) for i in range(workers)], lam
    )
    start = np.ones(rows.shape[1])
    part = [rows[i * each : (i + 1) * each] for i in range(workers)]
    smooth = float(np.linalg.norm(np.concatenate(part), 2) ** 2) / (4.0 * workers * each) + 2.0 * lam
    each_smooth = [float(np.linalg.norm(a, 2) ** 2) / (4.0 * each) + 2.0 * lam for a in part]
    alpha = 1.0 / rows.shape[1]
    a = 1.0 - math.sqrt(1.0 - alpha)
    gamma = 1.0 / (smooth + math.sqrt(float(np.mean(np.square(each_smooth))) * (1.0 - alpha)) / a)
    runs = {
        "||EF21||, 1/sqrt(K + 1)": squares(problem, start, 1.0 / math.sqrt(steps + 1), 1, steps, normalized=True),
        "EF21, largest step size of its theory": squares(problem, start, gamma, 1, steps, normalized=False),
    }
    return {
        "data": "breast cancer of scikit-learn, 569 x 30, standardized, 5 workers of 113 rows",
        "L0": problem.L0,
        "L1": problem.L1,
        "gamma of EF21": gamma,
        "runs": {name: {"last": values[-1], "squares": thin(values)} for name, values in runs.items()},
    }


def draw_logistic(found: dict[str, Any], axes: Any) -> None:
    for name, run in found["runs"].items():
        axes.plot(*zip(*run["squares"], strict=True), label=name)
    axes.set(yscale="log", xlabel="step", ylabel="||grad f||^2", title="Logistic regression, 5 workers, 1 of 30 sent")


# Section 6.3


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.around = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False)) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        out: Tensor = torch.relu(self.inner(x) + self.around(x))
        return out


def resnet20(channels: int = 1) -> nn.Sequential:
    blocks = [
        Block(inputs if first else outputs, outputs, stride if first else 1)
        for inputs, outputs, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        for first in (True, False, False)
    ]
    stem = [nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


WORKERS, BATCH, STEPS, EVERY = 5, 32, 100, 10
METHODS: dict[str, tuple[Compressor, float, bool, tuple[float, ...]]] = {
    # compressor, momentum, normalized, rates
    "SGD, all sent": (Identity(), 0.0, False, (0.1, 0.3, 1.0)),
    "normalized, all sent": (Identity(), 0.0, True, (0.3, 1.0, 3.0)),
    "EF21, 1 %": (TopK(0.01), 0.0, False, (0.1, 0.3, 1.0)),
    "||EF21||, 1 %": (TopK(0.01), 0.0, True, (0.3, 1.0, 3.0)),
    "||EF21-SGDM||, 1 %": (TopK(0.01), 0.9, True, (0.3, 1.0, 3.0)),
}


def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from warmgap.lab.tasks import load_digits

    def split(rows: Any) -> tuple[Tensor, Tensor]:
        whole = torch.from_numpy(rows)
        return whole[:, :64].reshape(-1, 1, 8, 8).float() / 16.0, whole[:, 64]

    train, held_out = load_digits()
    return *split(train), *split(held_out)


def train(rank: int, method: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """One worker's run with the hook of DDP: accuracy on what was held out, and bits sent until then."""
    compressor, momentum, normalized, _ = METHODS[method]
    pixels, digits, held, wanted = images()
    mine = torch.arange(rank, len(pixels), dist.get_world_size())
    torch.manual_seed(seed)
    model = resnet20()
    parallel = DistributedDataParallel(model)
    errors = ErrorFeedback(model, compressor, momentum=momentum, first="compressed")
    parallel.register_comm_hook(errors, ErrorFeedback.hook)
    optimizer: torch.optim.Optimizer
    if normalized:
        optimizer = NormalizedGD(model.parameters(), lr=rate)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / steps)
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    points = []
    for step in range(1, steps + 1):
        batch = mine[torch.randint(len(mine), (BATCH,), generator=generator)]
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(parallel(pixels[batch]), digits[batch])
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % EVERY == 0 and rank == 0:
            model.eval()
            with torch.no_grad():
                right = float((model(held).argmax(1) == wanted).double().mean())
            model.train()
            points.append((8 * errors.total.message, right))
    return {"points": points, "deviation": errors.deviation()}


def work(rank: int, meet: str, file: str, methods: list[str], seeds: int, steps: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=WORKERS)
    path = Path(file)
    for method in methods:
        for seed, rate in itertools.product(range(seeds), METHODS[method][3]):
            key = f"{method} | {rate:g} | {seed}"
            found = json.loads(path.read_text()) if path.exists() else {}
            dist.barrier()
            if key in found:
                continue
            run = train(rank, method, rate, seed, steps)
            if rank == 0:
                path.write_text(json.dumps(found | {key: run}, indent=1))
                print(key, run["points"][-1], flush=True)
            dist.barrier()
    dist.barrier()
    os._exit(0)  # taking gloo's groups down can wait for ever on a busy machine


def run_resnet(folder: Path, methods: list[str], seeds: int, steps: int) -> dict[str, Any]:
    file = folder / "compression-resnet-runs.json"
    with tempfile.TemporaryDirectory() as meet:
        arguments = (f"{meet}/store", str(file), methods, seeds, steps)
        spawn(work, arguments, nprocs=WORKERS)
    runs = json.loads(file.read_text())
    found: dict[str, Any] = {"data": "digits of scikit-learn, 1437 to train on, 360 held out", "methods": {}}
    for method in METHODS:
        by_rate = {
            rate: [runs[key]["points"] for key in runs if key.startswith(f"{method} | {rate:g} | ")]
            for rate in METHODS[method][3]
        }
        by_rate = {rate: points for rate, points in by_rate.items() if points}
        if not by_rate:
            continue
        best = max(by_rate, key=lambda rate: float(np.mean([points[-1][1] for points in by_rate[rate]])))
        mean = np.mean(np.array(by_rate[best]), axis=0)
        found["methods"][method] = {
            "rate": best,
            "seeds": len(by_rate[best]),
            "bits": mean[:, 0].tolist(),
            "accuracy": [round(float(x), 4) for x in mean[:, 1]],
            "last of each rate": {f"{r:g}": [p[-1][1] for p in points] for r, points in by_rate.items()},
        }
    return found


def draw_resnet(found: dict[str, Any], axes: Any) -> None:
    for name, run in found["methods"].items():
        label = f"{name}, rate {run['rate']:g}"
        axes.plot(run["bits"], run["accuracy"], "o-", markersize=3, linewidth=1.2, label=label)
    axes.set(
        xscale="log", xlabel="bits sent by a worker", ylabel="accuracy, held out", title="ResNet-20 on 8 x 8 digits"
    )


# EF-Muon


def run_muon() -> dict[str, Any]:
    """Four methods on the counterexample, as matrices are not needed for what is diagonal."""
    from warmgap.theory.nonconvergence import START, frozen_weight

    c = frozen_weight(0.9)
    checkpoints = (1500, 5000, 50_000)
    paths: dict[str, list[float]] = {}
    for name, rate, kept in (
        ("Muon, 1/(t + 1)", lambda t: 1.0 / (t + 1), False),
        ("EF-Muon, 1/sqrt(t + 1)", lambda t: (t + 1) ** -0.5, True),
        ("Muon, Polyak's step", None, False),
        ("EF-Muon, Polyak's step", None, True),
    ):
        paths[name] = counterexample(START, c, rate, 0.9 if rate else 0.0, kept=kept, steps=checkpoints[-1] + 1)
    path, *_ = error_feedback.run(checkpoints[0], lambda t: (t + 1) ** -0.5)
    assert math.isclose(paths["EF-Muon, 1/sqrt(t + 1)"][checkpoints[0]], path.gaps[-1], rel_tol=1e-9)
    return {
        "floor": 2.0 * c,
        "runs": {
            name: {"f": {str(t): values[t] for t in checkpoints}, "path": thin(values, log=True)}
            for name, values in paths.items()
        },
    }


def counterexample(
    start: np.ndarray, c: float, rate: Callable[[int], float] | None, beta: float, *, kept: bool, steps: int
) -> list[float]:
    """The value at each step of `warmgap.torch.EFMuon` on diag(w), of which this is the diagonal. No rate: Polyak's."""
    w, error, momentum, values = start.copy(), np.zeros(2), np.zeros(2), []
    for t in range(steps):
        total, difference = float(w.sum()), float(w[0] - w[1])
        values.append(c * abs(total) + abs(difference))
        g = c * np.sign(total) * np.array([1.0, 1.0]) + np.sign(difference) * np.array([1.0, -1.0])
        momentum = beta * momentum + (1.0 - beta) * g
        if kept:
            gamma = rate(t) if rate else values[-1] / max(float(g @ g), 1e-300)
            p = gamma * momentum + error
            step = np.abs(p).sum() / max(1, np.count_nonzero(p)) * np.sign(p)
            error = p - step
        else:
            alpha = rate(t) if rate else values[-1] / max(float(np.abs(g).sum()), 1e-300)
            step = alpha * np.sign(momentum)
        w = w - step
    return values


def draw_muon(found: dict[str, Any], axes: Any) -> None:
    for name, run in found["runs"].items():
        axes.plot(*zip(*run["path"], strict=True), label=name, linewidth=1.2)
    axes.axhline(found["floor"], color="gray", linewidth=0.6)
    axes.annotate("2c", (1.2, found["floor"]), fontsize=8, va="bottom", color="gray")
    axes.set(xscale="log", yscale="log", xlabel="step", ylabel="f - f*", title="c |w1 + w2| + |w1 - w2|")
    axes.set_ylim(1e-7, 4.0)


def thin(values: list[float], *, log: bool = False, count: int = 120) -> list[tuple[int, float]]:
    """A hundred or so of the points, for a picture."""
    last = len(values) - 1
    places = np.geomspace(1, last, count) if log else np.linspace(0, last, min(count, last + 1))
    return [(int(i), float(f"{values[i]:.6g}")) for i in sorted(set(places.astype(int)))]


DRAW = {"polynomial": draw_polynomial, "logistic": draw_logistic, "resnet": draw_resnet, "muon": draw_muon}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=DRAW)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--pictures", type=Path, default=PICTURES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, help="of resnet")
    parser.add_argument("--seeds", type=int, default=1, help="of resnet")
    parser.add_argument("--steps", type=int, default=STEPS, help="of resnet")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.experiment == "resnet":
        found = run_resnet(options.folder, options.methods, options.seeds, options.steps)
    else:
        found = {"polynomial": run_polynomial, "logistic": run_logistic, "muon": run_muon}[options.experiment]()
    (options.folder / f"compression-{options.experiment}.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(options.experiment, found, options.pictures)


def draw(experiment: str, found: dict[str, Any], pictures: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    DRAW[experiment](found, axes)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(pictures / f"compression-{experiment}.png", dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main()
