"""Normalized SGD: the momentum of every parameter tensor, divided by its length."""

from typing import final

from torch import Tensor
from torch.optim.optimizer import ParamsT

from warmgap.torch.optimizers._base import NormConstrainedOptimizer


@final
class NormalizedSGD(NormConstrainedOptimizer):
    """Normalized SGD with momentum: the LMO of the Frobenius norm, each parameter tensor a block of its own.

        m <- momentum * m + g
        x <- (1 - lr * weight_decay) * x - lr * m / ||m||_F

    Args:
        params: Parameters, dicts of them, or the groups from `split_parameters`; all are stepped alike.
        lr: Learning rate, the length of every tensor's step; a float or a tensor of one element.
        momentum: Weight of the past in the sum, at least 0 and under 1.
        weight_decay: Decoupled weight decay, at least 0; a float or a tensor of one element.

    A momentum whose norm is under 1e-15 counts as zero.

    Raises:
        TypeError: If a parameter is complex; from `step`, if a gradient is sparse.
        ValueError: If a value is out of range.

    Source: arXiv 2602.05813, appendix C (norm, LMO); Cutkosky and Mehta, arXiv 2002.03305 (momentum).

    Example:
        >>> import torch
        >>> from warmgap.torch import NormalizedSGD
        >>> x = torch.nn.Parameter(torch.zeros(2))
        >>> x.grad = torch.tensor([3.0, -4.0])
        >>> NormalizedSGD([x], lr=0.5).step()
        >>> [round(entry, 3) for entry in x.tolist()]
        [-0.3, 0.4]
    """

    _rule = "sum"

    def __init__(
        self, params: ParamsT, lr: float | Tensor = 1e-2, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
