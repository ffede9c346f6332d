"""The schedule inside Lightning: what `configure_optimizers` returns, and the callback that shows it the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from warmgap._checks import not_installed as _not_installed
from warmgap._checks import warn

try:
    import torch
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning
    from torch import Tensor
    from torch.optim import Optimizer
except ModuleNotFoundError as _error:
    raise _not_installed(_error, "warmgap.lightning", "lightning", "torch", "lightning") from None

from warmgap.torch import AdaptiveWarmup
from warmgap.torch.scheduler import IN_CHARGE

__all__ = ["WarmupCallback", "configure_warmup"]

_NEVER_CALLED = 10  # optimizer steps without a step of the scheduler after which a warning says so
_ENDED = 0.9  # share of a schedule that a whole run makes at least
_BACKBONE = 10.0  # by how much Lightning's finetuning callbacks lower the rate of what they unfreeze


def configure_warmup(optimizer: Optimizer, total_iters: int, **settings: Any) -> dict[str, Any]:
    """Return what `LightningModule.configure_optimizers` returns for an optimizer under an `AdaptiveWarmup`.

    Args:
        optimizer: Any optimizer; Lightning's automatic optimization takes one, and those of `warmgap.torch` are each
            one for the whole model.
        total_iters: Optimizer steps in the whole run: `int(self.trainer.estimated_stepping_batches)`.
        **settings: Keyword arguments for `AdaptiveWarmup`. `model=self` tells hidden matrices from embeddings and the
            head where the optimizer's groups were not made by `split_parameters`.

    Returns:
        `{"optimizer": ..., "lr_scheduler": {"scheduler": ..., "interval": "step"}}`. The trainer also needs a
        `WarmupCallback`.

    Example:
        >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(4))], lr=1e-3)
        >>> configured = configure_warmup(optimizer, total_iters=1000)
        >>> configured["lr_scheduler"]["interval"], configured["lr_scheduler"]["scheduler"].total_iters
        ('step', 1000)
    """
    scheduler = AdaptiveWarmup(optimizer, total_iters, **settings)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class WarmupCallback(Callback):
    """Shows every `AdaptiveWarmup` of the trainer the loss of each micro-batch, and logs `warmgap/lr` and `gap`.

    The loss is what `training_step` returns, unscaled: Lightning's division by `accumulate_grad_batches` and a gradient
    scaler's factor are taken out, without waiting for the device. Ranks are averaged by the scheduler. Lightning's own
    checkpoints hold the schedule; the callback has no state.

    Under manual optimization each optimizer's schedule is shown the losses that went backward since the last optimizer
    step; where there are none, those of the step before, as where two optimizers share one loss. A schedule that was
    shown a loss by `observe` is left alone. `scheduler.step()` is yours to call there, after `optimizer.step()`.

    A rate that `LearningRateFinder` found becomes the peak, and groups' peaks keep their ratios. Where a callback takes
    the schedule out of the trainer, as `StochasticWeightAveraging` does, there is nothing more to do.

    Args:
        tokens: Number of tokens of a batch, the weight of its loss; None where all micro-batches have the same.

    Example:
        >>> callback = WarmupCallback(tokens=lambda batch: (batch["labels"] != -100).sum())
        >>> trainer = Trainer(callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False)
        >>> callback in trainer.callbacks
        True
    """

    def __init__(self, tokens: Callable[[Any], float | Tensor] | None = None) -> None:
        self._tokens = tokens
        self._weight: float | Tensor = 1.0
        self._losses: list[tuple[Tensor, float | Tensor]] = []
        self._before: list[tuple[Tensor, float | Tensor]] = []  # of the last optimizer step of a manual loop
        self._gap_is_ours: bool | None = None
        self._warned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start afresh, and check that there is a schedule to show losses to.

        Raises:
            ValueError: If no scheduler of the trainer is an `AdaptiveWarmup`, nor was.

        Warns:
            UserWarning: If the trainer would step one once an epoch; it is then stepped after each optimizer step.
        """
        self._losses, self._before = [], []  # a run that broke off within a step may have left some
        self._gap_is_ours, self._warned = None, False
        schedulers = _schedulers(trainer)
        if not schedulers and not _taken_out(trainer):
            raise ValueError(
                "WarmupCallback found no AdaptiveWarmup among the trainer's schedulers: return "
                "configure_warmup(optimizer, total_iters) from configure_optimizers"
            )
        if pl_module.automatic_optimization:
            _step_each_step(trainer)
        for scheduler in schedulers:
            _take_found_rate(scheduler)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Weigh the batch."""
        del pl_module, batch_idx
        if self._tokens is not None:
            self._weight = self._tokens(batch)
        for scheduler in _schedulers(trainer):
            _take_late_groups(trainer, scheduler)

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
        losses, manual = self._losses, not pl_module.automatic_optimization
        if manual:
            losses = self._before = losses or self._before
        for scheduler in _schedulers(trainer):
            if manual and scheduler.optimizer is not optimizer:
                continue
            if scheduler._loss.empty:  # else it was shown one by hand
                for loss, weight in losses:
                    scheduler.observe(loss, weight=weight)
            scheduler.before_step()
        self._losses = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log `warmgap/lr`, of the next step, and, unless the module logs one of its own, `gap`."""
        del outputs, batch, batch_idx
        if self._gap_is_ours is None:
            self._gap_is_ours = "gap" not in trainer.callback_metrics
        for scheduler in _schedulers(trainer):
            pl_module.log("warmgap/lr", float(scheduler.get_last_lr()[0]))
            if scheduler.gap is not None and self._gap_is_ours:
                pl_module.log("gap", scheduler.gap)
            if scheduler._steps.made >= _NEVER_CALLED and not self._warned:
                self._warned = True
                warn(
                    f"{type(scheduler.optimizer).__name__} made {scheduler._steps.made} steps and its AdaptiveWarmup "
                    "none: under manual optimization Lightning steps no scheduler; call scheduler.step() after "
                    "optimizer.step(), on each of self.lr_schedulers()"
                )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where a run that nothing stopped early has ended long before its schedule did."""
        if not pl_module.automatic_optimization or trainer.should_stop or trainer.interrupted:
            return
        for scheduler in _schedulers(trainer):
            made, total = scheduler.last_epoch, scheduler.total_iters
            if made < _ENDED * total:
                warn(
                    f"training has ended after {made} optimizer steps, and the schedule was made for {total}, so that "
                    f"the rate has not decayed to its end: give total_iters={made} if this is the whole run (the "
                    "trainer's estimate knows nothing of an accumulation that changes during the run)"
                )


def _schedulers(trainer: Trainer) -> list[AdaptiveWarmup]:
    found = (config.scheduler for config in trainer.lr_scheduler_configs)
    return [scheduler for scheduler in found if isinstance(scheduler, AdaptiveWarmup)]


def _taken_out(trainer: Trainer) -> bool:
    """Return whether the trainer had an `AdaptiveWarmup`, and another callback has taken it away."""
    if any(hasattr(optimizer, IN_CHARGE) for optimizer in trainer.optimizers):
        return True
    scheduled = any("initial_lr" in group for optimizer in trainer.optimizers for group in optimizer.param_groups)
    return scheduled and not trainer.lr_scheduler_configs


def _step_each_step(trainer: Trainer) -> None:
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, AdaptiveWarmup) and (config.interval, config.frequency) != ("step", 1):
            warn(
                f"an AdaptiveWarmup is stepped after every optimizer step, and was returned with the interval "
                f"{config.interval!r} and the frequency {config.frequency}: it is stepped so now, over the "
                f"{config.scheduler.total_iters} optimizer steps it was made for (this run makes "
                f"{trainer.estimated_stepping_batches:.0f}); return configure_warmup(optimizer, total_iters), or "
                "'interval': 'step'"
            )
            config.interval, config.frequency = "step", 1


def _take_found_rate(scheduler: AdaptiveWarmup) -> None:
    """Make a rate the peak that was put into all groups before the first step, as `LearningRateFinder` does.

    It stands for the optimizer's `lr`, so that groups with other peaks keep their ratio to it.
    """
    groups, last = scheduler.optimizer.param_groups, scheduler.get_last_lr()
    rates = [float(group["lr"]) for group in groups]
    if scheduler.last_epoch > 0 or len(set(rates)) > 1 or not rates[0] > 0.0 or rates == [float(lr) for lr in last]:
        return
    for group, lr in zip(groups, last, strict=True):  # else the change would be carried on too
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
    scheduler.scale_peak(rates[0] / float(scheduler.optimizer.defaults.get("lr", scheduler.base_lrs[0])))


def _take_late_groups(trainer: Trainer, scheduler: AdaptiveWarmup) -> None:
    """Give groups that a finetuning callback added the peak that their rate means.

    It gives them a part of the first group's present rate, where a group's `lr` is taken as its peak elsewhere.
    """
    first, late = scheduler.optimizer.param_groups[0], scheduler.optimizer.param_groups[len(scheduler.base_lrs) :]
    callbacks = [callback for callback in trainer.callbacks if isinstance(callback, BaseFinetuning)]  # type: ignore[attr-defined]
    follows = any(isinstance(one, BackboneFinetuning) and one.backbone_initial_lr is None for one in callbacks)
    for group in late if callbacks else ():
        part = float(group["lr"]) / float(first["lr"])
        if "initial_lr" not in group and (follows or math.isclose(part * _BACKBONE, 1.0)):
            group["initial_lr"] = part * float(scheduler.base_lrs[0])
