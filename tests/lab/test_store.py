from __future__ import annotations

import csv
import json
import sqlite3
import time
from pathlib import Path

import pytest

from warmgap.lab import store as module
from warmgap.lab.errors import UserError
from warmgap.lab.store import METRICS, Result, Store, find_stores
from warmgap.replay import read_losses

ROWS = [[step, 3.0 - step / 10, 0.1, 1.0, "decay", None, None] for step in range(1, 6)]
EVENT = [3, 2.7, 1.0, 0.5, "loss rose", None, "At step 3 the loss rose."]


def a_run(store: Store, name: str = "one") -> str:
    store.add([(name, f"folder-{name}", {"steps": 5, "seed": 0}, f"warmgap train {name}")])
    return name


def test_a_run_is_written_whole(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        run = a_run(store)
        assert store.run(run).status == "waiting"
        assert store.claim(run)
        store.write(run, ROWS[:3])
        store.write(run, ROWS[1:4])  # rows that come twice are one
        assert store.metrics(run)["step"] == [1, 2, 3, 4]
        assert (store.run(run).status, store.run(run).step) == ("running", 4)
        record = {"step": 5, "final_val_loss": 2.5, "versions": {"python": "3"}, "summary": "It went well."}
        store.finish(run, Result("done", "", record, ROWS, [EVENT]))
        found = store.run(run)
        assert (found.status, found.final_val_loss, found.versions, found.owner) == ("done", 2.5, {"python": "3"}, None)
        assert found.finished
        assert store.metrics(run)["loss"] == [row[1] for row in ROWS]
        assert store.events(run)[0]["text"] == "At step 3 the loss rose."
        assert not store.claim(run)
    assert find_stores(tmp_path) == [tmp_path]
    mode = sqlite3.connect(tmp_path / "runs.db").execute("PRAGMA journal_mode").fetchone()[0]
    assert mode == "wal"


def test_no_two_drivers_train_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as one, Store(tmp_path) as two:
        run = a_run(one)
        assert one.claim(run)
        assert not two.claim(run)
        assert one.claim(run)  # its own
        two._owner = "elsewhere:1:x"
        assert not two.claim(run)
        # One that has died, here or elsewhere, has it no more.
        one._db.execute("UPDATE runs SET owner = ? WHERE id = ?", (f"{one._owner.split(':')[0]}:999999999:x", run))
        two._owner = f"{one._owner.split(':')[0]}:1:x"
        assert two.claim(run)
        one._db.execute("UPDATE runs SET owner = 'elsewhere:1:x'")
        assert not one.claim(run)
        monkeypatch.setattr(module, "_STALE", 0.0)
        assert one.claim(run)
        one.finish(run, Result("failed", "no memory"))
        assert two.claim(run)  # a run that failed is tried again


def test_a_run_that_says_nothing_for_long_stays_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as one, Store(tmp_path) as two:
        run = a_run(one)
        assert one.claim(run)
        monkeypatch.setattr(module, "_STALE", 0.6)
        with one.beating():
            time.sleep(0.9)
            assert not two.claim(run)
        one._db.execute("UPDATE runs SET heartbeat = heartbeat - 1")
        assert two.claim(run)


def test_sweeps_and_folders(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for name in ("a", "b"):
            a_run(store, name)
        store.add_sweep("warmgap sweep", {"seeds": [0]}, [("a", ""), ("b", "w")])
        number = store.add_sweep("warmgap sweep", {"seeds": [0]}, [("a", ""), ("b", "w")])
        store.add_seconds(number, 2.0)
        (sweep,) = store.sweeps()
        assert sweep == {
            "command": "warmgap sweep",
            "asked": {"seeds": [0]},
            "seconds": 2.0,
            "runs": [("a", ""), ("b", "w")],
        }
        store.add([("c", "folder-a", {}, "")])  # what never made a step does not block the folder
        assert [run.id for run in store.runs()] == ["b", "c"]
        assert store.sweeps()[0]["runs"] == [("b", "w")]
        with pytest.raises(UserError, match="Another command took the folder"):
            store.claim("a")
        store.write("c", ROWS)
        with pytest.raises(UserError, match=f"{tmp_path}/folder-a belongs to a run with other settings"):
            store.add([("a", "folder-a", {}, "")])


def test_a_database_of_the_form_before_is_read(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        a_run(store)
    older = sqlite3.connect(tmp_path / "runs.db")
    older.executescript("ALTER TABLE runs DROP COLUMN verdict; PRAGMA user_version=1;")
    older.close()
    with Store(tmp_path, create=False) as store:
        assert store.runs()[0].verdict is None
        store.finish("one", Result("done", "", {"verdict": "fine"}))
        assert store.run("one").verdict == "fine"


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no runs.db in it"):
        Store(tmp_path, create=False)
    (tmp_path / "runs.db").write_text(
        "no database, but a text that is long enough to be taken for one by mistake " * 20
    )
    with pytest.raises(UserError, match="cannot be used"):
        Store(tmp_path)
    (tmp_path / "runs.db").unlink()
    with Store(tmp_path):
        pass
    sqlite3.connect(tmp_path / "runs.db").execute("PRAGMA user_version=99")
    with pytest.raises(UserError, match="form 99, this one reads form 2"):
        Store(tmp_path)
    with pytest.raises(UserError, match="No runs in"):
        find_stores(_empty(tmp_path))


def _empty(path: Path) -> Path:
    (path / "empty").mkdir()
    return path / "empty"


def test_a_full_disk_tears_nothing(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.write(a_run(store), ROWS)
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count={pages}")  # SQLite's own error of a full disk
        with pytest.raises(UserError, match=r"cannot be written\. The disk is full: make room"):
            store.write("one", [[step, 1.0, 0.1, 1.0, "decay", None, None] for step in range(6, 2_000)])
        assert store.metrics("one")["step"] == [1, 2, 3, 4, 5]
        assert store.run("one").step == 5


def test_a_folder_that_cannot_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path) as store:
        store.write(a_run(store), ROWS)
        monkeypatch.setattr("os.access", lambda *_: False)
        with Store(tmp_path, create=False) as read:  # what is not in the main file yet, too
            assert read.metrics("one")["step"] == [1, 2, 3, 4, 5]
            assert read.claim("one")
        assert store.run("one").status == "waiting"


def test_runs_are_exported(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.finish(a_run(store), Result("done", "", {"final_val_loss": 2.5}, ROWS, [EVENT]))
        data = json.loads(Path(store.export(str(tmp_path / "runs.json"))).read_text())
        assert (data[0]["final_val_loss"], data[0]["metrics"]["step"], len(data[0]["events"])) == (
            2.5,
            [1, 2, 3, 4, 5],
            1,
        )
        store.export(str(tmp_path / "runs.csv"))
        with (tmp_path / "runs.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [float(row["loss"]) for row in rows] == [row[1] for row in ROWS]
        parquet = pytest.importorskip("pyarrow.parquet")
        store.export(str(tmp_path / "runs.parquet"))
        assert parquet.read_table(tmp_path / "runs.parquet").column("loss").to_pylist() == [row[1] for row in ROWS]
        with pytest.raises(UserError, match=r"Export to a .json, .csv or .parquet file"):
            store.export("runs.xls")


def test_runs_are_exported_to_a_tracker(tmp_path: Path) -> None:
    losses = {"one": [2.9, 2.8, 2.5], "two": [3.9, 3.7, 3.6]}
    with Store(tmp_path) as store:
        for name, values in losses.items():
            rows = [[step, loss, 0.1, 1.0, "decay", None, None] for step, loss in enumerate(values, 1)]
            rows[-1][-1] = 2.5
            store.finish(a_run(store, name), Result("done", "", {}, rows))
        place = Path(store.export("tensorboard"))
    for name, values in losses.items():
        (file,) = (place / f"folder-{name}").glob("events*")  # each run has its own, with its own losses
        assert read_losses(file).values == pytest.approx(values)
        assert read_losses(file, "val_loss").values == (2.5,)


def test_runs_of_an_older_version_are_taken_over(tmp_path: Path) -> None:
    old = tmp_path / "old" / "muon-auto"
    old.mkdir(parents=True)
    names = (
        "step", "final_val_loss", "best_val_loss", "warmup_iters", "target_loss", "parameters", "seconds",
        "tokens_per_second", "device", "processes", "corpus_fingerprint", "versions", "commit",
    )  # fmt: skip
    record = dict.fromkeys(names) | {"status": "done", "command": "warmgap train", "step": 5, "final_val_loss": 2.5}
    (old / "run.json").write_text(json.dumps(record | {"config": {"rule": "auto", "seed": 0, "steps": 5}}))
    (old / "metrics.jsonl").write_text("".join(json.dumps(dict(zip(METRICS, row, strict=True))) + "\n" for row in ROWS))
    with Store(tmp_path / "new") as store:
        assert store.adopt(tmp_path / "old") == 1
        (run,) = store.runs()
        assert (run.folder, run.final_val_loss, run.config["method"], run.first_loss) == ("muon-auto", 2.5, "auto", 2.9)
        assert len(store.metrics(run.id)["step"]) == 5
        with pytest.raises(UserError, match=r"There is no run.json"):
            store.adopt(_empty(tmp_path))
        (old / "metrics.jsonl").write_text('{"step": 1, "lo')
        with pytest.raises(UserError, match=r"muon-auto holds no whole run of warmgap 0.1"):
            store.adopt(tmp_path / "old")
