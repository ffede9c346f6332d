"""The step's length is the learning rate, in l2 over the whole model or in any norm."""

from __future__ import annotations

import math

import pytest
import torch
from tests.torch.compression.problem import Model, set_gradients, weights

from warmgap.torch import Muon, NormalizedSGD
from warmgap.torch.compression import NormalizedGD, SimulatedWorkers, TopK
from warmgap.torch.norms import Frobenius, Max, Spectral


def test_the_whole_models_step_has_the_rates_length() -> None:
    model = Model()
    before = weights(model)
    set_gradients(model, 0, 0)
    NormalizedGD(model.parameters(), lr=0.3).step()
    square = sum(float((a - b).square().sum()) for a, b in zip(weights(model), before, strict=True))
    assert math.sqrt(square) == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)])
def test_of_one_parameter_it_is_normalized_sgd_to_the_bit(lr: float | torch.Tensor) -> None:
    ours, theirs = (torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)) for _ in range(2))
    mine = NormalizedGD([ours], lr=lr, weight_decay=0.1)
    other = NormalizedSGD([theirs], lr=lr, momentum=0.0, weight_decay=0.1)
    for step in range(5):
        ours.grad = torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
        theirs.grad = ours.grad.clone()
        mine.step()
        other.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("norm", [Spectral(), Max(), Frobenius()])
def test_in_another_norm_each_parameter_has_its_lmo(norm: Spectral | Max | Frobenius) -> None:
    model = Model()
    before = weights(model)
    set_gradients(model, 0, 0)
    grads = [p.grad for p in model.parameters()]
    optimizer = NormalizedGD(model.parameters(), lr=0.5, norm=norm)
    directions = optimizer.directions(optimizer.param_groups[0], list(model.parameters()))
    optimizer.step()
    for x, y, grad, direction in zip(weights(model), before, grads, directions, strict=True):
        assert grad is not None
        assert torch.allclose(x, y + 0.5 * norm.lmo(grad), atol=1e-6)
        assert torch.allclose(x, y - 0.5 * direction, atol=1e-6)


def test_error_feedback_before_muon_is_error_feedback_with_the_spectral_lmo() -> None:
    runs = []
    for ours in (True, False):
        p = torch.nn.Parameter(torch.eye(5)[:4])
        workers = SimulatedWorkers([("p", p)], 2, TopK(0.2))
        optimizer: torch.optim.Optimizer = (
            Muon([p], lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0, scale="none", exact=True, second_lr=1.0)
            if ours
            else NormalizedGD([p], lr=0.1, norm=Spectral())
        )
        for step in range(5):
            for worker in range(2):
                p.grad = torch.randn(4, 5, generator=torch.Generator().manual_seed(10 * step + worker))
                workers.collect(worker)
            workers.exchange()
            optimizer.step()
        runs.append(p.detach())
    assert torch.allclose(runs[0], runs[1], atol=1e-6)


def test_a_zero_gradient_makes_no_step_and_the_closures_loss_comes_back() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = NormalizedGD([p], lr=0.1)
    assert optimizer.step(lambda: 2.0) == 2.0
    p.grad = torch.zeros(3)
    optimizer.step()
    assert torch.equal(p, torch.ones(3))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"lr": -1.0}, "lr must"), ({"weight_decay": float("nan")}, "weight_decay must"), ({"norm": "l3"}, "norm must")],
)
def test_what_is_refused(settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        NormalizedGD([torch.nn.Parameter(torch.ones(1))], **settings)  # type: ignore[arg-type]
