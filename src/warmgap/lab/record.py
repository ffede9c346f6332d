"""What a run leaves behind: `run.json`, `metrics.jsonl`, and the checkpoints."""

import contextlib
import dataclasses
import importlib.metadata
import json
import platform
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmgap.lab.errors import UserError

RECORD_VERSION = 1
STATUSES = ("running", "done", "interrupted", "diverged")
_PACKAGES = ("warmgap", "torch", "transformers", "accelerate", "tokenizers", "numpy")


@dataclass(frozen=True)
class RunRecord:
    """One run, as `run.json` holds it. Nothing in it tells of the machine but its kind of device.

    Attributes:
        status: `running`, `done`, `interrupted` (it can be resumed) or `diverged` (the loss was no longer finite).
        config: The settings that decide the numbers, with every default filled in.
        command: The command line that makes this run.
        step: Optimizer steps made.
        parameters: Number of the model's parameters.
        corpus_fingerprint: Hash of the texts and of their tokenization.
        final_val_loss: Validation loss after the last step, nats a token; None until then and for a run that diverged.
        best_val_loss: The lowest validation loss seen; None before the first evaluation.
        warmup_iters: Steps until the hand-over to the decay; None before it.
        target_loss: The target loss the rule used at last; None where it has none.
        seconds: Wall time spent, all resumes together.
        tokens_per_second: Training tokens a second of wall time.
        device: Kind of device (`cpu`, `cuda`, ...).
        processes: Number of processes.
        versions: Versions of Python and of the packages that matter.
        commit: The commit of warmgap's own checkout, None where it is not one.
        version: Version of this form.
    """

    status: str
    config: dict[str, Any]
    command: str
    step: int
    parameters: int
    corpus_fingerprint: str
    final_val_loss: float | None
    best_val_loss: float | None
    warmup_iters: int | None
    target_loss: float | None
    seconds: float
    tokens_per_second: float
    device: str
    processes: int
    versions: dict[str, str]
    commit: str | None
    version: int = RECORD_VERSION

    def save(self, folder: Path) -> None:
        """Write `run.json` into `folder`, whole or not at all."""
        write_atomically(folder / "run.json", json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "RunRecord":
        """Read `run.json` from `folder`.

        Raises:
            UserError: It is not there, damaged, or of another version of warmgap.
        """
        path = folder / "run.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise UserError(f"{folder} holds no run: there is no run.json in it.") from error
        except ValueError as error:
            raise UserError(f"{path} is damaged: delete the folder and train again.") from error
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(data, dict) or data.get("version") != RECORD_VERSION or data.keys() != names:
            got = data.get("version") if isinstance(data, dict) else None
            raise UserError(
                f"{path} was written by another version of warmgap (form {got}, this one reads form {RECORD_VERSION}): "
                "use that version, or another folder."
            )
        return cls(**data)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


def commit() -> str | None:
    """The commit of the checkout that warmgap runs from, with `+` where its files differ; None without a checkout."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "src") else "")
    return None


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603


class Metrics:
    """`metrics.jsonl` of a run: one row a step, `step` counted from 1.

    Args:
        folder: The run's folder.
        step: Steps made so far; rows of later ones, of a run that was killed, are dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        path = folder / "metrics.jsonl"
        kept = [line for line in _lines(path) if _step_of(line) <= step]
        write_atomically(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        self._file.write(json.dumps(row) + "\n")

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._file.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._file.close()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):  # the half row of a run that was killed
        return float("inf")


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path`: whole, or the old file stays. Of several writers at once the last one's file stays."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


def checkpoint_name(step: int) -> str:
    """The name of the folder of the checkpoint after `step`."""
    return f"step-{step:08d}"


def last_checkpoint(folder: Path) -> Path | None:
    """The folder of the run's last whole checkpoint, or None."""
    return max((folder / "checkpoint").glob("step-*"), default=None)


def final_weights(folder: Path) -> Path:
    """The file of the weights that a finished run left in its folder.

    Raises:
        UserError: There is no run, it is not finished, or it kept no checkpoint of its last step.
    """
    record = RunRecord.load(folder)
    checkpoint = last_checkpoint(folder)
    if record.status != "done":
        raise UserError(f"The run in {folder} is not finished ({record.status}): finish it before starting from it.")
    # A run that was interrupted may have kept its weights of then and none of its last step.
    at_end = checkpoint is not None and checkpoint.name == checkpoint_name(record.step)
    if checkpoint is None or not at_end or not (checkpoint / "model.safetensors").exists():
        raise UserError(f"The run in {folder} kept no weights: train it again with --save-every above 0.")
    return checkpoint / "model.safetensors"


@contextlib.contextmanager
def new_checkpoint(folder: Path, step: int) -> Iterator[Path]:
    """A scratch folder that becomes the checkpoint of `step` if the block ends without an error; older ones then go."""
    root = folder / "checkpoint"
    root.mkdir(parents=True, exist_ok=True)
    for left_over in root.glob(".new-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    scratch = root / f".new-{step:08d}"
    scratch.mkdir()
    try:
        yield scratch
        whole = root / checkpoint_name(step)
        scratch.rename(whole)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    for older in root.glob("step-*"):
        if older != whole:
            shutil.rmtree(older, ignore_errors=True)
