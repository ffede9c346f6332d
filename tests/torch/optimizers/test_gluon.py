"""Gluon against its paper."""

from typing import Any

import pytest
import torch
from tests.torch.optimizers import references
from tests.torch.optimizers.problem import assert_close, copies, drive, drive_reference, parameters

from warmgap.torch.norms import Spectral
from warmgap.torch.optimizers import Gluon, Scion

SHAPES = [(6, 4), (3, 2, 2, 2), (7, 3), (5,)]
KINDS = ["matrix", "conv", "head", "bias"]
RULES = ["spectral", "spectral", "sign", "rms"]


def groups_of(params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": [p], "kind": kind} for p, kind in zip(params, KINDS, strict=True)]


@pytest.mark.parametrize(("L0", "L1"), [(2.0, 1.5), (0.0, 4.0), (3.0, 0.0)])
def test_the_adaptive_radii_follow_the_paper(L0: float, L1: float) -> None:
    params = parameters(SHAPES)
    xs = copies(params)
    reference = references.gluon(xs, RULES, lr=0.5, momentum=0.7, L0=L0, L1=L1, weight_decay=0.1)
    expected = drive_reference(reference, xs)
    optimizer = Gluon(groups_of(params), lr=0.5, momentum=0.7, L0=L0, L1=L1, weight_decay=0.1, exact=True)
    assert_close(drive(optimizer, params), expected, 1e-9)
    assert {name for state in optimizer.state.values() for name in state} == {"momentum_buffer"}


def test_with_fixed_radii_and_no_momentum_it_is_unconstrained_scion() -> None:
    ours, theirs = parameters(SHAPES), parameters(SHAPES)
    settings = {"lr": 0.01, "momentum": 0.0, "radius": 2.0, "embedding_radius": 3.0, "exact": True}
    expected = drive(Scion(groups_of(theirs), constrained=False, **settings), theirs)  # type: ignore[arg-type]
    assert_close(drive(Gluon(groups_of(ours), **settings), ours), expected, 1e-12)  # type: ignore[arg-type]


def test_theorem_1_descends_on_a_function_whose_constants_are_known() -> None:
    # f = ||X - A||_F^2 / 2 has a gradient that is Lipschitz from the spectral to the nuclear norm with constant min(m,
    # n), and the layer's
    # norm is sqrt(n / m) times the spectral one: L0 = min(m, n) * m / n, L1 = 0. Then f falls by at least dual^2 / (2
    # L0) a step.
    rows, columns = 6, 4
    (x,) = parameters([(rows, columns)])
    target = torch.ones(rows, columns, dtype=torch.float64)
    L0 = columns * rows / columns
    optimizer = Gluon([{"params": [x], "L0": L0, "L1": 0.0}], lr=1.0, momentum=0.0, exact=True)
    norm = Spectral((columns / rows) ** 0.5)
    for _ in range(20):
        before = (x.detach() - target).square().sum() / 2
        x.grad = x.detach() - target
        dual = norm.dual(x.grad)
        optimizer.step()
        after = (x.detach() - target).square().sum() / 2
        assert after <= before - dual**2 / (2 * L0) + 1e-12


def test_a_stack_of_experts_has_a_radius_for_each() -> None:
    experts = parameters([(4, 6), (4, 6)])
    stack = torch.nn.Parameter(torch.stack(copies(experts)))
    groups: list[dict[str, Any]] = [{"params": experts}, {"params": [stack], "kind": "matrix"}]
    optimizer = Gluon(groups, lr=1.0, L0=1.0, L1=2.0, exact=True)
    for p in (*experts, stack):
        p.grad = p.detach().sin()
    optimizer.step()
    assert_close([stack.detach()], [torch.stack(copies(experts))], 1e-12)


def test_constants_that_say_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="both 0"):
        Gluon(parameters([(3, 2)]), L0=0.0, L1=0.0)
    with pytest.raises(ValueError, match="L1"):
        Gluon(parameters([(3, 2)]), L0=1.0, L1=-1.0)


def test_dual_norms_of_small_half_precision_gradients_do_not_vanish() -> None:
    heads = [torch.nn.Parameter(torch.zeros(4, 768, dtype=dtype)) for dtype in (torch.float16, torch.float32)]
    for p in heads:
        p.grad = torch.full_like(p, 1e-5)
        Gluon([{"params": [p], "kind": "head"}], lr=1.0, L0=1e-7, L1=0.0).step()
    half, single = heads
    assert single.all()
    torch.testing.assert_close(half.float(), single.detach(), rtol=2e-2, atol=0, check_dtype=False)
