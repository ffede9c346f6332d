"""The PyTorch side: norm-constrained optimizers, and the scheduler that finds their warm-up."""

from warmgap.torch import norms, orthogonalize
from warmgap.torch.adaptive_warmup import AdaptiveWarmup
from warmgap.torch.loss_mean import LossMean
from warmgap.torch.optimizers import Gluon, Lion, Muon, NormalizedSGD, Scion, Signum
from warmgap.torch.probe import SmoothnessProbe
from warmgap.torch.split import split_parameters
from warmgap.torch.trajectory import TrajectoryChecker

__all__ = [
    "AdaptiveWarmup",
    "Gluon",
    "Lion",
    "LossMean",
    "Muon",
    "NormalizedSGD",
    "Scion",
    "Signum",
    "SmoothnessProbe",
    "TrajectoryChecker",
    "norms",
    "orthogonalize",
    "split_parameters",
]
