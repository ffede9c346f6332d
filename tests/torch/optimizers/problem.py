"""A small non-convex problem, the same gradients for an optimizer and its reference."""

from collections.abc import Sequence

import torch
from tests.torch.optimizers.references import Steps
from torch import Tensor, nn


def parameters(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    """Normal parameters of these shapes, the same on every call."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def gradients(xs: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of sum cos(2 x) + x^2 / 4 with an offset that differs from entry to entry."""
    grads = []
    for x in xs:
        offset = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape)
        grads.append(-2 * (2 * x.detach() + offset).sin() + x.detach() / 2)
    return grads


def drive(optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], steps: int = 12) -> list[Tensor]:
    """Step the optimizer; return where it ends."""
    for _ in range(steps):
        for p, g in zip(params, gradients(params), strict=True):
            p.grad = g
        optimizer.step()
    return [p.detach() for p in params]


def drive_reference(reference: Steps, xs: Sequence[Tensor], steps: int = 12) -> list[Tensor]:
    """Step a reference that works on the xs; return where it ends."""
    next(reference)
    for _ in range(steps):
        reference.send(gradients(xs))
    return list(xs)


def copies(params: Sequence[nn.Parameter]) -> list[Tensor]:
    """The parameters' values, for a reference to work on."""
    return [p.detach().clone() for p in params]


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> None:
    """Every entry agrees to an absolute tolerance."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
