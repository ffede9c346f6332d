"""Signum: the sign of the momentum."""

from typing import final

from torch import Tensor
from torch.optim.optimizer import ParamsT

from warmgap.torch.optimizers._base import NormConstrainedOptimizer


@final
class Signum(NormConstrainedOptimizer):
    """Signum, with momentum 0 signSGD: the LMO of the max norm at the gradient's average.

        m <- momentum * m + (1 - momentum) * g
        x <- (1 - lr * weight_decay) * x - lr * sign(m)

    Args:
        params: Parameters, dicts of them, or the groups from `split_parameters`; all are stepped alike.
        lr: Learning rate, the change of every entry per step; a float or a tensor of one element.
        momentum: Weight of the past in the average, at least 0 and under 1.
        weight_decay: Decoupled weight decay, at least 0; a float or a tensor of one element.

    Raises:
        TypeError: If a parameter is complex; from `step`, if a gradient is sparse.
        ValueError: If a value is out of range.

    Source: Bernstein et al., arXiv 1802.04434, algorithm 2.

    Example:
        >>> import torch
        >>> from warmgap.torch import Signum
        >>> x = torch.nn.Parameter(torch.zeros(2))
        >>> x.grad = torch.tensor([3.0, -4.0])
        >>> Signum([x], lr=0.5).step()
        >>> x.tolist()
        [-0.5, 0.5]
    """

    _rule = "sign"

    def __init__(
        self, params: ParamsT, lr: float | Tensor = 1e-4, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
