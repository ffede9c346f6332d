"""Gluon: layer-wise LMO steps whose radii are fixed, or follow from each layer's smoothness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from warmgap._checks import check_at_least_zero
from warmgap.torch.layout import Group
from warmgap.torch.optimizers._base import LayerNorm, Tensors, inner_products
from warmgap.torch.optimizers.scion import LayerWise
from warmgap.torch.orthogonalize import Polynomial
from warmgap.torch.sharding import Sharding


@final
class Gluon(LayerWise):
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
        weight_decay: Decoupled weight decay, at least 0; a float or a tensor of one element.
        ns_steps: As in `Muon`.
        exact: As in `Muon`.
        polynomial: As in `Muon`.
        compute_dtype: As in `Muon`.

    Raises:
        TypeError: If a parameter is complex; from `step`, if a gradient is sparse.
        ValueError: If a value is out of range, only one of L0 and L1 is given, or a parameter that is no matrix comes
            without a kind.

    Source: Riabinin et al., arXiv 2505.13416, algorithms 1 and 2, theorem 1 (adaptive radii); the default radii are
        those of their NanoGPT runs.

    Example:
        >>> import torch
        >>> from warmgap.torch import Gluon
        >>> W = torch.nn.Parameter(torch.zeros(2, 2))
        >>> W.grad = torch.tensor([[3.0, 0.0], [0.0, -0.1]])
        >>> Gluon([W], lr=0.01, radius=50.0, exact=True).step()  # both singular values count alike
        >>> [[round(entry, 3) for entry in row] for row in W.tolist()]
        [[-0.5, 0.0], [0.0, 0.5]]
    """

    _from_gradient = True

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
        polynomial: Polynomial = "jordan",
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "radius": radius, "embedding_radius": embedding_radius,
            "embedding_rule": embedding_rule, "L0": L0, "L1": L1, "weight_decay": weight_decay, "ns_steps": ns_steps,
            "exact": exact, "polynomial": polynomial, "compute_dtype": compute_dtype
        }  # fmt: skip
        super().__init__(params, defaults)

    @classmethod
    def from_fits(cls, model: nn.Module, fits: Any, lr: float | Tensor = 1.0, **settings: Any) -> Gluon:
        """Return Gluon for a model with the radii that follow from what was measured along a run.

        Args:
            model: The model.
            fits: The fits of `warmgap.smoothness.fit_layers`, or L0 and L1 by parameter name.
            lr: Learning rate; 1 is the theory's step.
            settings: Further arguments of `Gluon`.

        Raises:
            ValueError: If the fits do not belong to the model, see `warmgap.torch.gluon_fits.gluon_groups`.

        Source: Riabinin et al., arXiv 2505.13416, theorem 1.
        """
        from warmgap.torch.gluon_fits import gluon_groups

        return cls(gluon_groups(model, fits), lr=lr, **settings)

    def _complete_group(self, group: Group, given: frozenset[str]) -> None:
        super()._complete_group(group, given)
        if (group["L0"] is None) != (group["L1"] is None):
            raise ValueError(f"give both L0 and L1 or neither, got L0={group['L0']!r}, L1={group['L1']!r}")
        if group["L0"] is not None:
            check_at_least_zero("L0", group["L0"])
            check_at_least_zero("L1", group["L1"])
            if group["L0"] + group["L1"] == 0:
                raise ValueError("L0 and L1 are both 0, which makes every radius infinite; give at least one above 0")

    def _radii(
        self, group: Group, norm: LayerNorm, sources: Tensors, directions: Tensors, cut: Sharding | None
    ) -> Sequence[Tensor | float]:
        L0, L1 = group["L0"], group["L1"]
        if L0 == 0:
            return [1 / L1] * len(sources)  # whatever the dual norms are; 0 / 0 is avoided where one vanishes
        products = inner_products(sources, directions, norm, cut)  # the dual norms times the scale
        return [product / (L0 * norm.scale + L1 * product) for product in products]
