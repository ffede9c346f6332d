"""The arithmetic of error feedback, in one process."""

from __future__ import annotations

import io
from typing import Any, Literal

import pytest
import torch
from tests.torch.compression.problem import SHAPES, Model, gradient, set_gradients, weights
from torch import nn

from warmgap.torch.compression import (
    Compressor,
    ErrorFeedback,
    Identity,
    LowRank,
    NormalizedGD,
    ScaledSign,
    SimulatedWorkers,
    TopK,
    compress,
)

COMPRESSORS: list[Compressor] = [Identity(), TopK(0.1), ScaledSign(), LowRank(1)]


def train(
    model: nn.Module, workers: SimulatedWorkers, optimizer: torch.optim.Optimizer, steps: range, count: int
) -> None:
    for step in steps:
        for worker in range(count):
            set_gradients(model, worker, step)
            workers.collect(worker)
        workers.exchange()
        optimizer.step()


def run(compressor: Compressor, steps: int = 6, count: int = 3, **settings: Any) -> tuple[Model, SimulatedWorkers]:
    model = Model()
    workers = SimulatedWorkers(model, count, compressor, **settings)
    train(model, workers, NormalizedGD(model.parameters(), lr=0.1), range(steps), count)
    return model, workers


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("count", [1, 3])
def test_without_compression_it_is_normalized_sgd_with_momentum_to_the_bit(momentum: float, count: int) -> None:
    found, _ = run(Identity(), momentum=momentum, count=count)
    model = Model()
    averages: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    for step in range(6):
        for worker, average in enumerate(averages):
            for name in SHAPES:
                new = gradient(name, worker, step)
                average[name] = average[name].lerp(new, 1.0 - momentum) if step and momentum else new
        means = {}
        for name in SHAPES:
            total = averages[0][name].clone()
            for average in averages[1:]:
                total += average[name]
            means[name] = total / count
        norm = torch.stack([x.norm() for x in means.values()]).norm()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.sub_(means[name] / norm, alpha=0.1)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights(found), weights(model), strict=True))


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("first", ["all", "compressed"])
def test_the_mean_of_the_workers_is_the_servers_always(
    compressor: Compressor, momentum: float, first: Literal["all", "compressed"]
) -> None:
    model = Model()
    workers = SimulatedWorkers(model, 3, compressor, momentum=momentum, first=first)
    for step in range(30):
        for worker in range(3):
            set_gradients(model, worker, step)
            workers.collect(worker)
        workers.exchange()
        assert workers.deviation() < 1e-6
        state = workers.state_dict()
        for name, p in model.named_parameters():
            shared = torch.stack([state[f"worker-{worker}"]["shared"][name] for worker in range(3)])
            assert torch.allclose(p.grad if p.grad is not None else shared[0], shared.mean(0), atol=1e-6)


def test_it_is_algorithm_2() -> None:
    """The update of the paper, from scratch, in double precision."""
    model, count, momentum = Model(torch.float64), 3, 0.7
    workers = SimulatedWorkers(model, count, TopK(0.2), momentum=momentum, first="compressed")
    optimizer = NormalizedGD(model.parameters(), lr=0.1)
    x = {name: p.detach().clone() for name, p in model.named_parameters()}
    g = [{name: torch.zeros_like(p) for name, p in x.items()} for _ in range(count)]
    v = [{name: gradient(name, worker, 0).double() for name in x} for worker in range(count)]
    for step in range(8):
        for worker in range(count):
            for name in x:
                eta = 1.0 - momentum
                v[worker][name] = (1.0 - eta) * v[worker][name] + eta * gradient(name, worker, step).double()
                g[worker][name] = g[worker][name] + compress(TopK(0.2), v[worker][name] - g[worker][name])
        mean = {name: sum(one[name] for one in g) / count for name in x}
        norm = torch.stack([torch.as_tensor(y).square().sum() for y in mean.values()]).sum().sqrt()
        x = {name: p - 0.1 * mean[name] / norm for name, p in x.items()}
    train(model, workers, optimizer, range(8), count)
    for name, p in model.named_parameters():
        assert torch.allclose(p, x[name], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_a_run_is_resumed_bit_for_bit(compressor: Compressor) -> None:
    whole, _ = run(compressor, momentum=0.9)
    model, workers = run(compressor, steps=4, momentum=0.9)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "feedback": workers.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = Model()
    resumed.load_state_dict(saved["model"])
    again = SimulatedWorkers(resumed, 3, compressor, momentum=0.9)
    again.load_state_dict(saved["feedback"])
    train(resumed, again, NormalizedGD(resumed.parameters(), lr=0.1), range(4, 6), 3)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights(resumed), weights(whole), strict=True))


def test_a_gradient_that_is_not_finite_is_left_out() -> None:
    model = Model()
    workers = SimulatedWorkers(model, 2, TopK(0.3), momentum=0.5)
    for step in range(6):
        for worker in range(2):
            set_gradients(model, worker, step)
            if (step, worker) in ((0, 1), (3, 0)):
                assert model.matrix.grad is not None
                model.matrix.grad[0, 0] = float("nan")
            workers.collect(worker)
        workers.exchange()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert workers.deviation() < 1e-6


def test_half_precision_keeps_its_state_in_single() -> None:
    model = Model(torch.bfloat16)
    workers = SimulatedWorkers(model, 2, TopK(0.1))
    train(model, workers, NormalizedGD(model.parameters(), lr=0.01), range(5), 2)
    assert all(x.dtype == torch.float32 for x in workers.state_dict()["server"].values())
    assert workers.deviation() < 1e-6


def test_bytes_are_counted() -> None:
    entries = [30, 7, 48, 1]
    _, workers = run(TopK(0.1), steps=5)
    whole, message = 4 * sum(entries), 8 * (3 + 1 + 5) + 4
    assert (workers.last.message, workers.total.message) == (message, whole + 4 * message)
    # of three in a ring each sends a gathered message to two, and of a sum 2/3 twice
    assert workers.last.dense == sum(2 * 2 * 4 * size // 3 for size in entries)
    assert workers.last.sent == 2 * 8 * 9 + 2 * 2 * 4 // 3
    assert "message 76 B" in str(workers.last)


def test_one_process_is_one_worker() -> None:
    """`ErrorFeedback` before an optimizer's step, without a process group."""
    found, _ = run(TopK(0.1), count=1, momentum=0.9)
    model = Model()
    optimizer = NormalizedGD(model.parameters(), lr=0.1)
    feedback = ErrorFeedback(model, TopK(0.1), momentum=0.9)
    handle = feedback.attach(optimizer)
    for step in range(6):
        set_gradients(model, 0, step)
        optimizer.step()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights(found), weights(model), strict=True))
    assert feedback.deviation() == 0.0
    assert "1 workers, step 6: message 76 B" in repr(feedback)
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: 0.0)
    handle.remove()
    assert optimizer.step(lambda: 0.5) == 0.5


def test_several_optimizers_share_one_step() -> None:
    model = Model()
    feedback = ErrorFeedback(model, TopK(0.1))
    optimizers = [torch.optim.SGD([model.matrix, model.kernel]), torch.optim.SGD([model.vector, model.scalar])]
    for optimizer in optimizers:
        feedback.attach(optimizer)
    for step in range(3):
        set_gradients(model, 0, step)
        for optimizer in optimizers:
            optimizer.step()
        assert feedback.last.message == (76 if step else 4 * 86)


def test_a_missing_gradient_counts_as_zero() -> None:
    model = Model()
    optimizer = NormalizedGD(model.parameters(), lr=0.1)
    feedback = ErrorFeedback(model, TopK(0.1))
    feedback.attach(optimizer)
    before = model.vector.detach().clone()
    for step in range(2):
        set_gradients(model, 0, step)
        model.vector.grad = None
        optimizer.step()
    assert torch.equal(model.vector, before)


def test_what_is_refused() -> None:
    model = Model()
    with pytest.raises(ValueError, match=r"worker must be under 2, got 2"):
        SimulatedWorkers(model, 2, TopK(0.1)).collect(2)
    workers = SimulatedWorkers(model, 2, TopK(0.1))
    workers.collect(0)
    with pytest.raises(ValueError, match="collected already"):
        workers.collect(0)
    with pytest.raises(ValueError, match="worker 1 has not been collected"):
        workers.exchange()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"momentum": 1.0}, "momentum must be"),
        ({"first": "none"}, "first must be"),
        ({"seed": -1}, "seed must be"),
    ]
    for settings, sentence in wrong:
        with pytest.raises(ValueError, match=sentence):
            SimulatedWorkers(model, 2, TopK(0.1), **settings)
    with pytest.raises(ValueError, match="compressor must be"):
        ErrorFeedback(model, 0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no trainable parameter"):
        ErrorFeedback(nn.ReLU(), TopK(0.1))
    with pytest.raises(ValueError, match=r"shape \(2, 2\) is not one of the 4"):
        ErrorFeedback(model, TopK(0.1)).attach(torch.optim.SGD([nn.Parameter(torch.ones(2, 2))]))


def test_a_state_that_does_not_fit_is_refused() -> None:
    state = SimulatedWorkers(Model(), 2, TopK(0.1)).state_dict()
    for other, sentence in [
        (SimulatedWorkers(Model(), 3, TopK(0.1)), "2 workers, here are 3"),
        (SimulatedWorkers(Model(), 2, TopK(0.2)), "compressor='TopK"),
        (SimulatedWorkers(Model(), 2, TopK(0.1), momentum=0.5), "momentum=0.0"),
        (SimulatedWorkers(nn.Linear(2, 2), 2, TopK(0.1)), "other parameters"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            other.load_state_dict(state)
    with pytest.raises(ValueError, match="version 9"):
        SimulatedWorkers(Model(), 2, TopK(0.1)).load_state_dict({**state, "version": 9})
    with pytest.raises(ValueError, match="this is worker 0, the state that of worker-1"):
        ErrorFeedback(Model(), TopK(0.1)).load_state_dict(
            {key: value for key, value in state.items() if key != "worker-0"} | {"workers": 1}
        )
