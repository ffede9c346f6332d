"""EF-Muon: the published numbers on matrices, its parts, and what other groups do."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from warmgap.theory import error_feedback
from warmgap.torch import EFMuon, Muon, split_parameters

START = (1.0 + math.log(2.0), 1.0 - math.log(2.0))
WEIGHT = 0.1 / 3.8


def loss_and_gradient(W: Tensor, weight: float = WEIGHT) -> tuple[float, Tensor]:
    """The counterexample on a diagonal matrix, with s(0) = 0, in exact signs."""
    a, b = W[0, 0].item(), W[1, 1].item()
    along, across = weight * (a + b > 0) - weight * (a + b < 0), (a - b > 0) - (a - b < 0)
    diagonal = torch.tensor([along + across, along - across], dtype=W.dtype)
    return weight * abs(a + b) + abs(a - b), torch.diag(diagonal)


def run(steps: int, rate: Any, weight: float = WEIGHT, **settings: Any) -> tuple[float, Tensor]:
    """f at the end and the weight, in double precision."""
    W = nn.Parameter(torch.diag(torch.tensor(START, dtype=torch.float64)))
    optimizer = EFMuon([W], lr=1.0, exact=True, **settings)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate(step)
        loss, W.grad = loss_and_gradient(W.detach(), weight)
        optimizer.step(loss=loss if "target_loss" in settings else None)
    return loss_and_gradient(W.detach(), weight)[0], W.detach()


def test_muon_does_not_converge_and_ef_muon_does() -> None:
    stuck, W = run(1500, lambda t: 1.0 / (t + 1), feedback=False)
    assert stuck == pytest.approx(0.053298, abs=5e-7)
    assert float(W.trace()) == pytest.approx(2.0, abs=1e-12)
    freed, _ = run(1500, lambda t: (t + 1) ** -0.5)
    path, *_ = error_feedback.run(1500, lambda t: (t + 1) ** -0.5)
    assert freed == pytest.approx(0.0039, rel=0.015)
    assert freed == pytest.approx(path.gaps[-1], rel=1e-6)


def test_without_feedback_it_is_muon() -> None:
    W = nn.Parameter(torch.diag(torch.tensor(START, dtype=torch.float64)))
    muon = Muon([W], lr=1.0, momentum=0.9, nesterov=False, weight_decay=0.0, scale="none", exact=True, second_lr=1.0)
    for step in range(300):
        muon.param_groups[0]["lr"] = 1.0 / (step + 1)
        _, W.grad = loss_and_gradient(W.detach())
        muon.step()
    _, ours = run(300, lambda t: 1.0 / (t + 1), feedback=False)
    assert torch.allclose(W, ours, atol=1e-12)


def test_polyaks_step_does_not_cure_muon_and_makes_ef_muon_fast() -> None:
    settings = {"weight": 0.5, "momentum": 0.0, "target_loss": 0.0}
    stuck, W = run(200, lambda _: 1.0, feedback=False, **settings)
    assert stuck >= 1.0
    assert float(W.trace()) == pytest.approx(2.0, abs=1e-9)
    losses = [run(steps, lambda _: 1.0, **settings)[0] for steps in (100, 200, 300)]
    # a straight line on a logarithmic scale, on a function with a sharp minimum
    assert losses[2] < 0.01 * losses[1] < 1e-4 * losses[0]
    still, _ = run(5, lambda _: 0.0, **settings)
    assert still == pytest.approx(1.0 + 2.0 * math.log(2.0))


def matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("exact", [True, False])
def test_the_error_is_what_the_step_left(exact: bool) -> None:
    W = nn.Parameter(matrix(6, 4))
    before = W.detach().clone()
    optimizer = EFMuon([W], lr=0.1, momentum=0.5, exact=exact)
    gradients = [matrix(6, 4, seed=seed) for seed in range(1, 5)]
    average, total = torch.zeros_like(before), torch.zeros_like(before)
    for gradient in gradients:
        W.grad = gradient
        kept = 0.1 * (0.5 * average + 0.5 * gradient) + optimizer.state[W].get("error", torch.zeros_like(before))
        (direction,) = optimizer.directions(optimizer.param_groups[0], [W])
        start = W.detach().clone()
        optimizer.step()
        average = 0.5 * average + 0.5 * gradient
        total += 0.1 * average
        error = optimizer.state[W]["error"]
        assert torch.allclose(start - W, 0.1 * direction, atol=1e-12)
        # the contraction of which the rate follows
        share = 1.0 - 1.0 / 4.0
        assert float(error.square().sum()) <= (share if exact else 1.0) * float(kept.square().sum())
        # nothing is lost: the weights and the error hold all gradients
        assert torch.allclose(before - W, total - error, atol=1e-12)
        if exact:
            values = torch.linalg.svdvals(kept)
            assert torch.linalg.svdvals(start - W.detach()).tolist() == pytest.approx([float(values.mean())] * 4)


@pytest.mark.parametrize("rate", [0.1, torch.tensor([0.1])])
def test_directions_at_rate_zero_are_those_without_an_error(rate: Any) -> None:
    W = nn.Parameter(matrix(6, 4))
    optimizer = EFMuon([W], lr=rate, momentum=0.0, exact=True)
    (group,) = optimizer.param_groups
    W.grad = matrix(6, 4, seed=1)
    optimizer.step()
    W.grad = matrix(6, 4, seed=2)
    (without,) = EFMuon([W], momentum=0.0, exact=True).directions(group, [W])
    (with_error,) = optimizer.directions(group, [W])
    assert not torch.allclose(with_error, without)
    if isinstance(rate, Tensor):
        rate.zero_()
    else:
        group["lr"] = 0.0
    (direction,) = optimizer.directions(group, [W])
    torch.testing.assert_close(direction, without)


def test_every_part_of_a_model_is_stepped_in_its_own_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 9), nn.LayerNorm(9), nn.Linear(9, 6), nn.Linear(6, 3))
    optimizer = EFMuon(split_parameters(model), lr=0.1, momentum=0.0, exact=True)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    for name, p in model.named_parameters():
        move = before[name] - p.detach()
        if name in ("1.weight", "3.weight"):
            values = torch.linalg.svdvals(move)
            assert float(values.max() / values.min()) == pytest.approx(1.0, abs=1e-3)
        else:
            assert p.grad is not None
            assert torch.allclose(move, 0.1 * p.grad.abs().mean() * p.grad.sign(), atol=1e-6)


@pytest.mark.parametrize(
    ("group", "shape", "parts"),
    [
        ({"role": "hidden", "blocks": (2, 4)}, (6, 5), lambda x: x.split([2, 4])),
        ({"role": "hidden", "transposed": True, "blocks": (2, 3)}, (6, 5), lambda x: x.T.split([2, 3])),
        ({"kind": "conv"}, (4, 3, 2, 2), lambda x: [x.flatten(1)]),
        ({"kind": "conv", "transposed": True}, (3, 4, 2, 2), lambda x: [x.transpose(0, 1).flatten(1)]),
        ({"kind": "matrix"}, (2, 4, 3), list),
        ({"kind": "matrix", "transposed": True}, (2, 4, 3), lambda x: list(x.mT)),
    ],
)
def test_which_matrices_a_parameter_is(group: dict[str, Any], shape: tuple[int, ...], parts: Any) -> None:
    W = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    W.grad = matrix(*shape, seed=3)
    EFMuon([{"params": [W], **group}], lr=1.0, momentum=0.0, exact=True).step()
    for move, kept in zip(parts(-W.detach()), parts(W.grad), strict=True):
        u, s, vt = torch.linalg.svd(kept, full_matrices=False)
        assert torch.allclose(move, s.mean() * (u @ vt), atol=1e-12)


def test_state_is_saved_and_resumed_bit_for_bit() -> None:
    whole, half, resumed = (nn.Parameter(matrix(5, 3)) for _ in range(3))
    first, second, third = (EFMuon([p], lr=0.1, weight_decay=0.1) for p in (whole, half, resumed))

    def go(p: nn.Parameter, optimizer: EFMuon, steps: range) -> None:
        for step in steps:
            p.grad = matrix(5, 3, seed=step)
            optimizer.step()

    go(whole, first, range(6))
    go(half, second, range(3))
    with torch.no_grad():
        resumed.copy_(half)
    third.load_state_dict(second.state_dict())
    go(resumed, third, range(3, 6))
    assert torch.equal(whole, resumed)


def test_a_closure_gives_polyak_its_loss() -> None:
    W = nn.Parameter(matrix(2, 2))
    optimizer = EFMuon([W], lr=1.0, momentum=0.0, target_loss=0.0, exact=True)
    with pytest.raises(ValueError, match="target_loss needs the loss"):
        optimizer.step()

    def closure() -> float:
        optimizer.zero_grad()
        loss = W.square().sum()
        loss.backward()
        return loss.item()

    losses = [optimizer.step(closure) for _ in range(30)]
    assert losses[-1] < 1e-3 * losses[0]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lr": -1.0}, "lr must"),
        ({"lr": torch.ones(2)}, "one element"),
        ({"momentum": 1.0}, "momentum must"),
        ({"ns_steps": 0}, "ns_steps must"),
        ({"target_loss": float("nan")}, "target_loss must"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        EFMuon([nn.Parameter(torch.ones(2, 2))], **settings)
    with pytest.raises(ValueError, match="sizes that sum to 2"):
        EFMuon([{"params": [nn.Parameter(torch.ones(2, 2))], "blocks": (1, 2)}])
    W = nn.Parameter(torch.ones(2, 2))
    W.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match="no use for it"):
        EFMuon([W]).step(loss=1.0)


def test_copies_keep_their_settings() -> None:
    W = nn.Parameter(matrix(3, 2))
    optimizer = EFMuon([W], lr=1.0, feedback=False, target_loss=0.0)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):  # noqa: S301
        for p in (W, other.param_groups[0]["params"][0]):
            p.grad = matrix(3, 2, seed=1)
        directions = [one.directions(one.param_groups[0], one.param_groups[0]["params"]) for one in (optimizer, other)]
        assert torch.equal(directions[0][0], directions[1][0])
        other.step(loss=1.0)
        assert {name for state in other.state.values() for name in state} == {"momentum_buffer"}
    assert not optimizer.state


def test_sparse_gradients_are_refused() -> None:
    W = nn.Parameter(matrix(3, 2))
    W.grad = matrix(3, 2).to_sparse()
    with pytest.raises(TypeError, match="sparse=False"):
        EFMuon([W]).step()
