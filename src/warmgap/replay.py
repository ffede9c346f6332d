"""What a rule would have done to the learning rate on losses that another run has recorded.

The losses of a run depend on its rates, so a replay does not say how a run under the rule would have gone; it shows
what the rule reads in such losses, and when it acts.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from warmgap._checks import check_count
from warmgap.rules import Rule, by_name
from warmgap.schedule import Event, Schedule

__all__ = ["RULES", "Losses", "Replay", "read_losses", "replay"]

RULES = ("auto", "loss-ratio", "power", "linear")
"""The rules that a replay shows where none are named: those that need nothing but the losses."""

_STEPS = ("step", "_step", "global_step", "trainer/global_step", "steps", "iteration", "iter")
_LOSSES = ("loss", "train_loss", "train/loss", "training_loss", "train_loss_step", "train/train_loss", "value")
_ENVELOPE = ("__MIN", "__MAX")


@dataclass(frozen=True)
class Losses:
    """Recorded training losses, one for each optimizer step.

    Attributes:
        values: The losses, from the first step on; NaN where none was recorded. Between records that lie several steps
            apart, the straight line.
        every: Steps between two records, in the median. Above 1 the noise of the single losses is lost, and with it
            what a rule would make of it.
        total_iters: Optimizer steps in the whole run, where the file says so.
        name: What the losses are called in the file.
    """

    values: tuple[float, ...]
    every: int = 1
    total_iters: int | None = None
    name: str = "loss"


@dataclass(frozen=True)
class Replay:
    """What one rule would have done.

    Attributes:
        rule: Its name.
        factors: Learning rate / peak of each step, of the weights that the rule governs.
        base: The same of all other weights.
        events: What happened, when and why.
        warmup_iters: The number of steps that warm-up took; None if it did not end.
    """

    rule: str
    factors: tuple[float, ...]
    base: tuple[float, ...]
    events: tuple[Event, ...]
    warmup_iters: int | None


def replay(
    losses: Iterable[float] | Losses,
    rules: Iterable[str | Rule[Any]] = RULES,
    total_iters: int | None = None,
    *,
    decay: str | Callable[[float], float] = "cosine",
    floor: float = 0.01,
    target_loss: float | Literal["auto"] = "auto",
    kappa: float | None = None,
) -> dict[str, Replay]:
    """Return what each rule would have done on recorded losses.

    The first loss is known before the first step, as in all hosts. The spectral cap needs the steps themselves, which
    no record has: the factors of `"auto"` are those without it.

    Args:
        losses: The mean training loss of each optimizer step, or what `read_losses` returned. NaN and infinite losses
            are given to the rule as they are.
        rules: Names of `warmgap.rules.NAMES`, with settings where wanted, or rules.
        total_iters: Optimizer steps in the whole run; None for what the record says, or else for its length.
        decay: The decay of all of them.
        floor: As in `warmgap.torch.AdaptiveWarmup`, for rules given by name.
        target_loss: Likewise, for those that follow the gap.
        kappa: The constant of the optimizer's norm, for the gap rule (`warmgap.kappa(norm, shapes)`).

    Returns:
        A `Replay` for each rule, by its name as given, or the name of a rule object.

    Raises:
        ValueError: If there are no losses, fewer steps in the run than losses, or a rule can't be made.

    Example:
        >>> from warmgap.replay import replay
        >>> shown = replay([5.0 * 0.98**step for step in range(100)], rules=["auto", "loss-ratio"])
        >>> print([round(shown["loss-ratio"].factors[step], 2) for step in (0, 20, 60)], shown["auto"].warmup_iters)
        [0.5, 0.64, 0.75] 0
    """
    record = losses if isinstance(losses, Losses) else Losses(tuple(float(loss) for loss in losses))
    total = total_iters if total_iters is not None else record.total_iters or len(record.values)
    if not record.values:
        raise ValueError("there are no losses to replay: give the mean training loss of each optimizer step")
    check_count("total_iters", total, minimum=len(record.values), hint="there are as many losses; a run is not shorter")
    shown = {}
    for rule in rules:
        made = rule
        if isinstance(rule, str):
            uses_target = {"target_loss": target_loss} if "gap" in rule or "power" in rule else {}
            constant = None if kappa is None else partial(float, kappa)
            made = by_name(rule, total, floor=floor, kappa=constant, **uses_target)
        schedule = Schedule(total, made, decay)
        shown[rule if isinstance(rule, str) else rule.name] = _replayed(schedule, record.values)
    return shown


def read_losses(path: str | Path, column: str | None = None, run: str | None = None) -> Losses:
    """Return the training losses of a file that a run has left.

    Args:
        path: The folder of a run or a sweep of `warmgap`, or its `runs.db`; `trainer_state.json` of Hugging Face's
            Trainer; a file of JSON lines; a CSV file, such as the export of a chart of Weights & Biases or of
            TensorBoard, with a header, or one loss a line without; an event file of TensorBoard (needs tensorboard).
        column: The name of the losses in it (a column, a key, a tag); None to find it.
        run: Id or folder of the run in a `runs.db` that has several.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no losses, or several columns that could be; with what it does hold.
        ModuleNotFoundError: If it is an event file and tensorboard is not installed.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "runs.db"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give the file that holds the losses")
    if path.name.startswith("events.out.tfevents"):
        return _from_events(path, column)
    try:
        if path.suffix == ".db":
            return _from_database(path, column, run)
        if path.suffix == ".jsonl":
            return _from_rows(path, [json.loads(line) for line in _lines(path)], column, None)
        return (_from_trainer if path.suffix == ".json" else _from_csv)(path, column)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is cut off, or of another kind than its name says: {error}") from error


def _replayed(schedule: Schedule, losses: Sequence[float]) -> Replay:
    state = schedule.init()
    if math.isfinite(losses[0]):
        state = schedule.first(state, losses[0])
    factors, base = [], []
    for loss in losses:
        factors.append(state.factor)
        base.append(state.base)
        state = schedule.step(state, loss)
    return Replay(schedule.rule.name, tuple(factors), tuple(base), state.events, state.handover)


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _from_database(path: Path, column: str | None, run: str | None) -> Losses:
    import contextlib
    import os
    import sqlite3

    try:
        # A database in a folder that cannot be written is read as it is.
        more = "" if os.access(path.parent, os.W_OK) else "?immutable=1"
        with contextlib.closing(sqlite3.connect(path.absolute().as_uri() + more, uri=True)) as database:
            runs = database.execute("SELECT id, folder, config FROM runs").fetchall()
            chosen = [row for row in runs if run in (None, *row[:2])]
            if len(chosen) != 1:
                count = f"{len(runs)} runs" if run is None else f"no run {run!r}"
                raise ValueError(f"{path} has {count}: name one of {', '.join(repr(row[1]) for row in runs)}")
            database.row_factory = sqlite3.Row
            rows = database.execute("SELECT * FROM metrics WHERE run = ? ORDER BY step", chosen[0][:1]).fetchall()
    except sqlite3.Error as error:
        raise ValueError(f"{path} is no database of warmgap: {error}") from error
    return _from_rows(path, [dict(row) for row in rows], column, json.loads(chosen[0][2])["steps"])


def _from_trainer(path: Path, column: str | None) -> Losses:
    state = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(state, dict) or "log_history" not in state:
        raise ValueError(f"{path} is no trainer_state.json: it has no log_history")
    return _from_rows(path, state["log_history"], column or "loss", state.get("max_steps") or None)


def _from_events(path: Path, column: str | None) -> Losses:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{path.name} is an event file of TensorBoard: pip install tensorboard to read it, or export the chart as "
            "CSV"
        ) from None
    events = EventAccumulator(str(path)).Reload()
    tag = _chosen(path, events.Tags()["scalars"], column)
    return _losses([(event.step, event.value) for event in events.Scalars(tag)], tag, None)


def _from_rows(path: Path, rows: Sequence[Mapping[str, Any]], column: str | None, total: int | None) -> Losses:
    names = list(dict.fromkeys(key for row in rows for key in row))
    plain = {name.lower(): name for name in names}
    step = next((plain[name] for name in _STEPS if name in plain), None)
    chosen = _chosen(path, [name for name in names if name != step], column)
    pairs = [(row.get(step) if step else index + 1, row[chosen]) for index, row in enumerate(rows) if chosen in row]
    return _losses(pairs, chosen, total)


def _from_csv(path: Path, column: str | None) -> Losses:
    rows = list(csv.reader(_lines(path)))
    if not rows:
        raise ValueError(f"{path} is empty")
    header = rows[0]
    if all(_number(cell) is not None for cell in header):
        if len(header) > 1:
            raise ValueError(f"{path} has {len(header)} columns without names: give it a header, such as step,loss")
        return _losses([(index + 1, row[0]) for index, row in enumerate(rows)], "loss", None)
    # The export of a chart of Weights & Biases has a column for each run, and its lowest and highest values.
    table = [
        {name: cell for name, cell in zip(header, row, strict=False) if cell.strip() and name[-5:] not in _ENVELOPE}
        for row in rows[1:]
    ]
    return _from_rows(path, table, column, None)


def _chosen(path: Path, names: Sequence[str], column: str | None) -> str:
    """Return the name of the training losses among `names`."""
    if column is not None:
        if column not in names:
            raise ValueError(f"{path} has no {column!r}; it has {', '.join(map(repr, names))}")
        return column
    plain = {name: name.rsplit(" - ", 1)[-1].lower() for name in names}
    for wanted in _LOSSES:
        found = [name for name in names if plain[name] == wanted]
        if len(found) == 1:
            return found[0]
        if found:
            break
    raise ValueError(
        f"{path} has no column, or several, that must be the training loss: say which of "
        f"{', '.join(map(repr, names)) or 'none'} it is by column="
    )


def _losses(pairs: Sequence[tuple[Any, Any]], name: str, total: int | None) -> Losses:
    """Return a loss for each step from records at some steps; those of a step that was made twice count once."""
    found: dict[int, float] = {}
    for step, loss in pairs:
        number = _number(step)
        if number is not None and math.isfinite(number):
            found[int(number)] = math.nan if (value := _number(loss)) is None else value
    if not found:
        raise ValueError(f"no step has a {name!r}")
    steps = sorted(found)
    gaps = sorted(after - before for before, after in itertools.pairwise(steps))
    every = gaps[len(gaps) // 2] if gaps else 1
    values = [found[steps[0]]] * min(every, max(1, steps[0]))  # what a first record of several steps is the mean of
    for before, after in itertools.pairwise(steps):
        slope = (found[after] - found[before]) / (after - before)
        values += [found[before] + slope * step for step in range(1, after - before)] + [found[after]]
    return Losses(tuple(values), every, total if total is None or total >= len(values) else None, name)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
