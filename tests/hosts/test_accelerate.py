from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from warmgap import Schedule
from warmgap.rules import GapRule

WORKER = Path(__file__).parent / "accelerate_worker.py"
TOTAL, NAN_STEP, ACCUMULATION = 16, 5, 2


def run(ranks: int, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), *arguments],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("accelerate")


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> list[dict[str, Any]]:
    return run(2, folder, str(TOTAL), "7")


def test_the_rates_are_the_schedules_on_the_mean_loss_of_all_micro_batches_and_ranks(
    two_ranks: list[dict[str, Any]],
) -> None:
    first, second = two_ranks
    assert (first["ranks"], first["wrapped"]) == (2, "AcceleratedScheduler")
    assert first["last_epoch"] == TOTAL  # not twice that, though the wrapper steps once for each rank
    assert first == second  # also with a NaN on one rank
    schedule = Schedule(TOTAL, GapRule(kappa=84.0, target_loss=0.0))
    state, expected = schedule.init(), []
    for step in range(TOTAL):
        expected.append(1e-2 * state.factor)
        loss = sum(first["losses"][step * ACCUMULATION : (step + 1) * ACCUMULATION]) / ACCUMULATION
        state, _ = schedule.step(state, math.nan if step == NAN_STEP else loss)
    assert len(set(expected)) > 8
    assert first["rates"] == pytest.approx(expected, rel=1e-5)


def test_promise_4_a_loaded_state_goes_on_bit_for_bit(two_ranks: list[dict[str, Any]], folder: Path) -> None:
    resumed = run(2, folder, str(TOTAL), "7", "resume")
    assert resumed[0] == resumed[1]
    assert resumed[0]["rates"] == two_ranks[0]["rates"][7:]
    assert resumed[0]["weights"] == two_ranks[0]["weights"]
