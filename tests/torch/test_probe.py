"""The probe against functions whose curvature is known, and against everything that it must leave alone."""

import copy
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lion_pytorch
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from warmgap.smoothness import fit_gap_linear, fit_layers, fit_smoothness, read_records
from warmgap.torch import Gluon, Lion, Muon, NormalizedSGD, Scion, Signum, SmoothnessProbe, norms, split_parameters
from warmgap.torch import probe as module


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def descend(
    probe: SmoothnessProbe, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], steps: int
) -> SmoothnessProbe:
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        with probe.measure(loss):
            optimizer.step()
    return probe


# ------------------------------------------------------------------------------------------------------ known curvature


@pytest.mark.parametrize("estimator", ["same-batch", "consecutive", "directional", "eigenvalue"])
def test_a_quadratic_has_its_constant_whatever_the_step(estimator: Any) -> None:
    x = parameter(3.0, -2.0, 1.0)
    optimizer = NormalizedSGD([x], lr=0.2, momentum=0.0)
    probe = SmoothnessProbe(optimizer, estimator=estimator, target_loss=-1.0)
    descend(probe, optimizer, lambda: 2.5 * (x @ x), 15)
    assert len(probe.records) == 15 - (estimator == "consecutive")
    for index, record in enumerate(probe.records):
        assert record.ratio == pytest.approx(5.0, rel=1e-9)
        assert record.gap == pytest.approx(record.loss + 1.0)
        assert record.step_length == pytest.approx(0.2)
        assert record.dual_norm == pytest.approx(math.sqrt(10.0 * record.loss))
        assert (record.step, record.norm, record.estimator) == (index, "frobenius", estimator)
    fit = fit_gap_linear(probe.records, resamples=20)
    assert fit.constants == pytest.approx({"H0": 5.0, "H1": 0.0}, abs=1e-9)


EXACT: dict[str, Any] = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "scale": "none", "exact": True}


def test_the_norms_of_a_quadratic() -> None:
    # T4: d in the max norm, r in the spectral norm, for steps of the LMO.
    torch.manual_seed(0)
    vector, matrix = (nn.Parameter(torch.randn(shape, dtype=torch.float64) + 1.0) for shape in ((7,), (5, 3)))
    for x, optimizer, expected in (
        (vector, Signum([vector], lr=0.01, momentum=0.0), 7.0),
        (matrix, Muon([matrix], lr=0.01, **EXACT), 3.0),
    ):

        def loss(x: Tensor = x) -> Tensor:
            return 0.5 * (x * x).sum()

        probe = descend(SmoothnessProbe(optimizer), optimizer, loss, 3)
        assert [record.ratio for record in probe.records] == pytest.approx([expected] * 3)
        assert probe.records[0].step_length == pytest.approx(0.01)


def test_cosh_gives_back_its_constants() -> None:
    # T1: max norm (d, 1), reached where the entries are equal.
    x = parameter(2.5, 2.5, 2.5)
    optimizer = Signum([x], lr=2e-3, momentum=0.0, weight_decay=0.0)
    probe = SmoothnessProbe(optimizer, every=25, also=("directional", "eigenvalue"))
    descend(probe, optimizer, lambda: (torch.cosh(x) - 1).sum(), 1200)
    assert [record.step for record in probe.records] == list(range(0, 1200, 25))
    fit = fit_gap_linear(probe.records, at="middle", resamples=20)
    assert fit.constants == pytest.approx({"H0": 3.0, "H1": 1.0}, rel=1e-4)
    assert fit.diagnosis.informative
    for record in probe.records:
        assert record.others["directional"] == pytest.approx(3.0 + record.gap, rel=1e-9)
        assert record.others["eigenvalue"] == pytest.approx(1.0 + record.gap / 3.0, rel=1e-9)


def test_cosh_of_singular_values() -> None:
    # T2 of a square matrix with equal singular values: spectral (r, 1).
    torch.manual_seed(0)
    x = nn.Parameter(2.0 * torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0])
    optimizer = Muon([x], lr=2e-3, **EXACT)
    probe = SmoothnessProbe(optimizer, every=20)

    descend(probe, optimizer, lambda: cosh_series(x), 900)
    fit = fit_gap_linear(probe.records, at="middle", resamples=20)
    assert fit.constants == pytest.approx({"H0": 3.0, "H1": 1.0}, rel=1e-3)


def test_the_barrier_stays_below_its_constants_and_reaches_them() -> None:
    # T3: (4, 18, 24) in l2, tight at the minimum.
    x = parameter(0.75)
    optimizer = NormalizedSGD([x], lr=5e-4, momentum=0.0)
    probe = SmoothnessProbe(optimizer, every=20)
    descend(probe, optimizer, lambda: ((1 - x * x) ** -2 - 1).sum(), 1400)
    assert all(record.ratio <= 4 + 18 * record.gap + 24 * record.gap**2 for record in probe.records)
    near = [record for record in probe.records if record.gap < 0.15]
    fit = fit_smoothness(near, at="middle", method="lstsq", resamples=20)
    assert fit.constants["K0"] == pytest.approx(4.0, rel=0.02)
    assert fit.constants["K1"] == pytest.approx(18.0, rel=0.1)


def cosh_series(x: Tensor) -> Tensor:
    """Sum of cosh(s) - 1 over singular values: a series in x^T x differentiates well where some of them are equal."""
    term = torch.eye(x.shape[1], dtype=x.dtype)
    total = torch.zeros((), dtype=x.dtype)
    for k in range(1, 15):
        term = term @ (x.mT @ x) / ((2 * k - 1) * (2 * k))
        total = total + term.trace()
    return total


def test_the_curvature_along_the_step_gives_back_the_constants_to_rounding() -> None:
    # No step is too long for it: T1 in the max norm, T2 in the spectral norm, T3 near the minimum, where it is tight.
    torch.manual_seed(0)
    vector, wall = parameter(2.5, 2.5, 2.5), parameter(0.1)
    matrix = nn.Parameter(2.0 * torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0])
    runs: list[tuple[torch.optim.Optimizer, Callable[[], Tensor]]] = [
        (Signum([vector], lr=0.1, momentum=0.0, weight_decay=0.0), lambda: (torch.cosh(vector) - 1).sum()),
        (Muon([matrix], lr=0.1, **EXACT), lambda: cosh_series(matrix)),
        (NormalizedSGD([wall], lr=2e-3, momentum=0.0), lambda: ((1 - wall * wall) ** -2 - 1).sum()),
    ]
    fits = []
    for (optimizer, loss), steps in zip(runs, (24, 19, 45), strict=True):
        probe = descend(SmoothnessProbe(optimizer, estimator="directional"), optimizer, loss, steps)
        fits.append(probe.records)
    for records in fits[:2]:
        fit = fit_gap_linear(records, resamples=20)
        assert fit.constants == pytest.approx({"H0": 3.0, "H1": 1.0}, rel=1e-8)
        assert fit.r2 == pytest.approx(1.0)
    barrier = fit_smoothness(fits[2], method="lstsq", resamples=20)
    assert barrier.constants["K0"] == pytest.approx(4.0, rel=1e-5)
    assert barrier.constants["K1"] == pytest.approx(18.0, rel=1e-3)
    assert barrier.constants["Krho"] < 24.0


def test_with_noise_the_truth_lies_in_the_stated_interval() -> None:
    # Gradients of cosh with noise that differs between the two batches of the consecutive estimate, and is the same
    # in the two gradients of the default one.
    torch.manual_seed(0)
    x = parameter(*[2.5] * 4)
    optimizer = Signum([x], lr=1e-2, momentum=0.0, weight_decay=0.0)
    probe = SmoothnessProbe(optimizer)
    for _ in range(240):
        noise = 0.05 * torch.randn(4, dtype=torch.float64)
        weight = 1.0 + 0.2 * torch.randn(4, dtype=torch.float64)

        def loss(noise: Tensor = noise, weight: Tensor = weight) -> Tensor:
            return (weight * (torch.cosh(x) - 1)).sum() + noise @ x

        optimizer.zero_grad()
        loss().backward()
        with probe.measure(loss):
            optimizer.step()
    fit = fit_gap_linear([record for record in probe.records if record.gap > 0.2], at="middle", resamples=200)
    for name, truth in (("H0", 4.0), ("H1", 1.0)):
        low, high = fit.intervals[name]
        assert low <= truth <= high
        assert high - low < truth


def test_the_eigenvalue_is_that_of_the_hessian() -> None:
    torch.manual_seed(0)
    a = torch.randn(30, 30, dtype=torch.float64)
    a = a @ a.mT - 20 * torch.eye(30, dtype=torch.float64)
    first, second = (nn.Parameter(torch.randn(15, dtype=torch.float64)) for _ in range(2))

    def loss() -> Tensor:
        x = torch.cat([first, second])
        return 0.5 * x @ a @ x

    optimizer = torch.optim.SGD([first, second], lr=1e-4)
    probe = SmoothnessProbe(optimizer, estimator="eigenvalue", also=("directional",), lanczos_steps=30)
    start = torch.cat([first, second]).detach().clone()
    descend(probe, optimizer, loss, 1)
    (record,) = probe.records
    assert record.ratio == pytest.approx(float(torch.linalg.eigvalsh(a).abs().max()), rel=1e-6)
    u = a @ start
    assert record.others["directional"] == pytest.approx(float(u @ a @ u / (u @ u)), rel=1e-6)
    assert record.blocks == ()


def test_a_linear_loss_has_no_curvature() -> None:
    x = parameter(1.0, 2.0)
    optimizer = NormalizedSGD([x], lr=0.1)
    probe = SmoothnessProbe(optimizer, also=("directional", "eigenvalue"))
    descend(probe, optimizer, lambda: 3.0 * x.sum(), 2)
    assert probe.records[1].ratio == 0.0
    assert probe.records[1].others == {"directional": 0.0, "eigenvalue": 0.0}


def test_the_consecutive_estimate_takes_the_next_batch() -> None:
    x = parameter(1.0)
    optimizer = NormalizedSGD([x], lr=0.1, momentum=0.0)
    probe = SmoothnessProbe(optimizer, estimator="consecutive", also=("same-batch",), every=2)
    for shift in (0.0, 1.0, 5.0, 7.0):
        x.grad = torch.ones_like(x)

        def loss(shift: float = shift) -> Tensor:
            return (0.5 * x * x + shift * x).sum()

        with probe.measure(loss):
            optimizer.step()
    # gradients: x at 1.0, x + 1 at 0.9; x + 5 at 0.8, x + 7 at 0.7
    assert [record.step for record in probe.records] == [0, 2]
    assert [record.ratio for record in probe.records] == pytest.approx([9.0, 19.0])
    assert [record.others["same-batch"] for record in probe.records] == pytest.approx([1.0, 1.0])


# ---------------------------------------------------------------------------------------------------------------- norms


class Net(nn.Module):
    def __init__(self, *, dropout: float = 0.0, batch_norm: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.inner = nn.Linear(8, 6)
        self.norm: nn.Module = nn.BatchNorm1d(6) if batch_norm else nn.LayerNorm(6)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(6, 11, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.dropout(self.norm(torch.tanh(self.inner(self.embedding(tokens)))))
        return nn.functional.cross_entropy(self.head(hidden), tokens)


TOKENS = torch.arange(22) % 11

MAKERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "muon": lambda model: Muon(split_parameters(model), lr=1e-2),
    "scion": lambda model: Scion(split_parameters(model), lr=1e-3),
    "gluon": lambda model: Gluon(split_parameters(model), lr=1e-3),
    "lion": lambda model: Lion(model.parameters(), lr=1e-3),
    "signum": lambda model: Signum(model.parameters(), lr=1e-3),
    "normalized-sgd": lambda model: NormalizedSGD(model.parameters(), lr=1e-2),
    "torch sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    "torch adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
    "torch's muon": lambda model: torch.optim.Muon([p for p in model.parameters() if p.ndim == 2], lr=1e-2),
    "lion-pytorch": lambda model: lion_pytorch.Lion(model.parameters(), lr=1e-3),
}


@pytest.mark.parametrize("norm", ["auto", "spectral", "max", "frobenius", "euclidean", "gluon"])
@pytest.mark.parametrize("name", MAKERS)
def test_the_numbers_are_what_they_are_called(name: str, norm: str) -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = MAKERS[name](model)
    probe = SmoothnessProbe(optimizer, norm=norm, model=model)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    loss = model(TOKENS)
    loss.backward()
    first = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    with probe.measure(lambda: model(TOKENS)):
        optimizer.step()
    model.zero_grad()
    after = model(TOKENS)
    after.backward()
    (record,) = probe.records
    assert (record.loss, record.loss_after) == pytest.approx((loss.item(), after.item()))
    own = {"muon": "spectral", "torch's muon": "spectral", "lion": "max", "lion-pytorch": "max", "signum": "max"}
    own["normalized-sgd"] = "frobenius"
    plain = {"spectral": norms.Spectral(), "max": norms.Max(), "frobenius": norms.Frobenius()}
    for block in record.blocks:
        p = dict(model.named_parameters())[block.name]
        assert p.grad is not None
        if norm == "gluon":
            rows, columns = (p.shape[0], p.shape[1]) if p.ndim == 2 else (p.shape[0], 1)
            rule = block.norm.removeprefix("gluon ")
            by: Any = {
                "spectral": norms.Spectral(math.sqrt(columns / rows)),
                "sign": norms.Max(columns),
                "rms": norms.Frobenius(1 / math.sqrt(p.numel())),
            }[rule]
        else:
            if norm == "auto" and name in own:
                assert block.norm == own[name]
            by = plain[block.norm]
        length, dual, change = by.norm(p.detach() - before[block.name]), by.dual(first[block.name]), None
        change = by.dual(p.grad - first[block.name])
        assert block.step_length == pytest.approx(float(length), rel=1e-4)
        assert block.dual_norm == pytest.approx(float(dual), rel=1e-4)
        assert block.ratio == pytest.approx(float(change / length), rel=1e-3)
    lengths = [block.step_length for block in record.blocks]
    duals = [block.dual_norm for block in record.blocks]
    changes = [block.ratio * block.step_length for block in record.blocks]
    joint = norm == "euclidean" or (norm == "auto" and name.startswith("torch "))
    assert record.norm == "euclidean" if joint else record.norm != "euclidean"
    size: Callable[[list[float]], float] = (lambda v: math.hypot(*v)) if joint else max
    total: Callable[[list[float]], float] = (lambda v: math.hypot(*v)) if joint else sum
    assert record.step_length == pytest.approx(size(lengths))
    assert record.dual_norm == pytest.approx(total(duals))
    assert record.ratio == pytest.approx(total(changes) / size(lengths))


@pytest.mark.parametrize(("convolution", "width"), [(nn.Conv2d, 20), (nn.ConvTranspose2d, 80)])
@pytest.mark.parametrize("rules", [{}, {"conv": "sign"}, {"conv": "row"}])
def test_the_scaled_norm_is_the_one_whose_unit_ball_gluon_steps_in(
    convolution: Callable[[int, int, int], nn.Module], width: int, rules: dict[str, str]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(convolution(3, 5, 2), nn.Flatten(), nn.Linear(width, 4))
    split = split_parameters(model)
    groups = [
        {**group, "exact": True, **({"rule": rules[group["kind"]]} if group["kind"] in rules else {})}
        for group in split
    ]
    optimizer = Gluon(groups, lr=1.0, radius=0.5, embedding_radius=0.5, weight_decay=0.0)
    probe = SmoothnessProbe(optimizer, norm="gluon", model=model)
    images, labels = torch.randn(6, 3, 3, 3), torch.arange(6) % 4

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(images), labels)

    descend(probe, optimizer, loss, 1)
    assert len(probe.records[0].blocks) == 4
    for block in probe.records[0].blocks:
        assert block.step_length == pytest.approx(0.5, rel=1e-4), block.name


def test_fused_projections_are_matrices_of_their_own() -> None:
    x = nn.Parameter(torch.diag(torch.tensor([3.0, 2.0, 1.0, 5.0])))
    optimizer = Muon([{"params": [x], "kind": "matrix", "blocks": [2, 2]}], lr=0.1, scale="none", exact=True)
    probe = SmoothnessProbe(optimizer)
    descend(probe, optimizer, lambda: (x * x).sum(), 1)
    assert probe.records[0].dual_norm == pytest.approx(22.0)
    assert probe.records[0].step_length == pytest.approx(0.1 + 0.1 * 0.1 * 5.0, rel=0.2)


def test_a_norm_of_ones_own() -> None:
    x = parameter(3.0, 4.0)
    optimizer = torch.optim.SGD([x], lr=0.1)
    probe = descend(SmoothnessProbe(optimizer, norm=norms.Max(2.0)), optimizer, lambda: (x * x).sum(), 1)
    assert probe.records[0].dual_norm == pytest.approx(7.0)
    assert probe.records[0].norm == "max"


def test_a_norm_for_each_parameter() -> None:
    x, y, still = parameter(3.0, 4.0), parameter(1.0, -1.0), parameter(5.0)
    still.requires_grad_(False)
    optimizer = torch.optim.SGD([x, still, y], lr=0.1)
    norm = norms.SupOverBlocks([norms.Max(), norms.Max(), norms.Frobenius()])
    probe = descend(SmoothnessProbe(optimizer, norm=norm), optimizer, lambda: 0.5 * (x @ x + y @ y), 1)
    (record,) = probe.records
    assert record.norm == "max+frobenius"
    assert record.step_length == pytest.approx(0.4)
    assert record.dual_norm == pytest.approx(7.0 + math.sqrt(2.0))
    with pytest.raises(ValueError, match="each of the optimizer's 3 parameters, got 1"):
        SmoothnessProbe(optimizer, norm=norms.SupOverBlocks([norms.Max()]))


# --------------------------------------------------------------------------------------------------- what is left alone


def train(
    probed: bool, tmp: Path, name: str, *, precision: torch.dtype = torch.float32, **options: Any
) -> dict[str, Any]:
    """Six steps with dropout, batch norm and clipping; returns everything that could differ."""
    torch.manual_seed(1)
    random.seed(1)
    model = Net(dropout=0.3, batch_norm=True)
    optimizer = MAKERS[name](model)
    probe = SmoothnessProbe(optimizer, model=model, path=tmp / "records.jsonl", **options) if probed else None
    losses, grads = [], []
    for step in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = model(TOKENS.roll(step))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        losses.append(loss.item())

        def closure(step: int = step) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                return model(TOKENS.roll(step))  # type: ignore[no-any-return]

        if probe is None:
            optimizer.step()
        else:
            with probe.measure(closure):
                optimizer.step()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    return {
        "losses": losses,
        "grads": grads,
        "state": copy.deepcopy(model.state_dict()),
        "optimizer": copy.deepcopy(optimizer.state_dict()["state"]),
        "random": torch.get_rng_state(),
        "records": [] if probe is None else probe.records,
        "training": model.training,
    }


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["muon", "lion", "normalized-sgd", "torch sgd", "torch adamw", "torch's muon", "lion-pytorch"]
)
@pytest.mark.parametrize(
    "options",
    [{}, {"every": 2}, {"estimator": "consecutive"}, {"also": ("directional", "eigenvalue"), "lanczos_steps": 2}],
)
def test_a_probed_run_is_the_same_run_bit_for_bit(
    tmp_path: Path, name: str, options: dict[str, Any], precision: torch.dtype
) -> None:
    plain = train(False, tmp_path, name, precision=precision)
    probed = train(True, tmp_path, name, precision=precision, **options)
    assert probed["losses"] == plain["losses"]
    assert probed["training"]
    for what in ("grads", "state", "optimizer"):
        torch.testing.assert_close(probed[what], plain[what], rtol=0.0, atol=0.0)
    assert torch.equal(probed["random"], plain["random"])
    assert len(probed["records"]) == (3 if "every" in options else 5 if "estimator" in options else 6)
    saved = read_records(tmp_path / "records.jsonl")
    assert [record.to_json() for record in saved] == [record.to_json() for record in probed["records"]]
    assert all(math.isfinite(record.ratio) and record.ratio > 0.0 for record in probed["records"])


class Counting(nn.Module):
    """Its one buffer is changed in place, its other replaced."""

    calls: Tensor
    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = parameter(3.0)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("average", torch.ones(1, dtype=torch.float64))
        self.register_buffer("nothing", None)

    def forward(self) -> Tensor:
        self.calls += 1
        self.average = 0.9 * self.average + 0.1 * self.weight.detach()
        return (self.average * self.weight**2).sum()


def test_buffers_are_put_back_whether_changed_or_replaced() -> None:
    model = Counting()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    probe = SmoothnessProbe(optimizer, model=model, also=("directional",))
    with probe.measure(model):
        pass
    assert {key: value.item() for key, value in model.state_dict().items()} == {
        key: value.item() for key, value in before.items()
    }


def test_both_gradients_see_the_same_dropout() -> None:
    x = parameter(*[1.0] * 50)
    optimizer = NormalizedSGD([x], lr=0.1, momentum=0.0)
    probe = SmoothnessProbe(optimizer)
    torch.manual_seed(0)
    descend(probe, optimizer, lambda: 0.5 * (nn.functional.dropout(x, 0.5) ** 2).sum(), 4)
    # Each kept entry is doubled, so that its curvature is 4; another mask would add the gradient's own size.
    assert all(record.ratio < 4.0 + 1e-9 for record in probe.records)


def test_an_autocast_region_around_the_loop_does_not_hide_the_step() -> None:
    # Its cache holds the weights as they were before the step.
    torch.manual_seed(0)
    model = Net()
    optimizer = MAKERS["normalized-sgd"](model)
    probe = SmoothnessProbe(optimizer)
    with torch.autocast("cpu", torch.bfloat16):
        model(TOKENS).backward()
        with probe.measure(lambda: model(TOKENS)):
            optimizer.step()
    assert probe.records[0].loss_after < probe.records[0].loss
    assert probe.records[0].ratio > 0.0


def test_small_gradients_do_not_vanish_in_float16_where_the_scaler_is_given() -> None:
    x = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([x], lr=1e7)
    # Its gradient, 1e-9 x, is below the smallest number of float16.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)

    def loss() -> Tensor:
        return 0.5e-9 * (x.half().float() ** 2).sum()

    others: tuple[Any, ...] = ("directional", "eigenvalue")
    lost, kept = SmoothnessProbe(optimizer, also=others), SmoothnessProbe(optimizer, also=others, scaler=scaler)
    scaler.scale(loss()).backward()
    with lost.measure(loss), kept.measure(loss):
        scaler.step(optimizer)
    assert lost.records[0].dual_norm == 0.0
    (record,) = kept.records
    assert record.loss == pytest.approx(12.5e-9)
    assert record.dual_norm == pytest.approx(5e-9, rel=1e-2)
    assert record.ratio == pytest.approx(1e-9, rel=0.1)
    assert record.others == pytest.approx({"directional": 1e-9, "eigenvalue": 1e-9}, rel=1e-2)


@pytest.mark.parametrize("norm", ["auto", "spectral", "max"])
def test_sparse_gradients_are_gradients(norm: str) -> None:
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table = nn.Embedding(10, 4, sparse=sparse).double()
        optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
        probe = SmoothnessProbe(optimizer, norm=norm)

        def loss(table: nn.Embedding = table) -> Tensor:
            return table(torch.tensor([1, 2, 2])).pow(2).sum()  # type: ignore[no-any-return]

        found.append(descend(probe, optimizer, loss, 2).records)
    for dense, sparse_one in zip(*found, strict=True):
        assert sparse_one.ratio == pytest.approx(dense.ratio)
        assert sparse_one.dual_norm == pytest.approx(dense.dual_norm)


def test_accumulation_is_the_mean_of_the_micro_batches() -> None:
    found = []
    for micro in (1, 2):
        torch.manual_seed(0)
        model = Net().double()
        optimizer = MAKERS["normalized-sgd"](model)
        probe = SmoothnessProbe(optimizer)
        batches = TOKENS[:20].chunk(micro)

        def closure(model: nn.Module = model, batches: Any = batches) -> Any:
            return (model(batch) / len(batches) for batch in batches)

        for loss in closure():
            loss.backward()
        with probe.measure(closure):
            optimizer.step()
        found.append(probe.records[0])
    assert found[1].loss == pytest.approx(found[0].loss)
    assert found[1].ratio == pytest.approx(found[0].ratio)
    assert found[1].dual_norm == pytest.approx(found[0].dual_norm)


def test_an_optimizer_that_wraps_another_is_that_one() -> None:
    torch.manual_seed(0)
    model = Net()
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, lion_pytorch.Lion(model.parameters(), lr=1e-3))
    probe = SmoothnessProbe(optimizer, model=model)
    for _ in range(2):
        optimizer.zero_grad()
        accelerator.backward(model(TOKENS))
        with probe.measure(lambda: model(TOKENS)):
            optimizer.step()
    assert [record.step for record in probe.records] == [0, 1]
    assert probe.records[0].norm == "max"
    assert probe.records[0].step_length == pytest.approx(1e-3, rel=1e-3)


class Shell(torch.optim.Optimizer):
    def __init__(self) -> None:
        pass


def test_what_is_no_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer, got list"):
        SmoothnessProbe([parameter(1.0)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Shell only wraps an optimizer"):
        SmoothnessProbe(Shell())


class Vandal(torch.optim.SGD):
    """Spoils the gradients it has used, as some optimizers do."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            p.grad.mul_(1e6)
            p.grad = None


def test_an_optimizer_that_spoils_gradients_makes_no_difference() -> None:
    x = parameter(3.0, 4.0)
    optimizer = Vandal([x], lr=0.1)
    probe = descend(SmoothnessProbe(optimizer), optimizer, lambda: 0.5 * (x @ x), 3)
    assert [record.ratio for record in probe.records] == pytest.approx([1.0] * 3)
    assert x.grad is None


def test_a_closure_that_writes_gradients_does_not_get_through() -> None:
    x = parameter(3.0)
    optimizer = torch.optim.SGD([x], lr=0.0)
    x.grad = mark = torch.tensor([7.0], dtype=torch.float64)
    probe = SmoothnessProbe(optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        (x * x).sum().backward()
        return (x * x).sum()

    with probe.measure(closure):
        pass
    assert x.grad is mark
    assert x.grad.item() == 7.0


def test_an_error_within_the_step_comes_through_and_leaves_no_record() -> None:
    x = parameter(3.0)
    probe = SmoothnessProbe(torch.optim.SGD([x], lr=0.1))
    with pytest.raises(RuntimeError, match="mine"), probe.measure(lambda: (x * x).sum()):
        raise RuntimeError("mine")
    assert probe.records == []


def test_records_are_saved_as_they_come(tmp_path: Path) -> None:
    x = parameter(3.0)
    optimizer = NormalizedSGD([x], lr=0.1)
    path = tmp_path / "records.jsonl"
    probe = SmoothnessProbe(optimizer, path=path)
    for count in range(1, 4):
        descend(probe, optimizer, lambda: (x * x).sum(), 1)
        assert len(path.read_text().splitlines()) == count
        assert json.loads(path.read_text().splitlines()[-1])["step"] == count - 1


def test_a_resumed_run_goes_on_with_its_file(tmp_path: Path) -> None:
    def steps(first: int, last: int, start: float, **options: Any) -> float:
        x = parameter(start)
        optimizer = NormalizedSGD([x], lr=0.1, momentum=0.0)
        probe = SmoothnessProbe(optimizer, **options)
        for step in range(first, last):
            x.grad = x.detach().clone()
            with probe.measure(lambda: 0.5 * (x * x).sum(), step=step):
                optimizer.step()
        return float(x.detach())

    steps(0, 10, 3.0, path=tmp_path / "whole")
    at_four = steps(0, 4, 3.0)
    steps(0, 7, 3.0, path=tmp_path / "stopped")  # and killed, with a checkpoint of step 4
    steps(4, 10, at_four, path=tmp_path / "stopped")
    assert read_records(tmp_path / "stopped") == read_records(tmp_path / "whole")

    x = parameter(3.0)
    optimizer = NormalizedSGD([x], lr=0.1)
    probe = SmoothnessProbe(optimizer, path=tmp_path / "whole")
    with pytest.raises(ValueError, match="would mix with them"), probe.measure(lambda: (x * x).sum()):
        pytest.fail("the step was made")
    (tmp_path / "other").write_text("something else\n")
    with pytest.raises(ValueError, match=r"line 1 of .* is not a record"):
        SmoothnessProbe(optimizer, path=tmp_path / "other")


WORKER = """
import json, sys, torch, torch.distributed as dist
from torch import nn
from warmgap.torch import NormalizedSGD, SmoothnessProbe

rank, folder, wrapped = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "wrapped"
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Linear(4, 3).double()
parallel = nn.parallel.DistributedDataParallel(model)
called = parallel if wrapped else model
x, y = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3
x, y = x.chunk(2)[rank], y.chunk(2)[rank]
optimizer = NormalizedSGD(parallel.parameters(), lr=0.1)
probe = SmoothnessProbe(optimizer, also=("eigenvalue",), path=f"{folder}/records.jsonl")
for _ in range(2):
    optimizer.zero_grad()
    nn.functional.cross_entropy(parallel(x), y).backward()
    with probe.measure(lambda: nn.functional.cross_entropy(called(x), y)):
        optimizer.step()
print(json.dumps([record.to_json() for record in probe.records]))
dist.destroy_process_group()
"""


@pytest.mark.parametrize("called", ["bare", "wrapped"])
def test_ranks_measure_the_mean_loss_and_write_once(called: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", WORKER]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path), called], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    first, second = (json.loads(worker.communicate(timeout=250)[0]) for worker in workers)
    assert first == second
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3
    optimizer = NormalizedSGD(model.parameters(), lr=0.1)
    probe = SmoothnessProbe(optimizer, also=("eigenvalue",))
    descend(probe, optimizer, lambda: nn.functional.cross_entropy(model(x), y), 2)
    together = read_records(tmp_path / "records.jsonl")
    assert [record.to_json() for record in together] == first
    for one, other in zip(together, probe.records, strict=True):
        assert one.loss == pytest.approx(other.loss)
        assert one.ratio == pytest.approx(other.ratio)
        assert one.others == pytest.approx(other.others)


# ------------------------------------------------------------------------------------------------------------ bad input


def test_what_never_moves_is_labelled() -> None:
    moving, still = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    groups: list[dict[str, Any]] = [{"params": [moving]}, {"params": [still], "lr": 0.0}]
    optimizer = Muon(groups, lr=0.01, weight_decay=0.0)
    probe = SmoothnessProbe(optimizer)
    descend(probe, optimizer, lambda: ((moving + still) ** 2).sum(), 12)
    assert math.isnan(probe.records[0].blocks[1].ratio)
    assert math.isfinite(probe.records[0].ratio)
    assert "not of length zero" in fit_layers(probe.records, resamples=20).skipped["1.0"]


def test_a_step_that_was_skipped_measures_nothing() -> None:
    x = parameter(3.0)
    probe = SmoothnessProbe(torch.optim.SGD([x], lr=0.1))
    with probe.measure(lambda: (x * x).sum()):
        pass
    assert math.isnan(probe.records[0].ratio)
    assert probe.records[0].step_length == 0.0


@pytest.mark.parametrize("estimator", ["same-batch", "consecutive"])
def test_a_scaler_that_skips_steps_leaves_them_without_a_ratio(estimator: Any) -> None:
    x = parameter(3.0)
    optimizer = torch.optim.SGD([x], lr=0.1)
    probe = SmoothnessProbe(optimizer, estimator=estimator)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def loss() -> Tensor:
        return (x * x).sum()

    for step in range(6):
        optimizer.zero_grad()
        scaler.scale(loss()).backward()
        if step in (1, 2, 4):
            assert x.grad is not None
            x.grad.fill_(math.inf)
        with probe.measure(loss):
            scaler.step(optimizer)
        scaler.update()
    ratios = [record.ratio for record in probe.records]
    expected = [2.0, math.nan, math.nan, 2.0, math.nan, 2.0]
    assert ratios == pytest.approx(expected if estimator == "same-batch" else expected[:-1], nan_ok=True)
    assert [record.step for record in probe.records] == [0, 1, 1, 1, 2, 2][: len(ratios)]
    assert math.isnan(probe.records[1].blocks[0].ratio)
    assert probe.records[1].step_length == 0.0


def test_a_loss_that_is_nan_is_recorded_as_nan(tmp_path: Path) -> None:
    x = parameter(3.0)
    optimizer = torch.optim.SGD([x], lr=0.1)
    probe = SmoothnessProbe(optimizer, path=tmp_path / "r", also=("directional", "eigenvalue"))
    descend(probe, optimizer, lambda: (x * math.nan).sum(), 1)
    (record,) = read_records(tmp_path / "r")
    assert math.isnan(record.ratio)
    assert math.isnan(record.loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l7"}, "norm must be one of 'auto', .* got 'l7'"),
        ({"norm": 3}, "norm must be one of 'auto', .* got 3"),
        ({"estimator": "guess"}, "estimator must be one of"),
        ({"also": ("guess",)}, "estimator must be one of"),
        ({"also": ("consecutive",)}, "cannot be in also"),
        ({"every": 0}, "every must be at least 1"),
        ({"target_loss": math.inf}, "target_loss must be finite"),
        ({"lanczos_steps": 0}, "lanczos_steps must be at least 1"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmoothnessProbe(torch.optim.SGD([parameter(1.0)]), **options)


def test_nothing_to_measure() -> None:
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    with pytest.raises(ValueError, match="nothing to measure"):
        SmoothnessProbe(torch.optim.SGD([frozen]))


def test_parameters_that_come_and_go_are_not_left_out_in_silence() -> None:
    x, y = parameter(1.0), parameter(2.0)
    optimizer = torch.optim.SGD([x], lr=0.1)
    probe = SmoothnessProbe(optimizer)
    optimizer.add_param_group({"params": [y]})
    with pytest.raises(ValueError, match="make a new probe"), probe.measure(lambda: (x * y).sum()):
        pytest.fail("the step was made")
    probe = SmoothnessProbe(optimizer)
    y.requires_grad_(False)
    with pytest.raises(ValueError, match="make a new probe"), probe.measure(lambda: (x * y).sum()):
        pytest.fail("the step was made")


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (lambda x: 3.0, TypeError, "got float; leave out .item"),
        (lambda x: [3.0], TypeError, "got float; leave out .item"),
        (lambda x: {"loss": x.sum()}, TypeError, "got dict; return its loss alone"),
        (lambda x: [], ValueError, "returned no loss"),
        (lambda x: x * 1.0, ValueError, r"of one element, got shape \(2,\)"),
        (lambda x: x.detach().sum(), ValueError, "no graph to differentiate"),
    ],
)
def test_closures_that_return_no_loss(returned: Any, error: type[Exception], message: str) -> None:
    x = parameter(1.0, 2.0)
    x.grad = mark = torch.ones_like(x)
    probe = SmoothnessProbe(torch.optim.SGD([x]))
    with pytest.raises(error, match=message), probe.measure(lambda: returned(x)):
        pytest.fail("the step was made")
    assert x.grad is mark


def test_a_generator_that_was_used_up_before_the_step_is_no_loss_of_zero() -> None:
    x = parameter(3.0)
    optimizer = torch.optim.SGD([x], lr=0.1)
    probe = SmoothnessProbe(optimizer)
    losses = (loss for loss in [(x * x).sum(), (2.0 * x * x).sum()])
    (x * x).sum().backward()
    with pytest.raises(ValueError, match="make a new one at each call"), probe.measure(lambda: losses):
        optimizer.step()
    assert probe.records == []


def test_a_consecutive_estimate_with_a_gap_is_refused() -> None:
    x = parameter(1.0)
    optimizer = torch.optim.SGD([x], lr=0.1)
    probe = SmoothnessProbe(optimizer, estimator="consecutive")
    x.grad = torch.ones_like(x)
    with probe.measure(lambda: (x * x).sum(), step=0):
        optimizer.step()
    with (
        pytest.raises(ValueError, match="needs the batch of step 1, got that of step 5"),
        probe.measure(lambda: (x * x).sum(), step=5),
    ):
        pass


def test_lanczos_finds_a_negative_extreme() -> None:
    matrix = torch.diag(torch.tensor([-9.0, 1.0, 2.0, 8.0]))
    assert module._largest_eigenvalue(lambda v: matrix @ v, torch.zeros(4), 10) == pytest.approx(9.0)
