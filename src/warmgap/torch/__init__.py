"""The PyTorch side: norm-constrained optimizers, and the learning-rate schedule that needs no tuning."""

from warmgap.torch import norms, orthogonalize
from warmgap.torch.loss_mean import LossMean
from warmgap.torch.optimizers import Gluon, Lion, Muon, NormalizedSGD, Scion, Signum
from warmgap.torch.probe import SmoothnessProbe
from warmgap.torch.scheduler import AdaptiveWarmup
from warmgap.torch.spectral_cap import SpectralCap
from warmgap.torch.split import split_parameters

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
    "SpectralCap",
    "norms",
    "orthogonalize",
    "split_parameters",
]
