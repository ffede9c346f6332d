"""Is the assumption behind warm-up true of a run? Records along its trajectory in, constants and doubts out.

`warmgap.torch.SmoothnessProbe` makes the records; nothing here needs a framework.
"""

from warmgap.smoothness.diagnosis import (
    RateDependence,
    StepLengthDiagnosis,
    belongs,
    diagnose_step_length,
    rate_dependence,
)
from warmgap.smoothness.fits import (
    Fit,
    LayerDependence,
    LayerFits,
    Trend,
    fit_gap_linear,
    fit_layers,
    fit_smoothness,
    layer_dependence,
)
from warmgap.smoothness.records import Block, Record, append_record, block_names, block_records, read_records
from warmgap.smoothness.unified import UnifiedCheck, pooled, unified_figure

__all__ = [
    "Block",
    "Fit",
    "LayerDependence",
    "LayerFits",
    "RateDependence",
    "Record",
    "StepLengthDiagnosis",
    "Trend",
    "UnifiedCheck",
    "append_record",
    "belongs",
    "block_names",
    "block_records",
    "diagnose_step_length",
    "fit_gap_linear",
    "fit_layers",
    "fit_smoothness",
    "layer_dependence",
    "pooled",
    "rate_dependence",
    "read_records",
    "unified_figure",
]


def __getattr__(name: str) -> object:
    if name == "TrajectoryChecker":
        raise AttributeError(
            "TrajectoryChecker is now warmgap.torch.TrajectoryChecker(model), which needs no flattened vectors; for "
            "arrays of your own there is warmgap.smoothness.UnifiedCheck.of(inner, progress)"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
