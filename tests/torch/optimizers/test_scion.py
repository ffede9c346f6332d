"""Scion against its paper; the norms and radii that groups take; the ball."""

from typing import Any

import pytest
import torch
from tests.torch.optimizers import references
from tests.torch.optimizers.problem import assert_close, copies, drive, drive_reference, parameters
from torch import nn

from warmgap.torch.norms import Frobenius, Max, Norm, Spectral
from warmgap.torch.optimizers import Gluon, Scion
from warmgap.torch.split import split_parameters

SHAPES = [(6, 4), (3, 2, 2, 2), (7, 3), (5, 4), (5,)]
KINDS = ["matrix", "conv", "embedding", "head", "bias"]


@pytest.mark.parametrize("rule", ["sign", "row"])
@pytest.mark.parametrize("constrained", [True, False])
def test_it_follows_the_paper(rule: str, constrained: bool) -> None:
    params = parameters(SHAPES)
    xs = copies(params)
    rules = ["spectral", "spectral", rule, rule, "rms"]
    reference = references.scion(
        xs, rules, lr=0.05, momentum=0.8, radii=[2.0, 2.0, 5.0, 5.0, 2.0], constrained=constrained
    )
    expected = drive_reference(reference, xs)
    groups: list[dict[str, Any]] = [{"params": [p], "kind": kind} for p, kind in zip(params, KINDS, strict=True)]
    optimizer = Scion(groups, 0.05, 0.8, 2.0, 5.0, rule, constrained=constrained, exact=True)  # type: ignore[arg-type]
    assert_close(drive(optimizer, params), expected, 1e-9)
    assert {name for state in optimizer.state.values() for name in state} == {"momentum_buffer"}


def test_the_norm_and_radius_follow_from_the_kind_or_the_group() -> None:
    groups: list[dict[str, Any]] = [
        {"params": [p], "kind": kind} for p, kind in zip(parameters(SHAPES), KINDS, strict=True)
    ]
    optimizer = Scion([*groups, {"params": parameters([(3, 2)]), "kind": "matrix", "rule": "row", "radius": 7.0}])
    assert [(group["norm"], group["radius"]) for group in optimizer.param_groups] == [
        ("spectral", 50.0),
        ("spectral", 50.0),
        ("max", 3000.0),
        ("max", 3000.0),
        ("frobenius", 50.0),
        (None, 7.0),
    ]


def test_the_constrained_form_stays_in_the_ball() -> None:
    matrix, head, bias = parameters([(6, 4), (5, 4), (5,)])
    groups: list[dict[str, Any]] = [
        {"params": [p], "kind": kind} for p, kind in ((matrix, "matrix"), (head, "head"), (bias, "bias"))
    ]
    optimizer = Scion(groups, lr=0.3, radius=2.0, embedding_radius=4.0, exact=True)
    # From inside, along a gradient that never changes, towards the boundary.
    for p in (matrix, head, bias):
        p.data.mul_(0.01)
        p.grad = torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(3))
    norms: list[tuple[Norm, nn.Parameter, float]] = [
        (Spectral((4 / 6) ** 0.5), matrix, 2.0),
        (Max(4.0), head, 4.0),
        (Frobenius(5**-0.5), bias, 2.0),
    ]
    for _ in range(60):
        optimizer.step()
        assert all(norm.norm(p.detach()) <= radius * (1 + 1e-9) for norm, p, radius in norms)
    assert [norm.norm(p.detach()).item() for norm, p, _ in norms] == pytest.approx([2.0, 4.0, 2.0])


def test_the_constrained_form_holds_norms_and_biases_of_a_split_too() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))

    def decays(optimizer: torch.optim.Optimizer) -> list[float]:
        return [group["weight_decay"] for group in optimizer.param_groups]

    split = split_parameters(net, head="2")
    assert [group["kind"] for group in split] == ["matrix", "head", "norm", "bias"]
    assert decays(Scion(split)) == [1.0] * 4
    assert decays(Scion(split, weight_decay=0.5)) == [0.5] * 4
    assert decays(Scion(split, constrained=False)) == [0.0] * 4
    assert decays(Scion(split, constrained=False, weight_decay=0.5)) == [0.5, 0.5, 0.0, 0.0]
    own = [{**group, "constrained": group["kind"] != "norm"} for group in split]
    assert decays(Scion(own)) == [1.0, 1.0, 0.0, 1.0]
    assert decays(Scion([{**group, "weight_decay": 0.25} for group in split])) == [0.25] * 4


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((3, 2, 2, 2), {"kind": "conv"}),
        ((5, 3), {"kind": "matrix"}),
        ((5, 3), {"kind": "matrix", "blocks": (4, 1)}),
        ((5, 3), {"kind": "head"}),
        ((5, 3), {"kind": "head", "rule": "row"}),
        ((3, 2, 2), {"kind": "conv", "rule": "row"}),
    ],
)
@pytest.mark.parametrize("adaptive", [False, True])
def test_weights_stored_with_inputs_first_step_as_those_with_outputs_first(
    shape: tuple[int, ...], settings: dict[str, Any], adaptive: bool
) -> None:
    (plain,) = parameters([shape])
    stored = nn.Parameter(plain.detach().transpose(0, 1).contiguous())
    groups: list[dict[str, Any]] = [
        {"params": [plain], **settings},
        {"params": [stored], "transposed": True, **settings},
    ]
    optimizer = Gluon(groups, lr=0.1, L0=1.0, L1=2.0, exact=True) if adaptive else Scion(groups, lr=0.01, exact=True)
    for _ in range(3):
        for p in (plain, stored):
            p.grad = p.detach().sin()
        optimizer.step()
    assert_close([stored.detach().transpose(0, 1)], [plain.detach()], 1e-12)


def test_a_row_of_a_stack_is_a_row_of_one_matrix() -> None:
    experts = parameters([(4, 6), (4, 6)])
    stack = nn.Parameter(torch.stack(copies(experts)))
    settings = {"kind": "matrix", "rule": "row"}
    optimizer = Scion([{"params": experts, **settings}, {"params": [stack], **settings}], lr=0.01)
    for p in (*experts, stack):
        p.grad = p.detach().sin()
    optimizer.step()
    assert_close([stack.detach()], [torch.stack(copies(experts))], 1e-12)


def test_bare_parameters_must_be_matrices_and_rules_known() -> None:
    with pytest.raises(ValueError, match="split_parameters"):
        Scion(parameters([(3, 2), (3,)]))
    with pytest.raises(ValueError, match="rule"):
        Scion([{"params": parameters([(3, 2)]), "rule": "nuclear"}])


def test_the_root_mean_square_of_a_stack_is_that_of_all_its_entries() -> None:
    (stack,) = parameters([(4, 3, 2)])
    stack.data.zero_()
    stack.grad = torch.randn(4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    Scion([{"params": [stack], "kind": "matrix", "rule": "rms"}], lr=1.0, radius=2.0, constrained=False).step()
    assert stack.detach().square().mean().sqrt().item() == pytest.approx(2.0)
