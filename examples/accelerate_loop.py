"""A loop with Accelerate, with accumulation, a gradient scaler's skipped steps and a checkpoint."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from warmgap.torch import AdaptiveWarmup, Muon, split_parameters


class ByteModel(nn.Module):
    """Predicts each byte of a text from the one before; called with tokens, it returns the mean loss."""

    def __init__(self):
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(128, 32), nn.Linear(32, 32), nn.Linear(32, 128)

    def forward(self, tokens):
        logits = self.head(torch.tanh(self.hidden(self.embedding(tokens[:, :-1]))))
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


text = torch.tensor(list(b"The learning rate rises while the loss falls. " * 100))
loader = DataLoader(list(text[:4480].reshape(40, 8, 14)), batch_size=None)

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = ByteModel()
optimizer = Muon(split_parameters(model), lr=2e-3)
warmup = AdaptiveWarmup(optimizer, total_iters=len(loader) // 2)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, warmup)
for batch in loader:
    with accelerator.accumulate(model):
        loss = model(batch)
        warmup.observe(loss, weight=batch.numel())
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if accelerator.sync_gradients and accelerator.optimizer_step_was_skipped:
            warmup.discard()
print(warmup.last_epoch, warmup.phase)

accelerator.save_state("state")
accelerator.load_state("state")
