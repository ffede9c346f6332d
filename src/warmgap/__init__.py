"""A learning-rate schedule with no warm-up to tune, for norm-constrained optimizers and AdamW.

Importing this package imports no framework; `warmgap.torch` is the PyTorch side.
"""

from typing import Any

from warmgap import decay, rules
from warmgap.curve import ResponseCurve, Smoothness
from warmgap.geometry import kappa
from warmgap.matching import match_peak_gap
from warmgap.schedule import Event, Schedule, ScheduleState
from warmgap.signal import LossFilter
from warmgap.target import estimate_target_loss

__all__ = [
    "Event",
    "LossFilter",
    "ResponseCurve",
    "Schedule",
    "ScheduleState",
    "Smoothness",
    "__version__",
    "decay",
    "estimate_target_loss",
    "kappa",
    "match_peak_gap",
    "rules",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Signal":
        import warnings

        warnings.warn("warmgap.Signal is now warmgap.LossFilter", DeprecationWarning, stacklevel=2)
        return LossFilter
    places = {
        "AdaptiveWarmup": "torch",
        "SpectralCap": "torch",
        "scale_by_warmup": "optax",
        "WarmgapTrainer": "transformers",
    }
    if name in places:
        # an AttributeError's words are lost in `from warmgap import AdaptiveWarmup`
        raise ImportError(f"{name} is in warmgap.{places[name]}: from warmgap.{places[name]} import {name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
