from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from warmgap.lab import engines
from warmgap.lab.config import TrainConfig
from warmgap.lab.engines import Here, Job, Local, Tell, train_job
from warmgap.lab.errors import UserError
from warmgap.lab.interruption import Interruption
from warmgap.lab.store import Result, Store
from warmgap.lab.sweep import Plan, grid, report_outcome, run_folder, run_plan


def plan(base: TrainConfig, **lists: Any) -> Plan:
    return grid(base, **({"optimizers": ("lion",), "methods": ("auto", "none")} | lists))


def test_the_grid_is_every_combination_once(images: TrainConfig) -> None:
    found = plan(images, optimizers=("lion", "muon:0.01", "lion"), rates=(1.0, 3.0), seeds=(0, 1))
    runs = [(c.seed, c.optimizer, c.lr, c.method) for _, c in found]
    assert len(runs) == len(set(runs)) == 16
    assert [seed for seed, *_ in runs] == [0] * 8 + [1] * 8
    assert {lr for _, optimizer, lr, _ in runs if optimizer == "muon"} == {0.01, 0.03}
    for lists, sentence in (
        ({"seeds": ()}, "has no seed"),
        ({"optimizers": ("lion:x",)}, "is no number"),
        ({"methods": ("x",)}, "Unknown method"),
    ):
        with pytest.raises(UserError, match=sentence):
            plan(images, **lists)


def test_finished_runs_are_not_trained_again(images: TrainConfig, tmp_path: Path) -> None:
    first = run_plan(plan(images), tmp_path, command="one", engine=Here())
    assert [run.status for run in first] == ["done", "done"]

    class Refusing:
        def train(self, jobs: Iterator[Job], stop: Interruption, tell: Tell) -> None:
            for job in jobs:
                assert job.config.method == "hold:40%"
                tell("begin", job, None)
                tell("end", job, Result("failed", "no memory"))

    more = plan(images, methods=("auto", "none", "hold:40%"))
    second = run_plan(more, tmp_path, command="two", engine=Refusing())
    assert [run.status for run in second] == ["done", "done", "failed"]
    assert second[:2] == first
    third = run_plan(more, tmp_path, command="two", engine=Here())
    assert [run.status for run in third] == ["done"] * 3  # one that failed is tried again
    with Store(tmp_path) as store:
        assert [sweep["command"] for sweep in store.sweeps()] == ["one", "two"]
        assert len(store.metrics(first[0].id)["step"]) == 10


def test_what_goes_wrong_goes_wrong_for_one_run(
    images: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from warmgap.lab import train as module

    def break_down(self: Any) -> Any:
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setattr(module._Run, "one_step", break_down)
    result = train_job(Job("x", images, tmp_path / "run"))
    assert result.status == "failed"
    assert result.message.startswith("RuntimeError: out of luck (see ")
    assert "Traceback" in (tmp_path / "run" / "error.txt").read_text()


def test_a_full_disk_ends_a_run_with_a_sentence(
    images: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from warmgap.lab import train as module

    def full(self: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "trainer.pt")

    monkeypatch.setattr(module._Run, "save", full)
    result = train_job(Job("x", replace(images, save_every=5), tmp_path / "run"))
    assert (result.status, result.message[:37]) == ("failed", "The disk is full: make room and run t")
    monkeypatch.undo()
    assert train_job(Job("x", images, tmp_path / "run")).status == "done"


def test_runs_of_another_driver_are_not_finished_ones(images: TrainConfig, tmp_path: Path) -> None:
    ((_, config),) = plan(images, methods=("none",))
    with Store(tmp_path) as other:
        other.add([(config.fingerprint(), run_folder(config), config.numbers(), "")])
        assert other.claim(config.fingerprint())
        runs = run_plan([("", config)], tmp_path, command="c", engine=Here())
        assert [run.status for run in runs] == ["running"]
        assert report_outcome(runs, tmp_path, Console(quiet=True)) == 130


@pytest.mark.timeout(150)
def test_a_pool_survives_a_worker_that_is_killed(images: TrainConfig, tmp_path: Path) -> None:
    base = replace(images, steps=100, save_every=20, threads=None)

    class Killing:
        killed = False

        def train(self, jobs: Iterator[Job], stop: Interruption, tell: Tell) -> None:
            def told(kind: str, job: Job, content: Any) -> None:
                if kind == "rows" and not self.killed:
                    self.killed = True
                    for child in multiprocessing.active_children():
                        child.kill()
                tell(kind, job, content)

            Local(1).train(jobs, stop, told)

    runs = run_plan(plan(base, methods=("none", "hold:40%")), tmp_path, command="c", engine=Killing())
    assert [run.status for run in runs] == ["failed", "done"]
    assert "ended with exit code -9" in runs[0].message
    runs = run_plan(plan(base, methods=("none", "hold:40%")), tmp_path, command="c", engine=Here())
    assert [run.status for run in runs] == ["done", "done"]


@pytest.mark.timeout(200)
def test_a_run_of_several_processes_has_the_losses_of_one(images: TrainConfig, tmp_path: Path) -> None:
    """One process begins it, two go on with it."""
    ((_, config),) = plan(images, methods=("none",))
    stop = Interruption()
    stop.requested = True
    assert train_job(Job("x", config, tmp_path / run_folder(config)), stop=stop).record["step"] == 1
    runs = run_plan([("", config)], tmp_path, command="c", engine=Local(1, processes=2))
    assert [(run.status, run.message, run.processes) for run in runs] == [("done", "", 2)]
    with Store(tmp_path) as store:
        losses = store.metrics(runs[0].id)["loss"]
    alone = train_job(Job("x", config, tmp_path / "alone"))
    assert losses == pytest.approx([row[1] for row in alone.metrics], rel=1e-3)


@pytest.mark.timeout(200)
def test_promise_4_ctrl_c_and_kill_lose_nothing_of_a_sweep(images: TrainConfig, tmp_path: Path) -> None:
    """A sweep on the command line: interrupted, then killed, then run to its end, is as one that was left alone."""
    base = replace(images, steps=1_500, save_every=100, threads=None)
    words = ["sweep", "--optimizers", "lion", "--methods", "auto", "--seeds", "0", "--jobs", "1", *base.words()]
    line = [
        sys.executable,
        "-c",
        "import sys; from warmgap.lab.cli import main; sys.exit(main())",
        *words,
        "--output",
        "out",
    ]

    def begin(steps: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if any((tmp_path / "out").glob(f"*/checkpoint/step-*{steps:04d}")):
                break
            time.sleep(0.01)
        return process

    process = begin(100)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "1 of 1 runs are left: the same command goes on with them." in out
    process = begin(700)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    with Store(tmp_path / "out") as store:
        (run,) = store.runs()
        metrics = store.metrics(run.id)
    whole = engines.train_job(Job("w", replace(base, method="auto", threads=1).resolve(), tmp_path / "whole"))
    assert metrics["loss"] == [row[1] for row in whole.metrics]
    assert metrics["factor"] == [row[3] for row in whole.metrics]
    assert run.final_val_loss == whole.record["final_val_loss"]
