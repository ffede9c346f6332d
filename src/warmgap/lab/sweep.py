"""A grid of runs, trained where an engine trains them, and written down in `runs.db`."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn

from warmgap.lab.config import TrainConfig
from warmgap.lab.corpus import load_tokens
from warmgap.lab.engines import Engine, Job, Local, Tell
from warmgap.lab.errors import INTERRUPTED, UserError
from warmgap.lab.interruption import Interruption
from warmgap.lab.model import DIGITS
from warmgap.lab.store import Result, Run, Store

Plan = Sequence[tuple[str, TrainConfig]]
"""Runs, each with the name of its workload, which may be empty."""


def grid(
    base: TrainConfig,  # the settings that all runs share
    optimizers: Sequence[str],  # names, or `name:lr` to give each its peak rate
    methods: Sequence[str],
    seeds: Sequence[int] = (0,),
    rates: Sequence[float] = (1.0,),  # factors of the peak rate
) -> Plan:
    """Every optimizer with every peak rate, every method and every seed; all of one seed before the next seed."""
    lists: dict[str, Sequence[Any]] = {"seed": seeds, "optimizer": optimizers, "rate": rates, "method": methods}
    if empty := [what for what, given in lists.items() if not given]:
        raise UserError(f"The sweep has no {empty[0]}: give at least one.")
    runs = []
    for seed, optimizer, rate, method in itertools.product(*map(dict.fromkeys, lists.values())):
        name, _, lr = optimizer.partition(":")
        try:
            config = replace(base, optimizer=name, lr=float(lr) if lr else base.lr).resolve()
        except ValueError:
            raise UserError(f"The peak rate of {optimizer!r} is no number: write muon:0.02.") from None
        assert config.lr is not None  # noqa: S101 - resolved
        runs.append(("", replace(config, lr=config.lr * rate, method=method, seed=seed).resolve()))
    return runs


def run_folder(config: TrainConfig) -> str:
    """The name of the folder of a run in a sweep: what it is, and its fingerprint."""
    return f"{config.name}-{config.fingerprint()[:8]}"


def run_plan(
    plan: Plan,
    folder: Path,
    *,
    command: str,
    asked: Any = None,
    engine: Engine | None = None,
    console: Console | None = None,
    place: Callable[[TrainConfig], str] = run_folder,
    key: str = "",
) -> list[Run]:
    """Train every run that is not finished, and write down how it goes; return all as the database then holds them.

    Finished runs are skipped; interrupted ones go on from their last checkpoint. A run that fails is written down and
    the others go on. On ctrl-C or SIGTERM every run under way writes a checkpoint.

    Args:
        plan: The runs.
        folder: Where the database and the folders of the runs are.
        command: The command line that makes this; `asked` is what was asked, as plain values.
        asked: See `command`.
        engine: Where to train; processes of this machine unless given.
        console: Where to show progress; None shows nothing.
        place: Names the folder of a run in `folder`.
        key: What tells these runs from others with the same settings.
    """
    began = time.monotonic()
    console = console or Console(quiet=True)
    jobs: dict[str, Job] = {}
    workloads: list[tuple[str, str]] = []
    for workload, config in plan:
        identity = config.fingerprint(key)
        jobs.setdefault(identity, Job(identity, config, folder / place(config)))
        workloads.append((identity, workload))
    with Store(folder) as store:
        store.add(
            (job.id, str(job.folder.relative_to(folder)), job.config.numbers(), job.config.command(job.folder))
            for job in jobs.values()
        )
        sweep = store.add_sweep(command, asked, workloads)
        waiting = [job for job in jobs.values() if not store.run(job.id).finished]
        if len(waiting) < len(jobs):
            say(console, f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished already.")
        if waiting:
            # Once, here: a mistake in the corpus is reported once, and the workers find the data ready.
            texts = [job.config.resolve().text for job in waiting if job.config.corpus != DIGITS]
            for text in {tuple(text.values()): text for text in texts}.values():
                load_tokens(**text)
            left: dict[str, Job] = {}

            def tell(kind: str, job: Job, content: Any) -> None:
                if kind == "begin":
                    left[job.id] = job
                elif kind == "rows":
                    store.write(job.id, content)
                else:
                    store.finish(job.id, content)
                    del left[job.id]
                show(kind, job, content)

            with store.beating(), Interruption() as stop, _shown(console, len(waiting)) as show:
                try:
                    queue = (job for job in waiting if not stop.requested and store.claim(job.id))
                    (engine or Local()).train(queue, stop, tell)
                finally:
                    for job in [*left.values()]:
                        tell("end", job, Result("interrupted"))
        store.add_seconds(sweep, time.monotonic() - began)
        return [store.run(identity) for identity, _ in workloads]


def report_outcome(runs: Sequence[Run], folder: Path, console: Console) -> int:
    """Say how a sweep ended; return the exit code: 0 all finished, 1 a run failed, 130 some are not finished."""
    runs = list({run.id: run for run in runs}.values())
    finished = sum(run.finished for run in runs)
    counts = {what: count for what in ("diverged", "refused") if (count := sum(run.status == what for run in runs))}
    more = "".join(f", {count} {what}" for what, count in counts.items())
    say(console, f"{finished} of {len(runs)} runs finished{more}; they are in {folder}.")
    for run in runs:
        if run.status in ("failed", "refused"):
            say(console, f"{run.status.capitalize()}: {run.folder}: {run.message}")
    elsewhere = sum(run.status == "running" for run in runs)
    left = sum(run.status in ("interrupted", "waiting") for run in runs)
    if elsewhere:
        say(console, f"{elsewhere} runs are being trained by another process: the same command looks again.")
    if left:
        say(console, f"{left} of {len(runs)} runs are left: the same command goes on with them.")
    if left or elsewhere:
        return INTERRUPTED
    return 1 if any(run.status == "failed" for run in runs) else 0


def say(console: Console, sentence: str) -> None:
    """Print a sentence as it is."""
    console.print(sentence, highlight=False, markup=False, soft_wrap=True)


@contextlib.contextmanager
def _shown(console: Console, count: int) -> Iterator[Tell]:
    """Show the runs under way: bars on a terminal; in a file a line for each that ends, for a single one its steps."""
    columns = ("{task.description}", BarColumn(bar_width=10), MofNCompleteColumn(), "{task.fields[state]}")
    ended = itertools.count(1)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
        overall = bars.add_task("all runs", total=count, state="", visible=count > 1)
        tasks: dict[str, TaskID] = {}

        def show(kind: str, job: Job, content: Any) -> None:
            if kind == "begin":
                tasks[job.id] = bars.add_task(job.config.name, total=job.config.steps, state="")
            elif kind == "rows":
                steps = job.config.steps
                for row in content if count == 1 and bars.disable else ():
                    # One step in ten, evaluations, a loss that is not finite.
                    if row[0] % max(1, steps // 10) == 0 or row[6] is not None or row[1] is None:
                        say(console, f"step {row[0]}/{steps} {_state(row)}")
                bars.update(tasks[job.id], completed=content[-1][0], state=_state(content[-1]))
            else:
                bars.remove_task(tasks.pop(job.id))
                bars.update(overall, advance=1)
                if count > 1:
                    loss = content.record.get("final_val_loss")
                    words = f"{next(ended)}/{count} {job.folder.name}: {content.status}"
                    say(bars.console, words + ("" if loss is None else f", {loss:.4f}"))

        yield show


def _state(row: Sequence[Any]) -> str:
    _, loss, lr, _, phase, _, val_loss = row
    val = "" if val_loss is None else f" val {val_loss:.4f}"
    return f"{phase} loss {math.nan if loss is None else loss:.4f} lr {lr:.1e}{val}"
