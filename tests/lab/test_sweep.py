import json
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from warmgap.lab.cli import main
from warmgap.lab.config import TrainConfig
from warmgap.lab.errors import UserError
from warmgap.lab.record import RunRecord
from warmgap.lab.sweep import (
    SWEEP_FILE,
    Grid,
    Outcome,
    _cores,
    _ending,
    _usual_jobs,
    finished,
    in_folder,
    load_sweeps,
    run_sweep,
)

WriteRun = Callable[..., Path]
MAIN = "import sys; from warmgap.lab.cli import main; sys.exit(main())"
SMALL = {"model": "tiny", "batch_size": 2, "sequence_length": 16, "eval_every": 0, "eval_tokens": 64, "save_every": 0}


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WARMGAP_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text(
        "\n".join(f"line {number}: the quick brown fox jumps over {number * 7} lazy dogs" for number in range(600))
    )
    return path


def small(corpus: Path, **settings: object) -> TrainConfig:
    return TrainConfig(**(SMALL | {"corpus": str(corpus)} | settings))  # type: ignore[arg-type]


def sweep(configs: list[TrainConfig], folder: Path, jobs: int | None = None) -> list[Outcome]:
    return run_sweep(configs, folder, command="warmgap sweep", asked={}, jobs=jobs)


# ------------------------------------------------------------------------------------------------------------- the grid


def test_a_grid_is_every_optimizer_with_every_method_and_every_seed(tmp_path: Path) -> None:
    grid = Grid(TrainConfig(steps=200), ["muon:0.02", "lion"], ["auto", "linear:4%"], ["0", "10", "10%"], [0, 3])
    configs = grid.configs(tmp_path)
    assert {(config.optimizer, config.lr) for config in configs} == {("muon", 0.02), ("lion", 0.001)}
    assert [config.rule for config in configs[:5]] == ["auto", "linear:8", "none", "linear:10", "linear:20"]
    assert [config.seed for config in configs] == [0] * 10 + [3] * 10
    assert len({config.output for config in configs}) == 20


def test_what_is_asked_twice_runs_once(tmp_path: Path) -> None:
    grid = Grid(TrainConfig(steps=100), ["muon", "muon"], ["auto", "none"], ["0", "0%", "10", "10%"], [0, 0])
    assert [config.rule for config in grid.configs(tmp_path)] == ["auto", "none", "linear:10"]


def test_a_target_loss_goes_only_to_rules_that_have_one(tmp_path: Path) -> None:
    grid = Grid(TrainConfig(target_loss=1.5), ["muon"], ["auto", "published", "loss-ratio"], ["10"], [0])
    assert [config.target_loss for config in grid.configs(tmp_path)] == [1.5, 1.5, None, None]


def test_the_folder_of_a_run_tells_other_settings_apart(tmp_path: Path) -> None:
    config = TrainConfig(steps=50).resolve()
    name = in_folder(config, tmp_path).output
    assert in_folder(replace(config, threads=7), tmp_path).output == name
    assert in_folder(replace(config, steps=51), tmp_path).output != name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizers": ["sgdd"]}, "Unknown optimizer"),
        ({"optimizers": ["muon:fast"]}, "muon:0.01"),
        ({"optimizers": []}, "no optimizer"),
        ({"rules": ["guess"]}, "Unknown rule"),
        ({"rules": [], "warmups": []}, "no rule or warm-up length"),
        ({"warmups": ["ten"]}, "neither steps nor a share"),
        ({"warmups": ["nan%"]}, "neither steps nor a share"),
        ({"warmups": ["-3"]}, "negative"),
        ({"warmups": ["0.01%"]}, "less than one step"),
        ({"warmups": ["100%"]}, "does not end"),
        ({"seeds": []}, "no seed"),
        ({"seeds": [-1]}, "seed"),
    ],
)
def test_a_mistake_in_the_grid_is_told_before_anything_runs(
    tmp_path: Path, changes: dict[str, list[str]], message: str
) -> None:
    given = {"optimizers": ["muon"], "rules": ["auto"], "warmups": ["10%"], "seeds": [0]} | changes
    grid = Grid(TrainConfig(steps=100), **given)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        grid.configs(tmp_path)


def test_the_command_of_a_grid_makes_the_same_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    grid = Grid(TrainConfig(steps=90, floor=0.1, lr=0.5), ["muon:0.02", "lion"], ["auto"], ["0", "10%"], [0, 1])
    made: list[list[TrainConfig]] = []

    def record(configs: list[TrainConfig], *_: object, **__: object) -> list[Outcome]:
        made.append(configs)
        return [Outcome(config, "done") for config in configs]

    monkeypatch.setattr("warmgap.lab.sweep.run_sweep", record)
    assert main(shlex.split(grid.command(tmp_path))[1:]) == 0
    assert made == [grid.configs(tmp_path)]


# ---------------------------------------------------------------------------------------------------------- no training


def test_finished_runs_are_skipped(tmp_path: Path, write_run: WriteRun) -> None:
    configs = Grid(TrainConfig(steps=40), ["muon"], ["auto"], ["0"], [0]).configs(tmp_path)
    for config, status in zip(configs, ("done", "diverged"), strict=True):
        assert config.output is not None
        write_run(config.output, status=status, rule=config.rule)
    outcomes = sweep(configs, tmp_path)
    assert [(outcome.status, outcome.skipped) for outcome in outcomes] == [("done", True), ("diverged", True)]
    (record,) = load_sweeps(tmp_path)
    assert [run["status"] for run in record["runs"]] == ["done", "diverged"]
    assert record["command"] == "warmgap sweep"


def test_how_a_run_ended_is_told_with_and_without_a_final_loss(tmp_path: Path, write_run: WriteRun) -> None:
    config = TrainConfig(steps=40, output=tmp_path / "a").resolve()
    write_run(tmp_path / "a", loss=2.5, warmup=7)
    assert _ending(Outcome(config, "done")) == "final loss 2.5000, warm-up 7 steps, 12 s"
    write_run(tmp_path / "b", loss=None, warmup=None)
    told = _ending(Outcome(replace(config, output=tmp_path / "b"), "done"))
    assert told == "final loss unknown, warm-up never ended, 12 s"
    assert _ending(Outcome(config, "failed", "no room")) == "failed: no room"


def test_runs_share_the_cores_but_not_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert _usual_jobs() == _cores()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # another kind than CUDA
    assert _usual_jobs() == 1
    assert _cores() >= 1


def test_an_unfinished_run_is_not_taken_for_finished(tmp_path: Path, write_run: WriteRun) -> None:
    config = TrainConfig(steps=40, output=tmp_path / "a").resolve()
    assert finished(config) is None
    write_run(tmp_path / "a", status="interrupted")
    assert finished(config) is None


def test_another_run_in_the_folder_is_refused(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "a", seed=1)
    with pytest.raises(UserError, match="other settings"):
        finished(TrainConfig(steps=40, seed=2, output=tmp_path / "a").resolve())


def test_two_sweeps_of_one_folder_are_both_remembered(tmp_path: Path, write_run: WriteRun) -> None:
    (config,) = Grid(TrainConfig(steps=40), ["muon"], ["auto"], [], [0]).configs(tmp_path)
    assert config.output is not None
    write_run(config.output, rule="auto")
    for command in ("one", "two", "one"):
        run_sweep([config], tmp_path, command=command, asked={"seeds": [0]})
    assert [found["command"] for found in load_sweeps(tmp_path)] == ["two", "one"]


@pytest.mark.parametrize("text", ["[]", "{", '{"version": 99, "sweeps": []}', '{"version": 1, "sweeps": [{}]}'])
def test_a_foreign_sweep_file_is_a_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / SWEEP_FILE).write_text(text)
    with pytest.raises(UserError, match=r"sweep\.json"):
        load_sweeps(tmp_path)


def test_runs_that_share_a_folder_are_refused(tmp_path: Path) -> None:
    config = TrainConfig(output=tmp_path / "a")
    with pytest.raises(UserError, match="folder of its own"):
        sweep([config, replace(config, seed=1)], tmp_path)


def test_a_corpus_that_is_not_there_is_told_once_before_any_run(tmp_path: Path) -> None:
    configs = Grid(TrainConfig(corpus=str(tmp_path / "nothing"), steps=20), ["muon"], ["auto"], [], [0]).configs(
        tmp_path
    )
    with pytest.raises(UserError, match="Unknown corpus"):
        sweep(configs, tmp_path)


def test_a_folder_that_cannot_be_made_and_no_jobs_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = TrainConfig(output=tmp_path / "a")
    with pytest.raises(UserError, match="cannot write"):
        sweep([config], tmp_path / "file" / "sweep")
    with pytest.raises(UserError, match="jobs"):
        sweep([config], tmp_path, jobs=0)


# ------------------------------------------------------------------------------------------------------------- training


def test_a_failing_run_and_a_killed_worker_lose_no_other_run(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    long = in_folder(small(corpus, steps=100_000).resolve(), folder)
    others = [in_folder(small(corpus, steps=6, seed=seed).resolve(), folder) for seed in (1, 2)]
    blocked = in_folder(small(corpus, steps=6, seed=3).resolve(), folder)
    assert long.output is not None
    assert blocked.output is not None
    folder.mkdir()
    blocked.output.write_text("a file where the run's folder should be")
    killed: list[int | None] = []

    def kill_the_long_one() -> None:
        while not (long.output / "metrics.jsonl").exists():  # type: ignore[operator]
            time.sleep(0.05)
        (worker,) = multiprocessing.active_children()
        killed.append(worker.pid)
        worker.kill()

    thread = threading.Thread(target=kill_the_long_one)
    thread.start()
    # One worker: its successor must take over what is left.
    outcomes = sweep([long, blocked, *others], folder, jobs=1)
    thread.join()
    assert [outcome.status for outcome in outcomes] == ["failed", "failed", "done", "done"]
    assert "exit code -9" in outcomes[0].message
    assert outcomes[1].message
    assert len(killed) == 1
    (record,) = load_sweeps(folder)
    assert [run["status"] for run in record["runs"]] == ["failed", "failed", "done", "done"]


def test_ctrl_c_leaves_a_sweep_that_the_same_command_goes_on_with(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    settings = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words = [
        "--optimizers",
        "lion",
        "--rules",
        "auto",
        "--warmups",
        "0",
        "--seeds",
        "0",
        "--jobs",
        "1",
        "--steps",
        "300",
    ]
    command = [sys.executable, "-c", MAIN, "sweep", *words, *settings, "--corpus", str(corpus), "--output", str(folder)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not list(folder.glob("*/metrics.jsonl")) and first.poll() is None:
        time.sleep(0.02)
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate()
    assert first.returncode == 130, output
    assert "2 of 2 runs are left" in output
    (path,) = folder.glob("*/run.json")
    before = RunRecord.load(path.parent)
    assert before.status == "interrupted"
    assert 0 < before.step < 300
    assert list((path.parent / "checkpoint").glob("step-*"))
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    runs = [path.parent for path in folder.glob("*/run.json")]
    assert [RunRecord.load(run).status for run in runs] == ["done", "done"]
    for run in runs:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, 301))
