"""Signum: the sign of the momentum."""

from typing import final

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from warmgap.torch.optimizers._base import (
    Group,
    NormConstrainedOptimizer,
    average_,
    check_momentum,
    chunks,
    descend_,
    rate,
    set_norm,
    shrink_,
)
from warmgap.torch.optimizers._sharding import local


@final
class Signum(NormConstrainedOptimizer):
    """Signum, with momentum 0 signSGD: the LMO of the max norm at the gradient's average.

        m <- momentum * m + (1 - momentum) * g
        x <- (1 - lr * weight_decay) * x - lr * sign(m)

    Args:
        params: Parameters, dicts of them, or the groups from `split_parameters`; all are stepped alike.
        lr: Learning rate, the change of every entry per step; a float or a tensor of one element.
        momentum: Weight of the past in the average, at least 0 and under 1.
        weight_decay: Decoupled weight decay, at least 0.

    Raises:
        TypeError: If a parameter is complex; from `step`, if a gradient is sparse.
        ValueError: If a value is out of range.

    Source: Bernstein et al., arXiv 1802.04434, algorithm 2.
    """

    def __init__(
        self, params: ParamsT, lr: float | Tensor = 1e-4, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _complete_group(self, group: Group, given: frozenset[str]) -> None:  # noqa: ARG002
        check_momentum("momentum", group["momentum"])
        set_norm(group, "max")

    def _update(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        averages = self._state(params, "momentum_buffer") if group["momentum"] else []
        pieces = [local(p) for p in params]
        signum_(pieces, grads, averages, rate(group), group["momentum"], group["weight_decay"])


def signum_(
    params: list[Tensor],
    grads: list[Tensor],
    averages: list[Tensor],
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
) -> None:
    """Signum's step in place on lists of parameters and their averages, which are not used without momentum."""
    for ps, gs, ms in chunks(params, grads, averages if momentum else grads):
        if momentum:
            average_(ms, gs, momentum)
        shrink_(ps, lr, weight_decay)
        descend_(ps, list(torch._foreach_sign(ms)), lr)
