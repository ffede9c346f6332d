"""Steps that were skipped, that never come, or that come too often: what a scheduler makes of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from warmgap.torch import AdaptiveWarmup, Lion, split_parameters
from warmgap.torch.steps import StepCount


def one_weight(lr: float = 1e-2) -> tuple[nn.Linear, AdamW]:
    model = nn.Linear(4, 1)
    return model, AdamW(model.parameters(), lr=lr, fused=True)


def test_a_step_that_a_fused_kernel_skips_does_not_count() -> None:
    model, optimizer = one_weight()
    scheduler = AdaptiveWarmup(optimizer, 50, rule="gap", norm="max")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    counted, before = [], model.weight.detach().clone()
    for t in range(6):
        loss = model(torch.ones(8, 4)).square().mean()
        scaler.scale(loss).backward()
        if t in (0, 3):
            assert model.weight.grad is not None
            model.weight.grad.fill_(math.inf)
        scheduler.observe(1e9 if t in (0, 3) else loss)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.zero_grad()
        counted.append(scheduler.last_epoch)
        if t == 0:
            assert torch.equal(model.weight, before)
            assert not scheduler.events
    assert counted == [0, 1, 2, 2, 3, 4]
    assert scheduler.gap is not None
    assert scheduler.gap < 100.0


class Verdict(Tensor):
    """A scaler's verdict that lies on a device: nobody may read it as the step ends."""

    device = torch.device("cuda")

    def item(self) -> float:
        raise AssertionError("this would wait for the device")


def test_a_verdict_on_a_device_is_passed_on_unread() -> None:
    count = StepCount()
    verdict = torch.tensor(1.0).as_subclass(Verdict)
    count.add(verdict)
    assert count.made == 1  # nobody knows yet
    assert isinstance(count.called(SGD([torch.ones(1, requires_grad=True)], lr=0.1)), Tensor)
    assert (count.made, count.skipped) == (0, 0.0)


class SAM(Optimizer):
    """Two calls a step; the groups are the inner optimizer's, which alone steps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {"lr": 0.1})
        self.base_optimizer = SGD(self.param_groups, lr=0.1)
        self.param_groups = self.base_optimizer.param_groups


def train(
    optimizer: Optimizer, move: Callable[[], object], scheduler: AdaptiveWarmup, model: nn.Module, n: int
) -> None:
    for _ in range(n):
        loss = model(torch.ones(8, 4)).square().mean()
        loss.backward()
        scheduler.observe(loss)
        move()
        scheduler.step()
        optimizer.zero_grad()


def test_promise_8_a_wrapper_that_never_steps_is_named_within_ten_calls() -> None:
    model = nn.Linear(4, 1)
    sam = SAM(model)
    scheduler = AdaptiveWarmup(sam, 60)
    with pytest.warns(UserWarning, match=r"SAM.step\(\) never ran.* AdaptiveWarmup\(optimizer.base_optimizer, ...\)"):
        train(sam, sam.base_optimizer.step, scheduler, model, 10)
    train(sam, sam.base_optimizer.step, scheduler, model, 10)  # once is enough
    assert scheduler.last_epoch == 0
    inner = AdaptiveWarmup(sam.base_optimizer, 60)
    train(sam, sam.base_optimizer.step, inner, model, 10)
    assert inner.last_epoch == 10


def test_a_host_can_count_the_steps_itself() -> None:
    model = nn.Linear(4, 1)
    sam = SAM(model)
    scheduler = AdaptiveWarmup(sam, 60)

    def move() -> None:
        scheduler.before_step()
        sam.base_optimizer.step()
        scheduler.after_step()

    train(sam, move, scheduler, model, 12)
    assert scheduler.last_epoch == 12


def test_promise_8_one_call_an_epoch_is_named_at_once() -> None:
    model = nn.Linear(4, 1)
    optimizer = Lion(model.parameters(), lr=1e-3)
    scheduler = AdaptiveWarmup(optimizer, 400)
    for _ in range(20):
        optimizer.step()
    with pytest.warns(UserWarning, match=r"made 20 steps between two calls of AdaptiveWarmup.step\(\)"):
        scheduler.step(1.0)
    for _ in range(20):
        optimizer.step()
    scheduler.step(1.0)


def test_four_steps_a_call_are_named_at_once() -> None:
    optimizer = Lion(nn.Linear(4, 1).parameters(), lr=1e-3)
    scheduler = AdaptiveWarmup(optimizer, 400)
    for _ in range(4):
        optimizer.step()
    with pytest.warns(UserWarning, match="made 4 steps between two calls"):
        scheduler.step(1.0)


def test_two_steps_a_call_are_named_when_they_come_again() -> None:
    optimizer = Lion(nn.Linear(4, 1).parameters(), lr=1e-3)
    scheduler = AdaptiveWarmup(optimizer, 400)
    for steps in (3, 1, 2):  # a host may make one of its own
        for _ in range(steps):
            optimizer.step()
        scheduler.step(1.0)
    optimizer.step()
    optimizer.step()
    with pytest.warns(UserWarning, match="made 2 steps between two calls"):
        scheduler.step(1.0)


@pytest.mark.parametrize("loss", [3, torch.tensor(3)])
def test_promise_8_an_epoch_in_place_of_the_loss_is_named(loss: int | Tensor) -> None:
    optimizer = Lion(nn.Linear(4, 1).parameters(), lr=1e-3)
    scheduler = AdaptiveWarmup(optimizer, 400)
    optimizer.step()
    with pytest.warns(UserWarning, match="got the whole number 3 and does not take it for a loss: it takes the mean"):
        scheduler.step(loss)
    optimizer.step()
    scheduler.step(4)
    assert scheduler.last_epoch == 2
    assert all(row[1] is None for row in scheduler._history.rows)


@pytest.mark.parametrize("before", [False, True])
def test_promise_8_a_call_before_the_first_step_is_named(before: bool) -> None:
    """Whether it comes before the gradients or after them."""
    model = nn.Linear(4, 1)
    optimizer = Lion(model.parameters(), lr=1e-3)
    scheduler = AdaptiveWarmup(optimizer, 400)

    def step() -> None:
        if before:
            scheduler.step()
        loss = model(torch.ones(8, 4)).square().mean()
        loss.backward()
        scheduler.observe(loss)
        if not before:
            scheduler.step()
        optimizer.step()

    with pytest.warns(UserWarning, match=r"step\(\) was called before the first optimizer.step\(\): call it after"):
        step()
    step()  # once is enough


def test_a_first_step_that_a_scaler_skips_is_no_call_before_the_first() -> None:
    model = nn.Linear(4, 1)
    optimizer = Lion(model.parameters(), lr=1e-3)
    scheduler = AdaptiveWarmup(optimizer, 400)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for bad in (True, False):
        loss = model(torch.ones(8, 4)).square().mean()
        scaler.scale(loss).backward()
        if bad:
            model.weight.grad.fill_(math.inf)  # type: ignore[union-attr]
        scheduler.observe(loss)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        optimizer.zero_grad()
    assert scheduler.last_epoch == 1


def test_promise_8_two_schedulers_of_one_optimizer_are_named_at_their_first_step() -> None:
    optimizer = Lion(nn.Linear(4, 1).parameters(), lr=1e-3)
    first = AdaptiveWarmup(optimizer, 400)
    optimizer.step()
    first.step(2.0)
    second = AdaptiveWarmup(optimizer, 400)  # in the first one's place
    for _ in range(2):
        optimizer.step()
        second.step(2.0)
    optimizer.step()
    first.step(2.0)
    with pytest.warns(UserWarning, match="two AdaptiveWarmup schedulers step for one Lion"):
        second.step(2.0)


def test_promise_8_a_sum_in_place_of_a_mean_is_named() -> None:
    def step(loss: float) -> None:
        model = nn.Sequential(nn.Embedding(300, 4), nn.Linear(4, 4), nn.Linear(4, 300))
        scheduler = AdaptiveWarmup(Lion(model.parameters(), lr=1e-3), 400, model=model)
        scheduler.optimizer.step()
        scheduler.step(loss)

    with pytest.warns(UserWarning, match=r"the first loss is 730, and a mean cross-entropy over 300 classes starts"):
        step(730.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(5.7)


def test_a_hidden_step_at_rate_0_is_left_alone() -> None:
    """As of torch's distributed checkpoints, which have the optimizer make its state by a step at rate 0."""
    model = nn.Linear(4, 1)
    optimizer = Lion(model.parameters(), lr=1e-3)
    scheduler = AdaptiveWarmup(optimizer, 400)
    rates = []
    optimizer.register_step_post_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    lr, optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"], 0.0
    optimizer.step()
    optimizer.param_groups[0]["lr"] = lr
    scheduler.observe(2.0)
    optimizer.step()
    assert rates == [0.0, 1e-3]


@pytest.mark.parametrize("left_over", ["before", "after"])
def test_a_scheduler_that_is_left_over_sets_no_rate(left_over: str) -> None:
    """As after a cell of a notebook was run twice."""

    def run(others: str) -> tuple[list[list[float]], AdaptiveWarmup]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 16))
        optimizer = Lion(split_parameters(model), lr=0.02)
        kept = [AdaptiveWarmup(optimizer, 40, rule="gap", norm="max") for _ in range(others == "before")]
        scheduler = AdaptiveWarmup(optimizer, 40)
        kept += [AdaptiveWarmup(optimizer, 40, rule="gap", norm="max") for _ in range(others == "after")]
        rates = []
        for t in range(6):
            tokens = torch.randint(0, 16, (8, 4), generator=torch.Generator().manual_seed(t))
            nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
            scheduler.observe(3.0)
            optimizer.step()
            rates.append([group["lr"] for group in optimizer.param_groups])
            scheduler.step()
            optimizer.zero_grad()
            if t == 2:
                optimizer.load_state_dict(optimizer.state_dict())
        return rates, scheduler

    alone, scheduler = run("none")
    together, same = run(left_over)
    assert together == alone
    assert same.events == scheduler.events


def test_a_scheduler_that_is_loaded_or_changed_sets_the_rates_again() -> None:
    def change(used: AdaptiveWarmup) -> None:
        used.extend(500)

    def load(used: AdaptiveWarmup) -> None:
        used.load_state_dict(used.state_dict())

    changes: list[Callable[[AdaptiveWarmup], None]] = [change, load, lambda used: used.calibrate(lambda: 2.0)]
    for use in changes:
        optimizer = Lion([nn.Parameter(torch.ones(4))], lr=1e-3)
        first = AdaptiveWarmup(optimizer, 400)
        left_over = AdaptiveWarmup(optimizer, 400, rule="linear")
        assert optimizer.param_groups[0]["lr"] < 1e-4
        use(first)
        assert first.get_last_lr() == [optimizer.param_groups[0]["lr"]] == [1e-3]
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] in (1e-3, 1e-5)  # the floor, without evidence
        assert left_over.get_last_lr() != first.get_last_lr()
        assert all("outside" not in event.reason for event in first.events)
