"""Lion against its paper and against lion-pytorch."""

import lion_pytorch
import pytest
import torch
from tests.torch.optimizers import references
from tests.torch.optimizers.problem import assert_close, copies, drive, drive_reference, gradients, parameters

from warmgap.torch.optimizers import Lion

SHAPES = [(6, 4), (5,), ()]


def test_it_follows_the_paper() -> None:
    params = parameters(SHAPES)
    xs = copies(params)
    expected = drive_reference(references.lion(xs, lr=0.05, betas=(0.8, 0.95), weight_decay=0.3), xs)
    assert_close(drive(Lion(params, lr=0.05, betas=(0.8, 0.95), weight_decay=0.3), params), expected, 1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_it_equals_lion_pytorch(dtype: torch.dtype, tolerance: float, weight_decay: float) -> None:
    shapes = [(300, 100), (100,)]
    ours, theirs = parameters(shapes, dtype), parameters(shapes, dtype)
    optimizer, peer = (
        cls(params, lr=1e-2, weight_decay=weight_decay) for cls, params in ((Lion, ours), (lion_pytorch.Lion, theirs))
    )
    # Along the same gradients: else the last digit of a weight sooner or later turns a sign.
    for _ in range(50):
        for p, other, g in zip(ours, theirs, gradients(theirs), strict=True):
            p.grad, other.grad = g, g.clone()
        optimizer.step()
        peer.step()
    assert_close(copies(ours), copies(theirs), tolerance)


def test_state_names() -> None:
    params = parameters(SHAPES)
    optimizer = Lion(params)
    drive(optimizer, params, 1)
    assert {name for state in optimizer.state.values() for name in state} == {"exp_avg"}
