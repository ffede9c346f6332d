"""The numbers are those from before the six optimizers became one; checkpoints from then load."""

import json
from typing import Any

import pytest
import torch
from tests.torch.optimizers import golden
from torch import Tensor

RECORDED = json.loads(golden.FILE.read_text())


def close(found: list[list[float]], expected: list[list[float]]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-10, abs=1e-11)


def loaded(value: Any) -> Any:
    """A recorded state dict with its tensors."""
    if isinstance(value, dict) and value.keys() == {"shape", "dtype", "entries"}:
        return torch.tensor(value["entries"], dtype=getattr(torch, value["dtype"])).reshape(value["shape"])
    if isinstance(value, dict):
        return {int(key) if key.isdigit() else key: loaded(item) for key, item in value.items()}
    return [loaded(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("case", golden.CASES)
@pytest.mark.parametrize("tensor_rate", [False, True])
def test_a_run_goes_where_it_went(case: str, tensor_rate: bool) -> None:
    optimizer, params = golden.make(case, tensor_rate=tensor_rate)
    golden.run(optimizer, params, golden.STEPS)
    close(golden.values(params), RECORDED[case]["end"])


@pytest.mark.parametrize("case", golden.CASES)
def test_a_checkpoint_from_before_goes_on(case: str) -> None:
    optimizer, params = golden.make(case)
    stopped = RECORDED[case]["stopped"]
    with torch.no_grad():
        for p, entries in zip(params, stopped["values"], strict=True):
            p.copy_(torch.tensor(entries, dtype=p.dtype).reshape(p.shape))
    optimizer.load_state_dict(loaded(stopped["state"]))
    golden.run(optimizer, params, golden.STEPS - golden.STOP)
    close(golden.values(params), RECORDED[case]["end"])
    old, new = loaded(stopped["state"])["state"], optimizer.state_dict()["state"]
    assert {key: set(value) for key, value in new.items()} == {key: set(value) for key, value in old.items()}


@pytest.mark.parametrize("case", golden.CASES)
def test_directions_are_what_the_step_adds(case: str) -> None:
    optimizer, params = golden.make(case)
    golden.run(optimizer, params, 2)
    for p, g in zip(params, golden.gradients(params), strict=True):
        p.grad = g
    params[0].grad = None
    kept = {p: {name: value.clone() for name, value in state.items()} for p, state in optimizer.state.items()}
    before = [p.detach().clone() for p in params]
    directions: dict[Tensor, Tensor] = {}
    for group in optimizer.param_groups:
        found = optimizer.directions(group, group["params"])  # type: ignore[attr-defined]
        directions |= dict(zip(group["params"], found, strict=True))
    for p, x in zip(params, before, strict=True):
        assert torch.equal(p.detach(), x)
        assert all(torch.equal(value, kept[p][name]) for name, value in optimizer.state[p].items())
    optimizer.step()
    rates = {p: (float(g["lr"]), float(g["weight_decay"])) for g in optimizer.param_groups for p in g["params"]}
    assert not directions[params[0]].any()
    assert torch.equal(params[0].detach(), before[0])
    for p, x in list(zip(params, before, strict=True))[1:]:
        lr, decay = rates[p]
        expected = (1 - lr * decay) * x - lr * directions[p]
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-12)


def test_directions_before_the_first_step_make_no_state() -> None:
    for case in golden.CASES:
        optimizer, params = golden.make(case)
        before = [p.detach().clone() for p in params]
        for p, g in zip(params, golden.gradients(params), strict=True):
            p.grad = g
        groups = optimizer.param_groups
        directions = [optimizer.directions(group, group["params"]) for group in groups]  # type: ignore[attr-defined]
        assert not optimizer.state
        optimizer.step()
        pairs = [
            (g, p, d) for g, ds in zip(groups, directions, strict=True) for p, d in zip(g["params"], ds, strict=True)
        ]
        for (group, p, direction), x in zip(pairs, before, strict=True):
            lr, decay = float(group["lr"]), float(group["weight_decay"])
            torch.testing.assert_close(p.detach(), (1 - lr * decay) * x - lr * direction, rtol=1e-12, atol=1e-12)


def test_the_spectral_norm_of_a_direction_is_known_where_it_follows_from_the_shape() -> None:
    for case in ("muon", "muon-spectral-lion", "scion", "gluon", "gluon-adaptive", "lion"):
        optimizer, params = golden.make(case)
        for p, g in zip(params, golden.gradients(params), strict=True):
            p.grad = g
        for group in optimizer.param_groups:
            for p in group["params"]:
                norm = optimizer.direction_norm(group, p)  # type: ignore[attr-defined]
                if group["norm"] != "spectral" or case == "gluon-adaptive":
                    assert norm is None
                    continue
                (direction,) = optimizer.directions(group, [p])  # type: ignore[attr-defined]
                if norm is None:  # matrices of several norms
                    assert group.get("blocks")
                    continue
                for matrix in golden.matrices_of(direction, group):
                    assert torch.linalg.matrix_norm(matrix.flatten(1), 2).item() == pytest.approx(norm)
