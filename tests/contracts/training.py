"""The work that every host does in `test_hosts.py`: prescribed losses, real gradients, and a table of optimizers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes
import lion_pytorch
import muon
import numpy as np
import pytorch_optimizer
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader, Dataset, Subset

from warmgap import Schedule
from warmgap.rules import GapRule, Rule
from warmgap.torch import AdaptiveWarmup, Gluon, Lion, Muon, NormalizedSGD, Scion, Signum

TOTAL = 24
STOP = 8
ROWS = 4  # of a step, over all micro-batches and ranks
PEAKS = (1e-3, 4e-3)
Rates = list[list[float]]

rng = np.random.default_rng(0)
# whole numbers of 2**-10, so that float32 means over rows, micro-batches and ranks are exact
FALLING = [round(1024 * (2.0 + 5.0 * math.exp(-t / 6) + 0.02 * rng.normal())) / 1024 for t in range(TOTAL)]
LOSSES = {
    "falling": FALLING,
    "troubled": [math.nan if t == 3 else 1e30 if t == 6 else loss for t, loss in enumerate(FALLING)],
    "flat": [4.0] * TOTAL,
    "bad": [math.nan if t % 3 == 1 else 1e30 if t == 6 else 6.0 - 0.125 * t for t in range(TOTAL)],
    "never": [math.nan] * TOTAL,
}


class Steps(Dataset[dict[str, Tensor]]):
    """The rows of all steps; the mean of a step's values is its loss.

    Args:
        losses: The loss of each step.
        overflow: The step whose gradients are infinite.
    """

    def __init__(self, losses: list[float], overflow: int | None = None) -> None:
        self.x = torch.randn(len(losses) * ROWS, 6, generator=torch.Generator().manual_seed(0))
        # a loss that is NaN is so by one row alone: on one rank, and in one micro-batch
        self.values = [
            row - (ROWS - 1) / 2 + (loss if row == ROWS - 1 or not math.isnan(loss) else 2.0)
            for loss in losses
            for row in range(ROWS)
        ]
        self.overflow = overflow

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        scale = math.inf if index // ROWS == self.overflow else 1.0
        return {"x": self.x[index], "value": torch.tensor(self.values[index]), "scale": torch.tensor(scale)}


class Network(nn.Module):
    """A model with gradients of a real problem, and a loss that is prescribed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor, value: Tensor, scale: Tensor) -> dict[str, Tensor]:
        error = nn.functional.mse_loss(self.net(x), torch.sin(x.sum(1, keepdim=True)))
        error.register_hook(lambda grad: grad * scale.max())
        return {"loss": value.mean() + (error - error.detach())}


class ClosureMuon(muon.SingleDeviceMuonWithAuxAdam):  # type: ignore[misc] # the package has no types
    """Its `step` takes no closure, which every host but a plain loop gives."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.enable_grad():
            loss = None if closure is None else closure()
        super().step()
        return loss


def of_two_groups(make: Callable[..., Optimizer], *keys: dict[str, Any]) -> Callable[[nn.Module], list[Optimizer]]:
    """One optimizer: matrices in the first group, vectors in the second, each with its own peak and further keys."""

    def build(model: nn.Module) -> list[Optimizer]:
        first, second = keys or ({}, {})
        matrices, vectors = halves(model)
        return [make([{"params": matrices, "lr": PEAKS[0], **first}, {"params": vectors, "lr": PEAKS[1], **second}])]

    return build


def halves(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    parameters = list(model.parameters())
    return [p for p in parameters if p.ndim == 2], [p for p in parameters if p.ndim < 2]


def muon_and_adamw(model: nn.Module) -> list[Optimizer]:
    """Several optimizers under one schedule."""
    matrices, vectors = halves(model)
    return [torch.optim.Muon(matrices, lr=PEAKS[0]), AdamW(vectors, lr=PEAKS[1])]


KINDS = ({"kind": "matrix"}, {"kind": "bias"})
USE_MUON = ({"use_muon": True}, {"use_muon": False})
OPTIMIZERS: dict[str, Callable[[nn.Module], list[Optimizer]]] = {
    "Muon": of_two_groups(Muon, *KINDS),
    "Lion": of_two_groups(Lion),
    "Signum": of_two_groups(Signum),
    "NormalizedSGD": of_two_groups(NormalizedSGD),
    "Scion": of_two_groups(Scion, *KINDS),
    "Gluon": of_two_groups(Gluon, *KINDS),
    "torch.optim.AdamW": of_two_groups(AdamW),
    "torch.optim.Muon and AdamW": muon_and_adamw,
    "lion_pytorch.Lion": of_two_groups(lion_pytorch.Lion),
    "pytorch_optimizer.Lion": of_two_groups(pytorch_optimizer.Lion),
    "pytorch_optimizer.Muon": of_two_groups(pytorch_optimizer.Muon, *USE_MUON),
    "muon.SingleDeviceMuonWithAuxAdam": of_two_groups(ClosureMuon, *USE_MUON),
    "bitsandbytes.optim.Lion": of_two_groups(bitsandbytes.optim.Lion),
    "bitsandbytes.optim.Lion8bit": of_two_groups(lambda groups: bitsandbytes.optim.Lion8bit(groups, min_8bit_size=1)),
}
GAP = GapRule(kappa=300.0, target_loss=0.0, roles="all")  # one factor for all groups
SEVERAL = ("torch.optim.Muon and AdamW",)


@dataclass(frozen=True)
class Work:
    """A training run that every host can make.

    Attributes:
        losses: A name of `LOSSES`.
        optimizer: A name of `OPTIMIZERS`.
        rule: The warm-up rule.
        parts: Micro-batches of a step.
        overflow: The step whose gradients overflow; the run then has a gradient scaler.
        cap: The spectral cap; None leaves the rates to the losses alone.
    """

    losses: str = "falling"
    optimizer: str = "Lion"
    rule: Rule[Any] = GAP
    parts: int = 1
    overflow: int | None = None
    cap: float | None = None

    @property
    def rows(self) -> int:
        """Rows of a micro-batch."""
        return ROWS // self.parts

    def data(self) -> Steps:
        return Steps(LOSSES[self.losses], self.overflow)

    def scaler(self) -> torch.amp.GradScaler | None:
        """A scaler as on a GPU, where there is an overflow to meet."""
        return None if self.overflow is None else torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)

    def expected(self) -> Rates:
        """The rates of the steps made, without a cap: those of the schedule itself on the losses of these steps."""
        schedule = Schedule(TOTAL, self.rule)
        state = schedule.init()
        losses = [loss for step, loss in enumerate(LOSSES[self.losses]) if step != self.overflow]
        if math.isfinite(losses[0]):  # every host sees it before the first step
            state = schedule.first(state, losses[0])
        rates = []
        for loss in losses:
            rates.append([peak * state.factor for peak in PEAKS])
            state = schedule.step(state, loss)
        return rates


@dataclass
class Trained:
    """What a run leaves.

    Attributes:
        rates: The learning rates of each optimizer step, one a group.
        model: The trained model.
    """

    rates: Rates
    model: nn.Module

    @property
    def weights(self) -> list[list[float]]:
        return [p.detach().flatten().tolist() for p in self.model.parameters()]


def watched(model: nn.Module, work: Work) -> tuple[list[Optimizer], Rates]:
    """The optimizers, and the list to which they add the rates of each of their steps."""
    optimizers = OPTIMIZERS[work.optimizer](model)
    rates: Rates = []

    def add(optimizer: Optimizer, *_: Any) -> None:
        if optimizer is optimizers[0]:
            rates.append([])
        rates[-1].extend(float(group["lr"]) for group in optimizer.param_groups)

    for optimizer in optimizers:  # after the step, as the first one may set its rates when it begins
        optimizer.register_step_post_hook(add)
    return optimizers, rates


def pytorch(work: Work, folder: Path, resume: bool = False) -> Trained:
    """The run in a plain loop, on as many ranks as there are."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    model = Network()
    parallel = DistributedDataParallel(model) if ranks > 1 else model
    optimizers, rates = watched(model, work)
    schedulers = [AdaptiveWarmup(optimizer, TOTAL, rule=work.rule, cap=work.cap) for optimizer in optimizers]
    scaler = work.scaler() or torch.amp.GradScaler("cpu", enabled=False)
    parts: list[Any] = [model, *optimizers, *schedulers]
    start = 0
    if resume:
        for part, state in zip(parts, torch.load(folder / "checkpoint.pt", weights_only=True), strict=True):
            part.load_state_dict(state)
        start = STOP
    data = work.data()
    mine = Subset(data, range(dist.get_rank() if ranks > 1 else 0, len(data), ranks))
    for index, batch in enumerate(DataLoader(mine, work.rows // ranks)):
        step, micro = divmod(index, work.parts)
        if step < start:
            continue
        if step == STOP and micro == 0 and not resume and ranks == 1:
            torch.save([part.state_dict() for part in parts], folder / "checkpoint.pt")
        loss = parallel(**batch)["loss"]
        scaler.scale(loss / work.parts).backward()
        for scheduler in schedulers:
            scheduler.observe(loss)
        if micro == work.parts - 1:
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                scaler.step(optimizer)
                scheduler.step()
                optimizer.zero_grad()
            scaler.update()
    return Trained(rates, model)
