"""Why hidden matrices need holding back: spectral norm and rank of their steps, and growth of the weights, along a run.

    python benchmarks/why.py docs/images/why.png runs/why.json

Lion at three times its rate on bytes of the standard library's source, the same model, data and seed with and without
the spectral cap. About two minutes on one core.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from rates import Workload, network, text_losses
from warmgap.torch import Lion, SpectralCap, split_parameters

WORK = Workload("lion", 1e-2)


def course(rho: float | Literal["auto"] | None, seed: int = 0) -> dict[str, Any]:
    """Train at a constant rate; medians over the hidden matrices at every fifth step."""
    batch_loss, _ = text_losses(WORK)
    model = network(WORK, seed)
    optimizer = Lion(list(split_parameters(model)), lr=WORK.rate, weight_decay=0.1)
    cap = None if rho is None else SpectralCap(optimizer, rho, total_iters=WORK.steps)
    hidden = [p for group in optimizer.param_groups if group["role"] == "hidden" for p in group["params"]]
    norms = [float(torch.linalg.matrix_norm(p.detach(), 2)) for p in hidden]
    order = np.random.default_rng(seed)
    rows: dict[str, list[float]] = {"step": [], "loss": [], "size": [], "rank": [], "growth": [], "factor": []}
    for step in range(WORK.steps):
        loss = batch_loss(model, order)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        before = [p.detach().clone() for p in hidden]
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 0:
            moved = [p.detach() - old for p, old in zip(hidden, before, strict=True)]
            largest = [float(torch.linalg.matrix_norm(d, 2)) for d in moved]
            weights = [float(torch.linalg.matrix_norm(p.detach(), 2)) for p in hidden]
            rows["step"].append(step)
            rows["loss"].append(loss.item())
            rows["size"].append(float(np.median([s / n for s, n in zip(largest, norms, strict=True)])))
            ranks = [float(d.square().sum()) / s**2 for d, s in zip(moved, largest, strict=True)]
            rows["rank"].append(float(np.median(ranks)))
            rows["growth"].append(float(np.median([w / n for w, n in zip(weights, norms, strict=True)])))
            rows["factor"].append(1.0 if cap is None else cap.factor)
    return rows


def main() -> None:
    """Run both, write the numbers and draw them."""
    picture, output = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    courses = {"no cap": course(None), "spectral cap": course("auto")}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(courses))

    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = {
        "loss": "training loss",
        "size": "size of a step: ||D|| / ||W at the start||",
        "rank": "stable rank of a step: ||D||_F^2 / ||D||_2^2",
        "growth": "growth: ||W|| / ||W at the start||",
    }
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.2))
    for axis, (key, title) in zip(axes, panels.items(), strict=True):
        for name, rows in courses.items():
            axis.plot(rows["step"], rows[key], label=name)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        if key != "loss" and key != "rank":
            axis.set_yscale("log")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    main()
