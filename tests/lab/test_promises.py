"""`warmgap train` killed, interrupted, and in several processes of which one is lost: the same numbers in the end.

`WARMGAP_KILLS=50 pytest tests/lab/test_promises.py` kills more often than the twice of `make test`.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from warmgap.lab.checkpoints import last_checkpoint
from warmgap.lab.config import TrainConfig
from warmgap.lab.store import Result, Store
from warmgap.lab.train import train

KILLS = int(os.environ.get("WARMGAP_KILLS", "2"))
MAIN = "import sys; from warmgap.lab.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def config(text: Path) -> TrainConfig:
    # A checkpoint at every step, so that many kills fall into the writing of one.
    return TrainConfig(
        corpus=str(text), optimizer="lion", lr=0.003, method="auto", batch_size=4, sequence_length=16, eval_tokens=64,
        eval_every=20, save_every=1, threads=1, steps=max(60, 12 * KILLS),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(config: TrainConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    os.environ["WARMGAP_CACHE"] = str(cache)
    folder = tmp_path_factory.mktemp("whole")
    return train(config, folder), folder


def line(config: TrainConfig, *more: str) -> list[str]:
    return [sys.executable, "-c", MAIN, "train", *config.words(), "--output", "run", *more]


def steps_done(folder: Path) -> int:
    checkpoint = last_checkpoint(folder)
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))


def wait_for(process: subprocess.Popen[str], step: int) -> None:
    deadline = time.monotonic() + 100
    while steps_done(Path("run")) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


def metrics() -> dict[str, list[Any]]:
    with Store(Path("run"), create=False) as store:
        (run,) = store.runs()
        assert run.status == "done"
        return store.metrics(run.id)


@pytest.mark.timeout(120 + 40 * KILLS)
def test_promise_4_kill_9_at_random_moments_changes_nothing(
    config: TrainConfig, whole: tuple[Result, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)  # noqa: S311 - where to kill, no secret
    for mark in sorted(draw.randrange(1, config.steps - 4) for _ in range(KILLS)):
        process = subprocess.Popen(line(config, "--resume"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(process, mark)
        time.sleep(draw.uniform(0.0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert mark <= steps_done(Path("run")) < config.steps
    subprocess.run(line(config, "--resume"), check=True, timeout=100, capture_output=True)
    found, (result, folder) = metrics(), whole
    assert [list(row) for row in zip(*found.values(), strict=True)] == [list(row) for row in result.metrics]
    one, other = (
        safetensors.torch.load_file(place / "checkpoint" / f"step-{config.steps:08d}" / "model.safetensors")
        for place in (folder, Path("run"))
    )
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    again = subprocess.run(line(config, "--resume"), check=True, timeout=100, capture_output=True, text=True)
    assert "Next: warmgap report run" in again.stdout


@pytest.mark.timeout(300)
def test_the_others_say_that_one_is_lost_and_one_process_resumes(
    config: TrainConfig, whole: tuple[Result, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # As torchrun starts them, but with nobody who ends the survivor before it has said why it ends.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    settings = os.environ | shared | {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    survivor, lost = (
        subprocess.Popen(
            line(config), stderr=subprocess.PIPE, text=True, env=settings | {"RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in "01"
    )
    wait_for(survivor, 3)
    lost.send_signal(signal.SIGKILL)
    lost.communicate()
    _, errors = survivor.communicate(timeout=120)
    assert survivor.returncode == 2  # an error that is one sentence
    sentence = "^warmgap: Process 0 ends because another one of this run has ended or does not answer: .* --resume"
    assert re.search(sentence, errors, re.MULTILINE), errors
    assert "Traceback" not in errors.partition("warmgap: Process 0 ends")[0]
    assert 3 <= steps_done(Path("run")) < config.steps
    subprocess.run(line(config, "--resume"), check=True, timeout=150, capture_output=True)
    assert metrics()["loss"] == pytest.approx([row[1] for row in whole[0].metrics], rel=2e-3)
    assert metrics()["lr"][:1] == [whole[0].metrics[0][2]]
