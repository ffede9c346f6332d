"""Runs as trials: what was tried on which workload at which rate, and what came out. From databases, or from a file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from warmgap.lab.errors import UserError
from warmgap.lab.methods import Method
from warmgap.lab.store import Run, Store, find_stores

RESULTS_VERSION = 2

_OF_METHODS = ("method", "seed", "lr", "target_loss")
"""Settings in which runs of one workload differ."""


@dataclass(frozen=True)
class Trial:
    """One run, as scores and reports see it."""

    workload: str
    method: str
    seed: int
    lr: float
    rate: float  # the peak rate as a factor of the workload's own; in a plain sweep, of the middle one
    status: str
    loss: float | None  # final validation loss in nats, None unless it is done
    first_loss: float | None  # what a run that diverged counts with
    split: str = ""  # `development`, `test` or empty
    warmup_iters: int | None = None  # None where the warm-up never ended
    seconds: float | None = None
    steps: int = 0
    printed: float | None = None  # what a paper prints for this method on this workload
    verdict: str | None = None  # what the schedule says of the peak rate, see `AdaptiveWarmup.verdict`
    run: Run | None = field(default=None, compare=False)  # None from a file
    folder: Path | None = field(default=None, compare=False)  # of the database

    @property
    def counted(self) -> float | None:
        """The loss that it counts with: its first one where it diverged or its rule could not go on."""
        return self.first_loss if self.status in ("diverged", "refused") else self.loss

    @property
    def clock(self) -> bool:
        """Whether its method is a schedule by step count."""
        return is_clock(self.method)


@functools.cache
def _method(name: str) -> Method | None:
    with contextlib.suppress(UserError):
        return Method.parse(name)
    return None


def is_clock(method: str) -> bool:
    """Whether a method of this name is a schedule by step count; False for a name that no method has."""
    found = _method(method)
    return found is not None and not found.adaptive


def label_of(method: str) -> str:
    """A method's name for readers."""
    found = _method(method)
    return method if found is None else found.label


def trial(run: Run, folder: Path, label: Mapping[str, Any]) -> Trial:
    """A run of a database as a trial; `label` has its workload, and what else is known of it."""
    found = {name: run.config[name] for name in ("method", "seed", "lr", "steps")}
    found |= {name: getattr(run, name) for name in ("status", "first_loss", "warmup_iters", "seconds", "verdict")}
    found |= {"loss": run.final_val_loss if run.status == "done" else None, "rate": 1.0, "run": run, "folder": folder}
    known = {name if name != "name" else "workload": value for name, value in label.items()}
    return Trial(**{**found, **known})


def read_runs(folder: Path) -> list[Trial]:
    """Every run in the databases in or below a folder."""
    found: list[Trial] = []
    for place in find_stores(folder):
        with Store(place, create=False) as store:
            runs = {run.id: run for run in store.runs()}
            labels = dict.fromkeys((run, text) for sweep in store.sweeps() for run, text in sweep["runs"] if text)
        found += [trial(runs[run], place, json.loads(text)) for run, text in labels]
        others = [run for run in runs.values() if run.id not in {run for run, _ in labels}]
        names, rates = workload_names([run.config for run in others]), dict[str, set[float]]()
        for name, run in zip(names, others, strict=True):
            rates.setdefault(name, set()).add(run.config["lr"])
        for name, run in zip(names, others, strict=True):
            rate = float(f"{run.config['lr'] / statistics.median_low(rates[name]):.6g}")
            found.append(trial(run, place, {"name": name, "rate": rate}))
    return found


def workload_names(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for the workload of each run: the usual settings, and whatever else tells the workloads apart."""
    usual = ("optimizer", "model", "corpus", "steps")
    others = sorted({name for config in configs for name in config} - {*_OF_METHODS, *usual})
    telling = [name for name in others if len({json.dumps(config.get(name)) for config in configs}) > 1]
    names = []
    for config in configs:
        head = f"{str(config['optimizer']).capitalize()}, {config['model']} on {Path(str(config['corpus'])).name}"
        more = (f"{name.replace('_', ' ')} {config.get(name)}" for name in telling)
        names.append(", ".join([head, f"{config['steps']} steps", *more]))
    return names


def write_results(trials: Sequence[Trial], path: Path, *, command: str) -> None:
    """Write the trials to a JSON file, a line a trial."""
    names = [field.name for field in dataclasses.fields(Trial) if field.name not in ("run", "folder")]
    lines = ",\n".join(json.dumps({name: getattr(trial, name) for name in names}) for trial in trials)
    codes = sorted({trial.run.code for trial in trials if trial.run and trial.run.code})
    head = json.dumps({"version": RESULTS_VERSION, "command": command, "code": codes})[1:-1]
    path.write_text(f'{{{head}, "runs": [\n{lines}\n]}}\n', encoding="utf-8")


def read_results(path: Path) -> list[Trial]:
    """Read what `write_results` wrote."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != RESULTS_VERSION:
            raise UserError(f"{path} was written by another version of warmgap: use that one, or train again.")
        return [Trial(**row) for row in data["runs"]]
    except FileNotFoundError as error:
        raise UserError(f"There is no {path}: give the results.json of a bench.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} holds no results of a bench: give the results.json of one.") from error
