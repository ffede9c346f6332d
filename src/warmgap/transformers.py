"""The schedule inside the Hugging Face `Trainer`.

`WarmgapTrainer` is a `Trainer` whose learning rate `warmgap.torch.AdaptiveWarmup` sets; `WarmupTrainerMixin` does the
same for a Trainer of your own. The loss that the schedule sees is the exact mean over all tokens of an optimizer step,
under gradient accumulation and over all ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmgap._checks import not_installed as _not_installed
from warmgap._checks import warn

try:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from transformers import Trainer, TrainerState
    from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
except ModuleNotFoundError as _error:
    raise _not_installed(_error, "warmgap.transformers", "transformers", "torch", "transformers") from None

from warmgap.torch import AdaptiveWarmup, split_parameters
from warmgap.torch.roles import assign_roles

__all__ = ["WarmgapTrainer", "WarmupTrainerMixin", "split_factory"]

_Base: Any = Trainer if TYPE_CHECKING else object


class WarmupTrainerMixin(_Base):  # type: ignore[misc] # transformers has no types
    """Gives a `Trainer` an `AdaptiveWarmup` over all of its steps: put it before the Trainer among the base classes.

    The peak learning rate is that of the optimizer (`TrainingArguments.learning_rate` for Trainer's own);
    `lr_scheduler_type` and the warm-up arguments have no effect, and a warning says so where they are given. Hidden
    matrices, embeddings and head are found by the model, and the optimizer's groups split by these roles. Training
    logs gain `lr` (of the step just made), `phase` (`"warmup"`, `"stable"` or `"decay"`) and, for rules that follow it,
    `gap`. Trainer's checkpoints hold the schedule; after one without it (`save_only_model=True`, or a plain Trainer's)
    the schedule goes on from the step count alone, and a warning says so.

    The loss is what `training_step` returns, summed over the micro-batches of the optimizer step and weighted over the
    ranks by their tokens. Where the model does not take `num_items_in_batch`, Trainer trains on the mean of the
    micro-batches' means, and that is what is seen here too. The loss of a step that a gradient scaler skipped is
    dropped.

    Args:
        *args: Trainer's own.
        warmup: Keyword arguments for `AdaptiveWarmup`, such as `{"rule": "gap", "target_loss": 3.2}`.
        **kwargs: Trainer's own.

    Raises:
        ValueError: If a scheduler is given as `optimizers[1]`.

    Example:
        >>> class Mine(WarmupTrainerMixin, Trainer):
        ...     pass
        >>> Mine.create_scheduler is WarmupTrainerMixin.create_scheduler
        True
    """

    lr_scheduler: Any

    def __init__(self, *args: Any, warmup: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self._warmup_settings = dict(warmup or {})
        self._step_loss: Tensor | None = None
        super().__init__(*args, **kwargs)
        if self.lr_scheduler is not None:
            raise ValueError(
                f"{type(self).__name__} makes its own scheduler, and got {type(self.lr_scheduler).__name__}: "
                "give optimizers=(optimizer, None), and settings by warmup={...}"
            )

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> AdaptiveWarmup:
        """Make the schedule over `num_training_steps` optimizer steps."""
        if self.lr_scheduler is None:
            inner: Any = self.optimizer if optimizer is None else optimizer
            while hasattr(inner, "optimizer"):  # Accelerate's wrapper does not run the hooks that count steps
                inner = inner.optimizer
            self._give_roles(inner)
            self.lr_scheduler = AdaptiveWarmup(inner, num_training_steps, **self._warmup_settings)
            self._created_lr_scheduler = True
            self._step_loss = None
            _warn_of_ignored(self.args)
        scheduler: AdaptiveWarmup = self.lr_scheduler
        return scheduler

    def _give_roles(self, optimizer: Optimizer) -> None:
        if "model" in self._warmup_settings or "roles" in self._warmup_settings:
            return
        try:
            assign_roles(optimizer, self.model)
        except ValueError:  # its groups can't be split; the scheduler says what that means
            return

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        saved = None if checkpoint is None else Path(checkpoint) / SCHEDULER_NAME
        anothers = saved is not None and saved.is_file() and _is_anothers(saved)
        if anothers:  # then Trainer is to load the optimizer alone
            scheduler, self.lr_scheduler = self.lr_scheduler, _Unloaded()
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        finally:
            if anothers:
                self.lr_scheduler = scheduler
        state = None if checkpoint is None else Path(checkpoint) / TRAINER_STATE_NAME
        if state is None or self.lr_scheduler.last_epoch > 0 or not state.is_file():
            return
        steps = TrainerState.load_from_json(str(state)).global_step
        why = "holds another scheduler" if anothers else "holds no schedule (save_only_model=True)"
        afresh = "" if anothers else ", and the optimizer starts afresh"
        warn(
            f"{checkpoint} {why}: it goes on at step {steps} of {self.lr_scheduler.total_iters} without the losses of "
            f"the steps before{afresh}"
        )
        self.lr_scheduler._go_on_at(steps)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Take one micro-batch forward and back, and show the schedule the loss when the optimizer step is complete."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss
        if self.accelerator.sync_gradients:
            # what Trainer returns are shares of the step's mean, so that a rank's weight is its count of tokens
            tokens = 1.0 if num_items_in_batch is None or self.args.n_gpu > 1 else num_items_in_batch
            self.lr_scheduler.discard()  # a step that was skipped left its loss
            self.lr_scheduler.observe(self._step_loss, weight=tokens)
            self._step_loss = None
        return loss

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Log `logs`; those of a training step with `lr`, `gap` and `phase`."""
        if "learning_rate" in logs and isinstance(self.lr_scheduler, AdaptiveWarmup):
            logs["lr"] = logs["learning_rate"]
            logs["phase"] = self.lr_scheduler.phase
            if (gap := self.lr_scheduler.gap) is not None:
                logs["gap"] = gap
        super().log(logs, start_time)


class WarmgapTrainer(WarmupTrainerMixin, Trainer):  # type: ignore[misc]
    """A Hugging Face `Trainer` with an `AdaptiveWarmup`; see `WarmupTrainerMixin`.

    Example:
        >>> from transformers import TrainingArguments
        >>> trainer = WarmgapTrainer(
        ...     nn.Linear(4, 1), TrainingArguments("run", use_cpu=True, report_to="none"), warmup={"decay": "linear"}
        ... )
        >>> trainer.create_optimizer_and_scheduler(num_training_steps=100)
        >>> trainer.lr_scheduler.total_iters, trainer.lr_scheduler.schedule.decay
        (100, 'linear')
    """


def split_factory(optimizer: Callable[..., Optimizer]) -> Callable[[], Callable[..., Optimizer]]:
    """Return what `Trainer(optimizer_cls_and_kwargs=(..., kwargs))` takes to build an optimizer on a split model.

    `optimizer_cls_and_kwargs=(split_factory(Muon), {"lr": 2e-3})` makes `Muon(split_parameters(model), lr=2e-3)`. The
    class itself would get Trainer's own two groups, which don't tell hidden matrices from embeddings.

    Args:
        optimizer: A class of `warmgap.torch`.

    Example:
        >>> from warmgap.torch import Lion
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9))
        >>> optimizer = split_factory(Lion)()(model, lr=1e-3)
        >>> sorted({group["role"] for group in optimizer.param_groups})
        ['embedding', 'head', 'hidden', 'other']
    """

    def build(model: nn.Module, **kwargs: Any) -> Optimizer:
        return optimizer(split_parameters(model), **kwargs)

    return lambda: build


def _warn_of_ignored(args: Any) -> None:
    """Say once which settings of Trainer's own schedulers were given, and have no effect."""
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    names = ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio")
    values = {name: getattr(args, name, None) for name in names}
    given = [
        f"{name}={getattr(value, 'value', value)}" for name, value in values.items() if value != defaults.get(name)
    ]
    if given:
        warn(
            f"{', '.join(given)} had no effect: warm-up is the schedule's own here, and its other settings go in "
            "warmup=, as in warmup={'decay': 'cosine'} or warmup={'rule': 'linear'}"
        )


class _Unloaded:
    """Stands where a scheduler would load a state, and leaves it alone."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        del state_dict


def _is_anothers(saved: Path) -> bool:
    """Return whether a scheduler's state was saved by another class of scheduler."""
    return "version" not in torch.load(saved, map_location="cpu", weights_only=True)
