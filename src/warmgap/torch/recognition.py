"""Which norm bounds an optimizer's step, inferred from the optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from warmgap.geometry import check_norm, kappa
from warmgap.torch.layout import matrix_shapes, outputs_first
from warmgap.torch.optimizers._base import NormConstrainedOptimizer

CLASSES: dict[str, str] = {
    "Muon": "spectral",
    "SingleDeviceMuon": "spectral",
    "MuonWithAuxAdam": "spectral",
    "SingleDeviceMuonWithAuxAdam": "spectral",
    "DistributedMuon": "spectral",
    "Lion": "max",
    "Lion8bit": "max",
    "PagedLion": "max",
    "PagedLion8bit": "max",
    "SignSGD": "max",
    "Signum": "max",
}
"""Class names of optimizers that are not ours, and their norm."""


def optimizer_kappa(optimizer: Optimizer, norm: str = "auto") -> float:
    """Return kappa of the blocks that a norm-constrained optimizer moves.

    Matrices and convolutions count, as in the published code; vectors only where there is nothing else. A group says
    its norm by the key `"norm"` (this library's optimizers write it; None: not norm-constrained) or by
    `use_muon=False`; otherwise the optimizer's class does, which steps every parameter whole. In the spectral norm, a
    parameter that consists of several matrices, fused projections or a stack of experts, counts as these.

    Beside matrices in the spectral norm those that the same optimizer steps otherwise, embeddings and heads, count in
    it too, a tied embedding once, as published: Muon's own number for a LLaMA of 12 layers, 768 wide, is 65280 =
    12 (4 * 768 + 3 * 768) + 768. The norms of Scion and Gluon are scaled by shapes, a times the plain ones, and their
    kappa is divided by a^2; radii do not count, and neither does Muon's `scale`, as published.

    Args:
        optimizer: Any optimizer.
        norm: `"auto"`, or one of `warmgap.geometry.NORMS` for every block.

    Returns:
        kappa, above 0.

    Raises:
        ValueError: If the norm is unknown, or `"auto"` and the optimizer is not recognised, or no parameter is
            norm-constrained.
    """
    blocks = norm_blocks(optimizer, norm)
    if norm == "auto" and any(name == "spectral" for name, _, _ in blocks):
        for group in optimizer.param_groups:
            if group.get("norm", "") is None or group.get("use_muon") is False:
                blocks += [("spectral", p, group) for p in group["params"] if p.ndim >= 2 and p.numel()]
    total = math.fsum(_kappa(optimizer, name, p.shape, group, norm) for name, p, group in blocks)
    if total == 0.0:
        raise ValueError(
            f"none of the {len(optimizer.param_groups)} parameter groups of {type(optimizer).__name__} has a parameter "
            "whose step is constrained in a norm, so there is no kappa; give norm='spectral', 'max' or 'frobenius' to "
            "count every parameter in that one, or take a rule that needs no kappa, such as 'loss-ratio'"
        )
    return total


def _kappa(optimizer: Optimizer, name: str, shape: torch.Size, group: dict[str, Any], norm: str) -> float:
    shapes = matrix_shapes(shape, group) if name == "spectral" else [outputs_first(shape, group)]
    if norm == "auto" and "radius" in group and isinstance(optimizer, NormConstrainedOptimizer):  # Scion, Gluon
        return math.fsum(optimizer.norm_of(group, block).kappa(block) for block in shapes)
    return kappa(name, shapes)


def norm_blocks(optimizer: Optimizer, norm: str = "auto") -> list[tuple[str, Tensor, dict[str, Any]]]:
    """Return what `optimizer_kappa` counts: the norm's name, the parameter, the group that says its layout.

    Where the class tells the norm the group is empty: other libraries' optimizers do not read `blocks` and the like.

    Raises:
        ValueError: If the norm is unknown, or `"auto"` and the optimizer is not recognised.
    """
    check_norm(norm)
    blocks = list(_blocks(optimizer, norm))
    return [block for block in blocks if block[1].ndim >= 2] or blocks


def _blocks(optimizer: Optimizer, norm: str) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    of_class = next((CLASSES[cls.__name__] for cls in type(optimizer).__mro__ if cls.__name__ in CLASSES), None)
    recognised = False
    for group in optimizer.param_groups:
        layout = group
        if norm != "auto":
            own: str | None = norm
        elif "norm" in group:
            own = group["norm"]
        elif group.get("use_muon") is False:
            own = None
        else:
            own, layout = of_class, {}
            if own is None:
                continue
        recognised = True
        if own is not None:
            yield from ((own, parameter, layout) for parameter in group["params"] if parameter.numel())
    if not recognised:
        raise ValueError(
            f"the norm that bounds a step of {type(optimizer).__name__} is not known here: give norm='spectral' "
            "(Muon), 'max' (Lion, sign methods) or 'frobenius' (normalized SGD)"
        )
