"""Descent of a fixed length: the gradient divided by its norm over the whole model, or any LMO of ours."""

from collections.abc import Callable
from typing import Any, Literal, final, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from warmgap._checks import check_finite
from warmgap.torch.compression._state import local
from warmgap.torch.norms import Norm
from warmgap.torch.optimizers._base import descend_
from warmgap.torch.orthogonalize import TINY

__all__ = ["NormalizedGD"]


@final
class NormalizedGD(Optimizer):
    """Normalized gradient descent: steps whose length is the learning rate, for the whole model at once.

        x <- (1 - lr * weight_decay) * x - lr * g / ||g||_2            norm="l2": over all parameters of all groups
        x <- (1 - lr * weight_decay) * x + lr * LMO(g)                 norm=Spectral(), ...: each parameter a block

    `warmgap.torch.NormalizedSGD` differs: it divides each parameter by its own length. With error feedback on the
    gradients, this is ||EF21|| and, with its momentum, ||EF21-SGDM||; with a norm of `warmgap.torch.norms`, EF21 with
    LMO steps, of which `Spectral` is EF21-Muon. A zero gradient makes no step.

    Parameters may be sharded (DTensor) with `norm="l2"`.

    Args:
        params: Parameters, or dicts of them.
        lr: Learning rate.
        norm: `"l2"`, or a norm of `warmgap.torch.norms`; one for all groups.
        weight_decay: Decoupled weight decay, at least 0.

    Raises:
        ValueError: If a value is out of range.

    Example:
        >>> import torch
        >>> from warmgap.torch.compression import NormalizedGD
        >>> x = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = NormalizedGD([x], lr=1.0)
        >>> x.grad = torch.tensor([3.0, 4.0])
        >>> optimizer.step()
        >>> x
        Parameter containing:
        tensor([2.4000, 3.2000], requires_grad=True)

    Source: arXiv 2410.16871, Algorithm 1; arXiv 2510.00643 for other norms.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        norm: Literal["l2"] | Norm = "l2",
        weight_decay: float = 0.0,
    ) -> None:
        if norm != "l2" and not hasattr(norm, "lmo"):
            raise ValueError(f"norm must be 'l2' or one of warmgap.torch.norms, got {norm!r}")
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if check_finite(name, float(value)) < 0.0:
                raise ValueError(f"{name} must be at least 0, got {value!r}")
        self._norm = norm
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; returns the closure's loss, None without one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        members = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        directions = self._directions([p for _, p in members])
        for (group, p), direction in zip(members, directions, strict=True):
            x, lr = local(p), group["lr"]
            if isinstance(lr, Tensor) and lr.device.type == "cpu":
                lr = float(lr)
            descend_([x], [direction], lr, group["weight_decay"], by_passes=x.device.type == "cpu")
        return loss

    @torch.no_grad()
    def directions(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        """What `step` would subtract at a rate of 1 from these parameters of a group, changing nothing."""
        del group  # all are normalized together
        return self._directions(params)

    def _directions(self, params: list[Tensor]) -> list[Tensor]:
        """The direction of each, this rank's shard where it is sharded; zero where there is no gradient."""
        if not isinstance(self._norm, str):
            return [torch.zeros_like(p) if p.grad is None else -self._norm.lmo(p.grad) for p in params]
        every = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        lengths = [_length(grad) for grad in every]
        if not lengths:
            return [torch.zeros_like(local(p)) for p in params]
        total = torch.linalg.vector_norm(torch.stack([x.to(lengths[0]) for x in lengths])).clamp_min(TINY)
        return [
            torch.zeros_like(local(p)) if p.grad is None else local(p.grad) / total.to(p.grad.device) for p in params
        ]


def _length(x: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    found: Tensor = torch.linalg.vector_norm(x, dtype=wide)
    return found.full_tensor() if hasattr(found, "full_tensor") else found
