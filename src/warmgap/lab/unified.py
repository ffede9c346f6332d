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

from torch import Tensor

from warmgap.lab.config import TrainConfig
from warmgap.lab.errors import UserError
from warmgap.lab.smoothness import train_measured
from warmgap.smoothness import UnifiedCheck, pooled, unified_figure
from warmgap.torch import TrajectoryChecker

Checks = Mapping[str, Sequence[UnifiedCheck]]
"""P, `gap` or `gradient`, and the check of each seed."""

POINTS_FILE = "unified.json"
_NAMES = {"gap": "loss gap", "gradient": "squared gradient"}


@dataclass(frozen=True)
class _Points:
    """Records a point before every N-th step, and writes all of them after the last."""

    checker: TrajectoryChecker
    every: int
    last: int
    path: Path

    @contextlib.contextmanager
    def measure(self, losses: Callable[[], Iterable[Tensor]], *, step: int) -> Iterator[None]:
        if step % self.every == 0:
            self.checker.record(lambda: sum(losses(), start=Tensor([0.0])[0]))
        yield
        if step == self.last:
            found = {name: self.checker.finalize(progress=name) for name in _NAMES}  # type: ignore[arg-type]
            points = {name: [check.inner.tolist(), check.progress.tolist()] for name, check in found.items()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(points) + "\n", encoding="utf-8")


def check_runs(config: TrainConfig, seeds: Sequence[int], every: int, folder: Path, command: str) -> Checks | None:
    """Train a run of each seed that is not there, and check it; None where one was interrupted."""
    steps = config.resolve().steps
    if every < 1 or steps <= every:
        raise UserError(f"A point is taken every N-th of the {steps} steps, two at least: give a smaller --every.")

    def probe(place: Path, optimizer: Any, model: Any) -> _Points:  # noqa: ARG001
        return _Points(TrajectoryChecker(model), every, steps - 1, place / POINTS_FILE)

    configs = {replace(config, seed=seed, save_every=0): f"seed-{seed}" for seed in seeds}
    if not train_measured(configs, folder, probe, command, {"every": every}):
        return None
    found: dict[str, list[UnifiedCheck]] = {name: [] for name in _NAMES}
    for name in configs.values():
        path = folder / name / POINTS_FILE
        try:
            points = json.loads(path.read_text(encoding="utf-8"))
            for progress, checks in found.items():
                checks.append(UnifiedCheck.of(*points[progress]))
        except FileNotFoundError as error:
            sentence = f"{path.parent} diverged, so it has no last point: give a smaller --lr, and another --output."
            raise UserError(sentence) from error
        except (ValueError, TypeError, LookupError) as error:
            raise UserError(f"{path} is damaged: give another --output.") from error
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
                "P": _NAMES[progress],
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
