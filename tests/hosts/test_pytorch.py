"""Plain PyTorch beyond the plain loop: compiled steps, closures, several optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from warmgap.torch import AdaptiveWarmup, Lion, Muon

TOTAL = 20


def problem() -> tuple[nn.Sequential, Callable[[], Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(32, 4)
    return model, lambda: nn.functional.mse_loss(model(x), torch.sin(x.sum(1, keepdim=True)) + 2.0)


def train(
    model: nn.Module, optimizer: Optimizer, loss_of: Callable[[], Tensor], step: Callable[[], Any] | None = None
) -> tuple[list[float], list[Tensor]]:
    scheduler = AdaptiveWarmup(optimizer, TOTAL, rule="gap", norm="max", target_loss=0.0)
    rates = []
    for _ in range(TOTAL):
        loss = loss_of()
        loss.backward()
        rates.append(float(optimizer.param_groups[0]["lr"]))
        (step or optimizer.step)()
        scheduler.step(loss)
        optimizer.zero_grad()
    assert len(set(rates)) > TOTAL // 2
    return rates, [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("lr", [1e-2, torch.tensor(1e-2, dtype=torch.float64)], ids=["float", "tensor"])
def test_a_compiled_step_gives_the_same_rates_and_weights(lr: float | Tensor) -> None:
    eager, eager_loss = problem()
    expected = train(eager, Lion(eager.parameters(), lr=lr), eager_loss)
    model, loss_of = problem()
    optimizer = Lion(model.parameters(), lr=torch.tensor(1e-2, dtype=torch.float64) if isinstance(lr, Tensor) else lr)
    compiled = torch.compile(lambda: optimizer.step(), backend="eager")
    rates, weights = train(model, optimizer, loss_of, compiled)
    assert rates == expected[0]
    assert all(torch.equal(a, b) for a, b in zip(weights, expected[1], strict=True))


def test_a_closure_is_one_step() -> None:
    model, loss_of = problem()
    optimizer = Lion(model.parameters(), lr=1e-2)
    scheduler = AdaptiveWarmup(optimizer, TOTAL, rule="gap", target_loss=0.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss.item()

    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(optimizer.step(closure))
    plain, plain_loss = problem()
    expected, weights = train(plain, Lion(plain.parameters(), lr=1e-2), plain_loss)
    assert rates == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))


def test_lbfgs_steps_all_parameters_alike() -> None:
    model, loss_of = problem()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    scheduler = AdaptiveWarmup(optimizer, TOTAL)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss

    before = loss_of().item()
    for _ in range(TOTAL):
        scheduler.step(optimizer.step(closure))
    assert scheduler.last_epoch == TOTAL
    assert loss_of().item() < 0.7 * before


def test_two_optimizers_keep_the_ratio_of_their_rates() -> None:
    model, loss_of = problem()
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    muon, adamw = Muon([{"params": matrices, "kind": "matrix"}], lr=2e-2), AdamW(vectors, lr=1e-3)
    first = AdaptiveWarmup(muon, TOTAL, rule="gap", target_loss=0.0)
    second = AdaptiveWarmup(adamw, TOTAL, rule=first.schedule.rule)
    for _ in range(TOTAL):
        loss = loss_of()
        loss.backward()
        assert muon.param_groups[0]["lr"] / adamw.param_groups[0]["lr"] == pytest.approx(20.0, rel=1e-12)
        for optimizer, scheduler in ((muon, first), (adamw, second)):
            optimizer.step()
            scheduler.step(loss)
            optimizer.zero_grad()
    assert first.warmup_iters == second.warmup_iters is not None
