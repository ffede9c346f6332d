"""Which norm bounds an optimizer's step, told by what the optimizer is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from warmgap.geometry import NORMS, kappa

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
    its norm by the key `"norm"` (this library's optimizers write it; None: not norm-constrained, left out) or by
    `use_muon=False`; otherwise the optimizer's class does.

    Args:
        optimizer: Any optimizer.
        norm: `"auto"`, or one of `warmgap.geometry.NORMS` for every block.

    Returns:
        kappa, above 0.

    Raises:
        ValueError: If the norm is unknown, or `"auto"` and the optimizer is not recognised.
    """
    return sum(kappa(name, [parameter.shape]) for name, parameter, _ in norm_blocks(optimizer, norm))


def norm_blocks(optimizer: Optimizer, norm: str = "auto") -> list[tuple[str, Tensor, dict[str, Any]]]:
    """Return the blocks that `optimizer_kappa` counts: for each the norm's name, the parameter, and its group.

    Raises:
        ValueError: If the norm is unknown, or `"auto"` and the optimizer is not recognised.
    """
    if norm != "auto" and norm not in NORMS:
        raise ValueError(f"norm must be 'auto' or one of {', '.join(map(repr, NORMS))}, got {norm!r}")
    blocks = list(_blocks(optimizer, norm))
    return [block for block in blocks if block[1].ndim >= 2] or blocks


def _blocks(optimizer: Optimizer, norm: str) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    of_class = next((CLASSES[cls.__name__] for cls in type(optimizer).__mro__ if cls.__name__ in CLASSES), None)
    known = False
    for group in optimizer.param_groups:
        if norm != "auto":
            own: str | None = norm
        elif "norm" in group:
            own = group["norm"]
        elif group.get("use_muon") is False:
            own = None
        else:
            own = of_class
            if own is None:
                break
        known = True
        if own is not None:
            yield from ((own, parameter, group) for parameter in group["params"] if parameter.numel())
    if not known:
        raise ValueError(
            f"the norm that bounds a step of {type(optimizer).__name__} is not known here: give norm='spectral' "
            "(Muon), 'max' (Lion, sign methods) or 'frobenius' (normalized SGD)"
        )
