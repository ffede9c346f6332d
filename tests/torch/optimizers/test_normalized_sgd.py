"""Normalized SGD against its formula."""

import pytest
import torch
from tests.torch.optimizers import references
from tests.torch.optimizers.problem import assert_close, copies, drive, drive_reference, parameters

from warmgap.torch.optimizers import NormalizedSGD

SHAPES = [(6, 4), (3, 2, 2, 2), (5,), ()]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_follows_the_formula(momentum: float) -> None:
    params = parameters(SHAPES)
    xs = copies(params)
    expected = drive_reference(references.normalized_sgd(xs, lr=0.3, momentum=momentum, weight_decay=0.2), xs)
    optimizer = NormalizedSGD(params, lr=0.3, momentum=momentum, weight_decay=0.2)
    assert_close(drive(optimizer, params), expected, 1e-12)
    names = {name for state in optimizer.state.values() for name in state}
    assert names == ({"momentum_buffer"} if momentum else set())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_tensor_moves_by_the_rate(dtype: torch.dtype) -> None:
    params = parameters([(40, 30), (50,)], dtype)
    before = copies(params)
    # In half precision the sum of these squares would overflow.
    for p in params:
        p.grad = torch.full_like(p, 300.0)
    NormalizedSGD(params, lr=2.0).step()
    for p, start in zip(params, before, strict=True):
        assert (p.detach().double() - start.double()).norm().item() == pytest.approx(2.0, rel=0.05)
