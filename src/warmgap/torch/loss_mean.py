"""The mean training loss of one optimizer step, over micro-batches and ranks, without making a device wait.

The contract of every rule: what it is fed is the mean over all tokens of all micro-batches of all ranks, unscaled, the
same number on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Exchanged(NamedTuple):
    """What the ranks agree on about one optimizer step."""

    loss: float | None  # the mean loss; None if nothing was observed, NaN if it is not finite
    skipped: bool  # whether a gradient scaler skipped the step inside the optimizer's kernel


class PendingLoss:
    """A mean that may still be on its way from the device."""

    def __init__(self, totals: Sequence[float | Tensor], event: Any | None = None) -> None:
        self._totals = totals  # sum of weight * loss, sum of weight, skipped
        self._event = event
        self.late = event is not None  # reading it now would wait for the device

    def read(self) -> Exchanged:
        """Return everything, waiting for its copy to arrive."""
        if self._event is not None:
            self._event.synchronize()
        weighted, weight, skipped = map(float, self._totals)
        if not weight > 0.0:
            return Exchanged(None, skipped > 0.0)
        mean = weighted / weight
        return Exchanged(mean if math.isfinite(mean) else math.nan, skipped > 0.0)

    def result(self) -> float | None:
        """Return the mean, waiting for its copy to arrive; None if nothing was observed, NaN if it is not finite."""
        return self.read().loss


class LossMean:
    """Collects the losses of one optimizer step: micro-batch by micro-batch here, over the ranks once a step.

    The ranks exchange three numbers each (sum, weight, whether the step was skipped) by an all-gather and combine them
    in rank order, so that every rank gets the same bits.

    Args:
        process_group: The ranks to average over; None for the default group if `torch.distributed` is initialised.

    Example:
        >>> mean = LossMean()
        >>> mean.add(4.0, weight=100)
        >>> mean.add(5.0, weight=300)
        >>> mean.take().result()
        4.75
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None) -> None:
        self._group = process_group
        self._weighted: float | Tensor = 0.0
        self._weight: float | Tensor = 0.0
        self._before: PendingLoss | Exchanged | None = None  # of the step before, where it came from a device

    @property
    def group(self) -> Any:
        """The process group of these ranks."""
        return dist.group.WORLD if self._group is None else self._group

    @property
    def ranks(self) -> int:
        """Number of ranks that the mean is taken over."""
        return dist.get_world_size(self._group) if dist.is_available() and dist.is_initialized() else 1

    def add(self, loss: float | Tensor, weight: float | Tensor = 1.0) -> None:
        """Add one micro-batch's mean loss, unscaled, with its weight (its number of tokens, say).

        Args:
            loss: A number or a tensor with one element; on an accelerator it is not read here.
            weight: A number >= 0 or a tensor with one element.

        Raises:
            ValueError: If a tensor has more than one element, or a weight that is a number is negative or not finite.
            TypeError: If the loss is neither a number nor a tensor.
        """
        value, share = _scalar("loss", loss), _scalar("weight", weight)
        if isinstance(share, Tensor):
            value = torch.where(share > 0, _beside(value, share) * share, 0.0)
        elif not (math.isfinite(share) and share >= 0.0):
            raise ValueError(
                f"the weight of a loss must be a finite number >= 0, got {weight!r}; give the number of tokens"
            )
        elif share == 0.0:  # an empty micro-batch has no mean, and no say
            return
        else:
            value = value * share
        self._weighted = self._weighted + _beside(value, self._weighted)
        self._weight = self._weight + _beside(share, self._weight)

    @property
    def empty(self) -> bool:
        """Whether nothing was added since the last `take`."""
        return not isinstance(self._weight, Tensor) and self._weight == 0.0

    def clear(self) -> None:
        """Forget what was added since the last `take`: its optimizer step did not happen."""
        self._weighted = self._weight = 0.0

    def peek(self) -> PendingLoss:
        """Return what `take` would, and keep what was added.

        Every rank of the group must call it at the same step.
        """
        kept = self._weighted, self._weight
        mean = self.take()
        self._weighted, self._weight = kept
        return mean

    def take(self, skipped: float | Tensor = 0.0, alone: bool = False) -> PendingLoss:
        """Return the mean over everything added since the last `take`, over all ranks, and start afresh.

        Every rank of the group must call it at the same step.

        Args:
            skipped: Above 0 if this rank's optimizer step was skipped; a tensor is not read here.
            alone: Take the mean of this rank alone, and exchange nothing: for rules that use no loss.

        Raises:
            RuntimeError: If another rank has ended, or does not answer within the process group's timeout.
        """
        totals: Sequence[float | Tensor] = (self._weighted, self._weight, skipped)
        self.clear()
        if self.ranks > 1 and not alone:
            each = self._of_every_rank(_together(totals, self._group))
            totals = (*each[:, :2].sum(0).unbind(), each[:, 2].amax())
        device = _device(totals)
        if device is None:
            return PendingLoss(totals)
        if device.type != "cuda":
            return PendingLoss([float(total) for total in totals])
        return PendingLoss(*sent_to_host(totals, device))

    def exchange(self, skipped: float | Tensor = 0.0, alone: bool = False) -> Exchanged:
        """Return the mean that `take` does; of one that is still on its way from a device, that of the call before."""
        taken = self.take(skipped, alone)
        if not taken.late:
            self._before = None  # of a run on another device: its step is past
            return taken.read()
        before, self._before = self.settled(), taken
        return before or Exchanged(None, False)

    def settled(self) -> Exchanged | None:
        """Return the mean that is on its way, waiting for it: the next `exchange` returns it. None where none is."""
        if isinstance(self._before, PendingLoss):
            self._before = self._before.read()
        return self._before

    def restore(self, before: Exchanged | None) -> None:
        """Start afresh from what `settled` has returned."""
        self.clear()
        self._before = before

    def local(self) -> float:
        """Return the mean of this rank alone, waiting for it; NaN if nothing was added. Nothing is exchanged."""
        weight = float(self._weight)
        return float(self._weighted) / weight if weight > 0.0 else math.nan

    def highest(self, value: Tensor) -> Tensor:
        """Return the highest of the ranks' values, entry by entry; 0 stands for one that is NaN.

        Every rank of the group must call it at the same step. The host does not wait for the device.
        """
        if self.ranks == 1:
            return value
        if value.device.type == "cpu" and dist.get_backend(self._group) == "nccl":
            value = value.to("cuda")
        return self._of_every_rank(value.detach()).nan_to_num(0.0).amax(0)

    def _of_every_rank(self, mine: Tensor) -> Tensor:
        gathered = [torch.empty_like(mine) for _ in range(self.ranks)]
        try:
            dist.all_gather(gathered, mine, group=self._group)
        except RuntimeError as error:  # gloo raises plain ones
            raise RuntimeError(
                f"rank {dist.get_rank()} could not exchange the loss of this step: another rank of the {self.ranks} "
                "has ended or does not answer, and its own output says why; end the run and resume it from the last "
                "checkpoint, on any number of ranks"
            ) from error
        return torch.stack(gathered)


def _scalar(name: str, value: float | Tensor) -> float | Tensor:
    """Return a number, or of a tensor on an accelerator a copy there in double precision."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"a {name} must have one element, got a tensor of shape {tuple(value.shape)}; take its mean"
            )
        value = value.full_tensor() if hasattr(value, "full_tensor") else value  # of a sharded computation
        if value.is_cpu:  # quicker than its device
            return value.item()
        dtype = torch.float32 if value.device.type == "mps" else torch.float64
        return value.detach().reshape(()).to(dtype, copy=True)  # what is on an accelerator stays there
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"a {name} must be a number or a tensor with one element, got {value!r}") from None


def _beside(value: float | Tensor, other: float | Tensor) -> float | Tensor:
    """Return the value on the device of the other one."""
    if isinstance(value, Tensor) and isinstance(other, Tensor) and value.device != other.device:
        return value.to(other.device)
    return value


def _device(totals: Sequence[float | Tensor]) -> torch.device | None:
    """Return the accelerator of the first tensor that lies on one; None where all is on the host."""
    for total in totals:
        if isinstance(total, Tensor) and total.device.type != "cpu":
            return total.device
    return None


def _together(totals: Sequence[float | Tensor], group: dist.ProcessGroup | None) -> Tensor:
    """Return the numbers as one tensor, where the group can exchange it."""
    device = _device(totals)
    if device is None:
        device = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")
    # float64 holds a sum of token counts exactly; MPS has none
    dtype = torch.float32 if device.type == "mps" else torch.float64
    if not any(isinstance(total, Tensor) for total in totals):
        return torch.tensor(totals, dtype=dtype).to(device, non_blocking=True)
    return torch.stack([torch.as_tensor(total, dtype=dtype).to(device, non_blocking=True) for total in totals])


def sent_to_host(values: Sequence[Any], device: torch.device) -> tuple[list[Any], Any]:
    """Copy the tensors among some values from a CUDA device while it works on; what comes with them says when."""
    copies = [
        torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
        if isinstance(value, Tensor)
        else value
        for value in values
    ]
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return copies, event
