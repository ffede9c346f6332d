"""From measured layer-wise constants to Gluon: the groups with their radii, and the schedule of its second theorem.

Source: arXiv 2505.13416, Theorems 1 and 2.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from warmgap._checks import check_finite, warn
from warmgap.smoothness.fits import LayerFits
from warmgap.torch.split import split_parameters

__all__ = ["GluonSchedule", "gluon_groups", "layer_constants", "read_radii", "write_radii"]

Radii = Mapping[str, tuple[float, float]]
"""L0 and L1 by parameter name."""


def layer_constants(fits: LayerFits) -> dict[str, tuple[float, float]]:
    """Return L0 and L1 of every layer that has a fit.

    Raises:
        ValueError: If the fits were not made in Gluon's norms.
    """
    if other := sorted({fit.norm for fit in fits.fits.values() if not fit.norm.startswith("gluon")}):
        raise ValueError(
            f"Gluon's radii need constants in its own norms, got some in {', '.join(map(repr, other))}: measure with "
            "SmoothnessProbe(optimizer, norm='gluon', model=model)"
        )
    following = sum(not fit.diagnosis.informative for fit in fits.fits.values())
    if following:
        warn(
            f"in {following} of {len(fits.fits)} layers a step changes the gradient by about itself: such constants "
            "give back the step length that was measured with; compare runs at 1/4, 1 and 4 times the rate "
            "(warmgap.smoothness.rate_dependence)"
        )
    return {name: (max(0.0, fit.constants["L0"]), max(0.0, fit.constants["L1"])) for name, fit in fits.fits.items()}


def write_radii(path: str | os.PathLike[str], fits: LayerFits) -> None:
    """Write L0 and L1 of every layer as JSON, for `read_radii`.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If the fits were not made in Gluon's norms.
    """
    rows = {name: {"L0": L0, "L1": L1} for name, (L0, L1) in layer_constants(fits).items()}
    Path(path).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def read_radii(path: str | os.PathLike[str]) -> dict[str, tuple[float, float]]:
    """Return what `write_radii` wrote.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not such a file.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
        return {str(name): (float(row["L0"]), float(row["L1"])) for name, row in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no file of radii, an object of names with L0 and L1 each ({error}); write_radii makes one"
        ) from error


def gluon_groups(model: nn.Module, fits: LayerFits | Radii, **split: Any) -> list[dict[str, Any]]:
    """Return the groups of Gluon, one a parameter, each with the L0 and L1 that were measured for it.

    A parameter without a fit (it never moved, or both constants are 0) takes the medians of those of its kind.

    Args:
        model: The model.
        fits: The fits of `warmgap.smoothness.fit_layers`, or L0 and L1 by parameter name.
        split: Further arguments of `split_parameters`.

    Returns:
        Groups for `Gluon(groups, lr=1.0)`: with that rate the radius is the theory's.

    Raises:
        ValueError: If the fits were not made in Gluon's norms, name no parameter of the model, or leave a kind of
            parameters without any, or a constant is negative or not finite.

    Source: arXiv 2505.13416, Theorem 1.
    """
    constants = layer_constants(fits) if isinstance(fits, LayerFits) else dict(fits)
    for name, pair in constants.items():
        if min(check_finite(f"{what} of {name}", value) for what, value in zip(("L0", "L1"), pair, strict=True)) < 0.0:
            raise ValueError(f"L0 and L1 must not be negative, got {pair} for {name}")
    constants = {name: pair for name, pair in constants.items() if sum(pair) > 0.0}
    found: list[dict[str, Any]] = []
    for group in split_parameters(model, **split):
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            found.append(group | {"params": [parameter], "param_names": [name]})
    if not any(group["param_names"][0] in constants for group in found):
        raise ValueError(
            f"the fits name no parameter of the model: they have {_some(constants)}, the model has "
            f"{_some(group['param_names'][0] for group in found)}; give the probe model=model"
        )
    by_kind: dict[str, list[tuple[float, float]]] = {}
    for group in found:
        if group["param_names"][0] in constants:
            by_kind.setdefault(group["kind"], []).append(constants[group["param_names"][0]])
    lacking = {group["kind"] for group in found} - by_kind.keys()
    if lacking:
        raise ValueError(
            f"no parameter of the kind {', '.join(sorted(lacking))} has a fit, so its radius is not known: measure "
            "a run that moves them, or leave them to another optimizer"
        )
    for group in found:
        of_kind = by_kind[group["kind"]]
        middle = (statistics.median(L0 for L0, _ in of_kind), statistics.median(L1 for _, L1 in of_kind))
        group["L0"], group["L1"] = constants.get(group["param_names"][0], middle)
    return found


class GluonSchedule(LRScheduler):
    """Gluon's second theorem as a schedule: rate `lr (k+1)^(-3/4)`, momentum `1 - (k+1)^(-1/2)` at step k.

    For the theory, and for runs to compare with: the rate knows nothing of the loss.

        optimizer = Gluon(gluon_groups(model, fits), lr=1.0)
        schedule = GluonSchedule(optimizer)

    Args:
        optimizer: Gluon, or any optimizer whose groups have a `momentum` that weighs the past.
        last_epoch: Steps made before, -1 for none, as for every scheduler of torch.

    Raises:
        ValueError: If a group has no momentum.

    Source: arXiv 2505.13416, Theorem 2 (found); the constants of its rate are derived in
        `warmgap.theory.gluon_momentum`.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        if any("momentum" not in group for group in optimizer.param_groups):
            raise ValueError("every group must have a momentum that the schedule can set; use it with Gluon")
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Return the rate of each group, and set the momenta."""
        count = self.last_epoch + 1.0
        for group in self.optimizer.param_groups:
            group["momentum"] = 1.0 - count**-0.5
        return [base * count**-0.75 for base in self.base_lrs]


def _some(names: Any, most: int = 4) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "") or "none"
