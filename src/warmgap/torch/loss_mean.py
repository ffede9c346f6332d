"""The mean training loss of one optimizer step, over micro-batches and ranks, without making a device wait.

The contract of every rule: what it is fed is the mean over all tokens of all micro-batches of all ranks, unscaled, the
same number on every rank.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class PendingLoss:
    """A mean that may still be on its way from the device.

    Attributes:
        late: Whether reading it now would wait for the device; a scheduler then reads it one step later.
    """

    def __init__(self, totals: Tensor, event: Any | None = None) -> None:
        self._totals = totals
        self._event = event
        self.late = event is not None

    def result(self) -> float | None:
        """Return the mean, waiting for its copy to arrive; None if nothing was observed or it is not finite."""
        if self._event is not None:
            self._event.synchronize()
        weighted, weight = self._totals.tolist()
        if not weight > 0.0:
            return None
        mean = weighted / weight
        return mean if math.isfinite(mean) else None


class LossMean:
    """Collects the losses of one optimizer step: micro-batch by micro-batch here, over the ranks once a step.

    The ranks exchange two numbers each (sum and weight) by an all-gather and add them in rank order, so that every rank
    gets the same bits.

    Args:
        process_group: The ranks to average over; None for the default group if `torch.distributed` is initialised.
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None) -> None:
        self._group = process_group
        self._totals: Tensor | None = None  # [sum of weight * loss, sum of weight], on the losses' device

    def add(self, loss: float | Tensor, weight: float | Tensor = 1.0) -> None:
        """Add one micro-batch's mean loss, unscaled, with its weight (its number of tokens, say).

        Args:
            loss: A number or a tensor with one element; it is detached and never read here.
            weight: A number >= 0 or a tensor with one element.

        Raises:
            ValueError: If a tensor has more than one element, or a weight that is a number is negative or not finite.
            TypeError: If the loss is neither a number nor a tensor.
        """
        # what is on an accelerator stays there: bringing it here would wait for it
        held = [x.device for x in (self._totals, loss, weight) if isinstance(x, Tensor)]
        device = next((found for found in held if found.type != "cpu"), torch.device("cpu"))
        # float64 holds a sum of token counts exactly; MPS has none
        dtype = torch.float32 if device.type == "mps" else torch.float64
        if not isinstance(weight, Tensor) and not (math.isfinite(weight) and weight >= 0.0):
            raise ValueError(
                f"the weight of a loss must be a finite number >= 0, got {weight!r}; give the number of tokens"
            )
        value, share = _scalar("loss", loss, device, dtype), _scalar("weight", weight, device, dtype)
        totals = torch.stack([torch.where(share > 0, value * share, 0.0), share])
        self._totals = totals if self._totals is None else self._totals.to(device) + totals

    def clear(self) -> None:
        """Forget what was added since the last `take`: its optimizer step did not happen."""
        self._totals = None

    def peek(self) -> PendingLoss:
        """Return what `take` would, and keep what was added.

        Every rank of the group must call it at the same step.
        """
        kept = self._totals
        mean = self.take()
        self._totals = kept
        return mean

    def take(self) -> PendingLoss:
        """Return the mean over everything added since the last `take`, over all ranks, and start afresh.

        Every rank of the group must call it at the same step.

        Raises:
            RuntimeError: If another rank has ended, or does not answer within the process group's timeout.
        """
        totals = torch.zeros(2, dtype=torch.float64) if self._totals is None else self._totals
        self._totals = None
        totals = self._over_ranks(totals)
        if totals.device.type == "cpu":
            return PendingLoss(totals)
        if totals.device.type != "cuda":
            return PendingLoss(totals.cpu())
        host = torch.empty(2, dtype=totals.dtype, pin_memory=True)
        host.copy_(totals, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(totals.device))
        return PendingLoss(host, event)

    def _over_ranks(self, totals: Tensor) -> Tensor:
        if not (dist.is_available() and dist.is_initialized()) or (ranks := dist.get_world_size(self._group)) == 1:
            return totals
        if totals.device.type == "cpu" and dist.get_backend(self._group) == "nccl":
            totals = totals.to("cuda", non_blocking=True)
        gathered = [torch.empty_like(totals) for _ in range(ranks)]
        try:
            dist.all_gather(gathered, totals, group=self._group)
        except RuntimeError as error:  # gloo raises plain ones
            raise RuntimeError(
                f"rank {dist.get_rank()} could not exchange the loss of this step: another rank of the {ranks} has "
                "ended or does not answer, and its own output says why; end the run and resume it from the last "
                "checkpoint, on any number of ranks"
            ) from error
        return torch.stack(gathered).sum(0)


def _scalar(name: str, value: float | Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"a {name} must have one element, got a tensor of shape {tuple(value.shape)}; take its mean"
            )
        return value.detach().reshape(()).to(device=device, dtype=dtype)
    try:
        return torch.full((), float(value), dtype=dtype, device=device)
    except (TypeError, ValueError):
        raise TypeError(f"a {name} must be a number or a tensor with one element, got {value!r}") from None
