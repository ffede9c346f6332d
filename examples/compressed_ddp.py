"""Compressed gradients under DistributedDataParallel, saved and resumed; also under `torchrun --nproc-per-node 2`."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from warmgap.torch.compression import ErrorFeedback, NormalizedGD, TopK

if dist.is_torchelastic_launched():
    dist.init_process_group("gloo")
else:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
rank, ranks = dist.get_rank(), dist.get_world_size()


def build():
    """The model on every rank, what it keeps of its gradients, and steps normalized over the whole model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
    feedback = ErrorFeedback(model, TopK(0.05), momentum=0.9)
    parallel = DistributedDataParallel(model)
    parallel.register_comm_hook(feedback, ErrorFeedback.hook)
    return model, parallel, feedback, NormalizedGD(model.parameters(), lr=0.05)


def train(parallel, optimizer, batches):
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = (parallel(inputs[rank::ranks]) - targets[rank::ranks]).square().mean()
        loss.backward()  # here messages are exchanged
        optimizer.step()
    return loss.item()


inputs = torch.randn(40, 32, 8, generator=torch.Generator().manual_seed(1))
batches = list(zip(inputs, inputs.sum(-1, keepdim=True).sin(), strict=True))
model, parallel, feedback, optimizer = build()
train(parallel, optimizer, batches[:25])
print(feedback.last)  # bytes of a step
torch.save({"model": model.state_dict(), "feedback": feedback.state_dict()}, f"rank-{rank}.pt")

model, parallel, feedback, optimizer = build()
saved = torch.load(f"rank-{rank}.pt", weights_only=True)  # each rank its own
model.load_state_dict(saved["model"])
feedback.load_state_dict(saved["feedback"])
print(train(parallel, optimizer, batches[25:]), feedback.deviation())
dist.destroy_process_group()
