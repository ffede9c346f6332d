"""Half-space learning: does the gradient point to where SGD ends? The unified assumption over three seeds."""

import torch
from torch import nn

from warmgap.smoothness import pooled, unified_figure
from warmgap.torch import TrajectoryChecker


def train(seed):
    torch.manual_seed(seed)
    points, truth = torch.randn(2000, 20), torch.randn(20)
    labels = torch.where(torch.rand(2000) < 0.1, -1.0, 1.0) * torch.sign(points @ truth)  # a tenth are wrong
    model = nn.Linear(20, 1, bias=False)
    nn.init.normal_(model.weight, std=3.0)  # a start that may point the wrong way
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    checker = TrajectoryChecker(model)

    def loss_on(batch):
        return torch.sigmoid(-labels[batch] * model(points[batch]).squeeze(1)).mean()  # smooth, not convex

    for step in range(600):
        batch = torch.randint(2000, (100,))
        if step % 20 == 0:
            checker.record(lambda batch=batch: loss_on(batch))
        optimizer.zero_grad()
        loss_on(batch).backward()
        optimizer.step()
    return checker.finalize()


checks = [train(seed) for seed in range(3)]
everything = pooled(checks)
for c1 in (0.1, 0.5, 1.0):
    print(f"c1 {c1}: c2 {everything.c2(c1):.4f}, outliers {everything.outliers(c1):.0%}")
unified_figure(checks, 0.1).savefig("half-space.png", dpi=110)
