"""A plain PyTorch loop, and a checkpoint after which the rates go on bit for bit."""

import torch
from torch import nn

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
loader = list(text[:4480].reshape(40, 8, 14))  # 40 batches of 8 sequences

model = ByteModel()
optimizer = Muon(split_parameters(model), lr=2e-3, weight_decay=0.1)
scheduler = AdaptiveWarmup(optimizer, total_iters=len(loader))
for batch in loader:
    loss = model(batch)
    loss.backward()
    scheduler.observe(loss)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
print(f"loss {loss.item():.3f} after a warm-up of {scheduler.warmup_iters} steps")

torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, "checkpoint.pt")

saved = torch.load("checkpoint.pt", weights_only=True)
optimizer.load_state_dict(saved["optimizer"])
scheduler.load_state_dict(saved["scheduler"])
