from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from warmgap import Schedule
from warmgap.rules import GapRule

WORKER = "accelerate_worker.py"
Ranks = Callable[..., list[dict[str, Any]]]
TOTAL, NAN_STEP, ACCUMULATION = 16, 5, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("accelerate")


@pytest.fixture(scope="module")
def two_ranks(folder: Path, run_ranks: Ranks) -> list[dict[str, Any]]:
    return run_ranks(2, folder, WORKER, str(folder), str(TOTAL), "7")


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
        state = schedule.step(state, math.nan if step == NAN_STEP else loss)
    assert len(set(expected)) > 8
    assert first["rates"] == pytest.approx(expected, rel=1e-5)


def test_promise_4_a_loaded_state_goes_on_bit_for_bit(
    two_ranks: list[dict[str, Any]], folder: Path, run_ranks: Ranks
) -> None:
    resumed = run_ranks(2, folder, WORKER, str(folder), str(TOTAL), "7", "resume")
    assert resumed[0] == resumed[1]
    assert resumed[0]["rates"] == two_ranks[0]["rates"][7:]
    assert resumed[0]["weights"] == two_ranks[0]["weights"]
