from __future__ import annotations

from typing import Any

import bitsandbytes
import lion_pytorch
import muon
import pytest
import pytorch_optimizer
import torch
from torch import nn

from warmgap.torch import Gluon, Lion, Muon, NormalizedSGD, Scion, Signum, split_parameters
from warmgap.torch.recognition import norm_blocks, optimizer_kappa


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))


ENTRIES = 8 * 16 + 16 * 4  # matrices only: vectors are left out where there are matrices


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda m: Lion(m.parameters(), lr=1e-3), ENTRIES),
        (lambda m: Signum(m.parameters(), lr=1e-3), ENTRIES),
        (lambda m: NormalizedSGD(m.parameters(), lr=1e-3), 2),
        # 8 of the hidden matrix and 4 of the head, which AdamW steps.
        (lambda m: Muon(split_parameters(m, head=m[2]), lr=1e-3), 8 + 4),
        (lambda m: Muon(split_parameters(m, head=m[2]), lr=1e-3, second="sign"), 8 + 16 * 4),
        (lambda m: torch.optim.Muon([m[0].weight, m[2].weight], lr=1e-3), 12),
        (lambda m: lion_pytorch.Lion(m.parameters(), lr=1e-3), ENTRIES),
        (lambda m: pytorch_optimizer.Lion(m.parameters(), lr=1e-3), ENTRIES),
        (lambda m: bitsandbytes.optim.Lion(m.parameters(), lr=1e-3), ENTRIES),
        (lambda m: bitsandbytes.optim.Lion8bit(m.parameters(), lr=1e-3), ENTRIES),
        (lambda m: muon.SingleDeviceMuon([m[0].weight, m[2].weight], lr=1e-3), 12),
        (
            lambda m: muon.SingleDeviceMuonWithAuxAdam(
                [
                    {"params": [m[0].weight], "use_muon": True},
                    {"params": [m[0].bias, *m[1].parameters(), *m[2].parameters()], "use_muon": False},
                ],
            ),
            8 + 4,
        ),
        (
            lambda m: pytorch_optimizer.Muon(
                [
                    {"params": [m[0].weight], "use_muon": True},
                    {"params": [m[0].bias, *m[1].parameters(), *m[2].parameters()], "use_muon": False},
                ],
                lr=1e-3,
            ),
            8 + 4,
        ),
    ],
)
def test_the_norm_is_told_by_what_the_optimizer_is(make: Any, expected: float) -> None:
    assert optimizer_kappa(make(model())) == expected


def test_groups_of_unknown_norm_hide_no_others() -> None:
    net = model()
    groups: list[dict[str, Any]] = [{"params": [net[0].weight]}, {"params": [net[2].weight], "norm": "spectral"}]
    for some in (groups, groups[::-1]):
        assert [name for name, _, _ in norm_blocks(torch.optim.AdamW(some, lr=1e-3))] == ["spectral"]


def test_the_norm_may_be_said() -> None:
    optimizer = torch.optim.AdamW(model().parameters(), lr=1e-3)
    assert {name for name, _, _ in norm_blocks(optimizer, "spectral")} == {"spectral"}
    with pytest.raises(ValueError, match="norm must be 'auto' or one of"):
        norm_blocks(optimizer, "nuclear")


@pytest.mark.parametrize("cls", [Scion, Gluon])
def test_the_kappa_of_scaled_norms_is_divided_by_the_scale_squared(cls: Any) -> None:
    net = model()
    # 8 sqrt(16 / 8)^2 of the hidden matrix; the head's max norm is scaled by its 16 inputs.
    expected = 8 * 16 / 8 + 16 * 4 / 16**2
    assert optimizer_kappa(cls(split_parameters(net, head=net[2]), lr=1e-3)) == pytest.approx(expected)


@pytest.mark.parametrize(("vocabulary", "tied", "expected"), [(32_000, True, 65_280), (50_304, False, 66_048)])
def test_the_published_number_counts_the_embedding(vocabulary: int, tied: bool, expected: int) -> None:
    shapes = [(768, 768)] * 4 + [(2048, 768)] * 2 + [(768, 2048)]
    hidden = [nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes * 12]
    tables = [nn.Parameter(torch.empty(vocabulary, 768, device="meta")) for _ in range(1 if tied else 2)]
    norms = [nn.Parameter(torch.empty(768, device="meta")) for _ in range(25)]
    groups: list[dict[str, Any]] = [
        {"params": hidden, "kind": "matrix"},
        {"params": tables, "kind": "embedding"},
        {"params": norms, "kind": "norm"},
    ]
    assert optimizer_kappa(Muon(groups, lr=1e-3)) == expected


def test_a_subclass_is_what_its_base_is() -> None:
    class MyLion(lion_pytorch.Lion):  # type: ignore[misc]
        pass

    assert optimizer_kappa(MyLion(model().parameters(), lr=1e-3)) == ENTRIES


def test_vectors_count_where_there_is_nothing_else() -> None:
    assert optimizer_kappa(Lion([nn.Parameter(torch.zeros(7))], lr=1e-3)) == 7


def test_a_parameter_of_several_matrices_counts_as_these() -> None:
    net = nn.Sequential(nn.Linear(8, 24, bias=False), nn.Linear(24, 3, bias=False))
    split = split_parameters(net, fused={"0": 3})
    assert optimizer_kappa(Muon(split, lr=1e-3)) == 3 * 8 + 3
    thin = nn.Sequential(nn.Linear(16, 12, bias=False), nn.Linear(12, 3, bias=False))
    assert optimizer_kappa(Muon(split_parameters(thin, fused={"0": (10, 1, 1)}), lr=1e-3)) == 10 + 1 + 1 + 3
    stack: dict[str, Any] = {"params": [nn.Parameter(torch.zeros(4, 16, 16))], "kind": "matrix"}
    assert optimizer_kappa(Muon([stack], lr=1e-3)) == 4 * 16
    # Outputs 2, inputs 3 * 2 * 2.
    upward: dict[str, Any] = {"params": [nn.Parameter(torch.zeros(3, 2, 2, 2))], "kind": "conv", "transposed": True}
    assert optimizer_kappa(Muon([upward], lr=1e-3)) == 2
    # The class tells the norm, and steps what is fused as one matrix.
    assert optimizer_kappa(torch.optim.Muon(split[:1], lr=1e-3)) == 8
    assert optimizer_kappa(torch.optim.AdamW(split, lr=1e-3), "spectral") == 3 * 8 + 3


def test_without_a_constrained_parameter_there_is_no_kappa() -> None:
    table: dict[str, Any] = {"params": [nn.Parameter(torch.zeros(5, 3))], "kind": "embedding"}
    optimizer = Muon([table], lr=1e-3)
    with pytest.raises(ValueError, match=r"none of the 1 parameter groups of Muon .* give norm='spectral'"):
        optimizer_kappa(optimizer)
    assert optimizer_kappa(optimizer, "max") == 15


def test_a_given_norm_is_used_for_every_block() -> None:
    optimizer = torch.optim.AdamW(model().parameters(), lr=1e-3)
    assert optimizer_kappa(optimizer, "spectral") == 12
    with pytest.raises(ValueError, match="a step of AdamW is not known here"):
        optimizer_kappa(optimizer)


@pytest.mark.parametrize("rule", ["sign", "row"])
def test_weights_stored_with_inputs_first_count_as_those_with_outputs_first(rule: Any) -> None:
    found = []
    for shape, transposed in (((5, 3), False), ((3, 5), True)):
        groups: list[dict[str, Any]] = [
            {"params": [nn.Parameter(torch.ones(6, 4))], "kind": "matrix"},
            {"params": [nn.Parameter(torch.ones(shape))], "kind": "head", "transposed": transposed},
        ]
        found.append(optimizer_kappa(Scion(groups, embedding_rule=rule)))
    assert found[0] == found[1]
