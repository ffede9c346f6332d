"""Where every optimizer goes in six steps, recorded, so that a change of design changes no number.

    python -m tests.torch.optimizers.golden

remakes `golden.json` from the code that is there: only to be done where a change of the numbers is meant.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tests.torch.optimizers.problem import gradients, parameters
from torch import Tensor, nn

from warmgap.torch.layout import matrices_of
from warmgap.torch.optimizers import Gluon, Lion, Muon, NormalizedSGD, Scion, Signum

FILE = Path(__file__).with_name("golden.json")
__all__ = ["CASES", "FILE", "STEPS", "STOP", "gradients", "make", "matrices_of", "run", "values"]

STOP, STEPS = 3, 6

# Group, and the shapes of its parameters.
LAYOUT: list[tuple[dict[str, Any], list[tuple[int, ...]]]] = [
    ({"kind": "matrix"}, [(6, 4), (3, 5), (6, 4), (2, 3, 4)]),
    ({"kind": "matrix", "blocks": (2, 1, 2), "transposed": True, "lr": 0.03}, [(4, 5)]),
    ({"kind": "conv", "weight_decay": 0.3}, [(3, 2, 2, 2)]),
    ({"kind": "embedding"}, [(5, 3)]),
    ({"kind": "head", "transposed": True}, [(3, 4)]),
    ({"kind": "norm", "weight_decay": 0.0}, [(4,)]),
    ({"kind": "other"}, [(), (3,)]),
]
BALL = {"radius": 1.5, "embedding_radius": 3.0}

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "muon": (Muon, {"exact": True}),
    "muon-spectral-lion": (
        Muon,
        {"exact": True, "scale": "spectral", "nesterov": False, "second": "lion", "second_lr": 0.01},
    ),
    "muon-none-sign": (Muon, {"exact": True, "scale": "none", "second": "sign", "second_lr": torch.tensor(0.01)}),
    "lion": (Lion, {"weight_decay": 0.1}),
    "signum": (Signum, {"weight_decay": 0.1}),
    "sign": (Signum, {"momentum": 0.0}),
    "normalized-sgd": (NormalizedSGD, {"weight_decay": 0.1}),
    "normalized-sgd-plain": (NormalizedSGD, {"momentum": 0.0}),
    "scion": (Scion, {"exact": True, **BALL}),
    "scion-row": (Scion, {"exact": True, "constrained": False, "embedding_rule": "row", **BALL}),
    "gluon": (Gluon, {"exact": True, "weight_decay": 0.1, **BALL}),
    "gluon-adaptive": (Gluon, {"exact": True, "L0": 1.0, "L1": 2.0}),
    "gluon-adaptive-row": (Gluon, {"exact": True, "L0": 0.0, "L1": 2.0, "embedding_rule": "row"}),
}


def make(case: str, *, tensor_rate: bool = False) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    """The optimizer of a case and its parameters, at the start."""
    cls, settings = CASES[case]
    params = parameters([shape for _, shapes in LAYOUT for shape in shapes])
    rest = iter(params)
    groups = [{"params": [next(rest) for _ in shapes], **group} for group, shapes in LAYOUT]
    return cls(groups, lr=torch.tensor(0.05, dtype=torch.float64) if tensor_rate else 0.05, **settings), params


def run(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: int) -> None:
    """Make some steps along the gradients of `problem`."""
    for _ in range(steps):
        for p, g in zip(params, gradients(params), strict=True):
            p.grad = g
        optimizer.step()


def values(params: list[nn.Parameter]) -> list[list[float]]:
    """All entries, rounded to what is compared."""
    return [[float(f"{x:.14g}") for x in p.detach().flatten().tolist()] for p in params]


def state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state dict in plain values: shapes and entries for tensors."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return {"shape": list(value.shape), "dtype": str(value.dtype)[6:], "entries": value.flatten().tolist()}
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    found: dict[str, Any] = plain(optimizer.state_dict())
    return found


def main() -> None:
    """Write `golden.json`."""
    found = {}
    for case in CASES:
        optimizer, params = make(case)
        run(optimizer, params, STOP)
        stopped = {"values": values(params), "state": state(optimizer)}
        run(optimizer, params, STEPS - STOP)
        found[case] = {"stopped": stopped, "end": values(params)}
    FILE.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
