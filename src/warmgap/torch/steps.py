"""Watching an optimizer's steps: when one begins, whether it was made, and whether a scheduler follows them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from warmgap._checks import warn
from warmgap.torch.sharding import local

NEVER_STEPPED = 10  # calls of a scheduler before its optimizer's first step, or while another moves the weights
STOOD_STILL = 100  # calls without a new step; a host may call once a process
ONCE_AN_EPOCH = 4  # steps between two calls that are surely not one; two are, where they come twice


class Watcher(Protocol):
    """What `watch` calls: a scheduler."""

    def before_step(self, closure: bool = False) -> None:
        """Called as a step begins; with a closure the gradients are yet to be computed."""

    def after_step(self, skipped: float | Tensor = 0.0) -> None:
        """Called when a step has ended, with a number or tensor above 0 where its kernel skipped it."""


def watch(optimizer: Optimizer, watcher: Watcher) -> None:
    """Call the watcher before and after each step of the optimizer, as long as the watcher lives.

    A gradient scaler does not call the `step` of an optimizer whose gradients overflowed, so that nothing is called
    here. Optimizers with fused kernels get the scaler's verdict as `optimizer.found_inf` and skip inside the kernel
    (`torch.amp.GradScaler.step`): then the verdict is passed on, unread where it lies on a device.

    Some engines (DeepSpeed's ZeRO 1 and 2) leave the optimizer one of its groups at a time and call `step` for each:
    that is one step, and the watcher sees all groups.
    """
    owner = weakref.ref(watcher)
    whole = [optimizer.param_groups]  # as last seen

    def call(stepping: Optimizer, act: Callable[[Watcher], None]) -> None:
        """Call the watcher with all groups in their place, but at the later parts of a step."""
        groups = stepping.param_groups
        if groups is not whole[0]:
            known = {id(group): index for index, group in enumerate(whole[0])}
            if len(groups) >= len(known) or not all(id(group) in known for group in groups):
                whole[0] = groups
            elif known[id(groups[0])] > 0:
                return
        if (alive := owner()) is None:
            return
        stepping.param_groups = whole[0]
        try:
            act(alive)
        finally:
            stepping.param_groups = groups

    def before(stepping: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        verdict = getattr(stepping, "found_inf", None)
        if isinstance(verdict, Tensor) and verdict.device.type == "cpu" and verdict.item() > 0.0:
            return
        closure = any(callable(value) for value in (*args, *kwargs.values()))
        call(stepping, lambda watcher: watcher.before_step(closure=closure))

    def after(stepping: Optimizer, *_: Any) -> None:
        verdict = getattr(stepping, "found_inf", None)
        call(stepping, lambda watcher: watcher.after_step(verdict if isinstance(verdict, Tensor) else 0.0))

    def loaded(stepping: Optimizer) -> None:
        whole[0] = stepping.param_groups

    # A compiled step leaves them out of its graphs.
    optimizer.register_step_pre_hook(torch.compiler.disable(before))
    optimizer.register_step_post_hook(torch.compiler.disable(after))
    optimizer.register_load_state_dict_post_hook(loaded)


class StepCount:
    """Counts the optimizer's steps between the calls of a scheduler, and says once where the two don't go together."""

    def __init__(self) -> None:
        self.made = 0  # since the last call
        self.any = False  # whether one was ever made
        self.trains = False  # whether a loss was seen that asks for gradients
        # above 0 if a fused kernel skipped the steps since the last call; a tensor where a device knows it
        self.skipped: float | Tensor = 0.0
        self._waited = 0
        self._moved = 0  # of these calls, those before which the weights had changed
        self._weights: int | None = None
        self._several = 0
        self._warned = False
        self._early = False  # called before any step, with gradients that no scaler has refused

    def add(self, skipped: float | Tensor = 0.0) -> None:
        """Count a step; one that is known to have been skipped does not count."""
        if isinstance(skipped, Tensor) and skipped.device.type == "cpu":
            skipped = skipped.item()
        if isinstance(skipped, Tensor):
            self.skipped = skipped.detach()
        elif skipped > 0.0:
            return
        if self._early and not self.any:
            warn(
                "AdaptiveWarmup.step() was called before the first optimizer.step(): call it after each one. The other "
                "order moves the schedule on before the step that its loss and rate belong to"
            )
        self.made += 1
        self.any = True

    def reset(self) -> None:
        """Forget the steps since the last call."""
        self.made, self.skipped = 0, 0.0

    def called(self, optimizer: Optimizer) -> float | Tensor | None:
        """Note a call of the scheduler after `made` steps; warn where it comes too rarely or in vain.

        Returns whether the step was skipped, as far as a device knows; None where no step was made, and the scheduler
        is to wait for one. Without gradients, as where only rates are looked at, it waits for none.
        """
        made, skipped = self.made, self.skipped
        waits = made == 0 and (self.any or self.trains or _has_gradients(optimizer))
        self.reset()
        if made == 0 and not self.any and self._waited == 0:
            self._early = not waits or _ready(optimizer)
        if not waits:
            self._waited, self._moved, self._weights = 0, 0, None
            if made < 2:
                self._several = 0
                return skipped
            self._several += 1
            if not self._warned and (made >= ONCE_AN_EPOCH or self._several == 2):
                self._warned = True
                warn(
                    f"the optimizer made {made} steps between two calls of AdaptiveWarmup.step(), and the schedule "
                    "counts calls: call it after every optimizer.step() (in Lightning: interval 'step'), with "
                    "total_iters the number of optimizer steps"
                )
            return skipped
        self._waited += 1
        weights = _changes(optimizer)
        self._moved += self._weights is not None and weights != self._weights
        self._weights = weights
        if self._waited == STOOD_STILL or (self._moved if self.any else self._waited) == NEVER_STEPPED:
            warn(_standing_still(optimizer, self._waited, self.any))
            self._early = False
        return None


def _has_gradients(optimizer: Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def _changes(optimizer: Optimizer) -> int:
    """Return how often the weights were written, by whomever; without a look at them."""
    firsts = [group["params"][0] for group in optimizer.param_groups if group["params"]]
    return sum(first._version for first in firsts if not first.is_inference())


def _ready(optimizer: Optimizer) -> bool:
    """Return whether there are gradients, all finite: a step that was not made was not skipped for them."""
    grads = [local(p.grad) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return bool(grads) and all(g.layout != torch.strided or bool(torch.isfinite(g).all()) for g in grads)


def _standing_still(optimizer: Optimizer, calls: int, any_step: bool) -> str:
    name = type(optimizer).__name__
    if any_step:
        return (
            f"AdaptiveWarmup stood still for {calls} calls: the step() of {name} did not run, and it only moves with "
            "the optimizer it was made for: where that was replaced, make a new scheduler on the new one, and load the "
            "old one's state_dict()"
        )
    inner = [key for key, value in vars(optimizer).items() if isinstance(value, Optimizer) and value is not optimizer]
    instead = f"on the one inside: AdaptiveWarmup(optimizer.{inner[0]}, ...)" if inner else "on the one that steps"
    return (
        f"AdaptiveWarmup was called {calls} times and {name}.step() never ran, so that the learning rate stays where "
        f"it is. If another optimizer makes the steps, make the scheduler {instead}; a step that is made in another "
        "way is counted by scheduler.after_step()"
    )
