"""A small model under gradients that are given, one of each worker at each step."""

from __future__ import annotations

import torch
from torch import nn

SHAPES = {"matrix": (6, 5), "vector": (7,), "kernel": (4, 3, 2, 2), "scalar": ()}


class Model(nn.Module):
    matrix: nn.Parameter
    vector: nn.Parameter
    kernel: nn.Parameter
    scalar: nn.Parameter

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator).to(dtype)))


def gradient(name: str, worker: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(97 * step + 7 * worker + list(SHAPES).index(name))
    return torch.randn(SHAPES[name], generator=generator)


def set_gradients(model: nn.Module, worker: int, step: int) -> None:
    for name, p in model.named_parameters():
        p.grad = gradient(name, worker, step).to(p.dtype)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]
