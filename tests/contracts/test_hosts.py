"""What holds in every host and for every optimizer, ours and others', one table over all of them.

Each host trains with its real library on prescribed losses and real gradients, and records the rates its steps ran at.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
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
from lightning.pytorch.plugins import MixedPrecision
from tests.contracts.training import (
    LOSSES,
    OPTIMIZERS,
    PEAKS,
    ROWS,
    SEVERAL,
    STOP,
    TOTAL,
    Network,
    Rates,
    Trained,
    Work,
    pytorch,
    watched,
)
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler, Subset
from transformers import TrainingArguments

from warmgap.lightning import WarmupCallback, configure_warmup
from warmgap.optax import scale_by_warmup
from warmgap.rules import GapRule, LinearRule, LossRatioRule, PowerRule, Rule, SpectralRule
from warmgap.torch import AdaptiveWarmup
from warmgap.transformers import WarmgapTrainer

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning")

RULES: dict[str, Rule[Any]] = {
    "auto": SpectralRule(),
    "gap": GapRule(kappa=300.0, target_loss=0.0),
    "power": PowerRule(),
    "loss-ratio": LossRatioRule(),
    "linear": LinearRule(5),
}


class InOrder(WarmgapTrainer):
    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def transformers(work: Work, folder: Path, resume: bool = False) -> Trained:
    model = Network()
    (optimizer,), rates = watched(model, work)
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=TOTAL,
        per_device_train_batch_size=work.rows,
        gradient_accumulation_steps=work.parts,
        max_grad_norm=0.0,
        save_strategy="steps",
        save_steps=STOP,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    run = InOrder(
        model,
        args,
        train_dataset=work.data(),
        optimizers=(optimizer, None),
        warmup={"rule": work.rule, "cap": work.cap, "model": None},  # without roles, as in the other hosts
    )
    run.accelerator.scaler = work.scaler()
    run.train(resume_from_checkpoint=str(folder / f"checkpoint-{STOP}") if resume else None)
    return Trained(rates, model)


class Module(LightningModule):
    def __init__(self, work: Work) -> None:
        super().__init__()
        self.model = Network()
        self.rates: Rates = []
        self.work = work

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        return self.model(**batch)["loss"]

    def configure_optimizers(self) -> Any:
        optimizers, self.rates = watched(self.model, self.work)
        return tuple(
            configure_warmup(optimizer, TOTAL, rule=self.work.rule, cap=self.work.cap) for optimizer in optimizers
        )


class ManualModule(Module):
    """Lightning's way to several optimizers."""

    automatic_optimization = False

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        loss = self.model(**batch)["loss"]
        schedulers: Any = self.lr_schedulers()
        for scheduler in schedulers:
            scheduler.observe(loss)
        self.manual_backward(loss / self.work.parts)
        if batch_idx % self.work.parts == self.work.parts - 1:
            for optimizer, scheduler in zip(self.optimizers(), schedulers, strict=True):
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()


def lightning(work: Work, folder: Path, resume: bool = False) -> Trained:
    several = work.optimizer in SEVERAL
    module = ManualModule(work) if several else Module(work)
    scaler = work.scaler()
    run = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=TOTAL // STOP,
        limit_train_batches=STOP * work.parts,
        reload_dataloaders_every_n_epochs=1,
        accumulate_grad_batches=1 if several else work.parts,
        plugins=None if scaler is None else [MixedPrecision("16-mixed", "cpu", scaler)],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ModelCheckpoint(folder, filename="{epoch}", every_n_epochs=1, save_top_k=-1),
            *([] if several else [WarmupCallback()]),
        ],
    )
    data = work.data()

    def of_epoch() -> DataLoader[dict[str, Tensor]]:
        first = run.current_epoch * STOP * ROWS
        return DataLoader(Subset(data, range(first, first + STOP * ROWS)), work.rows)

    module.train_dataloader = of_epoch  # type: ignore[method-assign]
    run.fit(module, ckpt_path=str(folder / "epoch=0.ckpt") if resume else None, weights_only=True)
    return Trained(module.rates, module.model)


def accelerate(work: Work, folder: Path, resume: bool = False) -> Trained:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=work.parts)
    accelerator.scaler = work.scaler()
    network = Network()
    watched_ones, rates = watched(network, work)
    warmups = [AdaptiveWarmup(optimizer, TOTAL, rule=work.rule, cap=work.cap) for optimizer in watched_ones]
    model, loader, *prepared = accelerator.prepare(network, DataLoader(work.data(), work.rows), *watched_ones, *warmups)
    optimizers, schedulers = prepared[: len(warmups)], prepared[len(warmups) :]
    start = 0
    if resume:
        accelerator.load_state(str(folder / "state"))
        start = STOP
        loader = accelerator.skip_first_batches(loader, STOP * work.parts)
    for index, batch in enumerate(loader, start * work.parts):
        if index == STOP * work.parts and not resume:
            accelerator.save_state(str(folder / "state"))
        with accelerator.accumulate(model):
            loss = model(**batch)["loss"]
            for warmup in warmups:
                warmup.observe(loss)
            accelerator.backward(loss)
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients and accelerator.optimizer_step_was_skipped:
                for warmup in warmups:
                    warmup.discard()
    return Trained(rates, network)


def jax_optax(work: Work, folder: Path, resume: bool = False) -> Rates:
    params = {"a": jnp.ones(()), "b": jnp.ones(())}
    groups = optax.partition({"a": optax.sgd(PEAKS[0]), "b": optax.sgd(PEAKS[1])}, {"a": "a", "b": "b"})
    optimizer = optax.chain(groups, scale_by_warmup(TOTAL, rule=work.rule))
    update = jax.jit(lambda state, loss: optimizer.update({"a": -1.0, "b": -1.0}, state, params, value=loss))
    state = optimizer.init(params)
    if resume:
        with np.load(folder / "state.npz") as saved:
            state = jax.tree.unflatten(jax.tree.structure(state), [jnp.asarray(saved[name]) for name in saved.files])
    rates = []
    for step in range(STOP if resume else 0, TOTAL):
        if step == STOP and not resume:
            np.savez(folder / "state.npz", *jax.tree.leaves(state))
        updates, state = update(state, LOSSES[work.losses][step])
        rates.append([float(updates["a"]), float(updates["b"])])
    return rates


TORCH_HOSTS: dict[str, Callable[..., Trained]] = {
    "pytorch": pytorch,
    "transformers": transformers,
    "lightning": lightning,
    "accelerate": accelerate,
}
HOSTS = (*TORCH_HOSTS, "optax")
every_host = pytest.mark.parametrize("host", HOSTS)
# Trainer holds one optimizer
ONE_ONLY = ("transformers",)
every_pair = pytest.mark.parametrize(
    ("host", "optimizer"),
    [(host, name) for host in TORCH_HOSTS for name in OPTIMIZERS if not (host in ONE_ONLY and name in SEVERAL)],
)


def rates_of(host: str, work: Work, folder: Path, resume: bool = False) -> Rates:
    return jax_optax(work, folder, resume) if host == "optax" else TORCH_HOSTS[host](work, folder, resume).rates


def assert_same(rates: Rates, wanted: Rates, exact: bool) -> None:
    if exact:
        assert rates == wanted
    np.testing.assert_allclose(rates, wanted, rtol=1e-5)


@every_host
@pytest.mark.parametrize("rule", RULES)
def test_the_rates_are_the_schedules(host: str, rule: str, tmp_path: Path) -> None:
    work = Work(rule=RULES[rule])
    rates = rates_of(host, work, tmp_path)
    assert len({a for a, _ in rates}) > TOTAL // 3
    assert_same(rates, work.expected(), exact=host != "optax")


def assert_promises_1_2_and_5(
    rates: Rates, longest: float | None, start: float = 0.01, top: float = 1.0, exact: bool = True
) -> None:
    peak = PEAKS[0] if exact else float(np.float32(PEAKS[0]))
    factors = [a / peak for a, _ in rates]
    assert factors[0] == pytest.approx(start)
    assert all(0.0 < factor <= 1.0 for factor in factors)
    assert all(after <= 2.0 * before * (1.0 + 1e-6) for before, after in itertools.pairwise(factors))
    assert factors.index(max(factors)) <= math.ceil((longest or 0.4) * TOTAL)
    assert max(factors) == pytest.approx(top, rel=1e-6)
    assert [b / a for a, b in rates] == pytest.approx([PEAKS[1] / PEAKS[0]] * len(rates))


@every_host
@pytest.mark.parametrize(
    ("losses", "rule"), [("flat", "gap"), ("flat", "auto"), ("bad", "auto"), ("never", "gap"), ("never", "auto")]
)
@pytest.mark.filterwarnings("ignore:AdaptiveWarmup has seen no finite loss:UserWarning")
def test_promises_1_2_and_5_hold_with_losses_of_every_kind(host: str, losses: str, rule: str, tmp_path: Path) -> None:
    work = Work(losses, rule=RULES[rule])
    rates = rates_of(host, work, tmp_path)
    assert_same(rates, work.expected(), exact=host != "optax")
    start = 1.0 if rule == "auto" and losses != "never" else 0.01  # without a loss there is no evidence
    top = 0.5 if rule == "auto" and losses == "never" else 1.0  # losses that are no numbers are an alarm
    assert_promises_1_2_and_5(rates, work.rule.max_warmup, start, top, exact=host != "optax")


def test_promise_4_in_optax(tmp_path: Path) -> None:
    whole = jax_optax(Work(), tmp_path)
    assert jax_optax(Work(), tmp_path, resume=True) == whole[STOP:]


@pytest.mark.parametrize("host", TORCH_HOSTS)
@pytest.mark.parametrize("optimizer", ["Lion", "Muon", "torch.optim.AdamW", "torch.optim.Muon and AdamW"])
def test_every_host_holds_the_steps_under_the_same_cap(host: str, optimizer: str, tmp_path: Path) -> None:
    if host in ONE_ONLY and optimizer in SEVERAL:
        pytest.skip("holds one optimizer")
    work = Work("troubled", optimizer, RULES["auto"], cap=5e-4)
    capped = TORCH_HOSTS[host](work, tmp_path)
    assert capped.rates == pytorch(work, tmp_path).rates
    held = [rate[0] / free[0] for rate, free in zip(capped.rates, work.expected(), strict=True)]
    assert min(held) < 0.9
    assert max(held) <= 1.0


Runs = Callable[[str, str], tuple[Trained, Path]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The run of a host and an optimizer on losses with a NaN and a spike, and its folder; made once."""
    made: dict[tuple[str, str], tuple[Trained, Path]] = {}

    def run(host: str, optimizer: str) -> tuple[Trained, Path]:
        if (host, optimizer) not in made:
            folder = tmp_path_factory.mktemp("run")
            made[host, optimizer] = TORCH_HOSTS[host](Work("troubled", optimizer), folder), folder
        return made[host, optimizer]

    return run


@every_pair
def test_the_same_losses_give_the_same_rates_and_weights(host: str, optimizer: str, runs: Runs) -> None:
    trained, _ = runs(host, optimizer)
    assert trained.rates == Work("troubled", optimizer).expected()
    assert_promises_1_2_and_5(trained.rates, Work().rule.max_warmup)
    assert trained.weights == runs("pytorch", optimizer)[0].weights
    before = Network().parameters()
    assert not any(torch.equal(a, b) for a, b in zip(trained.model.parameters(), before, strict=True))


@every_pair
def test_promise_4_a_run_resumed_from_the_hosts_own_checkpoint_is_the_same(
    host: str, optimizer: str, runs: Runs
) -> None:
    whole, folder = runs(host, optimizer)
    resumed = TORCH_HOSTS[host](Work("troubled", optimizer), folder, resume=True)
    assert resumed.rates == whole.rates[STOP:]
    assert resumed.weights == whole.weights


@pytest.mark.parametrize("host", TORCH_HOSTS)
def test_promise_6_a_checkpoint_of_other_settings_is_refused(host: str, runs: Runs) -> None:
    _, folder = runs(host, "Lion")
    with pytest.raises(ValueError, match="this state belongs to a schedule with other settings"):
        TORCH_HOSTS[host](replace(Work("troubled"), rule=PowerRule()), folder, resume=True)


@pytest.mark.parametrize("host", TORCH_HOSTS)
@pytest.mark.parametrize("rule", ["gap", "auto", "loss-ratio"])
def test_accumulated_micro_batches_give_the_rates_of_the_large_batch(host: str, rule: str, tmp_path: Path) -> None:
    work = Work("troubled", rule=RULES[rule], parts=4)
    assert TORCH_HOSTS[host](work, tmp_path).rates == work.expected()


@pytest.mark.parametrize("host", TORCH_HOSTS)
@pytest.mark.parametrize("rule", ["auto", "loss-ratio"])
def test_a_first_step_that_is_skipped_is_no_evidence(host: str, rule: str, tmp_path: Path) -> None:
    work = Work("troubled", rule=RULES[rule], parts=2, overflow=0)
    assert TORCH_HOSTS[host](work, tmp_path).rates == work.expected()


@every_pair
def test_a_step_that_a_gradient_scaler_skips_does_not_count_nor_do_its_micro_batches(
    host: str, optimizer: str, tmp_path: Path
) -> None:
    work = Work("troubled", optimizer, parts=2, overflow=4)
    trained = TORCH_HOSTS[host](work, tmp_path)
    assert len(trained.rates) == TOTAL - 1
    assert trained.rates == work.expected()
    assert all(p.isfinite().all() for p in trained.model.parameters())
