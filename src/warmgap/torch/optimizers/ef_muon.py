"""EF-Muon: what Muon's normalization drops is kept, and added again at the next step."""

from collections.abc import Callable
from typing import final, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from warmgap._checks import check_count, check_finite, check_flag
from warmgap.torch.layout import Group, check_layout, matrices_of
from warmgap.torch.optimizers._base import CheckedOptimizer, dense_gradient, spectral_of
from warmgap.torch.orthogonalize import TINY, as_matrix
from warmgap.torch.sharding import is_sharded, local

__all__ = ["EFMuon"]


@final
class EFMuon(CheckedOptimizer):
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
    orthogonalized and vectors take the sign. Sharded parameters (DTensor) are put together on every rank for O.

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
        check_count("ns_steps", group["ns_steps"], minimum=1)
        check_flag("exact", group["exact"])
        check_layout(group)

    @overload
    def step(self, closure: None = None, *, loss: float | Tensor | None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float], *, loss: float | Tensor | None = None) -> float: ...
    @torch.no_grad()
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
        factor: float | Tensor = 1.0
        if target_loss is not None:
            factor = self._polyak(returned if loss is None else loss, target_loss)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None or not p.numel():
                    continue
                average = self._average(group, p)
                move, error = self._move(group, p, factor, average)
                self.state[p]["momentum_buffer"] = average
                if self.defaults["feedback"]:
                    self.state[p]["error"] = error
                if group["weight_decay"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(move)
        return returned

    @torch.no_grad()
    def directions(self, group: Group, params: list[Tensor]) -> list[Tensor]:
        """What the next `step()` would subtract from these parameters over the group's rate, changing nothing.

        It is this rank's shard where a parameter is sharded. With `target_loss` it is that of a step without it.
        """
        found = []
        for p in params:
            move = torch.zeros_like(p)
            if p.grad is not None and p.numel():
                move, _ = self._move(group, p, 1.0, self._average(group, p))
            found.append(local(move / group["lr"]))
        return found

    def _average(self, group: Group, p: Tensor) -> Tensor:
        """The momentum with the present gradient in it, fresh."""
        before = self.state.get(p, {}).get("momentum_buffer")
        before = torch.zeros_like(p) if before is None else before
        average: Tensor = before.lerp(dense_gradient(p).to(p.dtype), 1.0 - group["momentum"])
        return average

    def _move(self, group: Group, p: Tensor, factor: float | Tensor, average: Tensor) -> tuple[Tensor, Tensor]:
        """What is subtracted from p, and the error that is kept."""
        rate = group["lr"] * factor
        if not self.defaults["feedback"]:
            return _polar_factor(average, group) * rate, average
        kept = average * rate + self.state.get(p, {}).get("error", 0.0)
        move = _project(kept, group)
        return move, kept - move

    def _polyak(self, loss: float | Tensor | None, target: float) -> Tensor:
        """Polyak's step size for a rate of 1."""
        if loss is None:
            raise ValueError("target_loss needs the loss of the step; call step(loss=loss), or give a closure")
        sizes = [
            _inner(grad, grad if self.defaults["feedback"] else _polar_factor(grad, group))
            for group in self.param_groups
            for p in group["params"]
            if (grad := p.grad) is not None
        ]
        if not sizes:
            return torch.zeros(())
        total = torch.stack([size.to(sizes[0]) for size in sizes]).sum()
        gap = torch.as_tensor(loss).detach().to(total) - target
        return gap.clamp_min(0.0) / total.clamp_min(TINY)


def _project(x: Tensor, group: Group) -> Tensor:
    """The projection of each matrix of x on its polar factor; of a group without matrices, of x on its sign."""
    return _by_part(x, group, lambda part, factor: factor * (_dot(part, factor) / _dot(factor, factor).clamp_min(TINY)))


def _polar_factor(x: Tensor, group: Group) -> Tensor:
    """U V^T of each matrix of x; of a group without matrices, the sign of x."""
    return _by_part(x, group, lambda _, factor: factor)


def _by_part(x: Tensor, group: Group, compute: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Compute something of each matrix of x and its polar factor, or of all of x and its sign."""
    whole = x.full_tensor() if is_sharded(x) else x
    if _is_hidden(whole, group):
        spectral, found = spectral_of(group), torch.empty_like(whole)
        for part, target in zip(matrices_of(whole, group), matrices_of(found, group), strict=True):
            matrix = as_matrix(part)
            matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
            (factor,) = spectral.steepest([matrix])
            target.copy_(compute(matrix, factor.to(matrix.dtype)).reshape(target.shape))
    else:
        found = compute(whole, whole.sign()).to(whole.dtype)
    if not is_sharded(x):
        return found
    from torch.distributed.tensor import distribute_tensor

    # Every rank has the whole, so that none needs to send its shards.
    return distribute_tensor(found, x.device_mesh, x.placements, src_data_rank=None)


def _is_hidden(x: Tensor, group: Group) -> bool:
    if x.ndim < 2:
        return False
    if "role" in group:
        return bool(group["role"] == "hidden")
    return group.get("kind", "matrix") in ("matrix", "conv")


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """<x, y> of the full tensors, in float32 at least."""
    x, y = (one.full_tensor() if is_sharded(one) else one for one in (x, y))
    return _dot(x, y)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return (x.to(wide) * y.to(wide)).sum()
