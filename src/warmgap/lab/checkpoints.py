"""Checkpoints of a run: a folder each, whole or not there."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from warmgap.lab.errors import UserError

WEIGHTS, STATE, INFO = "model.safetensors", "trainer.pt", "info.json"


def last_checkpoint(folder: Path) -> Path | None:
    """The folder of the run's last whole checkpoint, or None."""
    return max((folder / "checkpoint").glob("step-*"), default=None)


def final_weights(folder: Path) -> Path:
    """The file of the weights that a finished run left in its folder."""
    checkpoint = last_checkpoint(folder) or folder
    try:
        info = json.loads((checkpoint / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no weights of a run: train it with --save-every above 0.") from error
    if info["step"] != info["steps"]:
        raise UserError(f"The run in {folder} stands at step {info['step']} of {info['steps']}: finish it first.")
    return checkpoint / WEIGHTS


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A scratch folder that takes the place of `folder` if the block ends without an error."""
    scratch = folder.with_name(f".new-{folder.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


@contextlib.contextmanager
def new_checkpoint(folder: Path, step: int, steps: int) -> Iterator[Path]:
    """A scratch folder that becomes the checkpoint of `step` if the block ends without an error; older ones then go."""
    whole = folder / "checkpoint" / f"step-{step:08d}"
    with written_whole(whole) as scratch:
        yield scratch
        (scratch / INFO).write_text(json.dumps({"step": step, "steps": steps}), encoding="utf-8")
    for older in whole.parent.iterdir():
        if older != whole:
            shutil.rmtree(older, ignore_errors=True)
