"""What the one class promises beyond the optimizers' table: compiled steps, few calls, batches, rates on a device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from warmgap.torch.layout import block_shapes, matrices_of, matrix_blocks, matrix_shapes
from warmgap.torch.optimizers import EFMuon, Gluon, Lion, Muon, NormalizedSGD, Scion, Signum
from warmgap.torch.optimizers._base import _NORMS, CHUNK_ENTRIES, Step, _batches, descend_

ALL: dict[str, Any] = {
    "muon": Muon,
    "scion": Scion,
    "gluon": Gluon,
    "lion": Lion,
    "signum": Signum,
    "normalized-sgd": NormalizedSGD,
}
SETTINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{name: (cls, {}) for name, cls in ALL.items()},
    "muon-lion": (Muon, {"second": "lion"}),
    "gluon-adaptive": (Gluon, {"L0": 1.0, "L1": 2.0}),
}
THREE_SHAPES = [(64, 64), (64, 176), (176, 64)] * 2


def groups() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, list[tuple[int, ...]]] = {
        "matrix": [(6, 4), (6, 4)],
        "conv": [(3, 2, 2)],
        "embedding": [(7, 3)],
        "bias": [(5,)],
    }
    return [
        {"params": [nn.Parameter(torch.randn(shape, generator=generator)) for shape in of_kind], "kind": kind}
        for kind, of_kind in shapes.items()
    ]


def fill(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = p.detach().sin() + 0.1


@pytest.mark.parametrize("name", ["muon", "muon-lion", "gluon-adaptive", "normalized-sgd", "ef-muon"])
def test_a_compiled_step_is_one_graph_that_follows_rate_and_decay(name: str) -> None:
    cls, settings = SETTINGS.get(name, (EFMuon, {}))
    optimizers = []
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Any]) -> Any:
        graphs.append(graph)
        return graph

    for compiled in (False, True):
        torch._dynamo.reset()
        optimizer = cls(groups(), lr=torch.tensor(0.05), weight_decay=torch.tensor(0.1), **settings)
        optimizers.append(optimizer)
        step = torch.compile(optimizer.step, backend=backend, fullgraph=True) if compiled else optimizer.step
        for _ in range(4):
            fill(optimizer)
            step()
            for group in optimizer.param_groups:
                group["lr"].mul_(0.5)
                group["weight_decay"].mul_(2.0)
    torch._dynamo.reset()
    assert len(graphs) == 1
    for one, other in zip(*(optimizer.param_groups for optimizer in optimizers), strict=True):
        torch.testing.assert_close(one["params"], other["params"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_of_six_parameters_takes_at_most_sixty_calls(
    name: str, python_calls: Callable[[Callable[[], Any]], int]
) -> None:
    cls, settings = SETTINGS[name]
    for shapes in ([(64, 64)] * 6, THREE_SHAPES):
        optimizer = cls([nn.Parameter(torch.randn(shape)) for shape in shapes], **settings)
        fill(optimizer)
        optimizer.step()
        assert python_calls(optimizer.step) <= (60 if name != "gluon-adaptive" or shapes is not THREE_SHAPES else 75)


@pytest.mark.parametrize("optimizer", [*ALL.values(), EFMuon])
def test_gradients_of_another_precision_are_taken_in_the_parameters(optimizer: Any) -> None:
    mixed, plain = (nn.Parameter(torch.linspace(-1, 1, 12).reshape(4, 3).bfloat16()) for _ in range(2))
    mixed.grad_dtype = None  # such as a float32 gradient of a bfloat16 weight
    mixed.grad = plain.detach().float().sin()
    plain.grad = mixed.grad.bfloat16()
    directions = []
    for p in (mixed, plain):
        made = optimizer([p], lr=0.1)
        directions += made.directions(made.param_groups[0], [p])
        for _ in range(2):
            made.step()
        assert all(value.dtype == torch.bfloat16 for value in made.state[p].values())
    assert torch.equal(mixed, plain)
    assert torch.equal(*directions)


def test_a_rate_on_the_device_does_what_a_float_does() -> None:
    lr, tensor_lr = 0.25, torch.tensor(0.25)
    for dtype in (torch.float32, torch.bfloat16):
        x, d = torch.arange(6.0).reshape(2, 3).to(dtype), torch.ones(2, 3, dtype=dtype)
        by_float, by_tensor = [x.clone()], [x.clone()]
        for params, value in ((by_float, lr), (by_tensor, tensor_lr)):
            descend_(params, [d.clone()], value, 0.5)
        in_one_pass = [x.clone()]
        descend_(in_one_pass, [d], lr, 0.5, by_passes=True)
        torch.testing.assert_close(in_one_pass, by_float)
        assert by_tensor[0].dtype == dtype
        torch.testing.assert_close(by_tensor, by_float)
        torch.testing.assert_close(by_float[0], (x * 0.875 - 0.25).to(dtype))


def test_batches_gather_by_device_dtype_and_shape_and_hold_what_fits() -> None:
    def places(rule: str, params: list[Tensor]) -> list[list[int]]:
        order = [torch.tensor(index) for index in range(len(params))]
        step = Step({"radius": 1.0} if rule == "rms" else {}, rule, False, False, {}, 1.0, 0.0, 1.0)
        return [[int(index) for _, index in rows] for rows in _batches(step, params, order)]

    a, b = torch.zeros(2, 3), torch.zeros(2, 3, device="meta")
    c, d = torch.zeros(3, 3), torch.zeros(2, 3, dtype=torch.bfloat16)
    params = [a, b, c, d, torch.zeros(2, 3)]
    assert places("spectral", params) == [[0, 4], [1], [2], [3]]
    assert places("lion", params) == [[0, 2, 4], [1], [3]]
    large = [torch.zeros(CHUNK_ENTRIES // 2, device="meta") for _ in range(3)]
    on_cpu = [torch.zeros(CHUNK_ENTRIES // 2) for _ in range(3)]
    assert places("rms", on_cpu) == [[0, 1], [2]]
    assert places("adamw", on_cpu) == [[0, 1, 2]]
    assert places("rms", large) == [[0, 1, 2]]


def test_a_large_parameter_is_stepped_chunk_by_chunk_as_in_one_piece() -> None:
    entries = 2 * CHUNK_ENTRIES + 5
    for cls in (Lion, Signum, NormalizedSGD):
        chunked, small, strided = (
            nn.Parameter(torch.ones(entries)),
            nn.Parameter(torch.ones(7)),
            torch.ones(5, entries).T,
        )
        for p in (chunked, small):
            p.grad = torch.linspace(-1, 1, p.numel())
        whole = nn.Parameter(strided[:, 0])  # not contiguous
        whole.grad = torch.linspace(-1, 1, entries)
        optimizer = cls([chunked, small, whole], lr=0.1, weight_decay=0.1)
        for _ in range(2):
            optimizer.step()
        torch.testing.assert_close(chunked, whole)
        assert chunked.ne(1).all()


@pytest.mark.parametrize(
    ("group", "shape"),
    [
        ({}, (5, 4)),
        ({"kind": "matrix", "blocks": (2, 3)}, (5, 4)),
        ({"kind": "matrix", "blocks": (2, 3), "transposed": True}, (4, 5)),
        ({"kind": "matrix", "transposed": True}, (2, 4, 5)),
        ({"kind": "matrix", "blocks": (2, 3)}, (2, 5, 4)),
        ({"kind": "conv"}, (5, 4, 3)),
        ({"kind": "conv", "transposed": True}, (4, 5, 3, 2)),
        ({"kind": "bias"}, (5,)),
    ],
)
def test_shapes_of_blocks_and_matrices_are_those_of_their_views(group: dict[str, Any], shape: tuple[int, ...]) -> None:
    x: Tensor = torch.zeros(shape)
    assert [tuple(block) for block in block_shapes(shape, group)] == [
        tuple(view.shape) for view in matrix_blocks(x, group)
    ]
    assert [tuple(side) for side in matrix_shapes(shape, group)] == [
        tuple(view.shape) for view in matrices_of(x, group)
    ]


@pytest.mark.parametrize("optimizer", [Muon, Lion, EFMuon])
def test_promise_8_a_model_in_place_of_its_parameters_is_named(optimizer: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"got the module Linear: write {optimizer.__name__}\(split_parameters\(model\)"
    ):
        optimizer(nn.Linear(3, 3))


@pytest.mark.parametrize("optimizer", [*ALL.values(), EFMuon])
def test_a_group_that_is_given_is_not_changed(optimizer: Any) -> None:
    given = {"params": [nn.Parameter(torch.ones(3, 2))], "kind": "matrix", "lr": -1.0}
    made = optimizer([nn.Parameter(torch.ones(3, 2))])
    with pytest.raises(ValueError, match="lr"):
        made.add_param_group(given)
    assert given.keys() == {"params", "kind", "lr"}
    # Nor does one optimizer find what another has written into it.
    given["lr"] = 0.1
    for cls in (Muon, Lion, optimizer):
        cls([given])
    assert given.keys() == {"params", "kind", "lr"}


def test_a_checkpoint_without_polynomials_goes_on() -> None:
    optimizer = Muon([nn.Parameter(torch.ones(3, 2))])
    before = optimizer.direction_norm(optimizer.param_groups[0], torch.ones(3, 2))
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        del group["polynomial"], group["compute_dtype"]
    optimizer.load_state_dict(saved)
    (group,) = optimizer.param_groups
    assert (group["polynomial"], group["compute_dtype"]) == ("jordan", None)
    assert optimizer.direction_norm(group, torch.ones(3, 2)) == before


@pytest.mark.parametrize("cls", [Muon, Scion, Gluon])
def test_without_momentum_nothing_is_kept_and_what_an_older_checkpoint_keeps_is_not_read(cls: Any) -> None:
    fresh, resumed = (nn.Parameter(torch.ones(4, 3)) for _ in range(2))
    optimizers = [cls([p], lr=0.01, momentum=0.0) for p in (fresh, resumed)]
    saved = optimizers[1].state_dict()
    optimizers[1].load_state_dict({**saved, "state": {0: {"momentum_buffer": torch.full((4, 3), torch.nan)}}})
    for p, optimizer in zip((fresh, resumed), optimizers, strict=True):
        p.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        optimizer.step()
    assert not optimizers[0].state
    assert torch.equal(fresh, resumed)


def test_a_radius_that_changes_from_step_to_step_is_followed_and_leaves_nothing_behind() -> None:
    p = nn.Parameter(torch.zeros(4, 3))
    p.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    optimizer = Scion([p], lr=1.0, momentum=0.0, constrained=False)
    group = optimizer.param_groups[0]
    (unit,) = (direction / group["radius"] for direction in optimizer.directions(group, [p]))
    known = len(_NORMS)
    for step in range(5):
        group["radius"] = 1.0 + step
        torch.testing.assert_close(optimizer.directions(group, [p]), [unit * group["radius"]])
    assert len(_NORMS) == known
