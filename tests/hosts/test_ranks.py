"""Several ranks: together with every optimizer, and what happens where one of them is lost."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contracts.training import OPTIMIZERS, Work, pytorch
from tests.hosts.conftest import start_ranks
from torch import nn

from warmgap.rules import SpectralRule
from warmgap.torch import AdaptiveWarmup, Lion

TOTAL = 24
LOST_AT = 5
Ranks = Callable[..., list[dict[str, Any]]]


def test_promise_3_a_nan_on_one_rank_keeps_all_ranks_together_with_every_optimizer(
    run_ranks: Ranks, tmp_path: Path
) -> None:
    first, second = run_ranks(2, tmp_path, "ranks_worker.py", str(tmp_path))
    assert first == second
    for name in OPTIMIZERS:
        assert first[name]["rates"] == Work("troubled", name).expected()
    # the ranks agree on the loss that the first step starts on, and on the size of the steps
    alone = pytorch(Work("troubled", rule=SpectralRule(), cap=5e-4), tmp_path)
    for together, one in zip(first["the default rule"]["rates"], alone.rates, strict=True):
        assert together == pytest.approx(one, rel=1e-4)  # the gradients' sums differ in rounding


def test_ranks_with_different_numbers_of_batches_end_together_under_join(run_ranks: Ranks, tmp_path: Path) -> None:
    first, second = run_ranks(2, tmp_path, "join_worker.py", str(tmp_path))
    for answer in (first, second):
        assert "write `with Join([model, scheduler]):`" in answer.pop("refusal")
    for name, longer in first.items():
        shorter = second[name]
        assert shorter["rates"] == longer["rates"][: len(shorter["rates"])]
        assert shorter["made"] == longer["made"] == len(longer["rates"])
        if "linear" not in name:  # which exchanges nothing, so that each rank notes its own loss
            assert shorter["state"] == longer["state"]


@pytest.mark.parametrize(("how", "ranks"), [("kill", 3), ("stop", 2)])
def test_the_others_end_where_a_rank_is_lost_and_one_process_goes_on(how: str, ranks: int, tmp_path: Path) -> None:
    *others, lost = start_ranks(ranks, "lost_worker.py", how, str(tmp_path))
    try:
        outputs = [other.communicate(timeout=200)[1] for other in others]
    finally:
        lost.kill()
        lost.communicate()
    assert lost.returncode == -signal.SIGKILL
    for rank, (other, output) in enumerate(zip(others, outputs, strict=True)):
        assert other.returncode == 1
        assert (
            f"RuntimeError: rank {rank} could not exchange the loss of this step: another rank of the {ranks} has ended"
            " or does not answer, and its own output says why; end the run and resume it from the last checkpoint"
        ) in output
        assert "was the direct cause of the following exception" in output

    assert rates_of(tmp_path / "checkpoint.pt") == rates_of()[LOST_AT:]


def rates_of(checkpoint: Path | None = None) -> list[float]:
    """The rates of the worker's run in one process, from a checkpoint on."""
    model = nn.Linear(3, 1)
    optimizer = Lion(model.parameters(), lr=1e-3)
    scheduler = AdaptiveWarmup(optimizer, TOTAL, rule="gap", target_loss=0.0)
    if checkpoint is not None:
        scheduler.load_state_dict(torch.load(checkpoint, weights_only=True))
        assert scheduler.phase == "warmup"
    rates = []
    for step in range(scheduler.last_epoch, TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(7.0 - 0.125 * step)
    return rates
