from __future__ import annotations

from typing import Any

import lion_pytorch
import pytest
import pytorch_optimizer
import torch
from torch import nn

from warmgap.torch import Lion, Muon, NormalizedSGD, Scion, Signum, split_parameters
from warmgap.torch.recognition import optimizer_kappa


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))


ENTRIES = 8 * 16 + 16 * 4  # matrices only: vectors are left out where there are matrices


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda m: Lion(m.parameters(), lr=1e-3), ENTRIES),
        (lambda m: Signum(m.parameters(), lr=1e-3), ENTRIES),
        (lambda m: NormalizedSGD(m.parameters(), lr=1e-3), 2),
        (lambda m: Muon(split_parameters(m, head=m[2]), lr=1e-3), 8),
        (lambda m: Muon(split_parameters(m, head=m[2]), lr=1e-3, second="sign"), 8 + 16 * 4),
        (lambda m: torch.optim.Muon([m[0].weight, m[2].weight], lr=1e-3), 12),
        (lambda m: lion_pytorch.Lion(m.parameters(), lr=1e-3), ENTRIES),
        (lambda m: pytorch_optimizer.Lion(m.parameters(), lr=1e-3), ENTRIES),
        (
            lambda m: pytorch_optimizer.Muon(
                [
                    {"params": [m[0].weight], "use_muon": True},
                    {"params": [m[0].bias, *m[1].parameters(), *m[2].parameters()], "use_muon": False},
                ],
                lr=1e-3,
            ),
            8,
        ),
    ],
)
def test_the_norm_is_told_by_what_the_optimizer_is(make: Any, expected: float) -> None:
    assert optimizer_kappa(make(model())) == expected


def test_scion_mixes_norms() -> None:
    net = model()
    assert optimizer_kappa(Scion(split_parameters(net, head=net[2]), lr=1e-3)) >= 8


def test_a_subclass_is_what_its_base_is() -> None:
    class MyLion(lion_pytorch.Lion):  # type: ignore[misc]
        pass

    assert optimizer_kappa(MyLion(model().parameters(), lr=1e-3)) == ENTRIES


def test_vectors_count_where_there_is_nothing_else() -> None:
    assert optimizer_kappa(Lion([nn.Parameter(torch.zeros(7))], lr=1e-3)) == 7


def test_a_given_norm_is_used_for_every_block() -> None:
    optimizer = torch.optim.AdamW(model().parameters(), lr=1e-3)
    assert optimizer_kappa(optimizer, "spectral") == 12
    with pytest.raises(ValueError, match="a step of AdamW is not known here"):
        optimizer_kappa(optimizer)
