from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from warmgap.lightning import WarmupCallback, configure_warmup
from warmgap.torch import AdaptiveWarmup, Lion

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning")
GAP = {"rule": "gap", "target_loss": 0.0}


class Regression(LightningModule):
    def __init__(self, bad_step: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.bad_step = bad_step
        self.rates: list[float] = []
        self.losses: list[Tensor] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.model(x), y) + 3.0
        if batch_idx == self.bad_step:
            loss = loss * math.nan
        self.losses.append(loss.detach())
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        return configure_warmup(Lion(self.parameters(), lr=1e-3), steps, **GAP)

    @property
    def scheduler(self) -> AdaptiveWarmup:
        (scheduler,) = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        assert isinstance(scheduler, AdaptiveWarmup)
        return scheduler


def loader(batch: int) -> DataLoader[tuple[Tensor, ...]]:
    x = torch.randn(96, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, torch.sin(x.sum(1, keepdim=True))), batch_size=batch)


def trainer(folder: Path, *callbacks: Any, **settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[WarmupCallback(), *callbacks],
        **{"max_epochs": 2, "enable_checkpointing": bool(callbacks), **settings},
    )


def by_hand(losses: list[float], total: int, scheduler: AdaptiveWarmup) -> list[float]:
    """The rates of the schedule itself on these losses."""
    state = scheduler.schedule.init()
    rates = []
    for loss in losses:
        rates.append(1e-3 * state.factor)
        state, _ = scheduler.schedule.step(state, loss)
    return rates


def test_it_gives_the_schedules_rates_and_logs_them(tmp_path: Path) -> None:
    module, run = Regression(), trainer(tmp_path)
    run.fit(module, loader(8))
    assert len(module.rates) == 24
    assert module.rates == by_hand([loss.item() for loss in module.losses], 24, module.scheduler)
    assert len(set(module.rates)) > 20
    assert run.callback_metrics["lr"].item() == pytest.approx(module.scheduler.get_last_lr()[0])
    assert run.callback_metrics["gap"].item() == pytest.approx(module.scheduler.gap)


def test_accumulation_gives_the_rates_of_the_large_batch(tmp_path: Path) -> None:
    whole, parts = Regression(), Regression()
    trainer(tmp_path).fit(whole, loader(12))
    trainer(tmp_path, accumulate_grad_batches=3).fit(parts, loader(4))
    assert len(parts.rates) == len(whole.rates) == 16
    assert parts.rates == pytest.approx(whole.rates, rel=1e-4)


def test_a_run_that_broke_off_within_a_step_leaves_the_callback_no_losses(tmp_path: Path) -> None:
    class Broken(Regression):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            if batch_idx == 2:
                raise RuntimeError("out of memory")
            return 2.0 * super().training_step(batch, batch_idx)

    alone, after, callback = Regression(), Regression(), WarmupCallback()
    trainer(tmp_path, accumulate_grad_batches=3).fit(alone, loader(4))
    for module in (Broken(), after):
        run = trainer(tmp_path, accumulate_grad_batches=3)
        run.callbacks[0] = callback  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError) if module is not after else contextlib.nullcontext():
            run.fit(module, loader(4))
    assert after.scheduler.state_dict() == alone.scheduler.state_dict()


def test_micro_batches_are_weighed_by_their_tokens(tmp_path: Path) -> None:
    module = Regression()
    run = trainer(tmp_path, accumulate_grad_batches=2, max_epochs=1)
    run.callbacks[0] = WarmupCallback(tokens=lambda batch: len(batch[0]))  # type: ignore[attr-defined]
    run.fit(module, loader(40))  # batches of 40, 40 and 16: the last step has one of its own
    means = [(module.losses[0] + module.losses[1]).item() / 2, module.losses[2].item()]
    assert module.rates == pytest.approx(by_hand(means, 2, module.scheduler), rel=1e-6)


@pytest.mark.parametrize("stop", [6, 18])  # ends of epochs: the loader itself can not be resumed within one
def test_promise_4_a_resumed_run_has_the_same_rates_bit_for_bit(stop: int, tmp_path: Path) -> None:
    whole = Regression()

    def saves() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=stop, save_top_k=-1)

    trainer(tmp_path, saves(), max_epochs=4).fit(whole, loader(16))
    resumed = Regression()
    checkpoint = str(tmp_path / f"step={stop}.ckpt")
    trainer(tmp_path, saves(), max_epochs=4).fit(resumed, loader(16), ckpt_path=checkpoint, weights_only=True)
    assert len(resumed.rates) == 24 - stop
    assert resumed.rates == whole.rates[stop:]
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_a_gradient_scaler_is_taken_out_and_its_skipped_steps_do_not_count(tmp_path: Path) -> None:
    module = Regression(bad_step=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    run = trainer(tmp_path, max_epochs=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    run.fit(module, loader(8))
    losses = [loss.item() for loss in module.losses]
    expected = by_hand([*losses[:2], *losses[3:]], 12, module.scheduler)
    assert [*module.rates[:2], *module.rates[3:]] == pytest.approx(expected, rel=1e-6)
    assert module.scheduler.last_epoch == 11


def test_a_trainer_without_a_schedule_is_told(tmp_path: Path) -> None:
    module = Regression()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="no AdaptiveWarmup among the trainer's schedulers: return configure_warmup"):
        trainer(tmp_path).fit(module, loader(8))
