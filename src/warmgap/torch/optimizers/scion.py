"""Scion: every layer's step is the LMO of the norm that fits how the layer is used."""

from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from warmgap._checks import check_choice
from warmgap.torch.layout import Group, check_layout, is_stack
from warmgap.torch.norms import layer_norm
from warmgap.torch.optimizers._base import LayerNorm, NormConstrainedOptimizer, spectral_of
from warmgap.torch.orthogonalize import Polynomial


class LayerWise(NormConstrainedOptimizer):
    """What Scion and Gluon share: the norm of a layer follows from its kind by Scion's table, and has a radius."""

    def _complete_group(self, group: Group, given: frozenset[str]) -> None:
        embedding_radius, embedding_rule = group.pop("embedding_radius"), group.pop("embedding_rule")
        check_choice("embedding_rule", embedding_rule, ("sign", "row"))
        kind = group.get("kind", "matrix")
        by_kind = {"matrix": "spectral", "conv": "spectral", "embedding": embedding_rule, "head": embedding_rule}
        rule = group.setdefault("rule", by_kind.get(kind, "rms"))
        check_choice("rule", rule, ("spectral", "sign", "row", "rms"))
        if "radius" not in given and kind in ("embedding", "head"):
            group["radius"] = embedding_radius
        super()._complete_group(group, given)
        if rule in ("sign", "row"):
            check_layout(group)

    def norm_of(self, group: Group, shape: Sequence[int]) -> LayerNorm:
        """The norm of a block by the table of `Scion`."""
        rule = group["rule"]
        if rule == "rms":  # of all entries, of a stack too
            return layer_norm("rms", shape)
        spectral = spectral_of(group) if rule == "spectral" else None
        return layer_norm(rule, shape[1:] if is_stack(len(shape), group) else shape, spectral=spectral)


@final
class Scion(LayerWise):
    """Scion: layer-wise LMO steps on norms that measure a layer by what it does to the root mean square of its input.

        m <- momentum * m + (1 - momentum) * g
        x <- (1 - lr * weight_decay) * x + lr * radius * lmo(m)

    with weight decay 1 in the constrained form, which keeps every layer in the ball of its radius, and 0 in the
    unconstrained one. That decay is part of the constrained step, of norms and biases too: a group whose own
    `weight_decay` is 0, as `split_parameters` writes it where it is habit not to decay, takes the optimizer's all the
    same, unless the group says `constrained=False`. A group's `rule` follows from its `kind` (see `split_parameters`)
    unless it names one. For a layer of `rows` outputs and `columns` inputs:

        kind                  rule         -lmo(m)                                norm in the group
        matrix, conv          "spectral"   sqrt(rows / columns) U V^T             "spectral"
        embedding, head       "sign"       sign(m) / columns                      "max"
                           or "row"        m's rows of length 1 / sqrt(columns)   None
        norm, bias, other     "rms"        sqrt(entries) m / ||m||_F              "frobenius"

    where the spectral rule takes the channels as rows and columns of a convolution, and divides by the number of the
    kernel's entries. Weights stored with inputs first, such as those of transposed convolutions, are recognised by the
    group's `transposed`. A parameter without a kind must be a matrix and takes the spectral rule.

    Args:
        params: Parameters, dicts of them, or the groups from `split_parameters`.
        lr: Learning rate, a float or a tensor of one element.
        momentum: Weight of the past in the average, at least 0 and under 1: one minus the paper's alpha.
        radius: Radius of all groups but embeddings and heads, above 0.
        embedding_radius: Radius of embeddings and heads, above 0. A group may name its own `radius`.
        embedding_rule: `"sign"` or `"row"`.
        constrained: Whether weight decay is 1 by default, in every group; else it is 0. A group may say its own.
        weight_decay: Another decoupled weight decay, at least 0; the ball's radius is then radius / weight_decay. A
            group may name its own.
        ns_steps: As in `Muon`.
        exact: As in `Muon`.
        polynomial: As in `Muon`.
        compute_dtype: As in `Muon`.

    Raises:
        TypeError: If a parameter is complex; from `step`, if a gradient is sparse.
        ValueError: If a value is out of range, or a parameter that is no matrix comes without a kind.

    Source: Pethick et al., arXiv 2502.07529, algorithms 1 and 2 and the table of norms; the radii are those of their
        NanoGPT runs.

    Example:
        >>> import torch
        >>> from warmgap.torch import Scion
        >>> W = torch.nn.Parameter(torch.zeros(2, 2))
        >>> W.grad = torch.tensor([[3.0, 0.0], [0.0, -0.1]])
        >>> Scion([W], lr=0.01, radius=50.0, exact=True).step()  # both singular values count alike
        >>> [[round(entry, 3) for entry in row] for row in W.tolist()]
        [[-0.5, 0.0], [0.0, 0.5]]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 2**-12,
        momentum: float = 0.9,
        radius: float = 50.0,
        embedding_radius: float = 3000.0,
        embedding_rule: Literal["sign", "row"] = "sign",
        *,
        constrained: bool = True,
        weight_decay: float | None = None,
        ns_steps: int = 5,
        exact: bool = False,
        polynomial: Polynomial = "jordan",
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "radius": radius, "embedding_radius": embedding_radius,
            "embedding_rule": embedding_rule, "constrained": constrained, "weight_decay": weight_decay,
            "ns_steps": ns_steps, "exact": exact, "polynomial": polynomial, "compute_dtype": compute_dtype
        }  # fmt: skip
        super().__init__(params, defaults)

    def _complete_group(self, group: Group, given: frozenset[str]) -> None:
        constrained = group.pop("constrained")
        own, of_all = group["weight_decay"], self.defaults["weight_decay"]
        if own is None or (constrained and own == 0.0):
            group["weight_decay"] = float(constrained) if of_all is None else of_all
        super()._complete_group(group, given)
