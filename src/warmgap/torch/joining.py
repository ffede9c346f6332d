"""Ranks with different numbers of batches: the scheduler's part in `torch.distributed.algorithms.Join`."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warmgap.torch.scheduler import AdaptiveWarmup


def shadow_of(scheduler: AdaptiveWarmup) -> Any:
    """Return a `JoinHook` that takes a scheduler through the steps that the other ranks make, and moves no weights."""
    from torch.distributed.algorithms.join import JoinHook

    class Shadow(JoinHook):
        def main_hook(self) -> None:
            scheduler.before_step()
            scheduler.after_step()
            scheduler.step()

    return Shadow()


def check_joined(scheduler: AdaptiveWarmup) -> None:
    """Raise where the model is trained under `Join` and the scheduler is not: ranks would wait until a timeout."""
    if getattr(getattr(scheduler, "_join_config", None), "enable", False):
        return
    from torch.nn.parallel import DistributedDataParallel

    ours = {parameter for group in scheduler.optimizer.param_groups for parameter in group["params"]}
    for model in gc.get_objects():
        if type(model) is not DistributedDataParallel or not model._join_config.enable:
            continue
        if any(parameter in ours for parameter in model.parameters()):
            raise RuntimeError(
                "the model is trained under Join, and the scheduler is not, so that it would wait for ranks without "
                "batches: write `with Join([model, scheduler]):`"
            )
