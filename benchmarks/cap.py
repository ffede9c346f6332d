"""Ablations of the spectral cap, and its rivals: what is measured, against what, over which weights, for how long.

    python benchmarks/cap.py run OUTPUT.jsonl --seeds 7 8
    python benchmarks/cap.py table OUTPUT.jsonl

Workloads: the suite `development` of `benchmarks/rates.py`. Every run holds the peak as long as the default does and
ends in a cosine to 0; what differs is how the steps of some weights are cut. Steps are copied and decomposed, so that
every variant is exact; the library follows singular directions from step to step. A run that stands in OUTPUT is not
made again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rates import OPTIMIZERS, SUITES, Clock, Workload, load, network, text_losses
from warmgap.rules import noise_edge
from warmgap.rules.spectral import ABOVE_EDGE, HOLD, RHO
from warmgap.torch import split_parameters


@dataclass(frozen=True)
class Variant:
    """How the steps D of some weights W are cut.

    Attributes:
        rho: The most that a step may be, relative to `against`; infinite: no cut.
        norm: Of the step: `"spectral"`, or `"frobenius"` as in the trust ratio of LARS and LAMB.
        against: The weight's `"shape"`, sqrt(outputs / inputs), its norm `"at start"` or `"now"`, or the `"rate"` of
            every entry, as in Adafactor's update clipping.
        pooled: What becomes of the ratios of all matrices: `"median"`, `"mean"`, `"largest"`, or a factor for
            `"each"`.
        rank: Singular values that are cut one by one; the rest is scaled by a factor, by the smallest of these. 0:
            whole steps are scaled, by their norm.
        edge: What these are cut at besides, as a multiple of `warmgap.rules.noise_edge`; infinite: nothing.
        roles: The roles whose steps are cut.
        until: Share of the run after which nothing is cut.
        decays: Whether the limit decays with the rate.
        relative: Whether the rate itself is the limit, and smaller steps are made as long, as in LAMB.
    """

    rho: float = RHO
    norm: str = "spectral"
    against: str = "shape"
    pooled: str = "median"
    rank: int = 8
    edge: float = 1.0
    roles: tuple[str, ...] = ("hidden",)
    until: float = 1.0
    decays: bool = False
    relative: bool = False


MATRICES = ("hidden", "embedding", "head")
VARIANTS = {
    "no cap": Variant(math.inf, rank=0),
    "the cap": Variant(),
    "no edge": Variant(edge=math.inf),
    "edge x 0.5": Variant(edge=0.5),
    "edge x 2": Variant(edge=2.0),
    "rho x 2/3": Variant(RHO * 2 / 3),
    "rho x 1.5": Variant(RHO * 1.5),
    "whole steps scaled": Variant(rank=0),
    "1 direction": Variant(rank=1),
    "4 directions": Variant(rank=4),
    "16 directions": Variant(rank=16),
    "all directions": Variant(rank=10_000),
    "largest ratio": Variant(pooled="largest"),
    "mean ratio": Variant(pooled="mean"),
    "a factor for each matrix": Variant(pooled="each"),
    "against the weight at start": Variant(0.1, against="at start"),
    "against the weight now": Variant(0.1, against="now"),
    "lifted at 60 %": Variant(until=0.6),
    "limit decays with the rate": Variant(decays=True),
    "all matrices": Variant(roles=MATRICES),
    "trust ratio (LARC), 0.02": Variant(0.02, "frobenius", "now", "each", 0),
    "trust ratio (LARC), 0.05": Variant(0.05, "frobenius", "now", "each", 0),
    "trust ratio (LAMB)": Variant(1.0, "frobenius", "now", "each", 0, roles=MATRICES, relative=True),
    "trust ratio (LAMB), hidden": Variant(1.0, "frobenius", "now", "each", 0, relative=True),
    "update clipping (Adafactor)": Variant(1.0, "frobenius", "rate", "each", 0, roles=MATRICES),
}


def size(matrix: Tensor, norm: str) -> float:
    """The norm of a matrix."""
    order = 2 if norm == "spectral" else "fro"
    return float(torch.linalg.matrix_norm(matrix, order))


@torch.no_grad()
def cut(
    matrices: list[Tensor], before: list[Tensor], starts: list[float], limit: float, rate: float, variant: Variant
) -> float:
    """Cut the steps just made at a rate, in place; return the factor of the first matrix."""
    steps = [matrix - old for matrix, old in zip(matrices, before, strict=True)]
    if variant.against == "shape":
        references = [math.sqrt(matrix.shape[0] / matrix.shape[1]) for matrix in matrices]
    elif variant.against == "rate":
        references = [rate * math.sqrt(matrix.numel()) for matrix in matrices]
    else:
        references = starts if variant.against == "at start" else [size(old, variant.norm) for old in before]
    if variant.rank:
        parts = [torch.linalg.svd(step, full_matrices=False) for step in steps]
        smallest = [min(variant.rank, len(s)) - 1 for _, s, _ in parts]
        held = [float(s[k]) if k < len(s) - 1 else 0.0 for (_, s, _), k in zip(parts, smallest, strict=True)]
    else:
        held = [size(step, variant.norm) for step in steps]
    ratios = np.array(held) / np.array(references)
    pools: dict[str, Any] = {"median": np.median, "mean": np.mean, "largest": np.max, "each": np.asarray}
    pooled = np.maximum(pools[variant.pooled](ratios), 1e-30)
    factors = np.broadcast_to(np.minimum(math.inf if variant.relative else 1.0, limit / pooled), len(steps))
    for index, (matrix, old) in enumerate(zip(matrices, before, strict=True)):
        step = steps[index] * float(factors[index])
        if variant.rank:
            (u, s, vh), top = parts[index], smallest[index] + 1
            edge = variant.edge * size(step, "frobenius") * noise_edge(step.shape)
            most = limit * references[index]
            excess = (s[:top] * float(factors[index]) - min(most, max(edge, ABOVE_EDGE * most))).clamp_min(0.0)
            step -= (u[:, :top] * excess) @ vh[:top]
        matrix.copy_(old + step)
    return float(factors[0])


def final_loss(workload: Workload, multiple: float, variant: Variant, seed: int) -> dict[str, Any]:
    """Train once; return the validation loss and the factors."""
    batch_loss, validation_loss = text_losses(workload)
    model = network(workload, seed)
    rate, clock = workload.rate * multiple, Clock(hold=HOLD)
    optimizer = OPTIMIZERS[workload.optimizer](list(split_parameters(model)), lr=rate, weight_decay=0.1)
    matrices = [p for g in optimizer.param_groups if g["role"] in variant.roles for p in g["params"] if p.ndim == 2]
    starts = [size(matrix.detach(), variant.norm) for matrix in matrices]
    order = np.random.default_rng(seed)
    factors: list[float] = []
    for step in range(workload.steps):
        loss = batch_loss(model, order)
        if not math.isfinite(loss.item()):
            return {"loss": math.inf, "factors": factors}
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        share = clock.factor(step, workload.steps, "hidden")
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        cuts = math.isfinite(variant.rho) and step < variant.until * workload.steps
        before = [matrix.detach().clone() for matrix in matrices] if cuts else []
        optimizer.step()
        if cuts:
            limit = variant.rho * (rate * share if variant.relative else share if variant.decays else 1.0)
            factors.append(round(cut(matrices, before, starts, limit, rate * share, variant), 4))
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        loss_at_the_end = validation_loss(model)
    return {"loss": loss_at_the_end, "factors": factors[:: max(1, len(factors) // 10)]}


def table(path: Path) -> None:
    """Print the mean losses, and each variant's mean difference to the cap."""
    found: dict[str, dict[tuple[str, float], list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in load(path):
        found[run["variant"]][run["workload"]["optimizer"], run["multiple"]].append(run["loss"])
    columns = sorted({key for by in found.values() for key in by})
    print(
        f"{'':28}" + "".join(f"{f'{name[:8]} x{multiple:g}':>14}" for name, multiple in columns) + f"{'difference':>14}"
    )
    cap = found["the cap"]
    for name, by in found.items():
        difference = np.mean([np.mean(by[key]) - np.mean(cap[key]) for key in columns if key in by and key in cap])
        cells = "".join(f"{np.mean(by[key]):14.3f}" if key in by else " " * 14 for key in columns)
        print(f"{name:28}{cells}{difference:+14.3f}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    parser.add_argument("--multiples", type=float, nargs="+", default=[1.0, 3.0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=["lion", "adamw", "muon"])
    given = parser.parse_args()
    if given.command == "table":
        table(given.output)
        return
    torch.set_num_threads(1)
    for seed in given.seeds:
        for workload in (w for w in SUITES["development"] if w.optimizer in given.optimizers):
            for multiple in given.multiples:
                for name in given.variants:
                    run = {"workload": asdict(workload), "variant": name, "multiple": multiple, "seed": seed}
                    if any(run.items() <= other.items() for other in load(given.output)):
                        continue
                    began = time.monotonic()
                    outcome = final_loss(workload, multiple, VARIANTS[name], seed)
                    with given.output.open("a") as file:
                        file.write(json.dumps({**run, **outcome, "seconds": round(time.monotonic() - began, 1)}) + "\n")
                    print(workload.name, name, multiple, seed, outcome["loss"], flush=True)


if __name__ == "__main__":
    main()
