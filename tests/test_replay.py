from __future__ import annotations

import contextlib
import csv
import json
import math
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from warmgap import Schedule
from warmgap.replay import Losses, read_losses, replay
from warmgap.rules import GapRule, LinearRule

FALLING = [5.0 * 0.98**step for step in range(120)]


def test_each_rule_gives_the_factors_of_its_schedule() -> None:
    gap = GapRule(kappa=10.0, target_loss=0.0)
    shown = replay(FALLING, ["auto", "loss-ratio(level=4.0)", gap], total_iters=300, decay="wsd")
    assert list(shown) == ["auto", "loss-ratio(level=4.0)", "gap"]
    schedule = Schedule(300, gap, "wsd")
    state = schedule.first(schedule.init(), 5.0)
    for step, loss in enumerate(FALLING):
        assert shown["gap"].factors[step] == state.factor
        assert shown["gap"].base[step] == state.base
        state = schedule.step(state, loss)
    assert shown["gap"].events == state.events
    assert shown["gap"].warmup_iters == state.handover
    assert shown["auto"].factors == (1.0,) * 120


def test_losses_that_explode_are_seen() -> None:
    losses = [5.0 - 0.01 * step for step in range(60)] + [9.0] * 60
    assert "loss rose: rate halved" in [event.reason for event in replay(losses, ["auto"])["auto"].events]
    assert replay([math.nan] * 5 + FALLING, ["auto"])["auto"].factors[0] == 0.01


def test_what_cannot_be_replayed_is_named() -> None:
    with pytest.raises(ValueError, match="no losses to replay"):
        replay([])
    with pytest.raises(ValueError, match="total_iters must be at least 120, got 7"):
        replay(FALLING, total_iters=7)
    with pytest.raises(ValueError, match="kappa"):
        replay(FALLING, ["gap"])
    assert list(replay(FALLING, ["gap", LinearRule(3)], kappa=10.0)) == ["gap", "linear"]


def test_one_loss_a_line(tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    path.write_text("5\n4.5\nnan\n4\n")
    values = read_losses(path).values
    assert values[:2] + values[3:] == (5.0, 4.5, 4.0)
    assert math.isnan(values[2])


def rows(path: Path, *lines: list[Any]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return path


def test_csv_exports_of_wandb_and_tensorboard(tmp_path: Path) -> None:
    name = "gpt - train/loss"
    wandb = rows(
        tmp_path / "wandb.csv",
        ["Step", name, f"{name}__MIN", f"{name}__MAX"],
        [10, 5.0, 5.0, 5.0],
        [20, 4.0, 4.0, 4.0],
        [30, 3.5, 3.5, 3.5],
    )
    losses = read_losses(wandb)
    assert (len(losses.values), losses.every, losses.name) == (30, 10, name)
    assert [losses.values[step] for step in (0, 9, 14, 19, 29)] == [5.0, 5.0, 4.5, 4.0, 3.5]
    board = rows(tmp_path / "board.csv", ["Wall time", "Step", "Value"], [1.0, 1, 5.0], [2.0, 2, 4.0])
    assert read_losses(board) == Losses((5.0, 4.0), name="Value")


def test_a_file_with_several_losses_asks_which(tmp_path: Path) -> None:
    path = rows(tmp_path / "two.csv", ["Step", "a - loss", "b - loss"], [1, 5.0, 6.0], [2, 4.0, 5.0])
    with pytest.raises(ValueError, match="say which of 'a - loss', 'b - loss' it is by column="):
        read_losses(path)
    assert read_losses(path, "b - loss").values == (6.0, 5.0)
    with pytest.raises(ValueError, match="has no 'c'; it has 'a - loss', 'b - loss'"):
        read_losses(path, "c")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ("1,2\n3,4\n", "2 columns without names"), ("step,lr\n1,2\n", "say which of 'lr' it is")],
)
def test_a_csv_without_losses_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "losses.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_losses(path)


def test_trainer_state(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    history = [{"step": 1, "loss": 5.0}, {"step": 1, "eval_loss": 6.0}, {"step": 3, "loss": 4.0}, {"train_loss": 4.4}]
    path.write_text(json.dumps({"max_steps": 40, "log_history": history}))
    assert read_losses(path) == Losses((5.0, 4.5, 4.0), every=2, total_iters=40)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"no trainer_state\.json: it has no log_history"):
        read_losses(path)


def test_a_run_of_warmgap_train(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"runs.db does not exist"):
        read_losses(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "runs.db")) as database:
        with pytest.raises(ValueError, match="is no database of warmgap"):
            read_losses(tmp_path)
        database.executescript(
            "CREATE TABLE runs (id, folder, config); CREATE TABLE metrics (run, step, loss, lr);"
            """INSERT INTO runs VALUES ('a', 'one', '{"steps": 9}');"""
            "INSERT INTO metrics VALUES ('a', 2, 4.0, 1.0), ('a', 1, 5.0, 1.0), ('b', 1, 6.0, 1.0);"
        )
        assert read_losses(tmp_path) == read_losses(tmp_path / "runs.db") == Losses((5.0, 4.0), total_iters=9)
        database.executescript("""INSERT INTO runs VALUES ('b', 'two', '{"steps": 1}');""")
    assert read_losses(tmp_path, run="two").values == (6.0,)
    with pytest.raises(ValueError, match=r"has 2 runs: name one of 'one', 'two'"):
        read_losses(tmp_path)
    with pytest.raises(ValueError, match=r"has no run 'three'"):
        read_losses(tmp_path, run="three")


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 5.0, "lr": 1.0}\n{"step": 2, "loss": 4.0, "val_loss": 4.2}\n')
    assert read_losses(path) == Losses((5.0, 4.0))
    path.write_text('{"step": 1, "loss": 5.0}\n{"step": 2, "lo')
    with pytest.raises(ValueError, match="is cut off, or of another kind"):
        read_losses(path)


def test_tensorboard_event_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SummaryWriter(tmp_path) as writer:
        for step, loss in ((1, 5.0), (2, 4.0)):
            writer.add_scalar("train/loss", loss, step)
            writer.add_scalar("lr", 0.1, step)
    (path,) = tmp_path.iterdir()
    assert read_losses(path) == Losses((5.0, 4.0), name="train/loss")
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install tensorboard to read it, or export the chart as CSV"):
        read_losses(path)
