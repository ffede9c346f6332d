"""What wraps an optimizer, a step or a model: it works, or a warning within ten calls says what to do."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from warmgap.torch import AdaptiveWarmup, Muon, split_parameters

TOTAL = 24


def problem() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 16))
    tokens = torch.randint(0, 16, (8, 7))

    def loss_of(net: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten())

    return model, loss_of


class SAM(Optimizer):
    """Two calls a step: up the gradient, and from there down; the groups are the inner optimizer's."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=lr)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["climb"] = 0.05 * p.grad / p.grad.norm().clamp(min=1e-12)
                p.add_(self.state[p]["climb"])

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(self.state[p]["climb"])
        self.base_optimizer.step()


class Lookahead(Optimizer):
    """Every fifth step goes half the way back to where the slow weights are."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self.inner, self.param_groups, self.count = inner, inner.param_groups, 0
        self.slow = [p.detach().clone() for group in inner.param_groups for p in group["params"]]

    def step(self, closure: Any = None) -> Any:
        loss = self.inner.step(closure)
        self.count += 1
        if self.count % 5 == 0:
            with torch.no_grad():
                for slow, p in zip(self.slow, (p for group in self.param_groups for p in group["params"]), strict=True):
                    slow.lerp_(p, 0.5)
                    p.copy_(slow)
        return loss


def loop(
    model: nn.Module, loss_of: Any, scheduler: AdaptiveWarmup, step: Callable[[], Any], calls: int = TOTAL
) -> list:  # type: ignore[type-arg]
    rates = []
    for _ in range(calls):
        loss = loss_of(model)
        loss.backward()
        scheduler.observe(loss)
        step()
        rates.append(float(scheduler.optimizer.param_groups[0]["lr"]))
        scheduler.step()
        model.zero_grad()
    return rates


def sam_step(sam: SAM, model: nn.Module, loss_of: Any) -> None:
    sam.first_step()
    model.zero_grad()
    loss_of(model).backward()
    sam.second_step()


def test_sam_is_scheduled_by_its_base_optimizer_and_says_so_where_it_is_not() -> None:
    model, loss_of = problem()
    sam = SAM(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"make the scheduler on the one inside: AdaptiveWarmup\(optimizer.base_optim"):
        loop(model, loss_of, AdaptiveWarmup(sam, TOTAL, model=model), lambda: sam_step(sam, model, loss_of), calls=10)
    model, loss_of = problem()
    before = loss_of(model).item()
    sam = SAM(model.parameters(), lr=0.1)
    scheduler = AdaptiveWarmup(sam.base_optimizer, TOTAL, model=model)
    loop(model, loss_of, scheduler, lambda: sam_step(sam, model, loss_of))
    assert scheduler.last_epoch == TOTAL
    assert loss_of(model) < before
    assert sam.param_groups[0]["lr"] < 0.05


@pytest.mark.parametrize("rule", ["auto", "gap"])
def test_an_engine_that_steps_one_group_at_a_time_makes_one_step(rule: str) -> None:
    def train(at_a_time: bool) -> tuple[list[float], AdaptiveWarmup]:
        model, loss_of = problem()
        optimizer = torch.optim.AdamW(split_parameters(model), 1e-2)
        scheduler = AdaptiveWarmup(optimizer, TOTAL, rule=rule, norm="max", cap=None)

        def step() -> None:  # as DeepSpeed's ZeRO does
            groups = optimizer.param_groups
            for group in groups if at_a_time else ():
                optimizer.param_groups = [group]
                optimizer.step()
            optimizer.param_groups = groups
            if not at_a_time:
                optimizer.step()

        return loop(model, loss_of, scheduler, step), scheduler

    rates, scheduler = train(at_a_time=True)
    assert rates == train(at_a_time=False)[0]
    assert scheduler.last_epoch == TOTAL


def flatten(optimizer: torch.optim.Optimizer) -> None:
    """Put one vector in the place of each group's parameters, as DeepSpeed's ZeRO does."""
    for group in optimizer.param_groups:
        flat = torch.cat([p.detach().flatten() for p in group["params"]])
        flat.grad = torch.ones_like(flat)
        group["params"] = [flat]


def test_parameters_that_were_flattened_since_are_noticed() -> None:
    model, loss_of = problem()
    optimizer = torch.optim.AdamW(split_parameters(model), 1e-2)
    scheduler = AdaptiveWarmup(optimizer, TOTAL)
    flatten(optimizer)
    with pytest.warns(UserWarning, match="hidden matrices of AdamW have become vectors") as record:
        loop(model, loss_of, scheduler, optimizer.step, calls=3)
    assert len(record) == 1
    muon = Muon(split_parameters(model), lr=1e-2)
    flatten(muon)
    with pytest.raises(ValueError, match=r"a parameter of shape \(.*\) stands where a matrix did: .* FSDP2"):
        muon.step()


def test_an_optimizer_that_takes_the_place_of_the_scheduled_one_is_noticed_within_ten_calls() -> None:
    model, loss_of = problem()
    scheduler = AdaptiveWarmup(torch.optim.AdamW(model.parameters(), 1e-2), TOTAL, model=model)
    loop(model, loss_of, scheduler, scheduler.optimizer.step, calls=5)
    other = torch.optim.AdamW(model.parameters(), 1e-2)
    with pytest.warns(UserWarning, match="stood still .* make a new scheduler on the new one, and load the old one's"):
        loop(model, loss_of, scheduler, other.step, calls=11)


def test_a_second_scheduler_on_the_same_optimizer_is_noticed() -> None:
    model, loss_of = problem()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    left_over = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TOTAL)
    scheduler = AdaptiveWarmup(optimizer, TOTAL, model=model)

    def step() -> None:
        optimizer.step()
        left_over.step()

    with pytest.warns(UserWarning, match="something else .* changes the rate at every step .* decay='constant'"):
        loop(model, loss_of, scheduler, step)


@pytest.mark.parametrize("outside", [False, True])
def test_lookahead_is_scheduled_from_inside_and_from_outside(outside: bool) -> None:
    model, loss_of = problem()
    inner = torch.optim.AdamW(split_parameters(model), 1e-2)
    lookahead = Lookahead(inner)
    scheduler = AdaptiveWarmup(lookahead if outside else inner, TOTAL)
    before = loss_of(model).item()
    rates = loop(model, loss_of, scheduler, lookahead.step)
    assert scheduler.last_epoch == TOTAL
    assert max(rates) <= 1e-2
    assert inner.param_groups[0]["lr"] < 0.1 * 1e-2
    assert loss_of(model) < before


@pytest.mark.parametrize("kind", ["ema", "compiled step", "compiled model", "deep copy"])
def test_the_same_rates_and_weights_with_averages_compiled_parts_and_copies(kind: str) -> None:
    def run(wrapped: bool) -> tuple[list[float], list[Tensor]]:
        model, loss_of = problem()
        optimizer = Muon(split_parameters(model), lr=1e-2)
        scheduler = AdaptiveWarmup(optimizer, TOTAL)
        step: Any = optimizer.step
        called: Any = model
        if wrapped and kind == "ema":
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
            inner = optimizer.step

            def step() -> None:
                inner()
                average.update_parameters(model)

        elif wrapped and kind == "compiled step":
            step = torch.compile(optimizer.step, backend="eager")
        elif wrapped and kind == "compiled model":
            called = torch.compile(model, backend="eager")
        elif wrapped:
            copy.deepcopy(scheduler)  # has hooks of its own
        rates = loop(called, loss_of, scheduler, step)
        return rates, [p.detach().clone() for p in model.parameters()]

    rates, weights = run(wrapped=True)
    expected, weights_plain = run(wrapped=False)
    assert rates == expected
    assert all(torch.equal(a, b) for a, b in zip(weights, weights_plain, strict=True))


def test_swalr_takes_over_where_the_schedule_is_left() -> None:
    model, loss_of = problem()
    optimizer = Muon(split_parameters(model), lr=1e-2)
    scheduler = AdaptiveWarmup(optimizer, TOTAL)
    loop(model, loss_of, scheduler, optimizer.step, calls=12)
    swa = SWALR(optimizer, swa_lr=1e-3, anneal_epochs=1)
    for _ in range(8):
        loss_of(model).backward()
        optimizer.step()
        swa.step()
        optimizer.zero_grad()
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}


def test_an_optimizer_that_steps_within_the_backward_pass_says_what_to_do() -> None:
    model, loss_of = problem()
    optimizers = {p: torch.optim.SGD([p], lr=1e-2) for p in model.parameters()}

    def within(p: Any) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(within)
    hold = "spectral(hold=0.6)"  # for all to decay together, whatever the cap lets pass of each
    schedulers = [AdaptiveWarmup(optimizer, TOTAL, rule=hold) for optimizer in optimizers.values()]
    for _ in range(TOTAL):  # one schedule each, stepped after the backward pass
        loss = loss_of(model)
        loss.backward()
        for scheduler in schedulers:
            scheduler.step(loss)
    assert {scheduler.last_epoch for scheduler in schedulers} == {TOTAL}
    assert len({optimizer.param_groups[0]["lr"] for optimizer in optimizers.values()}) == 1

    model, loss_of = problem()
    outer = torch.optim.SGD(model.parameters(), lr=1e-2)  # holds the groups, and is never stepped
    scheduler = AdaptiveWarmup(outer, TOTAL, model=model)
    with pytest.warns(UserWarning, match=r"SGD.step\(\) never ran.*counted by scheduler.after_step\(\)"):
        loop(model, loss_of, scheduler, lambda: None, calls=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop(model, loss_of, scheduler, scheduler.after_step, calls=3)
    assert scheduler.last_epoch == 3
