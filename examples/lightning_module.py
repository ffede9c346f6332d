"""A LightningModule, with accumulation."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from warmgap.lightning import WarmupCallback, configure_warmup
from warmgap.torch import Muon, split_parameters


class ByteModel(LightningModule):
    """Predicts each byte of a text from the one before."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(128, 32), nn.Linear(32, 32), nn.Linear(32, 128)

    def training_step(self, tokens):
        logits = self.head(torch.tanh(self.hidden(self.embedding(tokens[:, :-1]))))
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def configure_optimizers(self):
        optimizer = Muon(split_parameters(self), lr=2e-3)
        return configure_warmup(optimizer, int(self.trainer.estimated_stepping_batches))


text = torch.tensor(list(b"The learning rate rises while the loss falls. " * 100))
loader = DataLoader(list(text[:4480].reshape(40, 8, 14)), batch_size=None)

trainer = Trainer(
    accelerator="cpu",
    devices=1,
    max_epochs=2,
    accumulate_grad_batches=2,
    callbacks=[WarmupCallback()],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
trainer.fit(ByteModel(), loader)
print(trainer.callback_metrics["warmgap/lr"])
