"""A grid of runs, trained in parallel, each in a folder of its own: what goes wrong goes wrong for one run only."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import shlex
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from warmgap.lab.config import LATE, TrainConfig
from warmgap.lab.corpus import load_tokens
from warmgap.lab.digits import NAME as DIGITS
from warmgap.lab.errors import UserError
from warmgap.lab.interruption import Interruption
from warmgap.lab.record import RunRecord, commit, versions, write_atomically

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

SWEEP_FILE = "sweep.json"
SWEEP_VERSION = 1
ERROR_FILE = "error.txt"

_LOOK_EVERY = 0.5  # seconds between two looks at the runs under way
_PATIENCE = 60.0  # seconds a worker has, after ctrl-C, to write its checkpoint
_WITH_TARGET = ("auto", LATE, "gap", "power", "published")

Status = Literal["done", "diverged", "interrupted", "failed", "waiting"]


@dataclass(frozen=True)
class Outcome:
    """How one run of a sweep ended.

    Attributes:
        config: its settings, `output` its folder.
        status: `done` or `diverged` (finished); `interrupted` (resumable); `failed` (an error, see `message`);
            `waiting` (never started).
        message: one sentence on a failure, else empty.
        skipped: whether it had been finished before the sweep began.
    """

    config: TrainConfig
    status: Status
    message: str = ""
    skipped: bool = False


@dataclass(frozen=True)
class Grid:
    """What is asked of a sweep: every optimizer with every rule and warm-up length, with every seed.

    Attributes:
        base: the settings that all runs share.
        optimizers: names, or `name:lr` to give each its peak rate.
        rules: names of rules; `linear:40`, `linear:10%` and `none` are hand-tuned ones.
        warmups: hand-tuned warm-up lengths, in steps (`"40"`) or as a share of the run (`"10%"`); `"0"` is none.
        seeds: the seeds.
    """

    base: TrainConfig
    optimizers: Sequence[str]
    rules: Sequence[str]
    warmups: Sequence[str]
    seeds: Sequence[int]

    def configs(self, folder: Path) -> list[TrainConfig]:
        """The runs, each with its own folder in `folder`; all of one seed before the next seed.

        Raises:
            UserError: an empty grid, or a setting that is not allowed, before anything runs.
        """
        methods = [
            linear_rule(rule.removeprefix("linear:"), self.base.steps) if rule.startswith("linear:") else rule
            for rule in self.rules
        ]
        methods = list(dict.fromkeys(methods + [linear_rule(length, self.base.steps) for length in self.warmups]))
        for what, given in (("optimizer", self.optimizers), ("rule or warm-up length", methods), ("seed", self.seeds)):
            if not given:
                raise UserError(f"The sweep has no {what}: give at least one.")
        optimizers = dict.fromkeys(_optimizer(name, self.base.lr) for name in self.optimizers)
        configs = []
        for seed, (optimizer, lr), rule in itertools.product(dict.fromkeys(self.seeds), optimizers, methods):
            target_loss = self.base.target_loss if rule in _WITH_TARGET else None
            config = replace(
                self.base, optimizer=optimizer, lr=lr, rule=rule, seed=seed, target_loss=target_loss
            ).resolve()
            configs.append(in_folder(config, folder))
        return configs

    def command(self, folder: Path) -> str:
        """The command line that makes this sweep."""
        lists = {
            "optimizers": self.optimizers,
            "rules": self.rules,
            "warmups": self.warmups,
            "seeds": [str(seed) for seed in self.seeds],
        }
        words = [word for name, values in lists.items() for word in (f"--{name}", *values)]
        return shlex.join(["warmgap", "sweep", *words, *shlex.split(self.base.command())[2:], "--output", str(folder)])

    def asked(self) -> dict[str, Any]:
        """The grid as plain values."""
        base = {
            name: value
            for name, value in dataclasses.asdict(self.base).items()
            if name not in ("optimizer", "lr", "rule", "seed", "output", "resume")
        }
        return {
            "optimizers": list(self.optimizers),
            "rules": list(self.rules),
            "warmups": list(self.warmups),
            "seeds": list(self.seeds),
            "base": base,
        }


def in_folder(config: TrainConfig, folder: Path) -> TrainConfig:
    """The settings with a run folder of their own in `folder`, named by what the run is and by its fingerprint."""
    name = f"{config.optimizer}-{config.rule.replace(':', '-')}-seed{config.seed}-{config.fingerprint()[:8]}"
    return replace(config, output=folder / name)


def run_sweep(
    configs: Sequence[TrainConfig],
    folder: Path,
    *,
    command: str,
    asked: dict[str, Any],
    jobs: int | None = None,
    console: Console | None = None,
) -> list[Outcome]:
    """Train every run that is not finished, several at a time, and write down what was asked in `sweep.json`.

    Finished runs (done or diverged, with the same settings) are skipped; interrupted ones go on from their last
    checkpoint. Each run has one CPU thread unless its settings say otherwise. A run that fails is written down
    (`error.txt` in its folder) and the others go on. On ctrl-C or SIGTERM every run under way writes a checkpoint.

    Args:
        configs: the runs, each with its own `output`.
        folder: the sweep's folder.
        command: the command line that makes this sweep.
        asked: what was asked, as plain values.
        jobs: runs at a time; the number of cores unless given, or one where there is a GPU.
        console: where to show progress; None shows nothing.

    Returns:
        How each run ended, in the order of `configs`.

    Raises:
        UserError: a corpus that cannot be read, two runs for one folder, or a folder that cannot be written to.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"The number of jobs must be at least 1, got {jobs}.")
    outputs = [config.output for config in configs]
    if None in outputs or len(set(outputs)) < len(outputs):
        raise UserError("Every run of a sweep needs a folder of its own: two of these have the same settings.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The sweep cannot write to {folder}: {error.strerror or error}.") from error
    book = _Book(folder, command, asked, configs)
    outcomes = {config: Outcome(config, "waiting") for config in configs}
    outcomes |= {
        config: Outcome(config, status, skipped=True) for config in configs if (status := finished(config)) is not None
    }
    waiting = [config for config, outcome in outcomes.items() if outcome.status == "waiting"]
    if console is not None and len(waiting) < len(configs):
        skipped = len(configs) - len(waiting)
        console.print(f"{skipped} of {len(configs)} runs are finished already.", highlight=False)
    book.write(outcomes.values())
    if waiting:
        # Once, here: the workers find the tokens in the cache, and a mistake in the corpus is told once.
        for corpus in dict.fromkeys(
            (config.corpus, config.vocab_size or 0, config.corpus_megabytes)
            for config in waiting
            if config.corpus != DIGITS
        ):
            load_tokens(corpus[0], corpus[1], megabytes=corpus[2])
        jobs = min(len(waiting), jobs or _usual_jobs())
        # One thread a run: the cores are for the runs, and a run's numbers do not depend on how many cores there are.
        waiting = [config if config.threads else replace(config, threads=1) for config in waiting]
        by_output = {config.output: config for config in configs}
        with _shown(console, waiting) as display:
            for outcome in _train_all(waiting, jobs, display):
                config = by_output[outcome.config.output]
                outcomes[config] = replace(outcome, config=config)
                book.write(outcomes.values())
    return list(outcomes.values())


def finished(config: TrainConfig) -> Literal["done", "diverged"] | None:
    """How the run with these settings ended, if it has.

    Raises:
        UserError: its folder holds a record of another version, or of another run.
    """
    if config.output is None or not (config.output / "run.json").exists():
        return None
    record = RunRecord.load(config.output)
    if record.config != config.numbers():
        raise UserError(f"{config.output} holds a run with other settings: move it away, or give another --output.")
    if record.status == "done":
        return "done"
    return "diverged" if record.status == "diverged" else None


def tell(outcomes: Sequence[Outcome], folder: Path, console: Console) -> int:
    """Say how a sweep ended; return the exit code: 0 all finished, 1 a run failed, 130 interrupted."""
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    left = sum(outcome.status in ("interrupted", "waiting") for outcome in outcomes)
    diverged = sum(outcome.status == "diverged" for outcome in outcomes)
    done = len(outcomes) - len(failed) - left
    words = f"{done} of {len(outcomes)} runs finished" + (f", {diverged} of them diverged" if diverged else "")
    console.print(f"{words}; they are in {folder}.", highlight=False, markup=False, soft_wrap=True)
    for outcome in failed:
        console.print(
            f"Failed: {_name(outcome.config)}: {outcome.message}", highlight=False, markup=False, soft_wrap=True
        )
    if left:
        console.print(f"{left} of {len(outcomes)} runs are left: the same command goes on with them.", highlight=False)
        return 130
    return 1 if failed else 0


class _Book:
    """`sweep.json`: every sweep asked of a folder, and how its runs ended."""

    def __init__(self, folder: Path, command: str, asked: dict[str, Any], configs: Sequence[TrainConfig]) -> None:
        self._path = folder / SWEEP_FILE
        self._folder = folder
        self._began = time.monotonic()
        self._sweep = {"command": command, "asked": asked, "versions": versions(), "commit": commit()}
        self._others = [sweep for sweep in load_sweeps(folder) if sweep["command"] != command]
        # Once: a run that starts from weights is known by their hash.
        self._fingerprints = {config.output: config.fingerprint() for config in configs}

    def write(self, outcomes: Iterable[Outcome]) -> None:
        runs = [
            {
                "folder": outcome.config.output.name,
                "fingerprint": self._fingerprints[outcome.config.output],
                "status": outcome.status,
                "skipped": outcome.skipped,
                "message": outcome.message,
            }
            for outcome in outcomes
            if outcome.config.output is not None
        ]
        sweep = self._sweep | {"seconds": round(time.monotonic() - self._began, 1), "runs": runs}
        text = json.dumps({"version": SWEEP_VERSION, "sweeps": [*self._others, sweep]}, indent=2, default=str) + "\n"
        try:
            write_atomically(self._path, text)
        except OSError as error:
            raise UserError(
                f"The sweep cannot write {self._path}: {error.strerror or error}; its runs so far are whole."
            ) from error


def load_sweeps(folder: Path) -> list[dict[str, Any]]:
    """What was asked of a folder so far: the entries of its `sweep.json`; none where there is no such file.

    Raises:
        UserError: a `sweep.json` that is not ours, or of another version.
    """
    path = folder / SWEEP_FILE
    if not path.exists():
        return []
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version, sweeps = data["version"], data["sweeps"]
        complete = version == SWEEP_VERSION and all(isinstance(sweep["command"], str) for sweep in sweeps)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not a record of a sweep: move it away.") from error
    if not complete:
        raise UserError(
            f"{path} was written by another version of warmgap (form {version}, this one reads form {SWEEP_VERSION}): "
            "use another folder."
        )
    found: list[dict[str, Any]] = sweeps
    return found


# --------------------------------------------------------------------------------------------------------- the workers


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    config: TrainConfig | None = None


def _train_all(configs: Sequence[TrainConfig], jobs: int, display: _Display) -> Iterator[Outcome]:
    """Train the runs in `jobs` worker processes, each one run after the other; yield each run's outcome as it ends."""
    context = multiprocessing.get_context("spawn")
    stopped = context.Event()
    queue = list(configs)
    workers: list[_Worker] = []

    def hire() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, stopped), daemon=True)
        process.start()
        theirs.close()
        workers.append(_Worker(process, ours))

    def give(worker: _Worker) -> None:
        worker.config = queue.pop(0) if queue else None
        with contextlib.suppress(OSError):  # a worker that is no more shows up in the wait below
            worker.pipe.send(worker.config)
        if worker.config is not None:
            display.begin(worker.config)

    def take(worker: _Worker) -> Outcome | None:
        """What the worker has to say; a worker that died speaks through its exit code."""
        config = worker.config
        try:
            status, message = worker.pipe.recv()
        except (EOFError, OSError):
            workers.remove(worker)
            worker.process.join()
            code = worker.process.exitcode
            status, message = "failed", f"its process ended with exit code {code} (out of memory, or killed?)"
            if stopped.is_set():
                status, message = "interrupted", ""
        worker.config = None
        if config is None:
            return None
        outcome = Outcome(config, status, message)
        display.end(outcome)
        return outcome

    with Interruption(twice=True) as stop:
        try:
            for _ in range(jobs):
                hire()
            for worker in workers:
                give(worker)
            asked_at: float | None = None
            while any(worker.config is not None for worker in workers):
                ready = connection.wait([worker.pipe for worker in workers], timeout=_LOOK_EVERY)
                for worker in [worker for worker in workers if worker.pipe in ready]:
                    outcome = take(worker)
                    if outcome is not None:
                        yield outcome
                    if worker in workers:
                        if not stop.requested:
                            give(worker)
                    elif queue and not stop.requested:
                        hire()
                        give(workers[-1])
                display.look()
                if stop.requested and asked_at is None:
                    asked_at = time.monotonic()
                    display.say("Stopping: the runs under way write their checkpoints (again ctrl-C gives that up).")
                    stopped.set()  # before the signals: a worker that is about to begin sees the one or the other
                    for worker in workers:
                        _signal(worker.process, signal.SIGINT)
                if asked_at is not None and (stop.impatient or time.monotonic() - asked_at > _PATIENCE):
                    break
        finally:
            for worker in workers:
                if worker.config is not None:
                    worker.process.kill()
                worker.pipe.close()
            for worker in workers:
                worker.process.join()
    for worker in workers:
        if worker.config is not None:
            yield Outcome(worker.config, "interrupted")


def _signal(process: BaseProcess, number: int) -> None:
    if process.pid is not None and process.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _work(pipe: Connection, stopped: Event) -> None:
    """A worker process: train what comes through the pipe, one run after the other, and say how each ended."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # ctrl-C in the terminal is for the parent, which asks for the checkpoints itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            config = pipe.recv()
        except EOFError:
            return
        if config is None:
            return
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            result = ("interrupted", "") if stopped.is_set() else _train_one(config)
        except KeyboardInterrupt:
            result = "interrupted", ""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            pipe.send(result)
        except OSError:
            return


def _train_one(config: TrainConfig) -> tuple[str, str]:
    """Train one run; return its status and, where it failed, why."""
    try:
        # Imported here: the parent needs no torch.
        from warmgap.lab.train import train

        record = train(replace(config, resume=True), progress=False)
    except UserError as error:
        return "failed", str(error)
    except Exception as error:  # any error of a run is that run's, not the sweep's
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        if config.output is not None:
            with contextlib.suppress(OSError):
                config.output.mkdir(parents=True, exist_ok=True)
                (config.output / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8")
                message += f" (see {config.output / ERROR_FILE})"
        return "failed", message
    if config.output is not None:
        (config.output / ERROR_FILE).unlink(missing_ok=True)
    return record.status, ""


def _end_with_parent() -> None:
    """Ask for a checkpoint and the end when the parent is gone: two processes must not write to one run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _usual_jobs() -> int:
    import torch

    return 1 if torch.accelerator.is_available() else _cores()


# ------------------------------------------------------------------------------------------------------- what is shown


class _Display:
    """Progress of a sweep: a line for the whole, with the time left, and one a run under way."""

    def __init__(self, progress: Progress | None, whole: TaskID | None = None) -> None:
        self._progress = progress
        self._whole = whole
        self._steps = 0
        self._under_way: dict[Path, tuple[TaskID, TrainConfig]] = {}

    def begin(self, config: TrainConfig) -> None:
        if self._progress is not None and config.output is not None:
            task = self._progress.add_task(_name(config), total=config.steps, numbers="", start=False)
            self._under_way[config.output] = task, config

    def look(self) -> None:
        """Read how far the runs under way are from what they have written."""
        if self._progress is None or self._whole is None:
            return
        steps = self._steps
        for folder, (task, _) in self._under_way.items():
            row = _last_row(folder)
            if row is not None:
                steps += int(row["step"])
                loss = row.get("loss")
                numbers = f"loss {loss:.3f} {row.get('phase', '')}" if isinstance(loss, float) else ""
                self._progress.update(task, completed=int(row["step"]), numbers=numbers)
        self._progress.update(self._whole, completed=steps)

    def end(self, outcome: Outcome) -> None:
        if self._progress is None or outcome.config.output is None:
            return
        task, config = self._under_way.pop(outcome.config.output)
        self._progress.remove_task(task)
        if outcome.status in ("done", "diverged", "failed"):
            self._steps += config.steps
        self._progress.console.print(f"{_name(config)}: {_ending(outcome)}", highlight=False, markup=False)
        self.look()

    def say(self, sentence: str) -> None:
        if self._progress is not None:
            self._progress.console.print(sentence, markup=False)


@contextlib.contextmanager
def _shown(console: Console | None, waiting: Sequence[TrainConfig]) -> Iterator[_Display]:
    if console is None:
        yield _Display(None)
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=console, speed_estimate_period=120.0) as progress:
        whole = progress.add_task(f"{len(waiting)} runs", total=sum(config.steps for config in waiting), numbers="")
        yield _Display(progress, whole)


def _last_row(folder: Path) -> dict[str, Any] | None:
    """The last whole row of a run's metrics."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2_000))
            lines = file.read().split(b"\n")
        row = json.loads(lines[-2])  # after the last end of line there is nothing, or half a row
    except (OSError, ValueError, IndexError):
        return None
    return row if isinstance(row, dict) and "step" in row else None


def _name(config: TrainConfig) -> str:
    return f"{config.optimizer} {config.rule} seed {config.seed}"


def _ending(outcome: Outcome) -> str:
    if outcome.status == "done" and outcome.config.output is not None:
        record = RunRecord.load(outcome.config.output)
        warmup = "never ended" if record.warmup_iters is None else f"{record.warmup_iters} steps"
        loss = "unknown" if record.final_val_loss is None else f"{record.final_val_loss:.4f}"
        return f"final loss {loss}, warm-up {warmup}, {record.seconds:.0f} s"
    return outcome.status + (f": {outcome.message}" if outcome.message else "")


# -------------------------------------------------------------------------------------------------- what was asked for


def _optimizer(name: str, base_lr: float | None) -> tuple[str, float | None]:
    """`muon` or `muon:0.01` as a name and a peak rate."""
    optimizer, separator, rate = name.partition(":")
    if not separator:
        return optimizer, base_lr
    try:
        return optimizer, float(rate)
    except ValueError:
        raise UserError(f"The peak rate in {name!r} is no number: write optimizer:rate, such as muon:0.01.") from None


def linear_rule(length: str, steps: int) -> str:
    """A warm-up length in steps or as a share of the run, as a rule."""
    try:
        if length.endswith("%"):
            share = float(length.removesuffix("%"))
            warmup = round(share / 100 * steps)
            if share > 0 and warmup == 0:
                raise UserError(
                    f"A warm-up of {length} of {steps} steps is less than one step: give 0 for none, or a longer one."
                )
        else:
            warmup = int(length)
    except (ValueError, OverflowError):
        raise UserError(f"The warm-up length {length!r} is neither steps nor a share: write 40 or 10%.") from None
    if warmup < 0:
        raise UserError(f"The warm-up length must not be negative, got {length}.")
    return f"linear:{warmup}" if warmup else "none"
