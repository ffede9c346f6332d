"""From a probe's records to Gluon's groups, and its second theorem's schedule."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from warmgap.smoothness import LayerFits, Record, diagnose_step_length, fit_layers, rate_dependence
from warmgap.torch import Gluon, Signum, SmoothnessProbe, split_parameters
from warmgap.torch.gluon_fits import GluonSchedule, gluon_groups, layer_constants, read_radii, write_radii


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.head = nn.Embedding(8, 4), nn.Linear(4, 4), nn.Linear(4, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.head(torch.tanh(self.hidden(self.embedding(tokens)))), tokens)


def measured(model: Net, steps: int = 24, **probe: str) -> LayerFits:
    optimizer = Gluon(split_parameters(model), lr=1e-3, momentum=0.0, exact=True)
    seen = SmoothnessProbe(optimizer, model=model, **({"norm": "gluon"} | probe))  # type: ignore[arg-type]
    tokens = torch.arange(8)
    for _ in range(steps):
        optimizer.zero_grad()
        model(tokens).backward()
        with seen.measure(lambda: model(tokens)):
            optimizer.step()
    return fit_layers(seen.records, resamples=20)


@pytest.fixture(scope="module")
def fits() -> LayerFits:
    torch.manual_seed(0)
    return measured(Net())


@pytest.mark.filterwarnings("ignore:in .* layers a step changes")
def test_each_layer_gets_the_constants_that_were_measured_for_it(fits: LayerFits) -> None:
    torch.manual_seed(0)
    model = Net()
    groups = gluon_groups(model, fits)
    assert sorted(g["param_names"][0] for g in groups) == sorted(name for name, _ in model.named_parameters())
    for group in groups:
        name = group["param_names"][0]
        if name in fits.fits:
            found = fits.fits[name].constants
            assert (group["L0"], group["L1"]) == pytest.approx((found["L0"], found["L1"]))
    optimizer = Gluon(groups, lr=1.0, momentum=0.0, exact=True)
    before = model.hidden.weight.detach().clone()
    model(torch.arange(8)).backward()
    gradient = model.hidden.weight.grad
    assert gradient is not None
    optimizer.step()
    # The hidden layer is square: its norm is the largest singular value, and the radius is the theory's.
    step = torch.linalg.matrix_norm(model.hidden.weight.detach() - before, 2)
    dual = torch.linalg.svdvals(gradient).sum()
    constants = fits.fits["hidden.weight"].constants
    assert float(step) == pytest.approx(float(dual / (constants["L0"] + constants["L1"] * dual)), rel=1e-4)


def test_a_layer_without_a_fit_takes_the_median_of_its_kind() -> None:
    model = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(5)))
    kinds = {"4.weight": "matrix"}
    pairs = {f"{index}.weight": (float(index), 1.0 + index) for index in (0, 1, 3)}
    groups = {group["param_names"][0]: group for group in gluon_groups(model, pairs, overrides=kinds)}
    assert (groups["2.weight"]["L0"], groups["2.weight"]["L1"]) == (1.0, 2.0)
    assert (groups["4.weight"]["L0"], groups["4.weight"]["L1"]) == (1.0, 2.0)
    # Constants of which both are 0 are as good as none.
    groups = {g["param_names"][0]: g for g in gluon_groups(model, pairs | {"2.weight": (0.0, 0.0)}, overrides=kinds)}
    assert (groups["2.weight"]["L0"], groups["2.weight"]["L1"]) == (1.0, 2.0)


def test_constants_of_other_norms_are_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"in its own norms, got some in .*'max'.*norm='gluon'"):
        layer_constants(measured(Net(), norm="max"))


def test_fits_of_another_model_and_kinds_without_a_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"name no parameter of the model: they have other"):
        gluon_groups(Net(), {"other": (1.0, 1.0)})
    with pytest.raises(ValueError, match=r"no parameter of the kind .*embedding.* has a fit"):
        gluon_groups(Net(), {"hidden.weight": (1.0, 1.0)})
    with pytest.raises(ValueError, match="must not be negative"):
        gluon_groups(Net(), {"hidden.weight": (-1.0, 1.0)})


@pytest.mark.filterwarnings("ignore:in .* layers a step changes")
def test_the_radii_go_through_a_file(fits: LayerFits, tmp_path: Path) -> None:
    write_radii(tmp_path / "radii.json", fits)
    assert read_radii(tmp_path / "radii.json") == layer_constants(fits)
    (tmp_path / "other.json").write_text(json.dumps({"a": [1, 2]}))
    with pytest.raises(ValueError, match="no file of radii"):
        read_radii(tmp_path / "other.json")


def test_the_schedule_of_the_second_theorem() -> None:
    model = nn.Linear(3, 3, bias=False)
    optimizer = Gluon([{"params": model.parameters(), "kind": "matrix"}], lr=0.5)
    schedule = GluonSchedule(optimizer)
    seen = []
    for _ in range(4):
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        schedule.step()
    assert seen == [pytest.approx((0.5 * (k + 1) ** -0.75, 1.0 - (k + 1) ** -0.5)) for k in range(4)]
    with pytest.raises(ValueError, match="must have a momentum"):
        GluonSchedule(torch.optim.AdamW(nn.Linear(2, 2).parameters()))


def test_pure_noise_has_a_share_of_the_root_of_two_at_any_rate() -> None:
    # The published figure for the embedding, 1.416: gradients of independent batches differ by sqrt(2) of their size.
    runs = {}
    for rate in (0.25, 1.0, 4.0):
        runs[rate] = noise_alone(rate)
        found = diagnose_step_length(runs[rate])
        assert found.share == pytest.approx(2**0.5, rel=0.02)
        assert found.verdict == "follows the step length"
    dependence = rate_dependence(runs, resamples=40)
    assert dependence.exponent == pytest.approx(-1.0, abs=0.03)
    assert dependence.verdict == "step length"


def noise_alone(rate: float) -> list[Record]:
    """What a probe sees of gradients that are independent from batch to batch, while the loss falls by itself."""
    generator = torch.Generator().manual_seed(int(100 * rate))
    w = nn.Parameter(torch.zeros(1000))
    optimizer = Signum([w], lr=1e-3 * rate, momentum=0.0)
    probe = SmoothnessProbe(optimizer, estimator="consecutive", norm="max", target_loss=-10.0)
    for step in range(60):
        noise = torch.randn(1000, generator=generator)

        def loss(noise: torch.Tensor = noise, step: int = step) -> torch.Tensor:
            along = (w * noise).sum()
            return along - along.detach() - 0.1 * step

        with probe.measure(loss):
            w.grad = noise
            optimizer.step()
    return probe.records[:-1]


def test_one_call_makes_gluon_from_fits(fits: LayerFits) -> None:
    model = Net()
    with pytest.warns(UserWarning, match="compare runs"):
        optimizer = Gluon.from_fits(model, fits, momentum=0.5)
    with pytest.warns(UserWarning, match="compare runs"):
        groups = Gluon(gluon_groups(model, fits), lr=1.0, momentum=0.5).param_groups
    assert [(g["L0"], g["L1"], g["lr"]) for g in optimizer.param_groups] == [(g["L0"], g["L1"], 1.0) for g in groups]
