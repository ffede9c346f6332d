"""Scion: every layer's step is the LMO of the norm that fits how the layer is used."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, final

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from warmgap._checks import check_positive
from warmgap.torch.optimizers._base import (
    RULE_NORMS,
    Group,
    NormConstrainedOptimizer,
    average_,
    block_shapes,
    check_flag,
    check_layout,
    check_momentum,
    check_spectral,
    descend_,
    is_stack,
    local_blocks,
    matrix_sides,
    orthogonal_directions,
    output_dim,
    rate,
    set_norm,
    shrink_,
    unit_directions,
)
from warmgap.torch.optimizers._sharding import Loads, layout_of, local, whole_norms
from warmgap.torch.orthogonalize import TINY, as_matrix

LAYER_RULES = ("spectral", "sign", "row", "rms")


@final
class Scion(NormConstrainedOptimizer):
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
    kernel's entries. Weights stored with inputs first, such as those of transposed convolutions, are told by the
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
        ns_steps: Newton-Schulz iterations (bfloat16).
        exact: Take U V^T from a singular value decomposition instead: for small problems and checks; on CUDA it waits
            for the host.

    Raises:
        TypeError: If a parameter is complex; from `step`, if a gradient is sparse.
        ValueError: If a value is out of range, or a parameter that is no matrix comes without a kind.

    Source: Pethick et al., arXiv 2502.07529, algorithms 1 and 2 and the table of norms; the radii are those of their
        NanoGPT runs.
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
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "radius": radius,
            "embedding_radius": embedding_radius,
            "embedding_rule": embedding_rule,
            "constrained": constrained,
            "weight_decay": weight_decay,
            "ns_steps": ns_steps,
            "exact": exact,
        }
        super().__init__(params, defaults)

    def _complete_group(self, group: Group, given: frozenset[str]) -> None:
        constrained = group.pop("constrained")
        check_flag("constrained", constrained)
        own, of_all = group["weight_decay"], self.defaults["weight_decay"]
        if own is None or (constrained and own == 0.0):
            group["weight_decay"] = float(constrained) if of_all is None else of_all
        complete_layer_group(group, given)

    def _update(self, group: Group, params: list[Tensor], grads: list[Tensor]) -> None:
        averages = self._state(params, "momentum_buffer")
        average_(averages, grads, group["momentum"])
        lr = rate(group)
        steps = list(layer_directions(params, averages, group, self._loads))
        shrink_([local(p) for p in params], lr, group["weight_decay"])
        for blocks, _, directions, factor in steps:
            descend_(blocks, directions, lr * (group["radius"] * factor))


def complete_layer_group(group: Group, given: frozenset[str]) -> None:
    """Give a group of a layer-wise optimizer its rule, norm and radius, and check them."""
    embedding_radius, embedding_rule = group.pop("embedding_radius"), group.pop("embedding_rule")
    if embedding_rule not in ("sign", "row"):
        raise ValueError(f"embedding_rule must be 'sign' or 'row', got {embedding_rule!r}")
    check_positive("embedding_radius", embedding_radius)
    kind = group.get("kind", "matrix")
    by_kind = {"matrix": "spectral", "conv": "spectral", "embedding": embedding_rule, "head": embedding_rule}
    rule = group.setdefault("rule", by_kind.get(kind, "rms"))
    if rule not in LAYER_RULES:
        raise ValueError(f"rule must be one of {', '.join(map(repr, LAYER_RULES))}, got {rule!r}")
    if "radius" not in given and kind in ("embedding", "head"):
        group["radius"] = embedding_radius
    set_norm(group, RULE_NORMS[rule])
    check_positive("radius", group["radius"])
    check_momentum("momentum", group["momentum"])
    check_flag("exact", group["exact"])
    if rule == "spectral":
        check_spectral(group)
    elif rule != "rms":
        check_layout(group)


def layer_directions(
    params: list[Tensor], estimates: list[Tensor], group: Group, loads: Loads
) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor], float]]:
    """Take the LMO of a group's layer-wise norm at the estimates, block by block.

    Args:
        params: The parameters, of one shape, or sharded.
        estimates: One for each, this rank's pieces of sharded ones.
        group: Their group.
        loads: What the ranks have to do already; added to.

    Yields:
        For each block: its part of the parameters and of the estimates, as views; directions, fresh; and the factor for
        which the LMO is -factor * direction.
    """
    if group["rule"] == "spectral":
        for blocks, sources, directions, shape in orthogonal_directions(params, estimates, group, loads):
            yield blocks, sources, directions, _spectral_factor(shape, group)
        return
    layout = layout_of(params[0])
    if group["rule"] == "rms":
        for p, estimate, direction in zip(params, estimates, unit_directions(estimates, layout), strict=True):
            yield [local(p)], [estimate], [direction], math.sqrt(p.numel())
        return
    for p, estimate in zip(params, estimates, strict=True):
        blocks_of = (local_blocks(x, p, group) for x in (local(p), estimate))
        for block, source, shape in zip(*blocks_of, block_shapes(p, group), strict=True):
            _, columns = matrix_sides(shape, group)
            if group["rule"] == "sign":
                direction, factor = source.sign(), 1 / columns
            else:
                matrix = source if is_stack(source.ndim, group) else as_matrix(source)
                wide = torch.promote_types(matrix.dtype, torch.float32)
                lengths = torch.linalg.vector_norm(matrix, dim=-1, keepdim=True, dtype=wide)
                along = set(range(p.ndim)) - {output_dim(p, group)} - ({0} if is_stack(p.ndim, group) else set())
                (lengths,) = whole_norms([lengths], layout, along)
                direction, factor = (matrix / lengths.clamp_min(TINY)).to(p.dtype), 1 / math.sqrt(columns)
            yield [block], [source], [direction.reshape(block.shape)], factor


def _spectral_factor(shape: Sequence[int], group: Group) -> float:
    """The factor sqrt(outputs / inputs) / kernel entries; the last is 1 for a matrix."""
    outputs, inputs, *kernel = shape[1:] if is_stack(len(shape), group) else shape
    return math.sqrt(outputs / inputs) / math.prod(kernel)
