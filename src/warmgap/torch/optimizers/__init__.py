"""Norm-constrained optimizers: each one `torch.optim.Optimizer` for the whole model."""

from warmgap.torch.optimizers.ef_muon import EFMuon
from warmgap.torch.optimizers.gluon import Gluon
from warmgap.torch.optimizers.lion import Lion
from warmgap.torch.optimizers.muon import Muon
from warmgap.torch.optimizers.normalized_sgd import NormalizedSGD
from warmgap.torch.optimizers.scion import Scion
from warmgap.torch.optimizers.signum import Signum

__all__ = ["EFMuon", "Gluon", "Lion", "Muon", "NormalizedSGD", "Scion", "Signum"]
