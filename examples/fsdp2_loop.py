"""FSDP2, and a checkpoint that any number of ranks can load; also under `torchrun --nproc-per-node 2`."""

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from warmgap.torch import AdaptiveWarmup, Muon, split_parameters


class ByteModel(nn.Module):
    """Predicts each byte of a text from the one before; called with tokens, it returns the mean loss."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(128, 32), nn.Linear(32, 128)
        self.hidden = nn.Sequential(nn.Linear(32, 32), nn.Tanh())

    def forward(self, tokens):
        logits = self.head(self.hidden(self.embedding(tokens[:, :-1])))
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def build():
    """The model in pieces, then the optimizer on them, then the schedule."""
    torch.manual_seed(0)
    model = ByteModel()
    fully_shard(model.hidden, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = Muon(split_parameters(model), lr=2e-3)
    return model, optimizer, AdaptiveWarmup(optimizer, total_iters=len(batches))


def checkpoint(model, optimizer, scheduler):
    """What is saved; and, filled by `dcp.load`, what was."""
    weights, states = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": states, "scheduler": scheduler}


if dist.is_torchelastic_launched():
    dist.init_process_group("gloo")
else:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (dist.get_world_size(),))

text = torch.tensor(list(b"The learning rate rises while the loss falls. " * 100))
batches = text[:4480].reshape(40, 8, 14)
model, optimizer, scheduler = build()
for batch in batches[:25]:
    loss = model(batch.tensor_split(dist.get_world_size())[dist.get_rank()])
    loss.backward()
    scheduler.observe(loss)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
dcp.save(checkpoint(model, optimizer, scheduler), checkpoint_id="checkpoint")

# Another run, on as many ranks as it has:
model, optimizer, scheduler = build()
saved = checkpoint(model, optimizer, scheduler)
dcp.load(saved, checkpoint_id="checkpoint")  # the schedule is loaded here
set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
for batch in batches[25:]:
    loss = model(batch.tensor_split(dist.get_world_size())[dist.get_rank()])
    loss.backward()
    scheduler.observe(loss)
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
print(scheduler.last_epoch, scheduler.phase, scheduler.warmup_iters)
dist.destroy_process_group()
