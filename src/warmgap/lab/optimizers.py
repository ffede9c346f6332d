"""The lab's optimizers by name, each with the peak learning rate tuned for it."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

# Everything heavy is imported inside functions: the names alone are wanted without loading PyTorch.


@dataclass(frozen=True)
class Choice:
    """An optimizer of the lab."""

    lr: float  # the peak: the best of a grid of factors 2 to 3 in runs of 200 to 400 steps of `tiny` on `wiki`
    # Where its class is; or what makes several of groups and settings, the one whose norm counts first.
    kind: str | Callable[..., list[Optimizer]]
    settings: Mapping[str, str]  # what may be set: betas, momentum, second_lr, radii, each with its name there
    usual: Mapping[str, Any] = field(default_factory=dict)  # the lab's own values, where its class has others

    def build(self, model: nn.Module, lr: float, weight_decay: float, **settings: Any) -> list[Optimizer]:
        """Make it for a whole model; settings that are None stay at the optimizer's own."""
        from warmgap.torch import split_parameters
        from warmgap.torch.gluon_fits import gluon_groups, read_radii

        given = {self.settings[name]: value for name, value in settings.items() if value is not None}
        radii = given.pop("radii", None)  # a file of `warmgap smoothness --write-radii`
        groups = split_parameters(model) if radii is None else gluon_groups(model, read_radii(radii))
        given = {"lr": lr, "weight_decay": weight_decay, **self.usual, **given}
        if not isinstance(self.kind, str):
            return self.kind(groups, **given)
        return [pkgutil.resolve_name(self.kind)(groups, **given)]


def _torch_muon(
    groups: Any, *, lr: float, weight_decay: float, betas: Any, second_lr: float | None = None, **settings: Any
) -> list[Optimizer]:
    """PyTorch's Muon for the hidden matrices and its AdamW for the rest.

    `match_rms_adamw` scales Muon's steps to the size of AdamW's, so that both go at one rate: arXiv 2502.16982,
    section 2.2.
    """
    import torch

    matrices = [group for group in groups if group["kind"] == "matrix"]
    others = [group for group in groups if group["kind"] != "matrix"]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw", **settings),
        torch.optim.AdamW(others, lr=second_lr or lr, betas=betas, weight_decay=weight_decay),
    ]


_BETAS = {"betas": "betas"}
_MOMENTUM = {"momentum": "momentum"}
_ADAMW = {"betas": (0.9, 0.95)}

OPTIMIZERS = {
    "muon": Choice(2e-2, "warmgap.torch.Muon", {"betas": "second_betas", "second_lr": "second_lr", **_MOMENTUM}),
    "lion": Choice(1e-3, "warmgap.torch.Lion", _BETAS),
    "signum": Choice(3e-3, "warmgap.torch.Signum", _MOMENTUM),
    "normalized-sgd": Choice(1e-1, "warmgap.torch.NormalizedSGD", _MOMENTUM),
    "scion": Choice(1e-3, "warmgap.torch.Scion", _MOMENTUM),
    "gluon": Choice(1e-3, "warmgap.torch.Gluon", {**_MOMENTUM, "radii": "radii"}),
    "sgd": Choice(3e-1, "torch.optim.SGD", _MOMENTUM, {"momentum": 0.9}),
    "adamw": Choice(3e-3, "torch.optim.AdamW", _BETAS, _ADAMW),
    "torch-muon": Choice(1e-2, _torch_muon, {**_BETAS, **_MOMENTUM, "second_lr": "second_lr"}, _ADAMW),
    "lion-pytorch": Choice(1e-3, "lion_pytorch.Lion", _BETAS),
}
