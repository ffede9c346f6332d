"""A run that is killed at random moments and resumed each time ends like one that was not, bit for bit.

`WARMGAP_KILLS=50 pytest tests/lab/test_kills.py` kills more often than the five times of `make test`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from warmgap.lab.record import last_checkpoint

KILLS = int(os.environ.get("WARMGAP_KILLS", "5"))
STEPS = max(60, 12 * KILLS)
# A checkpoint at every step, so that many kills fall into the writing of one.
TRAIN = (
    "train --corpus text.txt --optimizer lion --lr 0.003 --rule gap --batch-size 4 --sequence-length 16 "
    f"--eval-tokens 64 --eval-every 20 --save-every 1 --threads 1 --steps {STEPS} --output"
)
MAIN = [sys.executable, "-c", "import sys; from warmgap.lab.cli import main; sys.exit(main())"]


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*MAIN, *TRAIN.split(), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def steps_done(folder: Path) -> int:
    checkpoint = last_checkpoint(folder)
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))


@pytest.mark.timeout(60 + 40 * KILLS)
def test_promise_4_kill_9_at_random_moments_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WARMGAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sentences = [
        f"The {a} {b} saw the {c} by the river.\n"
        for a in ["red", "old", "shy"]
        for b in ["fox", "owl", "cat"]
        for c in ["dog", "elk", "emu", "bee"]
    ]
    (tmp_path / "text.txt").write_text("".join(sentences) * 40)
    whole = start("whole")
    _, errors = whole.communicate(timeout=100)
    assert whole.returncode == 0, errors

    draw = random.Random(0)  # noqa: S311 - where to kill, no secret
    killed = Path("killed")
    # a few marks in every phase: the run goes on until it has passed the mark, and dies a moment later
    marks = sorted(draw.randrange(1, STEPS - 4) for _ in range(KILLS))
    for mark in marks:
        process = start(str(killed), "--resume")
        deadline = time.monotonic() + 60
        while steps_done(killed) < mark and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(draw.uniform(0.0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert mark <= steps_done(killed) < STEPS
    last = start(str(killed), "--resume")
    _, errors = last.communicate(timeout=100)
    assert last.returncode == 0, errors
    for name in ("metrics.jsonl", f"checkpoint/step-{STEPS:08d}/model.safetensors"):
        assert (killed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    phases = [json.loads(line)["phase"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert set(phases) == {"warmup", "decay"}
