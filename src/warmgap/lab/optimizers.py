"""The lab's optimizers by name, each with the peak learning rate tuned for it."""

from collections.abc import Callable
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
        build: The optimizer of a whole model, given peak learning rate and weight decay.
    """

    lr: float
    build: "Callable[[nn.Module, float, float], Optimizer]"


def _muon(model: "nn.Module", lr: float, weight_decay: float) -> "Optimizer":
    from warmgap.torch import Muon, split_parameters

    return Muon(split_parameters(model), lr=lr, weight_decay=weight_decay)


def _scion(model: "nn.Module", lr: float, weight_decay: float) -> "Optimizer":
    from warmgap.torch import Scion, split_parameters

    return Scion(split_parameters(model), lr=lr, weight_decay=weight_decay)


def _gluon(model: "nn.Module", lr: float, weight_decay: float) -> "Optimizer":
    from warmgap.torch import Gluon, split_parameters

    return Gluon(split_parameters(model), lr=lr, weight_decay=weight_decay)


def _lion(model: "nn.Module", lr: float, weight_decay: float) -> "Optimizer":
    from warmgap.torch import Lion

    return Lion(model.parameters(), lr=lr, weight_decay=weight_decay)


def _signum(model: "nn.Module", lr: float, weight_decay: float) -> "Optimizer":
    from warmgap.torch import Signum

    return Signum(model.parameters(), lr=lr, weight_decay=weight_decay)


def _normalized_sgd(model: "nn.Module", lr: float, weight_decay: float) -> "Optimizer":
    from warmgap.torch import NormalizedSGD

    return NormalizedSGD(model.parameters(), lr=lr, weight_decay=weight_decay)


OPTIMIZERS = {
    "muon": Choice(2e-2, _muon),
    "lion": Choice(1e-3, _lion),
    "signum": Choice(3e-3, _signum),
    "normalized-sgd": Choice(1e-1, _normalized_sgd),
    "scion": Choice(1e-3, _scion),
    "gluon": Choice(1e-3, _gluon),
}
