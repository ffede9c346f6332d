import dataclasses
import json
from pathlib import Path

import pytest

from warmgap.lab.errors import UserError
from warmgap.lab.record import Metrics, RunRecord, last_checkpoint, new_checkpoint, versions, write_atomically

RECORD = RunRecord(
    status="done",
    config={"seed": 0},
    command="warmgap train",
    step=10,
    parameters=5,
    corpus_fingerprint="0",
    final_val_loss=1.5,
    best_val_loss=1.4,
    warmup_iters=None,
    target_loss=None,
    seconds=1.0,
    tokens_per_second=2.0,
    device="cpu",
    processes=1,
    versions=versions(),
    commit=None,
)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    RECORD.save(tmp_path)
    assert RunRecord.load(tmp_path) == RECORD
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_record_that_is_not_there_damaged_or_foreign_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run"):
        RunRecord.load(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"is damaged"):
        RunRecord.load(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(dataclasses.asdict(RECORD) | {"version": 99}))
    with pytest.raises(UserError, match=r"another version of warmgap \(form 99, this one reads form 1\)"):
        RunRecord.load(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(UserError, match=r"another version of warmgap"):
        RunRecord.load(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full_disk(self: Path, *_: object, **__: object) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_writers_at_once_leave_one_whole_file_with_the_usual_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    replace = Path.replace

    def while_another_writes(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", replace)
        write_atomically(path, "the other's")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", while_another_writes)
    write_atomically(path, "mine")
    assert path.read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_metrics_of_a_killed_run_are_cut_to_its_checkpoint(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, 0)
    for step in range(1, 6):
        metrics.write({"step": step, "loss": 1.0 / step})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed in the middle of a row
    again = Metrics(tmp_path, 3)
    again.write({"step": 4, "loss": 9.0})
    again.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["loss"] == 9.0


def test_a_checkpoint_appears_whole_and_replaces_the_one_before(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step in (9, 10):
        with new_checkpoint(tmp_path, step) as scratch:
            (scratch / "weights").write_text(str(step))
            assert last_checkpoint(tmp_path) != scratch
    found = last_checkpoint(tmp_path)
    assert found is not None
    assert (found / "weights").read_text() == "10"
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-00000010"]


def test_a_checkpoint_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    with new_checkpoint(tmp_path, 1) as scratch:
        (scratch / "weights").write_text("1")

    def fail() -> None:
        with new_checkpoint(tmp_path, 2) as scratch:
            (scratch / "weights").write_text("2")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-00000001"]


def test_what_a_killed_save_left_behind_is_no_checkpoint_and_goes(tmp_path: Path) -> None:
    left_over = tmp_path / "checkpoint" / ".new-00000007"
    left_over.mkdir(parents=True)
    assert last_checkpoint(tmp_path) is None
    with new_checkpoint(tmp_path, 7) as scratch:
        (scratch / "weights").write_text("7")
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-00000007"]
