"""The lab's optimizers by name, each with the peak learning rate tuned for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

# Everything heavy is imported inside functions: the names alone are wanted without loading PyTorch.

Make = Callable[..., "list[Optimizer]"]


@dataclass(frozen=True)
class Choice:
    """An optimizer of the lab.

    Attributes:
        lr: Peak learning rate, the best of a grid of factors 2 to 3 in runs of 200 to 400 steps of `tiny` on `wiki`.
        make: Makes it of parameter groups, peak rate, weight decay and settings: one optimizer, or several that share
            the parameters out among them, the one whose norm counts first.
        settings: What may be set besides, of `betas`, `momentum`, `second_lr` and `radii`, with its name there.
    """

    lr: float
    make: Make
    settings: dict[str, str]

    def build(self, model: nn.Module, lr: float, weight_decay: float, **settings: Any) -> list[Optimizer]:
        """Make it for a whole model; settings that are None stay at the optimizer's own."""
        from warmgap.torch import split_parameters

        given = {self.settings[name]: value for name, value in settings.items() if value is not None}
        radii = given.pop("radii", None)
        groups = split_parameters(model) if radii is None else _measured_groups(model, radii)
        return self.make(groups, lr=lr, weight_decay=weight_decay, **given)


def _measured_groups(model: nn.Module, radii: Path) -> Any:
    """The groups of Gluon with the constants in a file of `warmgap smoothness --write-radii`."""
    from warmgap.torch.gluon_fits import gluon_groups, read_radii

    return gluon_groups(model, read_radii(radii))


def _own(kind: str) -> Make:
    def make(groups: Any, **settings: Any) -> list[Optimizer]:
        from warmgap import torch

        return [getattr(torch, kind)(groups, **settings)]

    return make


def _sgd(groups: Any, **settings: Any) -> list[Optimizer]:
    import torch

    return [torch.optim.SGD(groups, **({"momentum": 0.9} | settings))]


def _adamw(groups: Any, **settings: Any) -> list[Optimizer]:
    import torch

    return [torch.optim.AdamW(groups, **({"betas": (0.9, 0.95)} | settings))]


def _torch_muon(
    groups: Any, *, lr: float, weight_decay: float, second_lr: float | None = None, **settings: Any
) -> list[Optimizer]:
    """PyTorch's Muon for the hidden matrices and its AdamW for the rest.

    `match_rms_adamw` scales Muon's steps to the size of AdamW's, so that both go at one rate: arXiv 2502.16982,
    section 2.2.
    """
    import torch

    matrices = [group for group in groups if group["kind"] == "matrix"]
    others = [group for group in groups if group["kind"] != "matrix"]
    betas = settings.pop("betas", (0.9, 0.95))
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw", **settings),
        torch.optim.AdamW(others, lr=second_lr or lr, betas=betas, weight_decay=weight_decay),
    ]


def _lion_pytorch(groups: Any, **settings: Any) -> list[Optimizer]:
    from lion_pytorch import Lion

    return [Lion(groups, **settings)]


_BETAS = {"betas": "betas"}
_MOMENTUM = {"momentum": "momentum"}

OPTIMIZERS = {
    "muon": Choice(2e-2, _own("Muon"), {"betas": "second_betas", "second_lr": "second_lr", **_MOMENTUM}),
    "lion": Choice(1e-3, _own("Lion"), _BETAS),
    "signum": Choice(3e-3, _own("Signum"), _MOMENTUM),
    "normalized-sgd": Choice(1e-1, _own("NormalizedSGD"), _MOMENTUM),
    "scion": Choice(1e-3, _own("Scion"), _MOMENTUM),
    "gluon": Choice(1e-3, _own("Gluon"), {**_MOMENTUM, "radii": "radii"}),
    "sgd": Choice(3e-1, _sgd, _MOMENTUM),
    "adamw": Choice(3e-3, _adamw, _BETAS),
    "torch-muon": Choice(1e-2, _torch_muon, {**_BETAS, **_MOMENTUM, "second_lr": "second_lr"}),
    "lion-pytorch": Choice(1e-3, _lion_pytorch, _BETAS),
}
