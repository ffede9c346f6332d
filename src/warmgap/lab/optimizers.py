"""The lab's optimizers by name, each with the peak learning rate tuned for it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True)
class Choice:
    """An optimizer of the lab.

    Attributes:
        lr: Peak learning rate, the best of a grid of factors 2 to 3 in runs of 200 to 400 steps of `tiny` on `wiki`.
        kind: Name of its class in `warmgap.torch`.
        split: Whether it treats parameters by their part in the model, and so takes `split_parameters`.
    """

    lr: float
    kind: str
    split: bool = False

    def build(self, model: "nn.Module", lr: float, weight_decay: float) -> "Optimizer":
        """The optimizer of a whole model, at a peak learning rate."""
        from warmgap import torch  # here: the names alone are wanted without loading PyTorch

        kind: type[Optimizer] = getattr(torch, self.kind)
        parameters = torch.split_parameters(model) if self.split else model.parameters()
        return kind(parameters, lr=lr, weight_decay=weight_decay)  # type: ignore[call-arg]


OPTIMIZERS = {
    "muon": Choice(2e-2, "Muon", split=True),
    "lion": Choice(1e-3, "Lion"),
    "signum": Choice(3e-3, "Signum"),
    "normalized-sgd": Choice(1e-1, "NormalizedSGD"),
    "scion": Choice(1e-3, "Scion", split=True),
    "gluon": Choice(1e-3, "Gluon", split=True),
}
