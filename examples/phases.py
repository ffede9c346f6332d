"""What the schedule does: AdamW at three peak rates, and at the middle one with disturbed losses."""

import os
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from warmgap.torch import AdaptiveWarmup, split_parameters

STEPS = 150
text = torch.tensor(list(Path(os.__file__).read_bytes()))  # 40 kB of Python


class ByteModel(nn.Module):
    """Predicts each byte from the eight before it; called with bytes, it returns the mean loss."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(256, 16), nn.Linear(64, 256)
        self.hidden = nn.Sequential(nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU())

    def forward(self, tokens):
        before = self.embedding(tokens.unfold(1, 8, 1)[:, :-1]).flatten(2)
        return nn.functional.cross_entropy(self.head(self.hidden(before)).flatten(0, 1), tokens[:, 8:].flatten())


def train(peak, seen=None):
    """Train at a peak rate; the losses that the schedule saw, the factors of two roles, the events."""
    torch.manual_seed(0)
    model = ByteModel()
    optimizer = torch.optim.AdamW(split_parameters(model), lr=peak)
    scheduler = AdaptiveWarmup(optimizer, total_iters=STEPS)
    losses, hidden, others = [], [], []
    for step in range(STEPS):
        batch = torch.stack([text[start : start + 40] for start in torch.randint(0, len(text) - 40, (8,))])
        loss = model(batch)
        loss.backward()
        losses.append(loss.item() if seen is None else seen(step, loss.item()))
        scheduler.observe(losses[-1])
        optimizer.step()
        rate = optimizer.param_groups[0]["lr"]
        hidden.append(rate * scheduler.cap.share_at(rate) / peak)
        others.append(optimizer.param_groups[1]["lr"] / peak)
        scheduler.step()
        optimizer.zero_grad()
    return losses, hidden, others, scheduler.events


def disturbed(step, loss):
    """A spike at step 30, a NaN at 45, and losses two nats higher from step 70 to 99."""
    return {30: 20.0, 45: float("nan")}.get(step, loss + 2.0 if 70 <= step < 100 else loss)


runs = {f"peak {peak:g}": train(peak) for peak in (2e-3, 6e-3, 1.8e-2)}
runs["peak 0.006, losses disturbed"] = train(6e-3, disturbed)
figure = Figure(figsize=(11.0, 4.2), layout="constrained")
axes = figure.subplots(2, len(runs), sharex=True, sharey="row")
for column, (name, (losses, hidden, others, events)) in enumerate(runs.items()):
    axes[0, column].plot(losses, color="0.4", linewidth=0.8)
    axes[0, column].set(title=name, ylim=(1.5, 6.5))
    axes[1, column].plot(others, "--", label="embedding, head, norms, biases")
    axes[1, column].plot(hidden, label="hidden matrices, largest directions")
    axes[1, column].set(xlabel="optimizer step", ylim=(0.0, 1.05))
    for event in events:
        axes[1, column].axvline(event.step, color="tab:red", linewidth=0.6, alpha=0.5)
    print(name, *events, sep="\n  ")
axes[0, 0].set_ylabel("loss")
axes[1, 0].set_ylabel("rate / peak")
axes[1, 2].legend(fontsize="x-small", frameon=False, loc=(0.02, 0.45))
figure.savefig("phases.png", dpi=110)
