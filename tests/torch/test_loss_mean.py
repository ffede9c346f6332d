from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from warmgap.torch import LossMean

WORKER = Path(__file__).parent / "rank_worker.py"
TESTS = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])


def run_ranks(ranks: int, folder: Path, *resume: str) -> list[dict[str, Any]]:
    store = folder / f"store-{len(list(folder.iterdir()))}"
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(ranks), str(store), *resume],
            env=os.environ | {"PYTHONPATH": TESTS},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(out) for out, _ in outputs]


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(3, tmp_path_factory.mktemp("three"))


def test_promise_3_every_rank_has_the_same_rates_bit_for_bit(three_ranks: list[dict[str, Any]]) -> None:
    first, *others = three_ranks
    assert first["warmup_iters"] is not None
    assert len(set(first["rates"])) > 20
    for other in others:
        assert other == first  # and the same weights, with a NaN on one rank only


def test_the_rates_do_not_depend_on_the_number_of_ranks(three_ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    (alone,) = run_ranks(1, tmp_path)
    assert three_ranks[0]["rates"] == pytest.approx(alone["rates"], rel=1e-5)  # the gradients' sums differ in rounding


def test_promise_4_a_run_resumes_on_another_number_of_ranks(three_ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    checkpoint = str(tmp_path / "checkpoint.pt")
    run_ranks(3, tmp_path, checkpoint, "12")
    two = run_ranks(2, tmp_path, checkpoint, "40")
    assert two[0] == two[1]
    assert two[0]["rates"] == pytest.approx(three_ranks[0]["rates"][12:], rel=1e-5)


@given(
    st.lists(st.tuples(st.floats(-10.0, 10.0), st.integers(0, 1000)), min_size=1, max_size=8).filter(
        lambda parts: any(weight for _, weight in parts)
    )
)
def test_it_is_the_weighted_mean_of_numbers_and_tensors(parts: list[tuple[float, int]]) -> None:
    numbers, tensors = LossMean(), LossMean()
    for loss, weight in parts:
        numbers.add(loss, weight)
        tensors.add(torch.tensor([loss], dtype=torch.float64, requires_grad=True), torch.tensor(weight))
    expected = sum(loss * weight for loss, weight in parts) / sum(weight for _, weight in parts)
    assert numbers.take().result() == pytest.approx(expected, abs=1e-12)
    assert tensors.take().result() == pytest.approx(expected, abs=1e-12)


def test_nothing_is_none_and_nothing_finite_is_nan() -> None:
    mean = LossMean()
    assert mean.take().result() is None
    mean.add(math.nan)
    assert math.isnan(mean.take().result() or 0.0)
    mean.add(math.inf, 3)
    mean.add(1.0)
    assert math.isnan(mean.take().result() or 0.0)
    mean.add(math.nan, 0)  # an empty micro-batch has no mean, and no say
    mean.add(2.0, 5)
    assert mean.take().result() == 2.0
    mean.add(7.0)
    mean.clear()
    assert mean.take().result() is None


def test_half_precision_losses_are_summed_in_double() -> None:
    mean = LossMean()
    for _ in range(1000):
        mean.add(torch.tensor(1.0, dtype=torch.bfloat16))
    mean.add(torch.tensor(2.0, dtype=torch.bfloat16))
    assert mean.take().result() == 1002 / 1001
