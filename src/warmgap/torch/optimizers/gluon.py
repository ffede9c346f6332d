"""Gluon: layer-wise LMO steps whose radii are fixed, or follow from each layer's smoothness."""

from typing import Literal, final

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from warmgap.torch.optimizers._base import (
    Group,
    NormConstrainedOptimizer,
    average_,
    check_at_least_zero,
    descend_,
    is_stack,
    rate,
    shrink_,
)
from warmgap.torch.optimizers._sharding import layout_of, local, whole_sums
from warmgap.torch.optimizers.scion import complete_layer_group, layer_directions


@final
class Gluon(NormConstrainedOptimizer):
    """Gluon: every layer i moves within a ball of radius t_i in its own norm, the norms being those of `Scion`'s table.

        m <- momentum * m + (1 - momentum) * g,     m = g before the first step
        x <- (1 - lr * weight_decay) * x + lr * t * lmo(m)

    where t is the group's `radius` or, if L0 and L1 are given, follows from the layer-wise smoothness constants and the
    layer's dual norm:

        t = ||m||_* / (L0 + L1 ||m||_*)

    with which lr = 1 is the theory's step. The dual norm is taken as <m, -lmo(m)>, per matrix: with Newton-Schulz it is
    as near as its singular values are to one, with `exact` it is the nuclear norm.

    Args:
        params: Parameters, dicts of them, or the groups from `split_parameters`. A parameter without a kind must be a
            matrix. A group may name its own `radius`, or its own `L0` and `L1`.
        lr: Learning rate, a float or a tensor of one element.
        momentum: Weight of the past in the average, at least 0 and under 1.
        radius: Radius of all groups but embeddings and heads, above 0.
        embedding_radius: Radius of embeddings and heads, above 0.
        embedding_rule: `"sign"` or `"row"`.
        L0: Layer-wise smoothness constant, at least 0; with L1 it replaces the radii.
        L1: Layer-wise smoothness constant, at least 0; L0 + L1 must be above 0.
        weight_decay: Decoupled weight decay, at least 0.
        ns_steps: Newton-Schulz iterations (bfloat16).
        exact: Take U V^T from a singular value decomposition instead: for small problems and checks; on CUDA it waits
            for the host.

    Raises:
        TypeError: If a parameter is complex; from `step`, if a gradient is sparse.
        ValueError: If a value is out of range, only one of L0 and L1 is given, or a parameter that is no matrix comes
            without a kind.

    Source: Riabinin et al., arXiv 2505.13416, algorithms 1 and 2, theorem 1 (adaptive radii); the default radii are
        those of their NanoGPT runs.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3.6e-4,
        momentum: float = 0.9,
        radius: float = 50.0,
        embedding_radius: float = 3000.0,
        embedding_rule: Literal["sign", "row"] = "sign",
        *,
        L0: float | None = None,
        L1: float | None = None,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        exact: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "radius": radius,
            "embedding_radius": embedding_radius,
            "embedding_rule": embedding_rule,
            "L0": L0,
            "L1": L1,
            "weight_decay": weight_decay,
            "ns_steps": ns_steps,
            "exact": exact,
        }
        super().__init__(params, defaults)

    def _complete_group(self, group: Group, given: frozenset[str]) -> None:
        complete_layer_group(group, given)
        if (group["L0"] is None) != (group["L1"] is None):
            raise ValueError(f"give both L0 and L1 or neither, got L0={group['L0']!r}, L1={group['L1']!r}")
        if group["L0"] is not None:
            check_at_least_zero("L0", group["L0"])
            check_at_least_zero("L1", group["L1"])
            if group["L0"] + group["L1"] == 0:
                raise ValueError("L0 and L1 are both 0, which makes every radius infinite; give at least one above 0")

    def _update(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        averages = self._state(params, "momentum_buffer", first=grads)
        average_(averages, grads, group["momentum"])
        lr = rate(group)
        steps = list(layer_directions(params, averages, group, self._loads))
        shrink_([local(p) for p in params], lr, group["weight_decay"])
        if group["L0"] is None:
            for blocks, _, directions, factor in steps:
                descend_(blocks, directions, lr * (group["radius"] * factor))
            return
        minus_lmos = [
            [
                direction.to(estimate.dtype).mul_(factor)
                for estimate, direction in zip(estimates, directions, strict=True)
            ]
            for _, estimates, directions, factor in steps
        ]
        stacked = group["rule"] == "spectral" and is_stack(params[0].ndim, group)
        partial = [
            _partial_dual(estimate, minus_lmo, stacked)
            for (_, estimates, _, _), found in zip(steps, minus_lmos, strict=True)
            for estimate, minus_lmo in zip(estimates, found, strict=True)
        ]
        duals = iter(whole_sums(partial, layout_of(params[0]), (1, 2) if stacked else None))
        for (blocks, _, _, _), found in zip(steps, minus_lmos, strict=True):
            descend_(blocks, [minus_lmo.mul_(_radius(next(duals), group)) for minus_lmo in found], lr)


def _partial_dual(estimate: Tensor, minus_lmo: Tensor, stacked: bool) -> Tensor:
    """The part of <m, -lmo(m)> = ||m||_* that is here, of each matrix where the block is a stack of them."""
    wide = torch.promote_types(estimate.dtype, torch.float32)
    return (estimate * minus_lmo).sum(dim=(-2, -1) if stacked else None, keepdim=stacked, dtype=wide)


def _radius(dual: Tensor, group: Group) -> float | Tensor:
    """The radius t = ||m||_* / (L0 + L1 ||m||_*)."""
    # Without L0 it is 1 / L1 whatever the dual norm is, and 0 / 0 is avoided where that vanishes.
    radius: float | Tensor = 1 / group["L1"] if group["L0"] == 0 else dual / (group["L0"] + group["L1"] * dual)
    return radius
