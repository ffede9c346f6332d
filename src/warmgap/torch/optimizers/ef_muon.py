"""EF-Muon: what Muon's normalization drops is kept, and added again at the next step."""

from collections.abc import Callable, Sequence
from typing import final, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from warmgap._checks import check_finite, check_flag
from warmgap.torch.layout import Group, check_layout
from warmgap.torch.norms import Max
from warmgap.torch.optimizers._base import (
    LayerNorm,
    NormConstrainedOptimizer,
    Tensors,
    gradient,
    inner_products,
    scalar,
)
from warmgap.torch.orthogonalize import TINY
from warmgap.torch.sharding import Sharding, sharding_of

__all__ = ["EFMuon"]


@final
class EFMuon(NormConstrainedOptimizer):
    """Muon with error feedback: it converges where Muon does not, on convex Lipschitz functions.

    Muon goes along U V^T, whatever the singular values of its momentum: what is small in every gradient, but always
    there, is drowned by what is large and changes its sign. EF-Muon keeps the difference E:

        M <- momentum * M + (1 - momentum) * G
        P  = lr * M + E
        S  = <P, O> / ||O||_F^2 * O              O = U V^T, the polar factor of P
        x <- (1 - lr * weight_decay) * x - S
        E  = P - S

    With the exact polar factor S is `(||P||_nuc/rank P) U V^T`, as published; of the O of Newton-Schulz it is the best
    that can be made. The learning rate weighs the gradient, as in subgradient descent, and is of the order
    1/sqrt(steps): a step has no fixed length, and rates of Muon do not carry over.

    A group's `role` (or `kind`) says what is orthogonalized: hidden matrices, block by block where the group names
    `blocks`, and `transposed` where it says so; convolutions as (out, rest); each matrix of a stack of experts.
    Embeddings, heads and vectors take `O = sign(P)`, the same for the max norm. Without role and kind, matrices are
    orthogonalized and vectors take the sign.

    `directions` gives what the next `step` would subtract over the rate, with `target_loss` what one without it would.
    At rate 0, over which nothing can be said, it is that of a step without an error.

    Args:
        params: Parameters, dicts of them, or the groups from `split_parameters`.
        lr: Learning rate, gamma; a float or a tensor of one element.
        momentum: Weight of the past in the average, at least 0 and under 1.
        weight_decay: Decoupled weight decay, at least 0.
        ns_steps: Newton-Schulz iterations.
        exact: Take U V^T from a singular value decomposition instead; on CUDA it waits for the host.
        feedback: Whether to keep E. Without, a step is `lr O` with O of M: Muon itself, to compare with.
        target_loss: The least loss f*, for Polyak's step sizes from the loss that `step` is given: gamma is
            `lr (f - f*)/||G||_F^2`, and without feedback the step is `lr (f - f*)/||G||_*  O`, both norms over all
            parameters; lr is 1, or less for caution, and weight decay takes it as it is.

    Raises:
        TypeError: If a parameter is complex; from `step`, if a gradient is sparse.
        ValueError: If a value is out of range; from `step`, if a loss is missing, or given without target_loss.

    Example:
        >>> import torch
        >>> from warmgap.torch import EFMuon
        >>> W = torch.nn.Parameter(torch.tensor([[1.75, 0.0], [0.0, 0.25]]))
        >>> optimizer = EFMuon([W], lr=0.5, momentum=0.0, exact=True)
        >>> W.grad = torch.tensor([[1.0, 0.0], [0.0, -0.5]])
        >>> optimizer.step()
        >>> W.detach()
        tensor([[1.3750, 0.0000],
                [0.0000, 0.6250]])
        >>> state = optimizer.state[W]
        >>> state["error"]
        tensor([[0.1250, 0.0000],
                [0.0000, 0.1250]])

    Source: arXiv 2605.08980 (the method on matrices); the projection, and the sign for other groups, are ours.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        *,
        exact: bool = False,
        feedback: bool = True,
        target_loss: float | None = None,
    ) -> None:
        if target_loss is not None:
            check_finite("target_loss", target_loss)
        check_flag("feedback", feedback)
        defaults = {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "ns_steps": ns_steps, "exact": exact,
            "feedback": feedback, "target_loss": target_loss
        }  # fmt: skip
        super().__init__(params, defaults)

    def _complete_group(self, group: Group, given: frozenset[str]) -> None:  # noqa: ARG002
        # Of the whole step, not of a group.
        del group["feedback"], group["target_loss"]
        check_layout(group)

    @overload
    def step(self, closure: None = None, *, loss: float | Tensor | None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float], *, loss: float | Tensor | None = None) -> float: ...
    def step(self, closure: Callable[[], float] | None = None, *, loss: float | Tensor | None = None) -> float | None:
        """Take one step.

        Args:
            closure: Evaluates the model anew and returns the loss.
            loss: With `target_loss`, the loss that the gradients belong to, where there is no closure.

        Returns:
            The closure's loss, None without one.

        Raises:
            ValueError: If a loss is missing, or is given though there is no target_loss.
        """
        returned = None
        if closure is not None:
            with torch.enable_grad():
                returned = closure()
        target_loss = self.defaults["target_loss"]
        if loss is not None and target_loss is None:
            raise ValueError("step was given a loss, but has no use for it; leave it out, or make EFMuon(target_loss=)")
        if target_loss is not None:
            self._factor = self._polyak(returned if loss is None else loss, target_loss)
        super().step()
        return returned

    @torch.no_grad()
    def _polyak(self, loss: float | Tensor | None, target: float) -> float | Tensor:
        """Polyak's step size for a rate of 1."""
        if loss is None:
            raise ValueError("target_loss needs the loss of the step; call step(loss=loss), or give a closure")
        sizes = []
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            grads = [gradient(p) for p in params]
            # Without feedback the dual norm, from the directions at the gradients.
            others = grads if self._feedback else self.directions({**group, "momentum": 0.0}, params)
            for p, grad, other in zip(params, grads, others, strict=True):
                sizes += inner_products([grad], [other], Max(), sharding_of(p))
        if not sizes:
            return 0.0
        total = torch.stack([size.to(sizes[0]) for size in sizes]).sum()
        gap = torch.as_tensor(loss).detach().to(total) - target
        return scalar(gap.clamp_min(0.0) / total.clamp_min(TINY))

    def _rule_of(self, group: Group) -> str:
        hidden = group["role"] == "hidden" if "role" in group else group.get("kind", "matrix") in ("matrix", "conv")
        return "spectral" if hidden else "sign"

    @property
    def _feedback(self) -> bool:  # type: ignore[override]
        return bool(self.defaults["feedback"])

    def _copied_states(self, group: Group, params: Tensors, grads: Tensors) -> Tensors:
        states = super()._copied_states(group, params, grads)
        if self._feedback:
            lr = scalar(group["lr"]) if isinstance(group["lr"], Tensor) else group["lr"]
            over_rate = torch.where(lr > 0.0, 1.0 / lr, 0.0) if isinstance(lr, Tensor) else 1.0 / lr if lr else 0.0
            count = len(self._state_names(group))
            torch._foreach_mul_(states[count - 1 :: count], over_rate)
        return states

    def _radii(
        self, group: Group, norm: LayerNorm, sources: Tensors, directions: Tensors, cut: Sharding | None
    ) -> Sequence[Tensor | float]:
        del group  # all alike
        products = inner_products(sources, directions, norm, cut)
        squares = inner_products(directions, directions, norm, cut)
        return [product / square.clamp_min(TINY) for product, square in zip(products, squares, strict=True)]
