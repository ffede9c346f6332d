"""Muon: orthogonalised momentum for the hidden matrices, and in the same optimizer another rule for everything else."""

import math
from typing import Literal, final

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from warmgap.torch.optimizers._base import (
    RULE_NORMS,
    Group,
    NormConstrainedOptimizer,
    average_,
    check_betas,
    check_eps,
    check_flag,
    check_momentum,
    check_rate,
    check_spectral,
    descend_,
    matrix_sides,
    orthogonal_directions,
    rate,
    set_norm,
    shrink_,
)
from warmgap.torch.optimizers._sharding import local
from warmgap.torch.optimizers.lion import lion_
from warmgap.torch.optimizers.signum import signum_

SCALES = ("rms", "spectral", "none")
SECOND_RULES = ("adamw", "lion", "sign")

# The root mean square of AdamW's steps, about: arXiv 2502.16982, section 2.2.
ADAMW_RMS = 0.2

_ADAMW_FUSED = ("cpu", "cuda", "xpu")


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
        weight_decay: Decoupled weight decay of all groups, at least 0.
        scale: `"rms"`, `"spectral"` or `"none"`.
        ns_steps: Newton-Schulz iterations (bfloat16).
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
        second: Literal["adamw", "lion", "sign"] = "adamw",
        second_lr: float | Tensor | None = None,
        second_betas: tuple[float, float] | None = None,
        second_momentum: float = 0.9,
        second_eps: float = 1e-8,
    ) -> None:
        if second not in SECOND_RULES:
            raise ValueError(f"second must be one of {', '.join(map(repr, SECOND_RULES))}, got {second!r}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "scale": scale,
            "ns_steps": ns_steps,
            "exact": exact,
            "second": second,
            "second_lr": second_lr,
            "second_betas": second_betas,
            "second_momentum": second_momentum,
            "second_eps": second_eps,
        }
        super().__init__(params, defaults)

    def _complete_group(self, group: Group, given: frozenset[str]) -> None:
        second = {key: group.pop(f"second_{key}") for key in ("lr", "betas", "momentum", "eps")}
        second_rule = group.pop("second")
        rule = group.setdefault(
            "rule", "spectral" if group.get("kind", "matrix") in ("matrix", "conv") else second_rule
        )
        if rule not in ("spectral", *SECOND_RULES):
            raise ValueError(f"rule must be 'spectral' or one of {', '.join(map(repr, SECOND_RULES))}, got {rule!r}")
        set_norm(group, RULE_NORMS[rule])
        # Of every group: the rate of the others depends on the scale.
        if group["scale"] not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(map(repr, SCALES))}, got {group['scale']!r}")
        check_flag("nesterov", group["nesterov"])
        check_flag("exact", group["exact"])
        if second["lr"] is not None:
            check_rate(second["lr"], "second_lr")
        if rule == "spectral":
            check_momentum("momentum", group["momentum"])
            check_spectral(group)
            return
        if "lr" not in given:
            group["lr"] = _second_rate(rule, second["lr"], group["lr"], group["scale"])
        for key in {"nesterov", "scale", "ns_steps", "exact"} - given:
            del group[key]
        if rule == "sign":
            if "momentum" not in given:
                group["momentum"] = second["momentum"]
            check_momentum("momentum", group["momentum"])
            return
        if "momentum" not in given:
            del group["momentum"]
        group.setdefault("betas", second["betas"] or ((0.9, 0.95) if rule == "adamw" else (0.9, 0.99)))
        check_betas(group["betas"])
        if rule == "adamw":
            check_eps(group.setdefault("eps", second["eps"]))

    def _update(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        lr, weight_decay = rate(group), group["weight_decay"]
        pieces = [local(p) for p in params]
        if group["rule"] == "spectral":
            self._spectral(group, params, grads, lr)
        elif group["rule"] == "lion":
            lion_(pieces, grads, self._state(params, "exp_avg"), lr, group["betas"], weight_decay)
        elif group["rule"] == "sign":
            signum_(pieces, grads, self._state(params, "momentum_buffer"), lr, group["momentum"], weight_decay)
        else:
            self._adamw(group, params, grads, lr)

    def _spectral(self, group: Group, params: list[Tensor], grads: list[Tensor], lr: float | Tensor) -> None:
        momentum = group["momentum"]
        averages = self._state(params, "momentum_buffer")
        average_(averages, grads, momentum)
        estimates = list(torch._foreach_lerp(grads, averages, momentum)) if group["nesterov"] else averages
        steps = list(orthogonal_directions(params, estimates, group, self._loads))
        # Only now, so that both passes over a parameter find it in the cache.
        shrink_([local(p) for p in params], lr, group["weight_decay"])
        for blocks, _, directions, shape in steps:
            descend_(blocks, directions, lr * _scale(group["scale"], *matrix_sides(shape, group)))

    def _adamw(self, group: Group, params: list[Tensor], grads: list[Tensor], lr: float | Tensor) -> None:
        fused = params[0].device.type in _ADAMW_FUSED
        counters = []
        for p in params:
            state = self.state[p]
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32)
            if fused and state["step"].device != p.device:
                # Fresh, or loaded from elsewhere: the fused kernel counts on the parameter's device.
                state["step"] = state["step"].to(p.device)
            counters.append(state["step"])
        adamw(
            [local(p) for p in params],
            grads,
            self._state(params, "exp_avg"),
            self._state(params, "exp_avg_sq"),
            [],
            counters,
            foreach=False,
            fused=fused,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=lr,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


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
