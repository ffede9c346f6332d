"""The schedule inside Lightning: what `configure_optimizers` returns, and the callback that shows it the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from warmgap.torch import AdaptiveWarmup

__all__ = ["WarmupCallback", "configure_warmup"]


def configure_warmup(optimizer: Optimizer, total_iters: int, **settings: Any) -> dict[str, Any]:
    """Return what `LightningModule.configure_optimizers` returns for an optimizer under an `AdaptiveWarmup`.

    Args:
        optimizer: Any optimizer; Lightning's automatic optimization takes one, and those of `warmgap.torch` are each
            one for the whole model.
        total_iters: Optimizer steps in the whole run: `int(self.trainer.estimated_stepping_batches)`.
        **settings: Keyword arguments for `AdaptiveWarmup`.

    Returns:
        `{"optimizer": ..., "lr_scheduler": {"scheduler": ..., "interval": "step"}}`. The trainer also needs a
        `WarmupCallback`.
    """
    scheduler = AdaptiveWarmup(optimizer, total_iters, **settings)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class WarmupCallback(Callback):
    """Shows every `AdaptiveWarmup` of the trainer the loss of each micro-batch, and logs `lr` and `gap`.

    The loss is what `training_step` returns, unscaled: Lightning's division by `accumulate_grad_batches` and a gradient
    scaler's factor are taken out, without waiting for the device. Ranks are averaged by the scheduler. Lightning's own
    checkpoints hold the schedule; the callback has no state.

    Args:
        tokens: Number of tokens of a batch, the weight of its loss; None where all micro-batches have the same.
    """

    def __init__(self, tokens: Callable[[Any], float | Tensor] | None = None) -> None:
        self._tokens = tokens
        self._weight: float | Tensor = 1.0
        self._losses: list[tuple[Tensor, float | Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start afresh, and check that there is a schedule to show losses to.

        Raises:
            ValueError: If no scheduler of the trainer is an `AdaptiveWarmup`.
        """
        del pl_module
        self._losses.clear()  # a run that broke off within a step may have left some
        if not _schedulers(trainer):
            raise ValueError(
                "WarmupCallback found no AdaptiveWarmup among the trainer's schedulers: return "
                "configure_warmup(optimizer, total_iters) from configure_optimizers"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Weigh the batch."""
        del trainer, pl_module, batch_idx
        if self._tokens is not None:
            self._weight = self._tokens(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the micro-batch's loss."""
        del pl_module
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        unscaled = loss.detach() * trainer.accumulate_grad_batches
        if scaler is not None:
            unscaled = unscaled / scaler.scale(torch.ones_like(unscaled))
        self._losses.append((unscaled, self._weight))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Show the step's losses; Lightning steps the scheduler after the optimizer, before a save.

        The last one was made inside the optimizer's `step`, so that its hook came too early for the first look.
        """
        del pl_module, optimizer
        for scheduler in _schedulers(trainer):
            for loss, weight in self._losses:
                scheduler.observe(loss, weight=weight)
            scheduler._look_first()
        self._losses.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log `lr`, of the next step, and `gap`."""
        del outputs, batch, batch_idx
        for scheduler in _schedulers(trainer):
            pl_module.log("lr", float(scheduler.get_last_lr()[0]))
            if scheduler.gap is not None:
                pl_module.log("gap", scheduler.gap)


def _schedulers(trainer: Trainer) -> list[AdaptiveWarmup]:
    found = (config.scheduler for config in trainer.lr_scheduler_configs)
    return [scheduler for scheduler in found if isinstance(scheduler, AdaptiveWarmup)]
