"""Lion: the sign of an average of the gradient with two decay rates."""

from typing import final

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from warmgap.torch.optimizers._base import (
    Group,
    NormConstrainedOptimizer,
    check_betas,
    chunks,
    descend_,
    rate,
    set_norm,
    shrink_,
)
from warmgap.torch.optimizers._sharding import local


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
        weight_decay: Decoupled weight decay, at least 0.

    Raises:
        TypeError: If a parameter is complex; from `step`, if a gradient is sparse.
        ValueError: If a value is out of range.

    Source: Chen et al., arXiv 2302.06675, algorithm 2.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def _complete_group(self, group: Group, given: frozenset[str]) -> None:  # noqa: ARG002
        check_betas(group["betas"])
        set_norm(group, "max")

    def _update(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        pieces, exp_avgs = [local(p) for p in params], self._state(params, "exp_avg")
        lion_(pieces, grads, exp_avgs, rate(group), group["betas"], group["weight_decay"])


def lion_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    lr: float | Tensor,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """Lion's step in place on lists of parameters and their averages."""
    beta1, beta2 = betas
    for ps, gs, ms in chunks(params, grads, exp_avgs):
        # Not lerp: a sign turns a last-digit difference into a step of 2 lr, so the products are rounded as in the
        # paper's formula.
        directions = list(torch._foreach_mul(ms, beta1))
        torch._foreach_add_(directions, gs, alpha=1 - beta1)
        torch._foreach_sign_(directions)
        shrink_(ps, lr, weight_decay)
        descend_(ps, directions, lr)
        torch._foreach_mul_(ms, beta2)
        torch._foreach_add_(ms, gs, alpha=1 - beta2)
