"""`AdaptiveWarmup`: the schedule as a PyTorch learning-rate scheduler."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from warmgap._checks import check_finite, check_fraction
from warmgap.geometry import check_norm
from warmgap.rules import Rule, by_name
from warmgap.schedule import Schedule
from warmgap.target import Target
from warmgap.torch.loss_mean import LossMean, PendingLoss
from warmgap.torch.recognition import optimizer_kappa, optimizer_norm

STATE_VERSION = 1

_PATIENCE = 10  # steps without any loss before a warning
_MANY_SKIPPED = 100  # calls without an optimizer step before a warning; a host may call once a process


class AdaptiveWarmup(LRScheduler):
    """A warm-up that ends itself, then a decay: call `observe(loss)` before every `optimizer.step()`, `step()` after.

    The loss is the mean training loss of that optimizer step, unscaled; of micro-batches, `observe(loss, weight)` each.
    Ranks are averaged here, so that all of them set the same learning rate. Observed before the first step, its loss is
    the evidence on which the default and the loss ratio may start above the floor. `step(loss)` alone will do: the
    first step is then made at the floor.

    On a CUDA device a loss takes effect one step late: it is copied while the next step runs, and neither host nor
    device waits for the other. Only the first step waits, once, for the loss that it may start on.

    A step that an AMP scaler skipped does not count, and its loss is dropped: `step` does nothing if the optimizer has
    not stepped since the last call. (An optimizer with `fused=True` skips inside its kernel, where nobody can tell:
    call `discard()` instead of `step()` there.) Each group's rate is its own peak rate times one common factor.

    Args:
        optimizer: Any optimizer; the `lr` of each group is taken as its peak (its `initial_lr`, where an earlier
            scheduler left one, as in torch).
        total_iters: Optimizer steps in the whole run.
        rule: `"auto"` (the best there is here), `"gap"`, `"loss-ratio"`, `"power"`, `"linear"` (the usual tenth of the
            run), or a rule of `warmgap.rules`.
        target_loss: The loss taken as optimal, or `"auto"`: an estimate from the run. For rules given by name.
        floor: Starting learning rate / peak learning rate where no loss was observed before the first step, in (0, 1);
            also where the curve begins that the default is kept above. For rules given by name that use one.
        decay: A name of `warmgap.decay.NAMES` or a callable from progress to factor.
        norm: The norm that bounds a step: `"spectral"`, `"max"`, `"frobenius"`, or `"auto"` to tell it from the
            optimizer. For rules given by name: the gap rule needs it, and the default goes up faster in the spectral
            one than in another or unknown one. Where several optimizers share a model, give all of them the same.
        process_group: The ranks to average the loss over; None for the default group where `torch.distributed` is
            initialised.
        last_epoch: Only -1: an adaptive schedule can't be resumed from a step number; use `load_state_dict`.

    Raises:
        ValueError: If an argument lies outside its range, or the norm is needed and can't be told.
        TypeError: If `optimizer` is not an optimizer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: int,
        *,
        rule: str | Rule[Any] = "auto",
        target_loss: float | Literal["auto"] = "auto",
        floor: float = 0.01,
        decay: str | Callable[[float], float] = "cosine",
        norm: str = "auto",
        process_group: dist.ProcessGroup | None = None,
        last_epoch: int = -1,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if last_epoch != -1:
            raise ValueError(
                f"last_epoch must be -1, got {last_epoch!r}: resume an adaptive schedule with load_state_dict"
            )
        if not hasattr(optimizer, "_optimizer_step_post_hooks"):
            raise ValueError(
                f"{type(optimizer).__name__} only wraps an optimizer and runs no step hooks; make the scheduler on the "
                "optimizer itself, before it is prepared"
            )
        check_fraction("floor", floor, "it is starting learning rate / peak learning rate")
        check_norm(norm)
        Target(target_loss)  # raises where it is neither a number nor "auto"
        if isinstance(rule, str):
            constant = partial(optimizer_kappa, optimizer, norm)
            name = partial(optimizer_norm, optimizer, norm)
            rule = by_name(rule, total_iters, floor=floor, target_loss=target_loss, kappa=constant, norm=name)
        self.schedule = Schedule(total_iters, rule, decay)
        self._state = self.schedule.init()
        self._loss = LossMean(process_group)
        self._late: PendingLoss | float | None = None
        self._without_loss = 0
        self._without_step = 0
        self._trains = False
        self._looked = False
        self._optimizer_steps = 0
        self._seen_steps = 0
        _watch_steps(optimizer, self)
        super().__init__(optimizer, last_epoch)
        self.base_lrs = [float(lr) for lr in self.base_lrs]

    @property
    def phase(self) -> Literal["warmup", "decay"]:
        """`"warmup"` until the hand-over, `"decay"` from it on."""
        return self._state.phase

    @property
    def warmup_iters(self) -> int | None:
        """The number of steps that warm-up took; None until it ended."""
        return self._state.handover

    @property
    def factor(self) -> float:
        """Learning rate / peak learning rate of the next step, in (0, 1]."""
        return self._state.factor

    @property
    def gap(self) -> float | None:
        """The loss gap that the rule sees; None before the first loss, or where the rule has none."""
        return self.schedule.reading(self._state)[0]

    @property
    def target_loss(self) -> float | None:
        """The target loss in use, given or estimated; None before the first loss, or where the rule has none."""
        return self.schedule.reading(self._state)[1]

    def calibrate(self, closure: Callable[[], float | Tensor]) -> None:
        """Measure the loss before the first step: on it the default and the loss ratio may start above the floor.

        For loops that show the loss after the step; one observed before the first step does the same. Every rank must
        call it.

        Args:
            closure: Returns the mean loss of a batch, of this rank; called once, without gradients.

        Raises:
            ValueError: If a step was made already, or the loss is not finite.
            TypeError: If `closure` can't be called.
        """
        if not callable(closure):
            raise TypeError(
                f"calibrate needs a function that returns the loss, got {closure!r:.80}: give lambda: model(batch)"
            )
        with torch.no_grad():
            self._loss.add(closure())
        loss = self._loss.take().result()
        self._state = self.schedule.calibrate(self._state, math.nan if loss is None else loss)
        self._set_lrs()

    def observe(self, loss: float | Tensor, weight: float | Tensor = 1.0) -> None:
        """Add one micro-batch's loss to the mean of the current optimizer step.

        Args:
            loss: Its mean loss, not divided by the number of micro-batches, nor scaled: a number or a tensor with one
                element.
            weight: Its share in the step's mean: its number of tokens, where micro-batches differ in it.

        Raises:
            ValueError: If a tensor has more than one element, or a weight that is a number is negative.
            TypeError: If the loss is neither a number nor a tensor.
        """
        self._trains = self._trains or (isinstance(loss, Tensor) and loss.requires_grad)
        self._loss.add(loss, weight)

    def discard(self) -> None:
        """Forget what was observed since the last `step`: its optimizer step was skipped.

        Only for hosts that then don't call `step` at all; `step` itself drops the loss of a skipped step.
        """
        self._forget_step()

    def step(self, loss: float | Tensor | None = None) -> None:
        """Move on by one optimizer step and set the learning rates of the next.

        Every rank must call it at the same step.

        Args:
            loss: The mean training loss of the step just made, if it was not observed before: a number or a tensor with
                one element.

        Raises:
            ValueError: If the loss has more than one element, or the rule refuses the first one; the optimizer's first
                `step` raises it too, on a loss observed before.
            TypeError: If the loss is neither a number nor a tensor.
        """
        if self._is_initial:  # the base class's constructor, or a host that starts over: no step was made
            self._step_count += 1
            self.last_epoch += 1
            self._set_lrs()
            return
        if len(self.optimizer.param_groups) != len(self.base_lrs):
            raise ValueError(
                f"the optimizer has {len(self.optimizer.param_groups)} parameter groups, and had {len(self.base_lrs)} "
                "when this scheduler was made: make it after adding the last group"
            )
        if loss is not None:
            self.observe(loss)
        if self._skipped():
            self._forget_step()
            self._without_step += 1
            if self._without_step == _MANY_SKIPPED:
                warnings.warn(
                    f"AdaptiveWarmup stood still for {_MANY_SKIPPED} calls: the optimizer's step() did not run, "
                    "and it only moves with the optimizer it was made for",
                    UserWarning,
                    stacklevel=2,
                )
            return
        self._without_step = 0
        self._seen_steps = self._optimizer_steps
        self._step_count += 1
        self.last_epoch += 1
        self._state, _ = self.schedule.step(self._state, self._next_loss())
        self._set_lrs()

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rates of the next step, one a group; nothing is changed."""
        return [base * self._state.factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state: plain Python values only, no reference to the optimizer."""
        self._late = _read(self._late)
        return {
            "version": STATE_VERSION,
            "schedule": self._state.to_dict(),
            "late_loss": self._late,
            "base_lrs": [float(base) for base in self.base_lrs],
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of `state_dict` and set the optimizer's learning rates to it.

        Raises:
            ValueError: If it is no such state, of another version, or of a scheduler with other settings or groups;
                then nothing is changed.
        """
        keys = {"version", "schedule", "late_loss", "base_lrs", "last_epoch", "_step_count"}
        if not isinstance(state_dict, dict) or "version" not in state_dict:
            raise ValueError("this is not the state of an AdaptiveWarmup: it has no version")
        if state_dict["version"] != STATE_VERSION:
            raise ValueError(
                f"this scheduler state has version {state_dict['version']!r}, this warmgap reads {STATE_VERSION}: "
                "load it with the warmgap that saved it"
            )
        if state_dict.keys() != keys:
            raise ValueError(
                f"this is not the state of an AdaptiveWarmup: it needs {sorted(keys)}, got {sorted(state_dict)}"
            )
        if len(state_dict["base_lrs"]) != len(self.optimizer.param_groups):
            raise ValueError(
                f"this state belongs to an optimizer with {len(state_dict['base_lrs'])} parameter groups, "
                f"and this one has {len(self.optimizer.param_groups)}: build the optimizer as it was"
            )
        hint = "this state is damaged or was edited"
        base_lrs: list[float | Tensor] = [check_finite("base_lrs", lr, hint) for lr in state_dict["base_lrs"]]
        self._state = self.schedule.from_dict(state_dict["schedule"])
        self._late = state_dict["late_loss"]
        self.base_lrs = base_lrs
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["_step_count"]
        self._seen_steps = self._optimizer_steps
        self._loss.clear()
        self._looked = False
        if self._has_its_turn():
            self._set_lrs()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles; the losses on their way are read."""
        self._late = _read(self._late)
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _watch_steps(self.optimizer, self)  # a copied optimizer has lost its hooks

    def _update_lr(self, epoch: int | None = None) -> None:
        """Set the rates without a step: what `SequentialLR` asks for when it hands over to this scheduler."""
        if epoch is not None:
            self.last_epoch = epoch
        self._loss.clear()  # those of the other scheduler's steps
        self._set_lrs()

    def _set_lrs(self) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            lr = float(base) * self._state.factor
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        self._last_lr = [
            group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"]
            for group in self.optimizer.param_groups
        ]

    def _look_first(self) -> None:
        """Start on the losses observed before the first step, as after `calibrate`; called as that step begins."""
        if self._state.step > 0 or type(self.schedule.rule).calibrate is Rule.calibrate:
            return
        groups = zip(self.optimizer.param_groups, self._last_lr, strict=False)
        if not self._has_its_turn() or any(float(group["lr"]) != float(last) for group, last in groups):
            return  # the rates are another's: a SequentialLR's, or of a checkpoint that makes an optimizer's state
        if self._state == self.schedule.init() and (loss := self._loss.peek().result()) is not None:
            self._state = self.schedule.calibrate(self._state, loss)
            self._looked = True
            self._set_lrs()

    def _forget_step(self) -> None:
        """Forget the losses of a step that was not made, and what the first step started on."""
        self._loss.clear()
        if self._looked and self._state.step == 0:
            self._state = self.schedule.init()
            self._looked = False
            self._set_lrs()

    def _has_its_turn(self) -> bool:
        """Return whether the rates are this scheduler's to set: a `SequentialLR` leaves those that wait at -1."""
        return bool(self.last_epoch >= 0)

    def _skipped(self) -> bool:
        """Return whether the optimizer missed a step since the last call; without gradients it need not step."""
        if self._optimizer_steps != self._seen_steps:
            return False
        if self._optimizer_steps > 0 or self._trains:
            return True
        return any(p.grad is not None for group in self.optimizer.param_groups for p in group["params"])

    def _next_loss(self) -> float | None:
        taken = self._loss.take()
        ready: PendingLoss | float | None = taken
        if taken.late:
            ready, self._late = self._late, taken
        else:
            self._late = None  # of a run on another device: its step is past
        value = _read(ready)
        self._without_loss = 0 if value is not None or taken.late else self._without_loss + 1
        if self._without_loss == _PATIENCE and self.phase == "warmup" and self.schedule.rule.bounded:
            warnings.warn(
                f"AdaptiveWarmup has seen no finite loss for {_PATIENCE} steps and can only warm up by the clock: "
                "call scheduler.observe(loss) before step(), or step(loss)",
                UserWarning,
                stacklevel=3,
            )
        return value


def _read(loss: PendingLoss | float | None) -> float | None:
    return loss.result() if isinstance(loss, PendingLoss) else loss


def _watch_steps(optimizer: Optimizer, scheduler: AdaptiveWarmup) -> None:
    owner = weakref.ref(scheduler)

    def before(*_: Any) -> None:
        if (alive := owner()) is not None:
            alive._look_first()

    def after(*_: Any) -> None:
        if (alive := owner()) is not None:
            alive._optimizer_steps += 1

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
