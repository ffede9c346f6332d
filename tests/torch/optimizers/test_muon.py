"""Muon against its papers and against torch; which rule a parameter takes."""

from typing import Any

import pytest
import torch
from tests.torch.optimizers import references
from tests.torch.optimizers.problem import assert_close, copies, drive, drive_reference, parameters
from torch import nn

from warmgap.torch.optimizers import Lion, Muon, Signum
from warmgap.torch.split import split_parameters

MATRICES = [(8, 5), (4, 9), (6, 6)]


@pytest.mark.parametrize("scale", ["rms", "spectral", "none"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_with_an_exact_factor_it_follows_the_papers(scale: str, nesterov: bool) -> None:
    params = parameters(MATRICES)
    xs = copies(params)
    settings = {"lr": 0.05, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.2, "scale": scale}
    expected = drive_reference(references.muon(xs, **settings), xs)  # type: ignore[arg-type]
    assert_close(drive(Muon(params, exact=True, **settings), params), expected, 1e-9)  # type: ignore[arg-type]


@pytest.mark.parametrize(("scale", "adjust"), [("rms", "match_rms_adamw"), ("spectral", "original")])
@pytest.mark.parametrize("nesterov", [True, False])
def test_it_follows_torchs_muon_to_bfloat16_rounding(scale: str, adjust: str, nesterov: bool) -> None:
    shapes = [(48, 32), (32, 80)]
    ours, theirs = parameters(shapes, torch.float32), parameters(shapes, torch.float32)
    peer = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, nesterov=nesterov, adjust_lr_fn=adjust)
    expected = drive(peer, theirs, 8)
    # A step's entries are at most lr * scale, and bfloat16 keeps eight bits of each.
    tolerance = 8 * 0.01 * 0.2 * 80**0.5 * 2**-8
    result = drive(Muon(ours, lr=0.01, nesterov=nesterov, scale=scale), ours, 8)  # type: ignore[arg-type]
    assert_close(result, expected, tolerance)


def test_the_adamw_rule_follows_its_paper() -> None:
    params = parameters([(7, 3), (5,), ()])
    xs = copies(params)
    expected = drive_reference(references.adamw(xs, lr=0.05, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2), xs)
    groups = [{"params": params, "kind": "other"}]
    optimizer = Muon(groups, lr=1.0, second_lr=0.05, second_betas=(0.8, 0.9), second_eps=1e-6, weight_decay=0.2)
    assert_close(drive(optimizer, params), expected, 1e-9)
    assert {name for state in optimizer.state.values() for name in state} == {"step", "exp_avg", "exp_avg_sq"}


def test_the_sign_rules_are_lion_and_signum() -> None:
    shapes = [(7, 3), (5,)]
    for second, peer in (
        ("lion", lambda params: Lion(params, lr=0.02, weight_decay=0.1)),
        ("sign", lambda params: Signum(params, lr=0.02, weight_decay=0.1)),
    ):
        ours, theirs = parameters(shapes), parameters(shapes)
        groups = [{"params": ours, "kind": "embedding"}]
        expected = drive(peer(theirs), theirs)
        assert_close(drive(Muon(groups, lr=0.1, second=second), ours), expected, 1e-12)  # type: ignore[arg-type]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(6, 6, 3, padding=1)
        self.hidden = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x)
        x = x + self.conv(x.mT).mT
        logits: torch.Tensor = self.head(self.norm(x + self.hidden(x)))
        return logits


def test_the_rule_follows_from_the_kind() -> None:
    optimizer = Muon(split_parameters(Net()), lr=0.1)
    taken = {group["kind"]: (group["rule"], group["norm"], group["lr"]) for group in optimizer.param_groups}
    assert taken == {
        "matrix": ("spectral", "spectral", 0.1),
        "conv": ("spectral", "spectral", 0.1),
        "embedding": ("adamw", None, 0.1),
        "head": ("adamw", None, 0.1),
        "norm": ("adamw", None, 0.1),
        "bias": ("adamw", None, 0.1),
    }
    decay = {group["kind"]: group["weight_decay"] for group in optimizer.param_groups}
    assert (decay["matrix"], decay["head"], decay["norm"], decay["bias"]) == (0.1, 0.1, 0.0, 0.0)


@pytest.mark.parametrize(
    ("second", "norm", "rate"), [("adamw", None, 0.1), ("lion", "max", 0.02), ("sign", "max", 0.02)]
)
def test_the_second_rules_norm_and_default_rate(second: str, norm: str | None, rate: float) -> None:
    group = Muon([{"params": parameters([(3,)]), "kind": "bias"}], lr=0.1, second=second).param_groups[0]  # type: ignore[arg-type]
    assert (group["norm"], group["lr"]) == (norm, pytest.approx(rate))
    assert not {"nesterov", "scale", "ns_steps", "exact"} & group.keys()


def test_a_group_may_name_its_rule_and_settings() -> None:
    matrix, vector = parameters([(4, 3), (3,)])
    optimizer = Muon(
        [
            {"params": [matrix], "rule": "lion", "lr": 0.3, "betas": (0.5, 0.6)},
            {"params": [vector], "rule": "sign", "momentum": 0.7},
        ],
        lr=0.1,
    )
    first, second = optimizer.param_groups
    assert (first["norm"], first["lr"], first["betas"]) == ("max", 0.3, (0.5, 0.6))
    assert (second["norm"], second["momentum"]) == ("max", 0.7)


def test_bare_parameters_must_be_matrices() -> None:
    with pytest.raises(ValueError, match="split_parameters"):
        Muon(Net().parameters())
    assert Muon(parameters(MATRICES)).param_groups[0]["norm"] == "spectral"


def test_without_rms_scaling_the_second_rate_must_be_given() -> None:
    with pytest.raises(ValueError, match="second_lr"):
        Muon(split_parameters(Net()), lr=0.02, scale="spectral")
    with pytest.raises(ValueError, match="rule"):
        Muon([{"params": parameters([(3,)]), "rule": "sgd"}])


def test_fused_matrices_are_orthogonalised_one_by_one_along_their_output() -> None:
    shapes = [(4, 6), (2, 6), (3, 6)]
    apart = parameters(shapes)
    fused = nn.Parameter(torch.cat(copies(apart)))
    stored = nn.Parameter(fused.detach().T.contiguous())
    expected = Muon(apart, lr=0.1, exact=True)
    grads = [torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for shape in shapes]
    for p, g in zip(apart, grads, strict=True):
        p.grad = g
    fused.grad = torch.cat(grads)
    stored.grad = fused.grad.T.contiguous()
    expected.step()
    groups: list[dict[str, Any]] = [
        {"params": [fused], "kind": "matrix", "blocks": (4, 2, 3)},
        {"params": [stored], "kind": "matrix", "blocks": (4, 2, 3), "transposed": True},
    ]
    Muon(groups, lr=0.1, exact=True).step()
    assert_close([fused.detach(), stored.detach().T], [torch.cat(copies(apart))] * 2, 1e-12)


def test_a_stack_of_experts_is_its_matrices_and_a_convolution_one_matrix() -> None:
    experts = parameters([(4, 6), (4, 6), (4, 6)])
    stack = nn.Parameter(torch.stack(copies(experts)))
    conv, flat = nn.Parameter(stack.detach().clone()), nn.Parameter(stack.detach().clone().flatten(1))
    groups: list[dict[str, Any]] = [
        {"params": [*experts, flat]},
        {"params": [stack], "kind": "matrix"},
        {"params": [conv], "kind": "conv"},
    ]
    optimizer = Muon(groups, lr=0.1, exact=True)
    for p in (*experts, stack, conv, flat):
        p.grad = p.detach().sin()
    optimizer.step()
    assert_close([stack.detach()], [torch.stack(copies(experts))], 1e-12)
    assert_close([conv.detach().flatten(1)], [flat.detach()], 1e-12)


def test_it_trains_a_model() -> None:
    torch.manual_seed(0)
    net = Net()
    optimizer = Muon(split_parameters(net), lr=0.02)
    x = torch.randint(0, 11, (8, 16))
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(net(x).flatten(0, 1), ((x * 3) % 11).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
