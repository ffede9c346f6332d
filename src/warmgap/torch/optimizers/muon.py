"""Muon: orthogonalised momentum for the hidden matrices, and in the same optimizer another rule for everything else."""

import math
from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from warmgap._checks import check_choice
from warmgap.torch.layout import Group, matrix_sides
from warmgap.torch.optimizers._base import LayerNorm, NormConstrainedOptimizer, check_rate, spectral_of
from warmgap.torch.orthogonalize import Polynomial

SCALES = ("rms", "spectral", "none")
SECOND_RULES = ("adamw", "lion", "sign")

# The root mean square of AdamW's steps, about: arXiv 2502.16982, section 2.2.
ADAMW_RMS = 0.2


@final
class Muon(NormConstrainedOptimizer):
    """Muon for a whole model: hidden matrices by the LMO of the spectral norm, the rest by a rule of your choice.

    A group's `rule` follows from its `kind` (see `split_parameters`): `matrix` and `conv` are `"spectral"`, everything
    else takes the second rule. A group may name its own `rule`. Parameters without a kind must be matrices, and all are
    orthogonalised: embeddings and output heads, which are matrices too, should not be among them, so prefer
    `Muon(split_parameters(model))`.

    Spectral groups:

        m <- momentum * m + (1 - momentum) * g
        d <- (1 - momentum) * g + momentum * m  if nesterov else  m
        x <- (1 - lr * weight_decay) * x - lr * scale * U V^T,      d = U S V^T

    The momentum is an average, as in `torch.optim.Muon`; where it is a sum elsewhere the path is the same, since U V^T
    does not depend on d's length. Weight decay takes the unscaled lr. `scale` is, for a matrix of `rows` outputs and
    `columns` inputs,

        "rms"        0.2 * sqrt(max(rows, columns)): a step's entries have AdamW's usual root mean square, so AdamW's
                     rates carry over (torch's "match_rms_adamw")
        "spectral"   sqrt(max(1, rows / columns)) (torch's "original")
        "none"       1

    Args:
        params: Parameters, dicts of them, or the groups from `split_parameters`.
        lr: Learning rate of the spectral groups, a float or a tensor of one element.
        momentum: Weight of the past in the average, at least 0 and under 1.
        nesterov: Whether the newest gradient is weighed in once more.
        weight_decay: Decoupled weight decay of all groups, at least 0; a float or a tensor of one element.
        scale: `"rms"`, `"spectral"` or `"none"`.
        ns_steps: Newton-Schulz iterations.
        polynomial: That of Newton-Schulz, a name or (a, b, c) of each step, see `warmgap.torch.orthogonalize`.
        compute_dtype: What Newton-Schulz computes in, such as `torch.bfloat16`; by default bfloat16 where the hardware
            has units for it, else float32.
        exact: Take U V^T from a singular value decomposition instead: for small problems and checks; on CUDA it waits
            for the host.
        second: Rule of the other groups: `"adamw"`, `"lion"` or `"sign"` (Signum).
        second_lr: Their learning rate. By default lr for AdamW and 0.2 * lr for the two sign rules, whose steps have
            root mean square 1 where AdamW's have about 0.2. With another scale than `"rms"` no default makes sense, and
            it must be given.
        second_betas: AdamW's or Lion's betas; (0.9, 0.95) and (0.9, 0.99) by default.
        second_momentum: Momentum of the `"sign"` rule.
        second_eps: AdamW's epsilon.

    Raises:
        TypeError: If a parameter is complex; from `step`, if a gradient is sparse.
        ValueError: If a value is out of range, or a parameter that is no matrix comes without a kind.

    Source: Jordan et al. (2024), "Muon: An optimizer for hidden layers in neural networks"; Liu et al., arXiv
        2502.16982 (`"rms"`).

    Example:
        >>> import torch
        >>> from warmgap.torch import Muon, split_parameters
        >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 9))
        >>> optimizer = Muon(split_parameters(model), lr=2e-3)
        >>> [(group["role"], group["rule"]) for group in optimizer.param_groups]
        [('hidden', 'spectral'), ('embedding', 'adamw'), ('head', 'adamw'), ('other', 'adamw')]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        scale: Literal["rms", "spectral", "none"] = "rms",
        ns_steps: int = 5,
        *,
        exact: bool = False,
        polynomial: Polynomial = "jordan",
        compute_dtype: torch.dtype | None = None,
        second: Literal["adamw", "lion", "sign"] = "adamw",
        second_lr: float | Tensor | None = None,
        second_betas: tuple[float, float] | None = None,
        second_momentum: float = 0.9,
        second_eps: float = 1e-8,
    ) -> None:
        check_choice("second", second, SECOND_RULES)
        defaults = {
            "lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay, "scale": scale,
            "ns_steps": ns_steps, "exact": exact, "polynomial": polynomial, "compute_dtype": compute_dtype,
            "second": second, "second_lr": second_lr, "second_betas": second_betas,
            "second_momentum": second_momentum, "second_eps": second_eps
        }  # fmt: skip
        super().__init__(params, defaults)

    def _complete_group(self, group: Group, given: frozenset[str]) -> None:
        second = {key: group.pop(f"second_{key}") for key in ("lr", "betas", "momentum", "eps")}
        second_rule: str = group.pop("second")
        hidden = group.get("kind", "matrix") in ("matrix", "conv")
        rule: str = group.setdefault("rule", "spectral" if hidden else second_rule)
        check_choice("rule", rule, ("spectral", *SECOND_RULES))
        # Of every group: the rate of the others depends on the scale.
        check_choice("scale", group["scale"], SCALES)
        if second["lr"] is not None:
            check_rate("second_lr", second["lr"])
        if rule == "spectral":
            super()._complete_group(group, given)
            return
        if "lr" not in given:
            group["lr"] = _second_rate(rule, second["lr"], group["lr"], group["scale"])
        unused = {"nesterov", "scale", "ns_steps", "exact", "polynomial", "compute_dtype"}
        if rule == "sign":
            group["momentum"] = group["momentum"] if "momentum" in given else second["momentum"]
        else:
            unused.add("momentum")
            group.setdefault("betas", second["betas"] or ((0.9, 0.95) if rule == "adamw" else (0.9, 0.99)))
        if rule == "adamw":
            group.setdefault("eps", second["eps"])
        for key in unused - given:
            del group[key]
        super()._complete_group(group, given)

    def norm_of(self, group: Group, shape: Sequence[int]) -> LayerNorm:
        """The norm of a block; in the spectral norm, scaled as the group says."""
        if group["rule"] != "spectral":
            return super().norm_of(group, shape)
        return spectral_of(group, 1.0 / _scale(group["scale"], *matrix_sides(shape, group)))


def _scale(scale: str, rows: int, columns: int) -> float:
    if scale == "rms":
        return ADAMW_RMS * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns)) if scale == "spectral" else 1.0


def _second_rate(rule: str, second_lr: float | Tensor | None, lr: float | Tensor, scale: str) -> float | Tensor:
    if second_lr is not None:
        return second_lr
    if scale != "rms":
        raise ValueError(f"with scale={scale!r} lr is no rate for the {rule!r} groups; give second_lr")
    return lr if rule == "adamw" else ADAMW_RMS * lr
