"""The lab's optimizers by name, each with the peak learning rate tuned for it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

# Everything heavy is imported inside functions: the names alone are wanted without loading PyTorch.

Build = Callable[["nn.Module", float, float], "list[Optimizer]"]


@dataclass(frozen=True)
class Choice:
    """An optimizer of the lab.

    Attributes:
        lr: Peak learning rate, the best of a grid of factors 2 to 3 in runs of 200 to 400 steps of `tiny` on `wiki`.
        build: Makes it for a whole model, of the model, the peak learning rate and the weight decay: one optimizer, or
            several that share the parameters out among them, the one whose norm counts first.
    """

    lr: float
    build: Build


def _own(kind: str, *, split: bool = False) -> Build:
    """One of `warmgap.torch`; `split` where it treats parameters by their part in the model."""

    def build(model: "nn.Module", lr: float, weight_decay: float) -> "list[Optimizer]":
        from warmgap import torch

        parameters = torch.split_parameters(model) if split else model.parameters()
        return [getattr(torch, kind)(parameters, lr=lr, weight_decay=weight_decay)]

    return build


def _torch_muon(model: "nn.Module", lr: float, weight_decay: float) -> "list[Optimizer]":
    """PyTorch's Muon for the hidden matrices and its AdamW for the rest, both at one rate.

    `match_rms_adamw` scales Muon's steps to the size of AdamW's for this very purpose: arXiv 2502.16982, section 2.2.
    """
    import torch

    from warmgap.torch import split_parameters

    matrices: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for group in split_parameters(model):
        (matrices if group["kind"] == "matrix" else others).append(group)
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay),
    ]


def _lion_pytorch(model: "nn.Module", lr: float, weight_decay: float) -> "list[Optimizer]":
    """The Lion of the package lion-pytorch."""
    from lion_pytorch import Lion

    return [Lion(model.parameters(), lr=lr, weight_decay=weight_decay)]


OPTIMIZERS = {
    "muon": Choice(2e-2, _own("Muon", split=True)),
    "lion": Choice(1e-3, _own("Lion")),
    "signum": Choice(3e-3, _own("Signum")),
    "normalized-sgd": Choice(1e-1, _own("NormalizedSGD")),
    "scion": Choice(1e-3, _own("Scion", split=True)),
    "gluon": Choice(1e-3, _own("Gluon", split=True)),
    "torch-muon": Choice(1e-2, _torch_muon),
    "lion-pytorch": Choice(1e-3, _lion_pytorch),
}
