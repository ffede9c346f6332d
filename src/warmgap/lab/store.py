"""`runs.db`: every run of a folder, its metrics and events, and the sweeps that asked for them.

SQLite in WAL mode, written by the process that drives the runs, by no worker. A step is a key, so a row that comes
twice is one row; a run is claimed before it is trained, so no two drivers train it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import secrets
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from warmgap.lab.errors import UserError, explained

FILE = "runs.db"
VERSION = 2
METRICS = ("step", "loss", "lr", "factor", "phase", "gap", "val_loss")
"""Step, mean training loss, a group's largest rate and smallest rate / peak rate, phase, gap, validation loss."""

EVENTS = ("step", "loss", "before", "after", "reason", "role", "text")
FINISHED = ("done", "diverged", "refused")
"""A run of these is not trained again."""

_STALE = 60.0  # seconds without a sign of life after which a claim is void

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
  id TEXT PRIMARY KEY, folder TEXT NOT NULL UNIQUE, status TEXT NOT NULL, message TEXT NOT NULL DEFAULT '',
  config TEXT NOT NULL, command TEXT NOT NULL, step INTEGER NOT NULL DEFAULT 0, first_loss REAL, final_val_loss REAL,
  best_val_loss REAL, warmup_iters INTEGER, target_loss REAL, parameters INTEGER, seconds REAL, tokens_per_second REAL,
  device TEXT, processes INTEGER, corpus_fingerprint TEXT, versions TEXT, code TEXT, summary TEXT, verdict TEXT,
  owner TEXT, heartbeat REAL);
CREATE TABLE IF NOT EXISTS metrics (
  run TEXT NOT NULL REFERENCES runs, step INTEGER NOT NULL, loss REAL, lr REAL, factor REAL, phase TEXT, gap REAL,
  val_loss REAL, PRIMARY KEY (run, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
  run TEXT NOT NULL REFERENCES runs, number INTEGER NOT NULL, step INTEGER, loss REAL, before REAL, after REAL,
  reason TEXT, role TEXT, text TEXT, PRIMARY KEY (run, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sweeps (
  id INTEGER PRIMARY KEY, command TEXT NOT NULL UNIQUE, asked TEXT NOT NULL, seconds REAL NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS sweep_runs (
  sweep INTEGER NOT NULL REFERENCES sweeps, run TEXT NOT NULL REFERENCES runs, workload TEXT NOT NULL,
  position INTEGER NOT NULL, PRIMARY KEY (sweep, run, workload)) WITHOUT ROWID;
"""

_INSERT_METRICS = "INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True)
class Result:
    """How a run ended, as its worker hands it to the driver.

    The status is `done`, `diverged` (the loss was no longer finite), `refused` (the rule could not go on),
    `interrupted` (it can be resumed) or `failed` (an error that has nothing to do with the method).
    """

    status: str
    message: str = ""  # one sentence on a failure
    record: Mapping[str, Any] = field(default_factory=dict)  # the other columns of `runs` by name
    metrics: Sequence[Sequence[Any]] = ()  # a row a step, in the columns of `METRICS`
    events: Sequence[Sequence[Any]] = ()  # a row an event of the schedule, in the columns of `EVENTS`


@dataclass(frozen=True)
class Run:
    """One run, as the database holds it; the attributes are the columns of `runs`."""

    id: str
    folder: str
    status: str
    message: str
    config: dict[str, Any]
    command: str
    step: int
    first_loss: float | None
    final_val_loss: float | None
    best_val_loss: float | None
    warmup_iters: int | None
    target_loss: float | None
    parameters: int | None
    seconds: float | None
    tokens_per_second: float | None
    device: str | None
    processes: int | None
    corpus_fingerprint: str | None
    versions: dict[str, str] | None
    code: str | None
    summary: str | None
    verdict: str | None
    owner: str | None
    heartbeat: float | None

    @property
    def finished(self) -> bool:
        """Whether it is not to be trained again."""
        return self.status in FINISHED


class Store:
    """The database of a folder.

    Args:
        folder: The folder; it and the database are made where they are not there.
        create: Whether to make them.

    Raises:
        UserError: No database there, or one that cannot be read or is of another version.
    """

    def __init__(self, folder: Path, *, create: bool = True) -> None:
        self.folder, self.path = folder, folder / FILE
        if not create and not self.path.exists():
            raise UserError(f"{folder} holds no runs: there is no {FILE} in it.")
        self._open = ExitStack()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            place = self.path
            if not create and not os.access(folder, os.W_OK):  # SQLite writes beside what it reads
                place = Path(self._open.enter_context(TemporaryDirectory())) / FILE
                for name in (FILE, f"{FILE}-wal"):
                    with suppress(FileNotFoundError):
                        shutil.copy(folder / name, place.with_name(name))
            self._db = sqlite3.connect(place, timeout=30.0, isolation_level=None, check_same_thread=False)
            self._open.callback(self._db.close)
            self._db.row_factory = sqlite3.Row
            self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, 1, VERSION):
                raise UserError(
                    f"{self.path} was written by another version of warmgap (form {version}, this one reads form "
                    f"{VERSION}): use that version, or another folder."
                )
            if version == 0:
                self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")
            elif version == 1:
                self._db.executescript(f"ALTER TABLE runs ADD COLUMN verdict TEXT; PRAGMA user_version={VERSION};")
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"The database {self.path} cannot be used ({error}): take another folder.") from error
        host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
        self._owner = f"{host}:{os.getpid()}:{secrets.token_hex(4)}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._db:  # commits, or rolls back
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
        except sqlite3.Error as error:
            raise UserError(f"{self.path} cannot be written. {explained(error)}") from error

    def add(self, runs: Iterable[tuple[str, str, Mapping[str, Any], str]]) -> None:
        """Write down runs that are wanted: id, folder's name, settings, command.

        Those that are there stay; another one in the same folder goes if it never made a step.
        """
        with self._writing() as db:
            for identity, folder, config, command in runs:
                others = db.execute("SELECT * FROM runs WHERE folder = ? AND id != ?", (folder, identity))
                for other in others.fetchall():
                    if other["step"] or other["status"] not in ("waiting", "failed"):
                        raise UserError(
                            f"The folder {self.folder / folder} belongs to a run with other settings: give the same "
                            "settings as there, or another --output."
                        )
                    db.execute("DELETE FROM sweep_runs WHERE run = ?", (other["id"],))
                    db.execute("DELETE FROM runs WHERE id = ?", (other["id"],))
                db.execute(
                    "INSERT OR IGNORE INTO runs (id, folder, status, config, command) VALUES (?, ?, 'waiting', ?, ?)",
                    (identity, folder, json.dumps(config), command),
                )

    def add_sweep(self, command: str, asked: Any, runs: Sequence[tuple[str, str]]) -> int:
        """Write down a sweep with its runs, (id, workload) each; return its number."""
        with self._writing() as db:
            (number,) = db.execute(
                "INSERT INTO sweeps (command, asked) VALUES (?, ?) "
                "ON CONFLICT (command) DO UPDATE SET asked = excluded.asked RETURNING id",
                (command, json.dumps(asked, default=str)),
            ).fetchone()
            db.execute("DELETE FROM sweep_runs WHERE sweep = ?", (number,))
            db.executemany(
                "INSERT OR IGNORE INTO sweep_runs (sweep, run, workload, position) VALUES (?, ?, ?, ?)",
                ((number, run, workload, position) for position, (run, workload) in enumerate(runs)),
            )
        return int(number)

    def add_seconds(self, sweep: int, seconds: float) -> None:
        """Add wall time to a sweep."""
        self._db.execute("UPDATE sweeps SET seconds = seconds + ? WHERE id = ?", (seconds, sweep))

    def claim(self, identity: str) -> bool:
        """Take a run for this process; False where it is finished, or a living process has it."""
        with self._writing() as db:
            row = db.execute("SELECT status, owner, heartbeat FROM runs WHERE id = ?", (identity,)).fetchone()
            if row is None:
                raise UserError(f"Another command took the folder of a run in {self.folder}: give another --output.")
            if row["status"] in FINISHED or self._alive(row["owner"], row["heartbeat"]):
                return False
            db.execute(
                "UPDATE runs SET status = 'running', message = '', owner = ?, heartbeat = ? WHERE id = ?",
                (self._owner, time.time(), identity),
            )
        return True

    def _alive(self, owner: str | None, heartbeat: float | None) -> bool:
        if owner is None or owner == self._owner or time.time() - (heartbeat or 0.0) > _STALE:
            return False
        host, pid, _ = owner.split(":")
        if host != self._owner.split(":")[0]:
            return True
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    def beat(self) -> None:
        """Say that this process lives, for all runs that it has."""
        with suppress(sqlite3.Error):  # the next one may pass
            self._db.execute("UPDATE runs SET heartbeat = ? WHERE owner = ?", (time.time(), self._owner))

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Beat in the background: tokenizing, or a step of a large model, may take longer than a claim lasts."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(_STALE / 6):
                self.beat()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def write(self, identity: str, rows: Sequence[Sequence[Any]]) -> None:
        """Write rows of metrics, in the columns of `METRICS`; a step that is there is replaced."""
        if rows:
            with self._writing() as db:
                db.executemany(_INSERT_METRICS, ((identity, *row) for row in rows))
                db.execute("UPDATE runs SET step = ?, heartbeat = ? WHERE id = ?", (rows[-1][0], time.time(), identity))

    def finish(self, identity: str, result: Result) -> None:
        """Write down how a run ended, all of it or nothing, and let go of it."""
        ended = {"status": result.status, "message": result.message, "owner": None, "heartbeat": None, **result.record}
        values = [json.dumps(value) if isinstance(value, Mapping) else value for value in ended.values()]
        with self._writing() as db:
            if result.metrics:
                db.execute("DELETE FROM metrics WHERE run = ?", (identity,))
                db.executemany(_INSERT_METRICS, ((identity, *row) for row in result.metrics))
                db.execute("DELETE FROM events WHERE run = ?", (identity,))
                db.executemany(
                    "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    ((identity, number, *event) for number, event in enumerate(result.events)),
                )
            columns = ", ".join(f"{name} = ?" for name in ended)
            db.execute(f"UPDATE runs SET {columns} WHERE id = ?", (*values, identity))  # noqa: S608

    def runs(self, identity: str | None = None) -> list[Run]:
        """All runs in the order in which they were asked for; those of one id alone: none or one."""
        rows = self._db.execute("SELECT * FROM runs WHERE ?1 IS NULL OR id = ?1 ORDER BY rowid", (identity,))
        plain = (
            {**row, **{name: json.loads(row[name]) for name in ("config", "versions") if row[name]}} for row in rows
        )
        return [Run(**row) for row in plain]

    def run(self, identity: str) -> Run:
        """The run of this id, which is there."""
        return self.runs(identity)[0]

    def metrics(self, identity: str) -> dict[str, list[Any]]:
        """The metrics of a run by column, one value a step."""
        rows = self._rows(identity)
        return {name: [row[name] for row in rows] for name in METRICS}

    def _rows(self, identity: str) -> list[sqlite3.Row]:
        query = f"SELECT {', '.join(METRICS)} FROM metrics WHERE run = ? ORDER BY step"  # noqa: S608
        return self._db.execute(query, (identity,)).fetchall()

    def events(self, identity: str) -> list[dict[str, Any]]:
        """The events of a run."""
        query = f"SELECT {', '.join(EVENTS)} FROM events WHERE run = ? ORDER BY number"  # noqa: S608
        return [dict(row) for row in self._db.execute(query, (identity,))]

    def sweeps(self) -> list[dict[str, Any]]:
        """The sweeps: command, what was asked, seconds, and the ids and workloads of the runs."""
        query = "SELECT run, workload FROM sweep_runs WHERE sweep = ? ORDER BY position"
        return [
            {"command": command, "asked": json.loads(asked), "seconds": seconds}
            | {"runs": [tuple(run) for run in self._db.execute(query, (number,))]}
            for number, command, asked, seconds in self._db.execute(
                "SELECT id, command, asked, seconds FROM sweeps ORDER BY id"
            )
        ]

    def export(self, target: str) -> str:
        """Write runs, metrics and events to a file, or to an experiment tracker; return where they went.

        The file ends in `.json`, `.csv` (a row a step) or `.parquet` (the same; needs pyarrow); a tracker is one that
        accelerate knows, such as `tensorboard`, `wandb` or `mlflow`, where it is installed.
        """
        runs, path, names = self.runs(), Path(target), ("run", "folder", *METRICS)
        rows = ((run.id, run.folder, *row) for run in runs for row in self._rows(run.id))
        if path.suffix == ".json":
            data = [vars(run) | {"metrics": self.metrics(run.id), "events": self.events(run.id)} for run in runs]
            path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        elif path.suffix == ".csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([names, *rows])
        elif path.suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            table = pyarrow.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])
            pyarrow.parquet.write_table(table, path)
        else:
            return self._track(target, runs)
        return target

    def _track(self, target: str, runs: Sequence[Run]) -> str:
        from accelerate import Accelerator
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        if target not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(LOGGER_TYPE_TO_CLASS)
            raise UserError(f"Export to a .json, .csv or .parquet file, or to one of {known}; got {target!r}.")
        if target not in map(str, get_available_trackers()):
            raise UserError(f"Export to {target} needs its package: pip install {target}.")
        place = self.folder / target
        for run in runs:
            accelerator = Accelerator(cpu=True, log_with=target, project_dir=place)  # a new one: it keeps its trackers
            config = {name: str(value) if isinstance(value, list) else value for name, value in run.config.items()}
            named = {"wandb": {"name": run.folder}, "mlflow": {"run_name": run.folder}}
            accelerator.init_trackers(run.folder if target == "tensorboard" else self.folder.name, config, named)
            for row in map(dict, self._rows(run.id)):
                step = row.pop("step")
                accelerator.log({name: value for name, value in row.items() if isinstance(value, float)}, step=step)
            accelerator.end_training()
        return str(place) if place.exists() else target

    def adopt(self, folder: Path) -> int:
        """Take over runs of warmgap 0.1 from below a folder (`run.json`, `metrics.jsonl`); return how many."""
        paths = sorted(folder.rglob("run.json"))
        if not paths:
            raise UserError(f"There is no run.json in or below {folder}.")
        columns = {column.name for column in fields(Run)}
        for path in paths:
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                config = {name if name != "rule" else "method": value for name, value in data.pop("config").items()}
                lines = path.with_name("metrics.jsonl").read_text(encoding="utf-8").splitlines()
                metrics = [tuple(json.loads(line).get(name) for name in METRICS) for line in lines]
                record = {name: value for name, value in data.items() if name in columns} | {"code": data["commit"]}
                status, command = data["status"], data["command"]
            except (OSError, ValueError, LookupError) as error:
                raise UserError(
                    f"{path.parent} holds no whole run of warmgap 0.1 ({error!r}): move it out of {folder}."
                ) from error
            identity = hashlib.sha256(json.dumps([path.parent.name, config], sort_keys=True).encode()).hexdigest()[:16]
            record["first_loss"] = metrics[0][1] if metrics else None
            self.add([(identity, str(path.parent.relative_to(folder)), config, command)])
            self.finish(identity, Result(status, "", record, metrics))
        return len(paths)


def find_stores(folder: Path) -> list[Path]:
    """The folders in or below `folder` that hold a database."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: give the folder of a sweep or of a run.")
    found = [path.parent for path in sorted(folder.rglob(FILE))]
    if not found:
        raise UserError(f"No runs in {folder}: give the folder that `warmgap train`, `sweep` or `bench` wrote to.")
    return found
