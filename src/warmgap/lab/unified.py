"""The unified parametric assumption (arXiv 2502.12329) along runs of several seeds: a table, and the published picture.

    <grad f(x), x - x*> >= c1 * P(x) - c2

x* is the last point of the run, P the loss gap to it on the same batch, or the squared gradient norm.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from warmgap.lab.config import TrainConfig
from warmgap.lab.errors import UserError
from warmgap.lab.train import train
from warmgap.smoothness import UnifiedCheck, pooled, unified_figure
from warmgap.torch import TrajectoryChecker

Checks = Mapping[str, Sequence[UnifiedCheck]]
"""P, `gap` or `gradient`, and the check of each seed."""

POINTS_FILE = "unified.json"


@dataclass(frozen=True)
class _Points:
    """Records a point before every N-th step."""

    checker: TrajectoryChecker
    every: int

    @contextlib.contextmanager
    def measure(self, losses: Callable[[], Iterable[Tensor]], *, step: int) -> Iterator[None]:
        if step % self.every == 0:
            self.checker.record(lambda: sum(losses(), start=Tensor([0.0])[0]))
        yield


def check_runs(config: TrainConfig, seeds: Sequence[int], every: int, folder: Path) -> Checks | None:
    """Train a run of each seed and check it; None where one was interrupted."""
    steps = config.resolve().steps
    if every < 1 or steps <= every:
        raise UserError(f"A point is taken every N-th of the {steps} steps, two at least: give a smaller --every.")
    found: dict[str, list[UnifiedCheck]] = {"gap": [], "gradient": []}
    for seed in seeds:
        points: list[_Points] = []

        def make(optimizer: Any, model: nn.Module, kept: list[_Points] = points) -> _Points:  # noqa: ARG001
            kept.append(_Points(TrajectoryChecker(model), every))
            return kept[0]

        result = train(replace(config, seed=seed, save_every=0), progress=True, probe=make)
        if result.status == "interrupted":
            return None
        if result.status != "done":
            raise UserError(f"The run of seed {seed} ended as {result.status}: it has no last point. {result.message}")
        for progress, checks in found.items():
            checks.append(points[0].checker.finalize(progress=progress))  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        progress: [{"inner": check.inner.tolist(), "progress": check.progress.tolist()} for check in checks]
        for progress, checks in found.items()
    }
    head = {"command": config.command(), "seeds": list(seeds), "every": every}
    (folder / POINTS_FILE).write_text(json.dumps({**head, **rows}) + "\n", encoding="utf-8")
    return found


def unified_rows(checks: Checks, c1: Mapping[str, float]) -> list[dict[str, str]]:
    """The table: for each P its c1, the c2 that all seeds need with it, and at how many points (outliers).

    `largest c1` is the one with which no point needs a c2.
    """
    rows = []
    for progress, each in checks.items():
        together, own = pooled(each), c1[progress]
        rows.append(
            {
                "P": {"gap": "loss gap", "gradient": "squared gradient"}[progress],
                "points": str(len(together.inner)),
                "c1": f"{own:g}",
                "c2": f"{together.c2(own):.3g}",
                "outliers": f"{together.outliers(own):.0%}",
                "shortfall": f"{together.residual(own):.2g}",
                "largest c1": f"{together.largest_c1:.3g}",
            }
        )
    return rows


def save_pictures(checks: Checks, c1: Mapping[str, float], folder: Path) -> list[Path]:
    """Write the published picture for each P; return where."""
    places = []
    for progress, each in checks.items():
        places.append(folder / f"unified-{progress}.png")
        unified_figure(each, c1[progress]).savefig(places[-1], dpi=110)
    return places
