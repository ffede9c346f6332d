"""A multilayer perceptron on scanned digits: the published check of the unified assumption, over three seeds."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from warmgap.smoothness import pooled, unified_figure
from warmgap.torch import TrajectoryChecker

digits = load_digits()
images, labels = torch.tensor(digits.data / 8 - 1, dtype=torch.float32), torch.tensor(digits.target)


def train(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    checker = TrajectoryChecker(model)

    def loss_on(batch):
        return nn.functional.cross_entropy(model(images[batch]), labels[batch])

    for _ in range(30):  # epochs
        for index, batch in enumerate(torch.randperm(len(labels)).split(128)):
            if index == 12:
                checker.record(lambda batch=batch: loss_on(batch))
            optimizer.zero_grad()
            loss_on(batch).backward()
            optimizer.step()
    return checker


checkers = [train(seed) for seed in range(3)]
for progress, c1 in (("gap", 0.1), ("gradient", 0.01)):
    checks = [checker.finalize(progress=progress) for checker in checkers]
    everything = pooled(checks)
    print(
        f"P the {progress}, c1 {c1}: c2 {everything.c2(c1):.4f}, outliers {everything.outliers(c1):.0%}, "
        f"largest c1 without c2 {everything.largest_c1:.3f}"
    )
    unified_figure(checks, c1).savefig(f"mlp-{progress}.png", dpi=110)
