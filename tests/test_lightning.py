from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, TensorDataset

from warmgap.lightning import WarmupCallback, configure_warmup
from warmgap.rules import GapRule
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
        state = scheduler.schedule.step(state, loss)
    return rates


def test_it_gives_the_schedules_rates_and_logs_them(tmp_path: Path) -> None:
    module, run = Regression(), trainer(tmp_path)
    run.fit(module, loader(8))
    assert len(module.rates) == 24
    assert module.rates == by_hand([loss.item() for loss in module.losses], 24, module.scheduler)
    assert len(set(module.rates)) > 20
    assert run.callback_metrics["warmgap/lr"].item() == pytest.approx(module.scheduler.get_last_lr()[0])
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


class Callbacks(Regression):
    """The default rule, with the rate that is asked for, and a rate and a gap of its own in the log."""

    def __init__(self, lr: float = 1e-2, backbone: bool = False) -> None:
        super().__init__()
        self.lr = lr
        if backbone:
            self.backbone = self.model[:2]
        self.logs: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.log("lr", 7.0)
        self.log("gap", 8.0)
        loss = super().training_step(batch, batch_idx)
        return loss - 3.0

    def configure_optimizers(self) -> Any:
        given = [p for p in self.parameters() if p.requires_grad]
        return configure_warmup(AdamW(given, self.lr), int(self.trainer.estimated_stepping_batches))


def test_names_that_the_module_logs_stay_its_own(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit(Callbacks(), loader(8))
    assert run.callback_metrics["lr"].item() == 7.0
    assert run.callback_metrics["gap"].item() == 8.0
    assert run.callback_metrics["warmgap/lr"].item() < 1e-2


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
def test_a_run_with_weight_averaging_is_resumed_where_the_schedule_is_taken_out(tmp_path: Path) -> None:
    def run(checkpoint: str | None = None) -> tuple[Trainer, Callbacks]:
        module, average = Callbacks(), StochasticWeightAveraging(5e-3, swa_epoch_start=2, annealing_epochs=1)
        saves = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        fit = trainer(tmp_path, average, saves, max_epochs=4)
        fit.fit(module, loader(16), ckpt_path=checkpoint, weights_only=False if checkpoint else None)
        return fit, module

    _, whole = run()
    for epoch in (0, 2):  # before the schedule is taken out, and after
        fit, resumed = run(str(tmp_path / f"epoch={epoch}.ckpt"))
        assert resumed.rates == whole.rates[6 * (epoch + 1) :]
        assert type(fit.lr_scheduler_configs[0].scheduler).__name__ == "SWALR"


class TakesSchedulersOut(Callback):
    def __init__(self, hook: str) -> None:
        setattr(self, hook, lambda trainer, module: trainer.lr_scheduler_configs.clear())


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "on_train_epoch_end"])
def test_any_callback_may_take_the_schedule_out(hook: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, TakesSchedulersOut(hook), enable_checkpointing=False)
    run.fit(module := Callbacks(), loader(16))
    assert len(module.rates) == 12
    assert run.lr_scheduler_configs == []


@pytest.mark.filterwarnings("ignore:.weights_only. was not set")
def test_a_found_rate_is_the_peak_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning.pytorch.tuner.lr_finder._LRFinder.suggestion", lambda _: 3e-3)

    class TwoGroups(Callbacks):
        def configure_optimizers(self) -> Any:
            groups: Any = [{"params": self.model[0].parameters()}, {"params": self.model[2].parameters(), "lr": 1e-3}]
            return configure_warmup(
                AdamW(groups, self.lr), int(self.trainer.estimated_stepping_batches), rule=GapRule(kappa=9.0)
            )

    for kind in (Callbacks, TwoGroups):
        run = trainer(tmp_path, LearningRateFinder(1e-5, 1e-1, 12), enable_checkpointing=False)
        run.fit(module := kind(), loader(16))
        assert module.lr == 3e-3
        peaks = [3e-3] if kind is Callbacks else [3e-3, 3e-4]  # the groups keep their ratio
        assert module.scheduler.base_lrs == pytest.approx(peaks)
        assert module.rates[12] == pytest.approx(3e-3 if kind is Callbacks else 3e-5)  # those before are the finder's
        assert max(module.rates[12:]) <= 3e-3 * (1 + 1e-12)
        assert module.scheduler.last_epoch == 12
        (event,) = [event for event in module.scheduler.events if "peak scaled" in event.reason]
        assert event.step == 0


@pytest.mark.parametrize("stop", [None, 1])
def test_a_backbone_that_joins_late_follows_the_schedule(stop: int | None, tmp_path: Path) -> None:
    def run(checkpoint: str | None = None) -> Callbacks:
        module = Callbacks(backbone=True)
        saves = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        fit = trainer(tmp_path, BackboneFinetuning(1, lambda _: 1.0), saves, max_epochs=3)
        fit.fit(module, loader(16), ckpt_path=checkpoint, weights_only=False if checkpoint else None)
        return module

    module = run()
    if stop is not None:
        module = run(str(tmp_path / f"epoch={stop}.ckpt"))
    scheduler = module.scheduler
    assert [event.step for event in scheduler.events if "joined" in event.reason] == [6]
    assert len(scheduler.base_lrs) == 2
    head, backbone = (group["lr"] for group in scheduler.optimizer.param_groups)
    assert 0.0 < backbone < head < 1e-2
    assert scheduler.last_epoch == 18


def test_a_schedule_returned_without_an_interval_is_stepped_each_step_and_that_is_said(tmp_path: Path) -> None:
    module = Callbacks()

    def configure() -> Any:
        optimizer = AdamW(module.parameters(), 1e-2)
        return [optimizer], [AdaptiveWarmup(optimizer, 24)]

    module.configure_optimizers = configure  # type: ignore[method-assign]
    with pytest.warns(
        UserWarning, match="returned with the interval 'epoch' and the frequency 1: it is stepped so now"
    ):
        trainer(tmp_path).fit(module, loader(8))
    assert module.scheduler.last_epoch == 24
    assert module.scheduler.phase == "decay"


class Manual(LightningModule):
    """Two optimizers, as in a GAN: each has its own loss, or both have one."""

    automatic_optimization = False

    def __init__(self, shared: bool, steps: bool = True) -> None:
        super().__init__()
        self.shared, self.steps = shared, steps
        self.nets = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        losses = [level + net(batch[0]).square().mean() for level, net in zip((1.0, 5.0), self.nets, strict=True)]
        if self.shared:
            self.manual_backward(sum(losses))
        for optimizer, loss in zip(self.optimizers(), losses, strict=True):
            if not self.shared:
                self.manual_backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if self.steps:
            schedulers: Any = self.lr_schedulers()
            for scheduler in schedulers:
                scheduler.step()

    def configure_optimizers(self) -> Any:
        return tuple(configure_warmup(Lion(net.parameters(), lr=1e-4), 24, **GAP) for net in self.nets)


@pytest.mark.parametrize("shared", [False, True])
def test_under_manual_optimization_each_schedule_sees_its_own_loss(shared: bool, tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.fit(Manual(shared), loader(8))
    schedulers: list[Any] = [config.scheduler for config in run.lr_scheduler_configs]
    first, second = schedulers
    assert first.last_epoch == second.last_epoch == 24
    if shared:
        assert first.gap == second.gap > 5.0
    else:
        assert 1.0 < first.gap < 4.0 < 5.0 < second.gap


def test_under_manual_optimization_a_scheduler_that_is_never_stepped_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Lion made 10 steps and its AdaptiveWarmup none: under manual optimization"):
        trainer(tmp_path).fit(Manual(shared=False, steps=False), loader(8))


def test_a_run_that_ends_long_before_its_schedule_says_so(tmp_path: Path) -> None:
    grows_less = GradientAccumulationScheduler({0: 8, 1: 4})  # 3 and 6 steps, where the trainer estimates 48
    with pytest.warns(
        UserWarning, match="ended after 9 optimizer steps, and the schedule was made for 48.* total_iter"
    ):
        trainer(tmp_path, grows_less).fit(Regression(), loader(4))


def test_roles_come_from_the_module(tmp_path: Path) -> None:
    class Roles(Callbacks):
        def configure_optimizers(self) -> Any:
            return configure_warmup(AdamW(self.parameters(), 1e-2), 24, model=self)

    run = trainer(tmp_path)
    run.fit(module := Roles(), loader(8))
    assert [group["role"] for group in module.scheduler.optimizer.param_groups] == ["hidden", "head", "other"]
