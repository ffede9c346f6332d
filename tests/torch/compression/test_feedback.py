"""Four processes that exchange compressed gradients compute what four simulated workers do, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).with_name("feedback_worker.py")
RANKS = 4


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)),
        *(str(WORKER), str(folder)),
    ]
    tests = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": tests}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("compressor", ["few", "many", "signs", "low rank"])
def test_hook_and_wrapper_are_the_simulation_to_the_bit(found: list[dict[str, Any]], compressor: str) -> None:
    for rank in found:
        one = rank[compressor]
        assert (one["hook"], one["attached"], one["traffic"]) == (True, True, True)
        assert one["sent"][0] < one["sent"][1] or compressor == "many"


def test_the_mean_of_the_workers_is_the_servers(found: list[dict[str, Any]]) -> None:
    for rank in found:
        for compressor in ("few", "many", "signs", "low rank"):
            before, after = rank[compressor]["deviation"]
            assert (before < 1e-6, after) == (True, 0.0)


@pytest.mark.parametrize("kind", ["files", "checkpoint"])
@pytest.mark.parametrize("hooked", [True, False])
def test_a_run_is_resumed_bit_for_bit(found: list[dict[str, Any]], kind: str, hooked: bool) -> None:
    assert [rank[f"resumed {kind} {hooked}"] for rank in found] == [True] * RANKS


def test_workers_may_be_meshes_in_which_the_model_is_sharded(found: list[dict[str, Any]]) -> None:
    assert [rank["sharded"]["worker"] for rank in found] == [0, 0, 1, 1]
    for rank in found:
        assert rank["sharded"]["apart"] < 1e-5
        assert all(rank[name]["resumed"] and rank[name]["deviation"] < 1e-6 for name in ("sharded", "sharded few"))


def test_ef_muon_of_a_sharded_model_is_that_of_the_whole(found: list[dict[str, Any]]) -> None:
    assert all(rank["ef muon"] < 1e-5 for rank in found)


def test_what_is_refused(found: list[dict[str, Any]]) -> None:
    for rank in found:
        alone, inside, apart = rank["refused"]
        assert "give process_group" in alone
        assert "gradients are one and the same" in inside
        assert "0.weight is not the same on every worker" in apart
