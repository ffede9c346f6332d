"""Run folders made by hand, in the form that training leaves them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from warmgap.lab.config import TrainConfig
from warmgap.lab.record import RunRecord

WriteRun = Callable[..., Path]


@pytest.fixture(scope="session")
def write_run() -> WriteRun:
    return _write_run


def _write_run(
    folder: Path,
    *,
    loss: float | None = 3.0,
    warmup: int | None = 0,
    status: str = "done",
    commit: str | None = "0123abc",
    **settings: Any,
) -> Path:
    """A run of `TrainConfig(**settings)` that ended at `loss` after a warm-up of `warmup` steps; returns its folder."""
    config = TrainConfig(**({"steps": 40} | settings)).resolve()
    folder.mkdir(parents=True)
    made = config.steps if status == "done" else config.steps // 2
    record = RunRecord(
        status=status,
        config=config.numbers(),
        command=config.command(),
        step=made,
        parameters=133_000,
        corpus_fingerprint="f00d",
        final_val_loss=loss if status == "done" else None,
        best_val_loss=loss,
        warmup_iters=warmup,
        target_loss=None,
        seconds=12.5,
        tokens_per_second=50_000.0,
        device="cpu",
        processes=1,
        versions={"python": "3.12.1", "torch": "2.13.0"},
        commit=commit,
    )
    record.save(folder)
    length = config.steps if warmup is None else warmup
    rows = []
    for step in range(1, made + 1):
        rise = min(1.0, step / max(1, length))
        factor = rise if step <= length else 0.5 * (1 + math.cos(math.pi * (step - length) / (config.steps - length)))
        row = {"step": step, "loss": (loss or 3.0) + 2 / step, "lr": factor * (config.lr or 1.0), "factor": factor}
        rows.append(row | {"phase": "warmup" if step <= length else "decay", "gap": None})
    if status == "diverged":
        rows[-1]["loss"] = None
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
