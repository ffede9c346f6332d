"""What every optimizer promises, one table over all of them."""

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from warmgap.torch.optimizers import Gluon, Lion, Muon, NormalizedSGD, Scion, Signum

SHAPES = {
    "matrix": (6, 4),
    "conv": (3, 2, 2, 2),
    "embedding": (7, 3),
    "head": (5, 4),
    "norm": (4,),
    "bias": (5,),
    "other": (),
}
BALL = {"radius": 1.0, "embedding_radius": 3.0}


@dataclass(frozen=True)
class Case:
    """An optimizer at a setting; `lr` brings the quadratic below down in 150 steps."""

    cls: Callable[..., torch.optim.Optimizer]
    settings: dict[str, Any] = field(default_factory=dict)
    lr: float = 2.0**-5
    # AdamW's kernels on the device of the host-wait check take no device tensor as rate.
    rate_on_device: bool = True

    def make(self, params: Any, **more: Any) -> torch.optim.Optimizer:
        return self.cls(params, **{"lr": self.lr, **self.settings, **more})


CASES = {
    "muon": Case(Muon, {"weight_decay": 0.0}, rate_on_device=False),
    "muon-exact-spectral": Case(
        Muon, {"scale": "spectral", "exact": True, "second_lr": 2.0**-5, "weight_decay": 0.0}, rate_on_device=False
    ),
    "muon-lion": Case(Muon, {"second": "lion", "second_lr": 2.0**-5, "nesterov": False, "weight_decay": 0.0}),
    "muon-sign": Case(Muon, {"second": "sign", "second_lr": 2.0**-5, "weight_decay": 0.0}),
    "lion": Case(Lion),
    "signum": Case(Signum),
    "sign": Case(Signum, {"momentum": 0.0}),
    "normalized-sgd": Case(NormalizedSGD),
    "normalized-sgd-plain": Case(NormalizedSGD, {"momentum": 0.0}),
    "scion": Case(Scion, {"constrained": False, **BALL}),
    "scion-row": Case(Scion, {"constrained": False, "embedding_rule": "row", **BALL}),
    "gluon": Case(Gluon, BALL),
    "gluon-adaptive": Case(Gluon, {"L0": 1.0, "L1": 1.0}, lr=2.0**-3),
}

every_optimizer = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


class Quadratic:
    """f = sum of squared distances to fixed targets / 2, in parameters of every kind."""

    def __init__(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        generator = torch.Generator().manual_seed(0)
        self.params = {
            kind: nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype))
            for kind, shape in SHAPES.items()
        }
        self.targets = {
            kind: torch.randn(shape, generator=generator).to(device, dtype) for kind, shape in SHAPES.items()
        }

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [p], "kind": kind} for kind, p in self.params.items()]

    def loss(self) -> Tensor:
        return torch.stack([(p - self.targets[kind]).square().sum() / 2 for kind, p in self.params.items()]).sum()

    def backward(self) -> None:
        for p in self.params.values():
            p.grad = None
        self.loss().backward()

    def run(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            self.backward()
            optimizer.step()

    def values(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.params.values()]


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_brings_a_quadratic_down(case: Case, dtype: torch.dtype) -> None:
    problem = Quadratic(dtype)
    before = problem.loss().item()
    optimizer = case.make(problem.groups())
    problem.run(optimizer, 150)
    # In half precision a step of lr is lost on an entry of more than 256 lr.
    assert problem.loss().item() < (0.3 if dtype == torch.bfloat16 else 0.1) * before
    for state in optimizer.state.values():
        assert {name: value.dtype for name, value in state.items() if name != "step"} == dict.fromkeys(
            set(state) - {"step"}, dtype
        )


@every_optimizer
def test_groups_say_which_norm_their_steps_are_constrained_in(case: Case) -> None:
    optimizer = case.make(Quadratic().groups())
    assert all(group["norm"] in ("spectral", "max", "frobenius", None) for group in optimizer.param_groups)
    assert any(group["norm"] is not None for group in optimizer.param_groups)


@every_optimizer
def test_a_group_keeps_its_own_rate_and_a_later_one_joins(case: Case) -> None:
    problem = Quadratic()
    *groups, last = problem.groups()
    groups[0]["lr"] = 0.0
    optimizer = case.make(groups)
    optimizer.add_param_group(last)
    before = problem.values()
    problem.run(optimizer, 1)
    moved = [not torch.equal(a, b) for a, b in zip(before, problem.values(), strict=True)]
    assert moved == [False] + [True] * (len(moved) - 1)


@every_optimizer
def test_a_tensor_rate_does_what_a_float_does(case: Case) -> None:
    by_float, by_tensor = Quadratic(), Quadratic()
    by_float.run(case.make(by_float.groups()), 4)
    settings = {name: torch.tensor(value) for name, value in case.settings.items() if name == "second_lr"}
    optimizer = case.make(by_tensor.groups(), lr=torch.tensor(case.lr), **settings)
    by_tensor.run(optimizer, 4)
    assert all(isinstance(group["lr"], Tensor) for group in optimizer.param_groups)
    assert_equal(by_tensor.values(), by_float.values())
    for group in optimizer.param_groups:
        group["lr"].fill_(0.0)
    before = by_tensor.values()
    by_tensor.run(optimizer, 1)
    assert_equal(by_tensor.values(), before)


@every_optimizer
def test_a_step_waits_for_no_device(case: Case) -> None:
    # Tensors on the meta device have no values: whatever reads one, as a host wait would, raises.
    problem = Quadratic(device="meta")
    rate: Any = torch.tensor(case.lr, device="meta") if case.rate_on_device else case.lr
    rates = {"lr": rate, **({"second_lr": rate} if "second_lr" in case.settings else {})}
    optimizer = case.make(problem.groups(), **rates, **({"exact": False} if "exact" in case.settings else {}))
    problem.run(optimizer, 3)
    assert len(optimizer.state) == (0 if case.settings.get("momentum") == 0.0 else len(SHAPES))


@every_optimizer
def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned(case: Case) -> None:
    problem, direct = Quadratic(), Quadratic()

    def closure() -> float:
        problem.backward()
        return problem.loss().item()

    before = problem.loss().item()
    assert case.make(problem.groups()).step(closure) == before
    direct.run(case.make(direct.groups()), 1)
    assert_equal(problem.values(), direct.values())


@every_optimizer
def test_a_run_stopped_midway_resumes_bit_for_bit(case: Case) -> None:
    straight, stopped = Quadratic(), Quadratic()
    straight.run(case.make(straight.groups()), 7)

    optimizer = case.make(stopped.groups())
    stopped.run(optimizer, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = Quadratic()
    for p, value in zip(resumed.params.values(), stopped.values(), strict=True):
        p.data.copy_(value)
    optimizer = case.make(resumed.groups())
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    resumed.run(optimizer, 4)
    assert_equal(resumed.values(), straight.values())


@every_optimizer
def test_a_copied_optimizer_takes_further_groups(case: Case) -> None:
    optimizer = copy.deepcopy(case.make(Quadratic().groups()))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3, 2))], "kind": "matrix"})
    assert optimizer.param_groups[-1].keys() >= optimizer.param_groups[0].keys() - {"kind"}


@every_optimizer
def test_two_runs_agree_bit_for_bit(case: Case) -> None:
    first, second = Quadratic(), Quadratic()
    first.run(case.make(first.groups()), 5)
    second.run(case.make(second.groups()), 5)
    assert_equal(first.values(), second.values())


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_left_alone(case: Case, dtype: torch.dtype) -> None:
    problem = Quadratic(dtype)
    optimizer = case.make(problem.groups())
    for _ in range(3):
        problem.backward()
        grads = [p.grad for p in problem.params.values()]
        before = [grad.clone() for grad in grads if grad is not None]
        optimizer.step()
        assert all(p.grad is grad for p, grad in zip(problem.params.values(), grads, strict=True))
        assert_equal([grad for grad in grads if grad is not None], before)


@every_optimizer
@pytest.mark.parametrize("size", [0.0, 1e-22])
def test_a_vanishing_gradient_gives_no_nan_and_zero_no_step(case: Case, size: float) -> None:
    problem = Quadratic()
    before = problem.values()
    optimizer = case.make(problem.groups())
    for _ in range(3):
        for p in problem.params.values():
            p.grad = torch.full_like(p, size)
        optimizer.step()
    assert all(value.isfinite().all() for value in problem.values())
    if size == 0.0:
        assert_equal(problem.values(), before)


@every_optimizer
def test_weight_decay_is_decoupled_and_takes_the_unscaled_rate(case: Case) -> None:
    problem = Quadratic()
    before = problem.values()
    optimizer = case.make(problem.groups(), weight_decay=0.5)
    for p in problem.params.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for group, value, start in zip(optimizer.param_groups, problem.values(), before, strict=True):
        torch.testing.assert_close(value, (1 - group["lr"] * 0.5) * start)


@every_optimizer
def test_parameters_without_gradient_or_without_entries_are_skipped(case: Case) -> None:
    problem = Quadratic()
    empty = nn.Parameter(torch.empty(0, 4))
    empty.grad = torch.empty(0, 4)
    optimizer = case.make([*problem.groups(), {"params": [empty], "kind": "matrix"}])
    problem.backward()
    problem.params["matrix"].grad = None
    before = problem.values()
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, problem.values(), strict=True)]
    assert moved == [False] + [True] * (len(SHAPES) - 1)
    assert problem.params["matrix"] not in optimizer.state
    assert empty not in optimizer.state


@every_optimizer
def test_several_parameters_in_a_group_step_as_each_in_its_own(case: Case) -> None:
    apart, together = Quadratic(), Quadratic()
    twins = {kind: nn.Parameter(p.detach() * 2) for kind, p in apart.params.items()}
    others = {kind: nn.Parameter(p.detach() * 2) for kind, p in apart.params.items()}
    separate = [*apart.groups(), *({"params": [p], "kind": kind} for kind, p in twins.items())]
    joint = [{"params": [together.params[kind], p], "kind": kind} for kind, p in others.items()]
    for groups in (separate, joint):
        optimizer = case.make(groups)
        for _ in range(3):
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = p.detach().sin() + 0.1
            optimizer.step()
    assert_equal(together.values(), apart.values())
    assert_equal(list(others.values()), list(twins.values()))


@every_optimizer
def test_channels_last_and_transposed_storage_step_alike(case: Case) -> None:
    plain, strided = Quadratic(), Quadratic()
    conv, matrix = strided.params["conv"], strided.params["matrix"]
    conv.data = conv.data.to(memory_format=torch.channels_last)
    matrix.data = matrix.data.T.contiguous().T
    plain.run(case.make(plain.groups()), 3)
    strided.run(case.make(strided.groups()), 3)
    for a, b in zip(plain.values(), strided.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-3)


@every_optimizer
def test_sparse_gradients_and_complex_parameters_are_refused(case: Case) -> None:
    table = nn.Parameter(torch.ones(4, 3))
    table.grad = torch.ones(4, 3).to_sparse()
    optimizer = case.make([{"params": [table], "kind": "embedding"}])
    with pytest.raises(TypeError, match="sparse"):
        optimizer.step()
    with pytest.raises(TypeError, match="complex64"):
        case.make([{"params": [nn.Parameter(torch.ones(4, 3, dtype=torch.complex64))], "kind": "matrix"}])


@every_optimizer
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("lr", -1.0),
        ("lr", float("nan")),
        ("lr", torch.ones(2)),
        ("lr", torch.tensor(-1.0)),
        ("lr", "fast"),
        ("weight_decay", -0.1),
        ("weight_decay", float("inf")),
    ],
)
def test_a_bad_rate_or_decay_is_refused(case: Case, setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting.replace("_", ".")):
        case.make([{"params": [nn.Parameter(torch.ones(3, 2))], "kind": "matrix"}], **{setting: value})


@every_optimizer
def test_a_refused_group_leaves_the_optimizer_as_it_was(case: Case) -> None:
    problem = Quadratic()
    optimizer = case.make(problem.groups())
    with pytest.raises(ValueError, match="lr"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3, 2))], "kind": "matrix", "lr": -1.0})
    with pytest.raises(ValueError, match="norm"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3, 2))], "kind": "matrix", "norm": "nuclear"})
    assert len(optimizer.param_groups) == len(SHAPES)
    problem.run(optimizer, 1)


BAD_SETTINGS: list[tuple[Callable[..., torch.optim.Optimizer], str, Any]] = [
    (Lion, "betas", (0.9,)),
    (Lion, "betas", (0.9, 1.0)),
    (Lion, "betas", 0.9),
    (Signum, "momentum", 1.0),
    (NormalizedSGD, "momentum", -0.1),
    (Muon, "momentum", 1.5),
    (Muon, "scale", "rows"),
    (Muon, "ns_steps", 0),
    (Muon, "ns_steps", 2.5),
    (Muon, "exact", "no"),
    (Muon, "nesterov", 1),
    (Muon, "second", "sgd"),
    (Muon, "second_lr", -1.0),
    (Muon, "second_betas", (0.9, 2.0)),
    (Muon, "second_eps", 0.0),
    (Scion, "momentum", 1.0),
    (Scion, "radius", 0.0),
    (Scion, "embedding_radius", -1.0),
    (Scion, "embedding_rule", "column"),
    (Scion, "exact", "no"),
    (Scion, "constrained", "no"),
    (Gluon, "momentum", 1.0),
    (Gluon, "radius", float("nan")),
    (Gluon, "exact", "no"),
    (Gluon, "L0", 1.0),
    (Gluon, "L1", 1.0),
]


@pytest.mark.parametrize(("cls", "setting", "value"), BAD_SETTINGS)
def test_a_bad_setting_is_refused_by_name(cls: Callable[..., torch.optim.Optimizer], setting: str, value: Any) -> None:
    name = setting.removeprefix("second_") if setting != "second" else setting
    with pytest.raises(ValueError, match=name):
        cls(Quadratic().groups(), **{setting: value})


@every_optimizer
def test_an_unknown_kind_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match=r"kind must be one of 'matrix', .*, got 'matrx'; leave it out"):
        case.make([{"params": [nn.Parameter(torch.ones(3, 2))], "kind": "matrx"}])


BAD_LAYOUTS: list[tuple[dict[str, Any], tuple[int, ...], str]] = [
    ({"blocks": (1, 1)}, (3, 2), r"blocks=\(1, 1\) are 2 rows together.*\(3, 2\) with 3 outputs.*sum to 3"),
    ({"blocks": (1, 2), "transposed": True}, (3, 2), "with 2 outputs"),
    ({"blocks": (1, 2)}, (2, 4, 3), "with 4 outputs"),
    ({"blocks": (1, 2), "kind": "conv"}, (3, 2, 2), "leave blocks out"),
    ({"blocks": (3, 0)}, (3, 2), r"blocks\[1\] must be at least 1, got 0"),
    ({"blocks": 3}, (3, 2), "blocks must be the sizes"),
    ({"blocks": ()}, (3, 2), "leave it out"),
    ({"transposed": "no"}, (3, 2), "transposed must be True or False, got 'no'"),
]


@pytest.mark.parametrize("cls", [Muon, Scion, Gluon])
@pytest.mark.parametrize(("group", "shape", "message"), BAD_LAYOUTS)
def test_a_layout_that_does_not_fit_is_refused_at_once(
    cls: Callable[..., torch.optim.Optimizer], group: dict[str, Any], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cls([{"params": [nn.Parameter(torch.ones(shape))], "kind": "matrix", **group}])


@pytest.mark.parametrize("cls", [Scion, Gluon])
def test_a_vector_is_not_stored_with_inputs_first(cls: Callable[..., torch.optim.Optimizer]) -> None:
    with pytest.raises(ValueError, match="leave transposed out"):
        cls([{"params": [nn.Parameter(torch.ones(3))], "kind": "head", "transposed": True}])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": "x", "second": "lion"}, "lr must be a number, got 'x'"),
        ({"second_lr": "x", "second": "lion"}, "second_lr must be a number, got 'x'"),
        ({"scale": "foo"}, "scale must be one of .*, got 'foo'"),
        ({"exact": "no"}, "exact must be True or False, got 'no'"),
    ],
)
def test_muon_refuses_bad_settings_without_spectral_groups_too(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Muon([{"params": [nn.Parameter(torch.ones(3))], "kind": "bias"}], **settings)
