"""TRL's trainers under the mixin: the real ones, on a model of some thousand weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from warmgap.torch import AdaptiveWarmup
from warmgap.transformers import WarmupTrainerMixin

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
STEPS = 10
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEXT = ["the rate rises while the loss falls", "a peak is held and then it decays"] * 24


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", "<unk>", *LETTERS])}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=letters, **special)


def llama(folder: Path) -> LlamaForCausalLM:
    """A model that has a place: DPO and GRPO load it once more, as the reference."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, pad_token_id=0, eos_token_id=1, bos_token_id=1, **sizes))
    model.save_pretrained(folder / "model")
    return LlamaForCausalLM.from_pretrained(folder / "model")


class SFT(WarmupTrainerMixin, SFTTrainer): ...  # type: ignore[misc] # TRL's have types of their own


class DPO(WarmupTrainerMixin, DPOTrainer): ...  # type: ignore[misc]


class GRPO(WarmupTrainerMixin, GRPOTrainer): ...  # type: ignore[misc]


def settings(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }


def sft(folder: Path) -> Any:
    args = SFTConfig(**settings(folder), max_length=24)
    return SFT(llama(folder), args, train_dataset=Dataset.from_dict({"text": TEXT}), processing_class=tokenizer())


def dpo(folder: Path) -> Any:
    args = DPOConfig(**settings(folder), max_length=24)
    rows = {"prompt": ["the rate"] * 48, "chosen": [" falls"] * 48, "rejected": [" soars"] * 48}
    return DPO(llama(folder), args=args, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer())


def grpo(folder: Path) -> Any:
    args = GRPOConfig(**settings(folder), num_generations=4, max_completion_length=6, beta=0.1)

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(text.count("e")) + 0.1 * len(text) for text in completions]

    rows = Dataset.from_dict({"prompt": ["the rate"] * 48})
    return GRPO(llama(folder), reward, args=args, train_dataset=rows, processing_class=tokenizer())


@pytest.mark.parametrize("make", [sft, dpo, grpo])
def test_a_trainer_of_trl_trains_under_the_schedule(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    observe = AdaptiveWarmup.observe

    def watched(self: AdaptiveWarmup, loss: torch.Tensor, weight: Any = 1.0) -> None:
        seen.append(float(loss))
        observe(self, loss, weight)

    monkeypatch.setattr(AdaptiveWarmup, "observe", watched)
    run = make(tmp_path)
    run.train()
    scheduler = run.lr_scheduler
    assert isinstance(scheduler, AdaptiveWarmup)
    assert scheduler.last_epoch == scheduler.total_iters == STEPS
    assert {group["role"] for group in scheduler.optimizer.param_groups} >= {"hidden", "embedding", "other"}
    logs = [entry for entry in run.state.log_history if "lr" in entry]
    assert [entry["phase"] for entry in logs][-1] == "decay"
    assert 0.0 < logs[-1]["lr"] < max(entry["lr"] for entry in logs) <= 1e-3
    # what is shown is the mean over the micro-batches of a step, as Trainer logs it
    assert seen == pytest.approx([entry["loss"] for entry in logs], abs=2e-4)
    assert all(math.isfinite(loss) for loss in seen)
