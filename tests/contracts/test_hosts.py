"""What holds in every host, one table over all of them: the same losses give the same learning rates.

Each host trains, with its real library, a model whose losses are prescribed, and records the rates its steps ran at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler
from transformers import TrainingArguments

from warmgap import Schedule
from warmgap.lightning import WarmupCallback, configure_warmup
from warmgap.optax import scale_by_warmup
from warmgap.rules import GapRule, LinearRule, LossRatioRule, PowerRule, RampRule, Rule
from warmgap.torch import AdaptiveWarmup, Lion
from warmgap.transformers import WarmgapTrainer

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning")

TOTAL = 24
STOP = 8
PEAKS = (1e-3, 4e-3)
Rates = list[list[float]]

rng = np.random.default_rng(0)
LOSSES = {
    "falling": [float(np.float32(2.0 + 5.0 * math.exp(-t / 6) + 0.02 * rng.normal())) for t in range(TOTAL)],
    "flat": [4.0] * TOTAL,
    "bad": [math.nan if t % 3 == 1 else 1e30 if t == 6 else 6.0 - 0.125 * t for t in range(TOTAL)],
    "never": [math.nan] * TOTAL,
}
RULES: dict[str, Rule[Any]] = {
    "ramp": RampRule(),
    "gap": GapRule(kappa=300.0, target_loss=0.0),
    "power": PowerRule(),
    "loss-ratio": LossRatioRule(),
    "linear": LinearRule(5),
}


class Losses(Dataset[dict[str, Tensor]]):
    """The losses of the micro-batches: `parts` to a step, with the step's loss as their mean."""

    def __init__(self, losses: list[float], parts: int) -> None:
        offsets = [k - (parts - 1) / 2 for k in range(parts)]
        self.values = [loss + offset for loss in losses for offset in offsets]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": torch.tensor(self.values[index])}


class Prescribed(nn.Module):
    """A model whose loss is its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": x.mean() + 0.0 * (self.a.sum() + self.b.sum())}


def watched(model: Prescribed) -> tuple[Lion, Rates]:
    """An optimizer with two groups, and the list to which it adds the rates of each of its steps."""
    optimizer = Lion([{"params": [p], "lr": lr} for p, lr in zip((model.a, model.b), PEAKS, strict=True)])
    rates: Rates = []
    optimizer.register_step_pre_hook(lambda *_: rates.append([group["lr"] for group in optimizer.param_groups]))
    return optimizer, rates


def pytorch(losses: list[float], rule: Rule[Any], folder: Path, parts: int = 1, resume: bool = False) -> Rates:
    model = Prescribed()
    optimizer, rates = watched(model)
    scheduler = AdaptiveWarmup(optimizer, TOTAL, rule=rule)
    start = 0
    if resume:
        saved = torch.load(folder / "checkpoint.pt", weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        start = STOP
    for index, batch in enumerate(DataLoader(Losses(losses, parts))):
        step, part = divmod(index, parts)
        if step < start:
            continue
        if step == STOP and part == 0 and not resume:
            saved = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
            torch.save(saved, folder / "checkpoint.pt")
        loss = model(**batch)["loss"]
        (loss / parts).backward()
        scheduler.observe(loss)
        if part == parts - 1:
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return rates


class InOrder(WarmgapTrainer):
    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def transformers(losses: list[float], rule: Rule[Any], folder: Path, parts: int = 1, resume: bool = False) -> Rates:
    model = Prescribed()
    optimizer, rates = watched(model)
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=TOTAL,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=parts,
        save_strategy="steps",
        save_steps=STOP,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    run = InOrder(model, args, train_dataset=Losses(losses, parts), optimizers=(optimizer, None), warmup={"rule": rule})
    run.train(resume_from_checkpoint=str(folder / f"checkpoint-{STOP}") if resume else None)
    return rates


class Module(LightningModule):
    def __init__(self, rule: Rule[Any]) -> None:
        super().__init__()
        self.model = Prescribed()
        self.rates: Rates = []
        self.rule = rule

    def training_step(self, batch: dict[str, Tensor]) -> Any:
        return self.model(**batch)["loss"]

    def configure_optimizers(self) -> Any:
        optimizer, self.rates = watched(self.model)
        return configure_warmup(optimizer, TOTAL, rule=self.rule)


def lightning(losses: list[float], rule: Rule[Any], folder: Path, parts: int = 1, resume: bool = False) -> Rates:
    module = Module(rule)
    saves = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=STOP, save_top_k=-1)
    run = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=TOTAL // STOP,
        limit_train_batches=STOP * parts,
        reload_dataloaders_every_n_epochs=1,
        accumulate_grad_batches=parts,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[WarmupCallback(), saves],
    )
    data = Losses(losses, parts)
    size = STOP * parts

    def of_epoch() -> DataLoader[dict[str, Tensor]]:
        first = run.current_epoch * size
        return DataLoader(torch.utils.data.Subset(data, range(first, first + size)))

    module.train_dataloader = of_epoch  # type: ignore[method-assign]
    run.fit(module, ckpt_path=str(folder / f"step={STOP}.ckpt") if resume else None, weights_only=True)
    return module.rates


def accelerate(losses: list[float], rule: Rule[Any], folder: Path, parts: int = 1, resume: bool = False) -> Rates:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=parts)
    model: Any = Prescribed()
    optimizer: Any
    optimizer, rates = watched(model)
    warmup = AdaptiveWarmup(optimizer, TOTAL, rule=rule)
    loader = DataLoader(Losses(losses, parts))
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, warmup)
    start = 0
    if resume:
        accelerator.load_state(str(folder / "state"))
        start = STOP
        loader = accelerator.skip_first_batches(loader, STOP * parts)
    for index, batch in enumerate(loader, start * parts):
        if index == STOP * parts and not resume:
            accelerator.save_state(str(folder / "state"))
        with accelerator.accumulate(model):
            loss = model(**batch)["loss"]
            warmup.observe(loss)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return rates


def jax_optax(losses: list[float], rule: Rule[Any], folder: Path, parts: int = 1, resume: bool = False) -> Rates:
    assert parts == 1, "optax is given the mean of the step"
    params = {"a": jnp.ones(()), "b": jnp.ones(())}
    groups = optax.partition({"a": optax.sgd(PEAKS[0]), "b": optax.sgd(PEAKS[1])}, {"a": "a", "b": "b"})
    optimizer = optax.chain(groups, scale_by_warmup(TOTAL, rule=rule))
    update = jax.jit(lambda state, loss: optimizer.update({"a": -1.0, "b": -1.0}, state, params, value=loss))
    state = optimizer.init(params)
    if resume:
        with np.load(folder / "state.npz") as saved:
            state = jax.tree.unflatten(jax.tree.structure(state), [jnp.asarray(saved[name]) for name in saved.files])
    rates = []
    for step in range(STOP if resume else 0, TOTAL):
        if step == STOP and not resume:
            np.savez(folder / "state.npz", *jax.tree.leaves(state))
        updates, state = update(state, losses[step])
        rates.append([float(updates["a"]), float(updates["b"])])
    return rates


HOSTS: dict[str, Callable[..., Rates]] = {
    "pytorch": pytorch,
    "transformers": transformers,
    "lightning": lightning,
    "accelerate": accelerate,
    "optax": jax_optax,
}
every_host = pytest.mark.parametrize("host", HOSTS)


def expected(losses: list[float], rule: Rule[Any]) -> Rates:
    schedule = Schedule(TOTAL, rule)
    state = schedule.init()
    rates = []
    for loss in losses:
        rates.append([peak * state.factor for peak in PEAKS])
        state, _ = schedule.step(state, loss)
    return rates


def assert_same(rates: Rates, wanted: Rates, exact: bool) -> None:
    if exact:
        assert rates == wanted
    np.testing.assert_allclose(rates, wanted, rtol=1e-6)


@every_host
@pytest.mark.parametrize("rule", RULES)
def test_the_rates_are_the_schedules(host: str, rule: str, tmp_path: Path) -> None:
    rates = HOSTS[host](LOSSES["falling"], RULES[rule], tmp_path)
    assert len({a for a, _ in rates}) > TOTAL // 2
    assert_same(rates, expected(LOSSES["falling"], RULES[rule]), exact=host != "optax")


@every_host
@pytest.mark.parametrize("losses", ["flat", "bad", "never"])
@pytest.mark.filterwarnings("ignore:AdaptiveWarmup has seen no finite loss:UserWarning")
def test_promises_1_2_and_5_hold_with_losses_of_every_kind(host: str, losses: str, tmp_path: Path) -> None:
    rates = HOSTS[host](LOSSES[losses], RULES["gap"], tmp_path)
    assert_same(rates, expected(LOSSES[losses], RULES["gap"]), exact=host != "optax")
    peak = float(np.float32(PEAKS[0])) if host == "optax" else PEAKS[0]
    factors = [a / peak for a, _ in rates]
    assert all(0.0 < factor <= 1.0 for factor in factors)
    assert all(after <= 2.0 * before * (1.0 + 1e-6) for before, after in itertools.pairwise(factors))
    assert factors.index(1.0) <= math.ceil(0.4 * TOTAL)
    assert [b / a for a, b in rates] == pytest.approx([PEAKS[1] / PEAKS[0]] * TOTAL)


@every_host
def test_promise_4_a_run_resumed_from_the_hosts_own_checkpoint_has_the_same_rates(host: str, tmp_path: Path) -> None:
    whole = HOSTS[host](LOSSES["falling"], RULES["gap"], tmp_path)
    assert HOSTS[host](LOSSES["falling"], RULES["gap"], tmp_path, resume=True) == whole[STOP:]


@pytest.mark.parametrize("host", [host for host in HOSTS if host != "optax"])
def test_accumulated_micro_batches_give_the_rates_of_the_large_batch(host: str, tmp_path: Path) -> None:
    rates = HOSTS[host](LOSSES["falling"], RULES["gap"], tmp_path, parts=4)
    assert_same(rates, expected(LOSSES["falling"], RULES["gap"]), exact=False)
