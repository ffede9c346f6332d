"""The unified assumption along PyTorch runs whose gradients and losses are known."""

import math

import pytest
import torch
from torch import nn

from warmgap.torch import TrajectoryChecker


class Quadratic(nn.Module):
    """`||w - shift||^2/2` of a batch that is its shift."""

    def __init__(self, start: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, shift: torch.Tensor) -> torch.Tensor:
        return 0.5 * (self.w - shift).square().sum()


def test_it_is_what_one_computes_by_hand_on_each_points_own_batch() -> None:
    model = Quadratic([5.0, 1.0])
    checker = TrajectoryChecker(model)
    shifts = [torch.tensor([s, 0.0], dtype=torch.float64) for s in (1.0, 2.0, 3.0)]
    for shift in shifts:
        checker.record(lambda shift=shift: model(shift))  # type: ignore[misc]
    with torch.no_grad():
        model.w.zero_()
    found = checker.finalize()
    for index, s in enumerate((1.0, 2.0, 3.0)):
        assert found.inner[index] == pytest.approx((5.0 - s) * 5.0 + 1.0)
        assert found.progress[index] == pytest.approx(0.5 * ((5.0 - s) ** 2 + 1.0 - s**2))
    by_gradient = checker.finalize(progress="gradient")
    assert by_gradient.progress.tolist() == pytest.approx([17.0, 10.0, 5.0])


def test_a_convex_run_needs_no_c2() -> None:
    model = Quadratic([3.0, -2.0])
    checker = TrajectoryChecker(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(60):
        checker.record(lambda: model(torch.zeros(2)))
        optimizer.zero_grad()
        model(torch.zeros(2)).backward()
        optimizer.step()
    assert len(checker) == 60
    found = checker.finalize()
    assert found.c2(1.0) == pytest.approx(0.0, abs=1e-9)
    assert 1.0 <= found.largest_c1 <= 2.0


def test_nothing_of_the_run_is_changed_and_dropout_is_the_same_twice() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    batch = torch.randn(16, 4)
    model(batch).square().mean().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    buffers = [b.clone() for b in model.buffers()]
    checker = TrajectoryChecker(model)
    for _ in range(2):
        checker.record(lambda: model(batch).square().mean())
    before = torch.get_rng_state()
    found = checker.finalize()
    # The weights never moved: with the same dropout the loss at the reference is the same.
    assert found.progress.tolist() == [0.0, 0.0]
    assert found.inner == pytest.approx([0.0, 0.0], abs=1e-12)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, model.parameters(), strict=True) if p.grad is not None)
    assert all(torch.equal(kept, b) for kept, b in zip(buffers, model.buffers(), strict=True))


def test_a_frozen_or_unused_parameter_takes_no_part() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1), "frozen": nn.Linear(2, 1)})
    model["frozen"].requires_grad_(False)
    checker = TrajectoryChecker(model)
    for _ in range(2):
        checker.record(lambda: model["used"](torch.ones(3, 2)).square().mean())
    assert checker.finalize(progress="gradient").progress[0] > 0.0


def test_bad_input() -> None:
    model = Quadratic([1.0])
    checker = TrajectoryChecker(model)
    with pytest.raises(ValueError, match="at least two points, got 0"):
        checker.finalize()
    with pytest.raises(TypeError, match=r"got float; leave out \.item\(\)"):
        checker.record(lambda: 1.0)  # type: ignore[arg-type, return-value]
    for _ in range(2):
        checker.record(lambda: model(torch.zeros(1)))
    with pytest.raises(ValueError, match="progress must be"):
        checker.finalize(progress="speed")  # type: ignore[arg-type]
    with torch.no_grad():
        model.w.fill_(math.nan)
    with pytest.raises(ValueError, match="the reference, are not finite"):
        checker.finalize()
    with pytest.raises(ValueError, match="no parameter of the model needs a gradient"):
        TrajectoryChecker(nn.ReLU())
