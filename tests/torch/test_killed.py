"""kill -9 in a plain training loop."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from tests.torch.killed_worker import TOTAL, train


def test_promise_4_a_loop_that_is_killed_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(Path(__file__).with_name("killed_worker.py")), str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = train(tmp_path / "whole")
    assert process(tmp_path / "killed", "12").returncode == -signal.SIGKILL
    rest = process(tmp_path / "killed")
    assert rest.returncode == 0, rest.stderr
    resumed = json.loads(rest.stdout)
    assert resumed["rates"] == whole["rates"][12:]
    assert len(resumed["rates"]) == TOTAL - 12
    assert resumed["weights"] == whole["weights"]
    assert resumed["events"] == whole["events"]
