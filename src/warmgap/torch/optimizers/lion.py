"""Lion: the sign of an average of the gradient with two decay rates."""

from typing import final

from torch import Tensor
from torch.optim.optimizer import ParamsT

from warmgap.torch.optimizers._base import NormConstrainedOptimizer


@final
class Lion(NormConstrainedOptimizer):
    """Lion: the LMO of the max norm at an average that weighs the newest gradient more than the momentum does.

        c <- beta1 * m + (1 - beta1) * g
        x <- (1 - lr * weight_decay) * x - lr * sign(c)
        m <- beta2 * m + (1 - beta2) * g

    Args:
        params: Parameters, dicts of them, or the groups from `split_parameters`; all are stepped alike.
        lr: Learning rate, the change of every entry per step; a float or a tensor of one element.
        betas: (beta1, beta2), each at least 0 and under 1.
        weight_decay: Decoupled weight decay, at least 0; a float or a tensor of one element.

    Raises:
        TypeError: If a parameter is complex; from `step`, if a gradient is sparse.
        ValueError: If a value is out of range.

    Source: Chen et al., arXiv 2302.06675, algorithm 2.

    Example:
        >>> import torch
        >>> from warmgap.torch import Lion
        >>> x = torch.nn.Parameter(torch.zeros(2))
        >>> x.grad = torch.tensor([3.0, -4.0])
        >>> Lion([x], lr=0.5).step()
        >>> x.tolist()
        [-0.5, 0.5]
    """

    _rule = "lion"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
