import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from warmgap.torch import Lion, Muon, NormalizedSGD, Signum, SpectralCap, spectral_cap, split_parameters
from warmgap.torch.spectral_cap import spectral_norms

Make = Callable[..., torch.optim.Optimizer]

OURS: dict[str, Make] = {"lion": Lion, "signum": Signum, "normalized-sgd": NormalizedSGD, "muon": Muon}
THEIRS: dict[str, Make] = {
    "adamw": torch.optim.AdamW,
    "sgd": lambda groups, **settings: torch.optim.SGD(groups, momentum=0.9, **settings),
    "adagrad": torch.optim.Adagrad,
    "torch-muon": lambda groups, **settings: torch.optim.Muon([g for g in groups if g["role"] == "hidden"], **settings),
}


def network(seed: int = 0, *, zero: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Embedding(32, 16), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 32)
    )
    if zero:
        nn.init.zeros_(weight(model, 3))
    return model


def weight(model: nn.Sequential, index: int) -> Tensor:
    return model.get_parameter(f"{index}.weight")


def hidden(model: nn.Sequential) -> list[Tensor]:
    return [weight(model, 1), weight(model, 3)]


def backward(model: nn.Sequential, seed: int) -> None:
    x = torch.randint(0, 32, (64,), generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    nn.functional.cross_entropy(model(x), 7 * x % 32).backward()


def moved(model: nn.Sequential, step: Callable[[], Any]) -> list[Tensor]:
    before = [w.detach().clone() for w in hidden(model)]
    step()
    return [w.detach() - b for w, b in zip(hidden(model), before, strict=True)]


def norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix.detach(), 2))


def size(step: Tensor) -> float:
    return norm(step) / math.sqrt(step.shape[0] / step.shape[1])


@pytest.mark.parametrize("shape", [(64, 64), (48, 200), (200, 48), (1, 30), (30, 1)])
@pytest.mark.parametrize("kind", ["gauss", "sign", "rank one", "low rank sign", "steep"])
@pytest.mark.parametrize("seed", range(3))
def test_the_estimate_is_at_most_a_fifth_below_the_norm(shape: tuple[int, int], kind: str, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    gauss = torch.randn(shape, generator=random)
    left, right = torch.randn(shape[0], 3, generator=random), torch.randn(3, shape[1], generator=random)
    matrix = {
        "gauss": gauss,
        "sign": gauss.sign(),
        "rank one": left[:, :1] @ right[:1],
        "low rank sign": (left @ right).sign(),
        "steep": gauss * torch.arange(1, shape[1] + 1) ** -1.0,
    }[kind]
    found = float(spectral_norms([matrix])[0])
    assert 0.8 * norm(matrix) <= found <= norm(matrix) * (1 + 1e-5)
    assert found == pytest.approx(float(spectral_norms([1e-8 * matrix])[0]) * 1e8, rel=1e-4)


def test_the_estimate_of_a_zero_matrix_is_zero_and_half_precision_is_computed_in_float32() -> None:
    assert spectral_norms([torch.zeros(3, 4)]).tolist() == [0.0]
    assert spectral_norms([torch.eye(4, dtype=torch.bfloat16)]).dtype == torch.float32


@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_promise_1_no_step_of_hidden_matrices_is_above_the_cap(name: str) -> None:
    model = network()
    optimizer = (OURS | THEIRS)[name](list(split_parameters(model)), lr=0.3, weight_decay=0.0)
    cap = SpectralCap(optimizer, rho=0.02)
    late = 0.0 if name in OURS else 1.2 if name == "sgd" else 0.6  # measured on the step before
    for index in range(6):
        backward(model, index)
        steps = moved(model, optimizer.step)
        ratio = sum(size(d) for d in steps) / 2  # of two, the median is the mean
        assert ratio <= 0.02 * (1.15 + (late if index else 0.0))
        assert cap.factor < 1.0 or index == 0
        assert all(group["lr"] == 0.3 for group in optimizer.param_groups)


def test_other_roles_are_left_alone() -> None:
    model, free = network(), network()
    held, plain = (Lion(list(split_parameters(m)), lr=0.3) for m in (model, free))
    SpectralCap(held, rho=0.02)
    for m, optimizer in ((model, held), (free, plain)):
        backward(m, 0)
        optimizer.step()
    for index in (0, 5):
        assert torch.equal(weight(model, index), weight(free, index))
    assert not torch.equal(weight(model, 1), weight(free, 1))


def test_in_a_model_without_an_embedding_everything_shares_the_factor() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = Lion(list(split_parameters(model)), lr=0.3)
    cap = SpectralCap(optimizer, rho=0.02)
    nn.functional.cross_entropy(model(torch.randn(32, 8)), torch.arange(32) % 4).backward()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert cap.factor < 0.5
    for p, old in zip(model.parameters(), before, strict=True):
        assert float((p.detach() - old).abs().max()) == pytest.approx(0.3 * cap.factor, rel=1e-4)


def test_a_convolution_is_measured_by_its_channels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1))
    optimizer = Lion(list(split_parameters(model)), lr=0.3)
    SpectralCap(optimizer, rho=0.02)
    model(torch.randn(4, 3, 6, 6)).square().mean().backward()
    before = [p.detach().clone() for p in model.parameters() if p.ndim == 4]
    optimizer.step()
    steps = [p.detach() - old for p, old in zip((p for p in model.parameters() if p.ndim == 4), before, strict=True)]
    sizes = [norm(d.flatten(1)) / math.sqrt(d.shape[0] / d.shape[1]) for d in steps]
    assert sum(sizes) / 2 == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize(("name", "shared"), [("normalized-sgd", True), ("sgd", True), ("lion", False)])
def test_norms_and_biases_share_the_factor_where_the_step_is_one_vector(name: str, shared: bool) -> None:
    moves, factors = [], []
    for capped in (True, False):
        model = network()
        optimizer = (OURS | THEIRS)[name](list(split_parameters(model)), lr=3.0)
        cap = SpectralCap(optimizer, rho=0.02) if capped else None
        backward(model, 0)
        bias, head = model.get_parameter("1.bias"), weight(model, 5)
        before = bias.detach().clone(), head.detach().clone()
        optimizer.step()
        moves.append([float((p.detach() - old).norm()) for p, old in zip((bias, head), before, strict=True)])
        factors.append(cap.factor if cap is not None else 1.0)
    assert factors[0] < 0.5
    assert moves[0][0] == pytest.approx(moves[1][0] * (factors[0] if shared else 1.0), rel=1e-3)
    assert moves[0][1] == pytest.approx(moves[1][1], rel=1e-3)


@pytest.mark.parametrize("name", ["lion", "adamw"])
def test_a_low_rate_trains_bit_for_bit_as_without_the_cap(name: str) -> None:
    weights = []
    for capped in (True, False):
        model = network()
        optimizer = (OURS | THEIRS)[name](list(split_parameters(model)), lr=1e-4)
        cap = SpectralCap(optimizer, rho=0.1) if capped else None
        for index in range(5):
            backward(model, index)
            optimizer.step()
        assert cap is None or cap.factor == 1.0
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("name", ["lion", "adamw", "muon"])
def test_promise_4_a_resumed_run_is_bit_identical(name: str) -> None:
    def fresh() -> tuple[nn.Sequential, torch.optim.Optimizer, SpectralCap]:
        model = network()
        optimizer = (OURS | THEIRS)[name](list(split_parameters(model)), lr=0.1)
        return model, optimizer, SpectralCap(optimizer, rho=0.05)

    model, optimizer, cap = fresh()
    for index in range(3):
        backward(model, index)
        optimizer.step()
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), cap.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, resumed, again = fresh()
    parts: tuple[Any, ...] = (other, resumed, again)
    for part, state in zip(parts, saved, strict=True):
        part.load_state_dict(state)
    for index in range(3, 6):
        for m, o in ((model, optimizer), (other, resumed)):
            backward(m, index)
            o.step()
    assert cap.factor == again.factor < 1.0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_promise_6_a_state_that_does_not_fit_is_refused() -> None:
    model = network()
    cap = SpectralCap(torch.optim.AdamW(split_parameters(model), lr=0.1), rho=0.05)
    backward(model, 0)
    cap.before()
    state = cap.state_dict()
    smaller = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4), nn.Linear(4, 8))
    other = SpectralCap(torch.optim.AdamW(split_parameters(smaller), lr=0.1), rho=0.05)
    with pytest.raises(ValueError, match="2 measured parameters"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="version"):
        other.load_state_dict(state | {"version": 99})


def test_groups_keep_the_ratio_of_their_rates() -> None:
    model = network()
    optimizer = Lion(list(split_parameters(model)), lr=0.3)
    (group,) = [g for g in optimizer.param_groups if g["role"] == "hidden"]
    second = {**group, "params": [group["params"].pop()], "param_names": [group["param_names"].pop()], "lr": 0.03}
    optimizer.add_param_group(second)
    SpectralCap(optimizer, rho=0.02)
    backward(model, 0)
    steps = moved(model, optimizer.step)
    largest = [float(d.abs().max()) for d in steps]
    assert largest[0] == pytest.approx(10 * largest[1], rel=1e-4)
    assert sum(size(d) for d in steps) / 2 == pytest.approx(0.02, rel=0.15)


def test_a_rate_in_a_tensor_is_scaled_in_place_and_comes_back() -> None:
    model = network()
    rate = torch.tensor(0.3)
    optimizer = torch.optim.AdamW(list(split_parameters(model)), lr=rate, foreach=False)
    cap = SpectralCap(optimizer, rho=0.02)
    tensors = [group["lr"] for group in optimizer.param_groups]
    assert len(set(map(id, tensors))) == len(tensors)  # no longer one for all
    for index in range(2):
        backward(model, index)
        optimizer.step()
    assert cap.factor < 1.0
    assert all(
        group["lr"] is t and float(t) == pytest.approx(0.3)
        for group, t in zip(optimizer.param_groups, tensors, strict=True)
    )


def test_gradients_that_come_within_the_step_are_measured_after_it() -> None:
    model = network()
    optimizer = Lion(list(split_parameters(model)), lr=0.3)
    cap = SpectralCap(optimizer, rho=0.02)

    def closure() -> float:
        with torch.enable_grad():
            backward(model, 0)
        return 0.0

    steps = moved(model, lambda: optimizer.step(closure))
    assert sum(size(d) for d in steps) / 2 == pytest.approx(0.02, rel=0.15)
    optimizer.step(closure)
    assert cap.factor < 0.5


def test_a_step_that_was_skipped_measures_nothing() -> None:
    model = network()
    optimizer = torch.optim.AdamW(list(split_parameters(model)), lr=0.3)
    cap = SpectralCap(optimizer, rho=0.02)
    backward(model, 0)
    optimizer.step()
    before = cap.ratio
    cap.before()
    cap.after()  # the weights did not change
    assert cap.ratio == before
    for p in model.parameters():
        p.grad = torch.full_like(p, math.nan)
    lion = Lion(list(split_parameters(model)), lr=0.3)
    poisoned = SpectralCap(lion, rho=0.02, apply=False)
    poisoned.before()
    assert poisoned.ratio is None


def test_large_models_are_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral_cap, "_BUDGET", 1)
    model = network()
    optimizer = torch.optim.AdamW(list(split_parameters(model)), lr=0.01)
    cap = SpectralCap(optimizer, rho=0.02)
    seen = []
    for index in range(4):
        backward(model, index)
        optimizer.step()
        seen.append([ratios[0] for ratios in cap.state_dict()["ratios"]])
    changed = [[a != b for a, b in zip(old, new, strict=True)] for old, new in itertools.pairwise(seen)]
    assert changed == [[True, False], [False, True], [True, False]]


def test_parameters_that_join_late_are_taken_in() -> None:
    model = network()
    groups = list(split_parameters(model))
    late = next(g for g in groups if g["role"] == "hidden")
    joins = {**late, "params": [late["params"].pop()], "param_names": [late["param_names"].pop()]}
    optimizer = torch.optim.AdamW(groups, lr=0.3)
    cap = SpectralCap(optimizer, rho=0.02)
    backward(model, 0)
    optimizer.step()
    assert len(cap.state_dict()["ratios"]) == 1
    optimizer.add_param_group(joins)
    backward(model, 1)
    optimizer.step()
    assert len(cap.state_dict()["ratios"]) == 2


def test_without_roles_it_says_what_to_do() -> None:
    model = network()
    with pytest.raises(ValueError, match="split_parameters"):
        SpectralCap(torch.optim.AdamW(model.parameters(), lr=0.1))
    assert SpectralCap(torch.optim.AdamW(model.parameters(), lr=0.1), roles=None).factor == 1.0


@pytest.mark.parametrize(
    ("given", "match"), [({"rho": 0.0}, "rho"), ({"rho": math.nan}, "rho"), ({"total_iters": 0}, "total_iters")]
)
def test_promise_8_bad_arguments_are_refused(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SpectralCap(torch.optim.AdamW(split_parameters(network()), lr=0.1), **given)


@pytest.mark.parametrize("name", ["muon", "lion", "adamw"])
def test_groups_that_an_optimizer_has_loaded_are_the_ones_whose_rates_count(name: str) -> None:
    model = network()
    optimizer = (OURS | THEIRS)[name](list(split_parameters(model)), lr=0.3, weight_decay=0.0)
    cap = SpectralCap(optimizer, rho=0.02)
    backward(model, 0)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 3e-4
    for index in range(1, 3):
        backward(model, index)
        steps = moved(model, optimizer.step)
        assert cap.factor == 1.0
        assert 0.0 < sum(size(d) for d in steps) / 2 < 0.02
