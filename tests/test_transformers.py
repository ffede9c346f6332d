from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from warmgap.torch import AdaptiveWarmup, Lion, Muon
from warmgap.transformers import WarmgapTrainer, split_factory

TEXT = Path(__file__).read_bytes()[:4000]  # real text, as bytes


class Windows(Dataset[dict[str, Tensor]]):
    """Windows of text; some labels are left out, so that the micro-batches differ in their number of tokens."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = torch.tensor(list(TEXT[index * 16 : index * 16 + 16])) % 128
        labels = tokens.clone()
        labels[: 1 + index % 11] = -100
        return {"input_ids": tokens, "labels": labels}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def trainer(
    folder: Path, model: nn.Module | None = None, of: type[WarmgapTrainer] = WarmgapTrainer, **settings: Any
) -> WarmgapTrainer:
    own = {
        name: settings.pop(name) for name in ("warmup", "optimizers", "optimizer_cls_and_kwargs") if name in settings
    }
    arguments: dict[str, Any] = {
        "max_steps": 10,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        **settings,
    }
    args = TrainingArguments(output_dir=str(folder), **arguments)
    return of(model=model or llama(), args=args, train_dataset=Windows(), **own)


def logged(of: WarmgapTrainer, name: str) -> list[Any]:
    return [entry[name] for entry in of.state.log_history if name in entry]


HOLD = {"rule": "spectral(hold=0.6)"}  # what the cap let pass of steps that were not seen is not known
GAP = {"rule": "gap", "norm": "max", "target_loss": 2.0}


def test_a_llama_trains_with_our_optimizer(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=24, optimizer_cls_and_kwargs=(split_factory(Muon), {"lr": 2e-2}))
    run.train()
    losses, rates, phases = logged(run, "loss"), logged(run, "lr"), logged(run, "phase")
    assert losses[-1] < losses[0] - 0.5
    assert rates == logged(run, "learning_rate")
    assert 1e-2 < max(rates) <= 2e-2  # under the spectral cap
    assert phases[0] == "stable"  # the size of the first step is known before it
    assert phases[-1] == "decay"
    assert isinstance(run.lr_scheduler, AdaptiveWarmup)
    roles = [group["role"] for group in run.lr_scheduler.optimizer.param_groups]
    assert {"hidden", "embedding", "head", "other"} == set(roles)


def test_accumulation_gives_the_rates_of_the_large_batch(tmp_path: Path) -> None:
    whole = trainer(tmp_path, warmup=GAP, per_device_train_batch_size=8)
    parts = trainer(tmp_path, warmup=GAP, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    whole.train()
    parts.train()
    assert len(set(logged(whole, "lr"))) > 5
    assert logged(parts, "lr") == pytest.approx(logged(whole, "lr"), rel=1e-4)
    assert logged(parts, "gap") == pytest.approx(logged(whole, "gap"), rel=1e-4)


def test_the_loss_seen_is_the_mean_over_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(
        tmp_path, warmup=GAP, per_device_train_batch_size=2, gradient_accumulation_steps=3, learning_rate=1e-30
    )
    batches: list[dict[str, Tensor]] = []
    seen: list[Tensor] = []
    observe, training_step = AdaptiveWarmup.observe, WarmgapTrainer.training_step

    def watched_observe(self: AdaptiveWarmup, loss: Tensor, weight: float | Tensor = 1.0) -> None:
        seen.append(loss)
        observe(self, loss, weight)

    def watched_step(self: WarmgapTrainer, model: nn.Module, inputs: dict[str, Tensor], *args: Any) -> Tensor:
        batches.append(dict(inputs))
        return training_step(self, model, inputs, *args)

    monkeypatch.setattr(AdaptiveWarmup, "observe", watched_observe)
    monkeypatch.setattr(WarmgapTrainer, "training_step", watched_step)
    run.train()
    model = llama()
    assert len(seen) == 10
    for step, loss in enumerate(seen):
        total, tokens = 0.0, 0
        for batch in batches[step * 3 : step * 3 + 3]:
            logits = model(input_ids=batch["input_ids"]).logits
            labels = batch["labels"][:, 1:]
            total += nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum").item()
            tokens += int((labels != -100).sum())
        assert loss.item() == pytest.approx(total / tokens, rel=1e-5)


@pytest.mark.parametrize("stop", [2, 7])
def test_promise_4_a_resumed_run_has_the_same_rates_bit_for_bit(stop: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"warmup": GAP, "save_strategy": "steps", "save_steps": stop, "save_total_limit": 9}
    whole = trainer(tmp_path / "run", optimizer_cls_and_kwargs=(Lion, {"lr": 1e-3}), **settings)
    whole.train()
    resumed = trainer(tmp_path / "run", optimizer_cls_and_kwargs=(Lion, {"lr": 1e-3}), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{stop}"))
    assert resumed.state.global_step == 10
    assert logged(resumed, "lr") == logged(whole, "lr")
    assert len(set(logged(resumed, "lr"))) > 5
    for mine, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    saved = torch.load(tmp_path / "run" / f"checkpoint-{stop}" / "scheduler.pt", weights_only=True)
    assert saved["last_epoch"] == stop


def test_a_second_run_starts_afresh(tmp_path: Path) -> None:
    run = trainer(tmp_path, warmup=GAP, max_steps=3)
    run.train()
    run.train()
    assert logged(run, "lr")[0] == pytest.approx(3e-5)


def test_a_loss_that_is_not_a_number_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path, warmup=GAP, learning_rate=1e-30)
    plain, steps = WarmgapTrainer.compute_loss, iter(range(100))

    def compute_loss(self: WarmgapTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = plain(self, *args, **kwargs)
        return loss * (math.nan if next(steps) == 3 else 1.0)

    monkeypatch.setattr(WarmgapTrainer, "compute_loss", compute_loss)
    run.train()
    assert all(math.isfinite(gap) for gap in logged(run, "gap"))
    assert logged(run, "gap")[3] == logged(run, "gap")[2]


def test_a_scheduler_of_ones_own_is_refused(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    with pytest.raises(ValueError, match="makes its own scheduler, and got LambdaLR: give optimizers"):
        trainer(tmp_path, optimizers=(optimizer, constant))
    with pytest.raises(ValueError, match="a step of AdamW is not known here"):
        trainer(tmp_path, warmup={"rule": "gap"}).train()


class Overflows(WarmgapTrainer):
    """Its first two gradients overflow, as is usual with float16."""

    calls = 0

    def training_step(self, *args: Any) -> Tensor:
        loss: Tensor = super().training_step(*args)
        self.calls += 1
        if self.calls <= 2:
            next(self.model.parameters()).grad.fill_(math.inf)
        return loss


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_steps_that_overflow_do_not_count(optim: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, of=Overflows, optim=optim, logging_steps=100)
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run.train()
    assert run.lr_scheduler.last_epoch == 8
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


def test_a_run_resumed_from_the_model_alone_decays_to_its_end(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5, "save_only_model": True, "warmup": HOLD}
    whole = trainer(tmp_path, **settings)
    whole.train()
    resumed = trainer(tmp_path, **settings)
    with pytest.warns(UserWarning, match="holds no schedule .save_only_model=True.: it goes on at step 5 of 10"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert resumed.lr_scheduler.last_epoch == 10
    assert resumed.lr_scheduler.phase == "decay"
    assert logged(resumed, "lr")[7:] == pytest.approx(logged(whole, "lr")[7:])  # the first are held by the cap
    assert logged(resumed, "lr")[-1] < 0.2 * 3e-3


def test_a_plain_trainers_run_goes_on_with_its_optimizer_and_the_schedule_of_its_step(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5}
    trainer(tmp_path, of=Trainer, **settings).train()
    resumed, whole = trainer(tmp_path, warmup=HOLD, **settings), trainer(tmp_path / "whole", warmup=HOLD)
    whole.train()
    with pytest.warns(UserWarning, match="checkpoint-5 holds another scheduler: it goes on at step 5 of 10"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert resumed.lr_scheduler.last_epoch == 10
    assert logged(resumed, "lr")[-3:] == pytest.approx(logged(whole, "lr")[-3:])
    assert {float(state["step"]) for state in resumed.lr_scheduler.optimizer.state.values()} == {10.0}


def test_settings_of_trainers_own_schedulers_are_said_to_have_no_effect(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=2, lr_scheduler_type="cosine", warmup_steps=3)
    with pytest.warns(UserWarning, match="lr_scheduler_type=cosine, warmup_steps=3 had no effect") as said:
        run.train()
    assert len(said) == 1


def test_roles_come_from_the_model(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=2)
    run.train()
    groups = run.lr_scheduler.optimizer.param_groups
    assert {group["role"] for group in groups} == {"hidden", "embedding", "head", "other"}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's use of it
def test_adapters_of_peft_train(tmp_path: Path) -> None:
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    run = trainer(tmp_path, model, max_steps=4)
    run.train()
    groups = run.lr_scheduler.optimizer.param_groups
    assert [group["role"] for group in groups if group["params"]] == ["hidden"]
    assert run.lr_scheduler.last_epoch == 4
