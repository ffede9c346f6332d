"""One rank of a run under the Hugging Face Trainer or Lightning: writes its rates and the losses it saw as JSON.

Usage: trainers_worker.py HOST FOLDER, with torchrun's environment variables for the ranks.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from tests.leaving import leave
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SequentialSampler, Subset

from warmgap.torch import Lion

STEPS = 8
BATCH = 8  # of all ranks and micro-batches
LENGTH = 6
NAN_STEP = 3  # in which the last micro-batch of the last rank has no loss
GAP = {"rule": "gap(max_warmup=None, deadlock_exit=False)", "target_loss": 0.0}  # sees every loss
RANKS = int(os.environ["WORLD_SIZE"])


class Sequences(Dataset[dict[str, Tensor]]):
    """Sequences whose labels are left out to different extents: ranks and micro-batches differ in their tokens."""

    def __len__(self) -> int:
        return STEPS * BATCH

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = torch.randint(0, 8, (LENGTH,), generator=torch.Generator().manual_seed(index))
        labels = tokens.clone()
        labels[: index % (LENGTH - 1)] = -100
        return {"input_ids": tokens, "labels": labels}


class Network(nn.Module):
    accepts_loss_kwargs = True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(8, 4), nn.Linear(4, 8)
        self.calls = 0
        self.bad_call = 2 * NAN_STEP + 2 if int(os.environ["RANK"]) == RANKS - 1 else None

    def forward(self, input_ids: Tensor, labels: Tensor, num_items_in_batch: Any = None) -> dict[str, Tensor]:
        total = nn.functional.cross_entropy(
            self.head(self.table(input_ids)).flatten(0, 1), labels.flatten(), reduction="sum"
        )
        self.calls += 1
        total = total + (math.nan if self.calls == self.bad_call else 0.0)  # the gradient stays what it is
        return {"loss": total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)}


def watched(model: nn.Module) -> tuple[Lion, list[float]]:
    """An optimizer that leaves the weights as they are, and the list to which it adds the rates of its steps."""
    optimizer = Lion(model.parameters(), lr=1e-30)
    rates: list[float] = []
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    return optimizer, rates


def seen(scheduler: Any) -> list[float]:
    """The losses that the scheduler saw: no more than its filter remembers."""
    filtered = scheduler.state_dict()["schedule"]["state"]["rule"]["losses"]
    losses: list[float] = filtered["window"][-filtered["filled"] :]
    return losses


def expected() -> list[float]:
    """The exact means over the tokens of each step that has one."""
    data, model = Sequences(), Network()
    model.bad_call = None
    means = []
    for step in range(STEPS):
        if step == NAN_STEP:
            continue
        rows = [data[index] for index in range(step * BATCH, (step + 1) * BATCH)]
        batch = {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels")}
        means.append(model(**batch)["loss"].item())
    return means


def transformers(folder: Path) -> tuple[list[float], list[float]]:
    from transformers import TrainingArguments

    from warmgap.transformers import WarmgapTrainer

    class InOrder(WarmgapTrainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    model = Network()
    optimizer, rates = watched(model)
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH // 2 // RANKS,
        gradient_accumulation_steps=2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        ddp_backend="gloo",
        dataloader_pin_memory=False,
    )
    trainer = InOrder(model, args, train_dataset=Sequences(), optimizers=(optimizer, None), warmup=GAP)
    trainer.train()
    return rates, seen(trainer.lr_scheduler)


def lightning(folder: Path) -> tuple[list[float], list[float]]:
    from lightning.pytorch import LightningModule, Trainer

    from warmgap.lightning import WarmupCallback, configure_warmup

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network()
            self.rates: list[float] = []

        def training_step(self, batch: dict[str, Tensor]) -> Any:
            return self.network(**batch)["loss"]

        def configure_optimizers(self) -> Any:
            optimizer, self.rates = watched(self)
            return configure_warmup(optimizer, STEPS, **GAP)

    module = Module()
    trainer = Trainer(
        accelerator="cpu",
        devices=RANKS,
        strategy="ddp",
        max_epochs=1,
        accumulate_grad_batches=2,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[WarmupCallback(tokens=lambda batch: (batch["labels"] != -100).sum())],
    )
    mine = range(int(os.environ["RANK"]), STEPS * BATCH, RANKS)
    trainer.fit(module, DataLoader(Subset(Sequences(), mine), batch_size=BATCH // 2 // RANKS))
    return module.rates, seen(trainer.lr_scheduler_configs[0].scheduler)


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    rates, losses = {"transformers": transformers, "lightning": lightning}[sys.argv[1]](folder)
    answer = {"rates": rates, "losses": losses, "expected": expected()}
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(answer))
    leave()
