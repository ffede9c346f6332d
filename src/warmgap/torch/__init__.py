"""The PyTorch side: norm-constrained optimizers, and a learning-rate schedule with no warm-up to tune."""

from warmgap._checks import not_installed as _not_installed

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as _error:
    raise _not_installed(_error, "warmgap.torch", "torch", "torch") from None

from warmgap.torch import compression, norms, orthogonalize
from warmgap.torch.loss_mean import LossMean
from warmgap.torch.optimizers import EFMuon, Gluon, Lion, Muon, NormalizedSGD, Scion, Signum
from warmgap.torch.probe import SmoothnessProbe
from warmgap.torch.roles import assign_roles, roles_table
from warmgap.torch.scheduler import AdaptiveWarmup
from warmgap.torch.spectral_cap import SpectralCap
from warmgap.torch.split import split_parameters
from warmgap.torch.trajectory import TrajectoryChecker

__all__ = [
    "AdaptiveWarmup",
    "EFMuon",
    "Gluon",
    "Lion",
    "LossMean",
    "Muon",
    "NormalizedSGD",
    "Scion",
    "Signum",
    "SmoothnessProbe",
    "SpectralCap",
    "TrajectoryChecker",
    "assign_roles",
    "compression",
    "norms",
    "orthogonalize",
    "roles_table",
    "split_parameters",
]
