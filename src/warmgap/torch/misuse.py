"""Misuse of a scheduler that would otherwise go unnoticed: what gives it away, and what to say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from warmgap._checks import warn

_CLASSES = 100  # of a head; with fewer a large first loss can be a mean
_SUMMED = 10.0  # a first loss of so many times log(classes) is no mean


def not_a_loss(loss: float | Tensor) -> str | None:
    """Return what to say where `step` is given a whole number, which no loss is; None where all is well."""
    if loss.is_floating_point() if isinstance(loss, Tensor) else not isinstance(loss, int):
        return None
    return (
        f"AdaptiveWarmup.step() got the whole number {loss} and does not take it for a loss: it takes the mean "
        "training loss of the optimizer step just made, not the epoch or the step; call step(loss), or observe(loss) "
        "and then step()"
    )


def warn_of_sum(loss: float | None, heads: Iterable[dict[str, Any]]) -> None:
    """Warn where the first loss is no mean of cross-entropies over the classes of a head in these groups."""
    classes = max((p.shape[0] for group in heads for p in group["params"] if p.ndim == 2), default=0)
    if loss is not None and classes >= _CLASSES and _SUMMED * math.log(classes) < loss < math.inf:
        warn(
            f"the first loss is {loss:.4g}, and a mean cross-entropy over {classes} classes starts near "
            f"{math.log(classes):.3g}: give the mean over tokens, not the sum, and not scaled by a GradScaler"
        )


def warn_of_peaks(saved: Sequence[float], here: Sequence[float | Tensor]) -> None:
    """Warn where a loaded state has other peaks than the scheduler that takes it up."""
    own = [float(base) for base in here]
    if any(not math.isclose(a, b, rel_tol=1e-6) for a, b in zip(saved, own, strict=True)):
        warn(
            f"this state has the peak learning rates {_listed(saved)}, which are kept, and this scheduler was made "
            f"with {_listed(own)}: call scheduler.scale_peak(factor) after loading to change them"
        )


def take_own_peaks(optimizer: Optimizer) -> None:
    """Put back the peak that the optimizer was made with, where a loaded state has brought another run's.

    `Optimizer.load_state_dict` replaces the groups with the checkpoint's, `lr` and `initial_lr` included, so that a
    fresh schedule would start at the old run's peak. An optimizer that has state and has made no step is such a one.
    """
    groups = optimizer.param_groups
    loaded = bool(optimizer.state) and not getattr(optimizer, "_opt_called", False)
    peaks = {float(group["initial_lr"]) for group in groups if "initial_lr" in group}
    if not loaded or not peaks or "lr" not in optimizer.defaults or peaks == {own := float(optimizer.defaults["lr"])}:
        return
    if len(peaks) == 1:
        for group in groups:
            group["initial_lr"] = own
    warn(
        f"the optimizer's loaded state has the peak learning rate {_listed(sorted(peaks))}, and it was made with "
        f"lr={own:.4g}: AdaptiveWarmup starts from {f'lr={own:.4g}' if len(peaks) == 1 else 'the former'}. Make the "
        "scheduler before loading the state, and load its own state too where the run goes on"
    )


def _listed(rates: Sequence[float]) -> str:
    return ", ".join(f"{rate:.4g}" for rate in rates)
