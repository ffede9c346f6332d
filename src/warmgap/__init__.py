"""Learning-rate warm-up that ends itself, for norm-constrained optimizers.

Importing this package imports no framework; `warmgap.torch` is the PyTorch side.
"""

from warmgap import decay, rules
from warmgap.curve import ResponseCurve, Smoothness
from warmgap.geometry import kappa
from warmgap.matching import match_peak_gap
from warmgap.schedule import Schedule, ScheduleState
from warmgap.signal import Signal
from warmgap.target import estimate_target_loss

__all__ = [
    "ResponseCurve",
    "Schedule",
    "ScheduleState",
    "Signal",
    "Smoothness",
    "__version__",
    "decay",
    "estimate_target_loss",
    "kappa",
    "match_peak_gap",
    "rules",
]

__version__ = "0.1.0"
