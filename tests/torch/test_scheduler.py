from __future__ import annotations

import copy
import gc
import io
import itertools
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, LinearLR, SequentialLR
from torch.utils._python_dispatch import TorchDispatchMode

from warmgap import Schedule
from warmgap.rules import GapRule, LinearRule
from warmgap.torch import AdaptiveWarmup, Lion, LossMean, Muon, NormalizedSGD, Signum, split_parameters
from warmgap.torch.loss_mean import PendingLoss


def problem(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.randn(256, 8)
    return model, x, torch.sin(x.sum(1, keepdim=True))


def train(
    model: nn.Module, optimizer: Optimizer, scheduler: AdaptiveWarmup, x: Tensor, y: Tensor, steps: range
) -> list[list[float]]:
    """Train on batches that depend on the step alone; return the rates each step ran at."""
    rates = []
    for t in steps:
        batch = torch.randint(len(x), (32,), generator=torch.Generator().manual_seed(t))
        loss = nn.functional.mse_loss(model(x[batch]), y[batch])
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
    return rates


def lion(model: nn.Module) -> Lion:
    return Lion([{"params": [p], "lr": 3e-3 * 2**i} for i, p in enumerate(model.parameters())], lr=3e-3)


def test_the_readmes_loop() -> None:
    model, x, y = problem()
    optimizer = Signum(model.parameters(), lr=2e-3)
    scheduler = AdaptiveWarmup(optimizer, total_iters=200)
    first = nn.functional.mse_loss(model(x), y).item()
    rates = []
    for t in range(200):
        batch = torch.randint(len(x), (32,), generator=torch.Generator().manual_seed(t))
        loss = nn.functional.mse_loss(model(x[batch]), y[batch])
        loss.backward()
        scheduler.observe(loss)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
        optimizer.zero_grad()
    assert nn.functional.mse_loss(model(x), y).item() < 0.8 * first
    assert rates[0] == max(rates) == 2e-3  # its steps are small enough for the cap
    assert scheduler.gap is None
    assert (scheduler.phase, scheduler.warmup_iters) == ("decay", 0)
    assert rates[160] == 2e-3 > rates[161]  # and so the peak is held longer
    assert scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]]


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("rule", ["auto", "gap", "linear"])
def test_a_length_set_before_the_first_step_outlives_the_first_loss(rule: str, saved: bool) -> None:
    def rates(total: int, change: Callable[[AdaptiveWarmup], None] | None) -> list[float]:
        optimizer = Lion([nn.Parameter(torch.ones(4))], lr=1.0)
        scheduler = AdaptiveWarmup(optimizer, total, rule=LinearRule(6) if rule == "linear" else rule)
        if change is not None:
            change(scheduler)
        if saved:
            state, steps = scheduler.state_dict(), scheduler.total_iters
            scheduler = AdaptiveWarmup(optimizer, steps, rule=scheduler.schedule.rule)
            scheduler.load_state_dict(state)
        out = []
        for t in range(40):
            scheduler.observe(3.0 * 0.97**t)
            optimizer.step()
            out.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
        assert scheduler.total_iters == 40
        return out

    assert rates(80, lambda scheduler: scheduler.extend(40)) == rates(40, None)
    decays = rates(80, lambda scheduler: scheduler.decay_now(40))
    if rule == "auto":
        assert decays[::10] == pytest.approx([0.5 * (1.0 + math.cos(math.pi * t / 40)) for t in range(0, 40, 10)])
    else:  # the warm-up first: a decay from the floor would be no run at all
        assert decays == rates(40, None)


@pytest.mark.parametrize("rule", ["auto", "gap", "loss-ratio", "power", "linear"])
def test_it_gives_the_schedules_factors(rule: str) -> None:
    model, _, _ = problem()
    optimizer = Lion(model.parameters(), lr=1.0)
    scheduler = AdaptiveWarmup(optimizer, 100, rule=rule, cap=None)
    state = scheduler.schedule.init()
    for t in range(100):
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == state.factor
        loss = 1.0 + 5.0 * math.exp(-t / 8)
        scheduler.step(torch.tensor(loss, dtype=torch.float64) if t % 2 else loss)
        state = scheduler.schedule.step(state, loss)


def test_promise_1_the_constructor_sets_the_first_rate_and_never_the_peak() -> None:
    model, _, _ = problem()
    optimizer = Lion(model.parameters(), lr=1e-3)
    scheduler = AdaptiveWarmup(optimizer, 100, rule="gap", floor=0.05)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(5e-5)
    assert (scheduler.phase, scheduler.warmup_iters, scheduler.gap, scheduler.target_loss) == (
        "warmup",
        None,
        None,
        None,
    )
    assert scheduler.last_epoch == 0


@pytest.mark.parametrize("stop", [1, 5, 11, 12, 13, 40, 79])
def test_promise_4_a_stopped_run_goes_on_bit_for_bit(stop: int, tmp_path: Path) -> None:
    def fresh() -> tuple[nn.Module, Lion, AdaptiveWarmup, Tensor, Tensor]:
        model, x, y = problem()
        optimizer = lion(model)
        return model, optimizer, AdaptiveWarmup(optimizer, 80, rule="gap", target_loss=0.0), x, y

    model, optimizer, scheduler, x, y = fresh()
    whole = train(model, optimizer, scheduler, x, y, range(80))

    half, half_optimizer, half_scheduler, _, _ = fresh()
    train(half, half_optimizer, half_scheduler, x, y, range(stop))
    saved = {"m": half.state_dict(), "o": half_optimizer.state_dict(), "s": half_scheduler.state_dict()}
    torch.save(saved, tmp_path / "checkpoint.pt")

    loaded = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed, resumed_optimizer, resumed_scheduler, _, _ = fresh()
    resumed.load_state_dict(loaded["m"])
    before = copy.deepcopy(loaded["s"])
    resumed_scheduler.load_state_dict(state_dict=loaded["s"])  # before the optimizer on purpose: either order will do
    resumed_optimizer.load_state_dict(loaded["o"])
    assert loaded["s"] == before
    rest = train(resumed, resumed_optimizer, resumed_scheduler, x, y, range(stop, 80))
    assert rest == whole[stop:]
    for mine, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_promise_5_the_groups_ratios_are_kept() -> None:
    model, x, y = problem()
    optimizer = lion(model)
    for rates in train(model, optimizer, AdaptiveWarmup(optimizer, 60), x, y, range(60)):
        assert [rate / rates[0] for rate in rates] == pytest.approx([1.0, 2.0, 4.0, 8.0], rel=1e-12)


def test_promise_6_the_state_is_plain_and_a_foreign_one_is_refused() -> None:
    model, _, _ = problem()
    scheduler = AdaptiveWarmup(lion(model), 60)
    buffer = io.BytesIO()
    torch.save(scheduler.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    scheduler.load_state_dict(state)
    with pytest.raises(ValueError, match="version 7, this warmgap reads 2 and 1"):
        scheduler.load_state_dict({**state, "version": 7})
    with pytest.raises(ValueError, match="it has no version"):
        scheduler.load_state_dict(ConstantLR(SGD(model.parameters(), lr=0.1)).state_dict())
    with pytest.raises(ValueError, match="4 parameter groups, and this one has 1"):
        AdaptiveWarmup(Lion(model.parameters(), lr=0.1), 60).load_state_dict(state)
    with pytest.raises(ValueError, match="other settings"):
        AdaptiveWarmup(lion(model), 60, decay="wsd").load_state_dict(state)
    with pytest.raises(ValueError, match="with a spectral cap, and this one has none: give the same cap="):
        AdaptiveWarmup(lion(model), 60, cap=None).load_state_dict(state)
    with pytest.raises(ValueError, match="it needs"):
        scheduler.load_state_dict({"version": 2})


class FakeEvent:
    """Stands for the event of a copy that is still under way."""

    def __init__(self, step: int, read: list[int]) -> None:
        self.step, self.read = step, read

    def synchronize(self) -> None:
        self.read.append(self.step)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets losses come late, as from a device; the numbers of those that were read, in the order they were taken."""
    found: list[int] = []
    numbers = itertools.count()
    plain_take = LossMean.take

    def take(self: LossMean, skipped: float | Tensor = 0.0, alone: bool = False) -> PendingLoss:
        return PendingLoss(plain_take(self, skipped, alone)._totals, FakeEvent(next(numbers), found))

    monkeypatch.setattr(LossMean, "take", take)
    return found


def test_promise_7_a_loss_on_a_device_is_read_one_step_late(read: list[int]) -> None:
    model, _, _ = problem()
    optimizer = Lion(model.parameters(), lr=1.0)
    scheduler = AdaptiveWarmup(optimizer, 100, rule=GapRule(kappa=10.0, target_loss=0.0))
    losses = [5.0 - 0.1 * t for t in range(30)]
    for t, loss in enumerate(losses):
        optimizer.step()
        scheduler.step(loss)
        # The first was a look before the first step; then the losses of the steps before t, and not t's.
        assert read == list(range(t + 1))
    expected = scheduler.schedule.init()
    for late in [None, *losses[:-1]]:
        expected = scheduler.schedule.step(expected, late)
    assert scheduler.factor == expected.factor
    state = scheduler.state_dict()  # saving reads what is under way, so that nothing is lost
    assert read[-1] == 30
    assert state["late"] == [losses[-1], False]
    revived = AdaptiveWarmup(Lion(model.parameters(), lr=1.0), 100, rule=GapRule(kappa=10.0, target_loss=0.0))
    revived.load_state_dict(state)
    revived.optimizer.step()
    revived.step(1.0)
    assert revived.factor == scheduler.schedule.step(expected, losses[-1]).factor


def test_promise_7_only_the_first_step_waits_for_its_own_loss(read: list[int]) -> None:
    model, _, _ = problem()
    scheduler = AdaptiveWarmup(Lion(model.parameters(), lr=1.0), 100)
    for t in range(20):
        scheduler.observe(5.0 - 0.1 * t)
        scheduler.optimizer.step()
        assert read == list(range(max(1, t)))  # 0 is the look before the first step, t the loss of step t - 1
        assert scheduler.factor == 1.0
        scheduler.step()
        assert read == list(range(t + 1))


class OnDevice(Tensor):
    """A tensor that says it is on an accelerator, whose value nobody may read."""

    device, is_cpu = torch.device("cuda"), False
    reads = 0

    def item(self) -> Any:
        OnDevice.reads += 1
        return super().item()

    __float__ = __bool__ = tolist = item


class HostReads(TorchDispatchMode):
    """Counts the operations that bring a tensor's value to the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "make",
    [
        lambda model: Lion(model.parameters(), lr=1e-3),
        lambda model: Signum(model.parameters(), lr=1e-3),
        lambda model: NormalizedSGD(model.parameters(), lr=1e-3),
        lambda model: Muon([{"params": [model[0].weight, model[2].weight], "kind": "matrix"}], lr=1e-3),
    ],
)
def test_promise_7_neither_observing_nor_stepping_reads_a_tensor(make: Any) -> None:
    model, x, y = problem()
    optimizer = make(model)
    scheduler = AdaptiveWarmup(optimizer, 100, rule="linear")
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    on_device = loss.as_subclass(OnDevice)
    OnDevice.reads = 0
    with HostReads() as reads:
        scheduler.observe(on_device, weight=torch.tensor(32).as_subclass(OnDevice))
        optimizer.step()
    assert reads.count == OnDevice.reads == 0
    with HostReads() as reads:
        on_device.item()
    assert reads.count == OnDevice.reads == 1  # and the count can fail


@pytest.mark.parametrize(("rate", "capped", "expected"), [(0.2, True, 0.05), (0.02, True, 0.02), (0.2, False, 0.2)])
def test_beside_muons_matrices_the_peak_is_limited(rate: float, capped: bool, expected: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(16, 32), nn.Linear(32, 32), nn.Linear(32, 16))
    optimizer = Muon(split_parameters(model), lr=rate)
    scheduler = AdaptiveWarmup(optimizer, 40, cap="auto" if capped else None, rule="spectral(hold=0.6)")
    rates = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(torch.arange(16)), torch.arange(16))
        loss.backward()
        scheduler.observe(loss)
        rates.append([group["lr"] for group in optimizer.param_groups if group["rule"] == "adamw"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == rates[15] == [pytest.approx(expected)] * 3
    assert rates[32] == [pytest.approx(expected * 0.5)] * 3  # half way through the cosine
    told = [event for event in scheduler.events if "beside Muon" in event.reason]
    assert [event.step for event in told] == ([0] if expected < rate else [])
    assert all(event.after == pytest.approx(0.25) for event in told)


def test_micro_batches_are_weighed_by_their_tokens() -> None:
    model, _, _ = problem()
    whole, parts = Lion(model.parameters(), lr=1.0), Lion(model.parameters(), lr=1.0)
    one, other = AdaptiveWarmup(whole, 50, rule="gap"), AdaptiveWarmup(parts, 50, rule="gap")
    for t in range(40):
        a, b = 6.0 / (1 + t), 3.0 / (1 + t)
        whole.step()
        one.step((3 * a + b) / 4)
        other.observe(torch.tensor(a, dtype=torch.float64), weight=96)
        other.observe(b, weight=torch.tensor(32))
        parts.step()
        other.step()
        assert other.factor == pytest.approx(one.factor, rel=1e-12)


def test_a_step_that_amp_skipped_does_not_count() -> None:
    model, x, y = problem()
    optimizer = Lion(model.parameters(), lr=1.0)
    scheduler = AdaptiveWarmup(optimizer, 50, rule="gap")
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1000)
    counted = []
    for t in range(12):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        scaler.scale(loss).backward()
        if t in (0, 5):
            next(model.parameters()).grad.fill_(math.inf)  # type: ignore[union-attr]
        scaler.step(optimizer)
        scaler.update()
        scheduler.step(1e9 if t in (0, 5) else loss)
        counted.append(scheduler.last_epoch)
    assert counted == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10]
    assert scheduler.gap is not None
    assert scheduler.gap < 100.0


def test_a_host_that_does_not_step_it_discards_the_loss() -> None:
    model, _, _ = problem()
    optimizer = Lion(model.parameters(), lr=1.0)
    scheduler = AdaptiveWarmup(optimizer, 50, rule="gap", target_loss=0.0)
    scheduler.observe(1e9)
    scheduler.discard()
    optimizer.step()
    scheduler.step(5.0)
    assert scheduler.gap == 5.0


def test_a_host_that_steps_it_once_a_process_moves_it_once() -> None:
    model, _, _ = problem()
    optimizer = Lion(model.parameters(), lr=1.0)
    scheduler = AdaptiveWarmup(optimizer, 50, rule=LinearRule(10))
    for _ in range(5):
        optimizer.step()
        for _ in range(4):
            scheduler.step(2.0)
    assert scheduler.last_epoch == 5


def test_tensor_rates_are_written_in_place() -> None:
    model, x, y = problem()
    rate = torch.tensor(1e-2, dtype=torch.float64)
    optimizer = AdamW(model.parameters(), lr=rate)
    scheduler = AdaptiveWarmup(optimizer, 30, rule=LinearRule(4))
    rates = train(model, optimizer, scheduler, x, y, range(30))
    held = optimizer.param_groups[0]["lr"]
    assert isinstance(held, Tensor)
    assert rates[4] == [pytest.approx(1e-2, rel=1e-12)]
    assert scheduler.get_last_lr()[0] is not held
    assert all(type(base) is float for base in scheduler.state_dict()["base_lrs"])


def test_it_stands_in_sequential_and_chained_schedulers() -> None:
    model, _, _ = problem()
    optimizer = Lion(model.parameters(), lr=1.0)
    warm = AdaptiveWarmup(optimizer, 40, rule=LinearRule(4), decay="constant")
    sequence = SequentialLR(optimizer, [warm, ConstantLR(optimizer, factor=0.5, total_iters=100)], milestones=[10])
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        warm.observe(3.0)
        sequence.step()
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, *[1.0] * 6, 0.5, 0.5])

    optimizer = Lion(model.parameters(), lr=1.0)
    warm = AdaptiveWarmup(optimizer, 40, rule="gap", target_loss=0.0)
    chain = ChainedScheduler([warm], optimizer=optimizer)
    for _ in range(5):
        optimizer.step()
        warm.observe(3.0)
        chain.step()
    assert warm.gap == pytest.approx(3.0)
    assert warm.last_epoch == 5


def test_promise_5_what_a_linear_schedule_behind_it_multiplies_is_carried_on() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(4))], "lr": lr} for lr in (1.0, 0.5)]
    optimizer = Lion(groups, lr=1.0)
    scheduler = AdaptiveWarmup(optimizer, 40, decay="constant", cap=None)
    ramp = LinearLR(optimizer, 0.1, 1.0, 10)
    for t in range(20):
        lower = min(1.0, 0.1 + 0.09 * t)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([lower, 0.5 * lower])
        scheduler.observe(5.0 * 0.97**t)
        optimizer.step()
        scheduler.step()
        ramp.step()
    assert [event.reason for event in scheduler.events].count("rate changed from outside, carried on") == 1


def amp_step(scaler: torch.amp.GradScaler, optimizer: Optimizer, loss: Tensor, model: nn.Module, *, bad: bool) -> None:
    scaler.scale(loss).backward()
    if bad:
        next(model.parameters()).grad.fill_(math.inf)  # type: ignore[union-attr]
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def test_a_skipped_first_step_does_not_count_after_zero_grad_either() -> None:
    model, x, y = problem()
    optimizer = Lion(model.parameters(), lr=1.0)
    scheduler = AdaptiveWarmup(optimizer, 50)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for bad, expected in ((True, 0), (True, 0), (False, 1)):
        loss = nn.functional.mse_loss(model(x), y)
        amp_step(scaler, optimizer, loss, model, bad=bad)
        scheduler.step(loss)
        assert scheduler.last_epoch == expected


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])  # noqa: S301
def test_a_copy_goes_on_with_its_own_optimizer(copy_of: Any) -> None:
    model, x, y = problem()
    optimizer = lion(model)
    scheduler = AdaptiveWarmup(optimizer, 60, decay="wsd")
    train(model, optimizer, scheduler, x, y, range(10))
    other_model, other = copy_of((model, scheduler))
    mine = train(model, optimizer, scheduler, x, y, range(10, 40))
    theirs = train(other_model, other.optimizer, other, x, y, range(10, 40))
    assert mine == theirs
    assert scheduler.last_epoch == other.last_epoch == 40


def test_an_optimizer_that_never_steps_is_told() -> None:
    model, _, _ = problem()
    optimizer = Lion(model.parameters(), lr=1.0)
    scheduler = AdaptiveWarmup(optimizer, 50)
    optimizer.step()
    for _ in range(100):
        scheduler.step(1.0)
    with pytest.warns(UserWarning, match="stood still for 100 calls"):
        scheduler.step(1.0)


def test_promise_5_a_group_added_later_takes_the_factor_of_the_moment() -> None:
    model, _, _ = problem()
    optimizer = Lion(list(model.parameters())[:2], lr=1.0)
    scheduler = AdaptiveWarmup(optimizer, 50, rule=LinearRule(9))
    for _ in range(3):
        optimizer.step()
        scheduler.step(1.0)
    optimizer.add_param_group({"params": list(model.parameters())[2:], "lr": 3.0})
    for _ in range(2):
        optimizer.step()
        scheduler.step(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.6, 1.8])
    assert [str(event) for event in scheduler.events if "joined" in event.reason] == [
        "step 3, loss 1: parameter group 1 joined (group 1), factor at 0.4"
    ]
    again = AdaptiveWarmup(optimizer, 50, rule=LinearRule(9))
    again.load_state_dict(scheduler.state_dict())
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.6, 1.8])
    del optimizer.param_groups[1]
    with pytest.raises(ValueError, match="has 1 parameter groups, and had 2 when this scheduler was made"):
        scheduler.step(1.0)


def test_a_wrapper_of_an_optimizer_is_told() -> None:
    model, _, _ = problem()

    class Wrapper(Optimizer):
        def __init__(self, optimizer: Optimizer) -> None:
            self.param_groups = optimizer.param_groups

    with pytest.raises(ValueError, match="Wrapper only wraps an optimizer"):
        AdaptiveWarmup(Wrapper(Lion(model.parameters(), lr=1.0)), 50)


def exponential(progress: float) -> Any:
    return np.exp(-3.0 * progress)


@pytest.mark.parametrize("decay", ["cosine", exponential])
def test_numpy_arguments_leave_a_state_that_loads(decay: Any) -> None:
    model, _, _ = problem()
    settings: dict[str, Any] = {"floor": np.float64(0.01), "target_loss": np.float32(1.0), "total_iters": np.int64(100)}
    scheduler = AdaptiveWarmup(Lion(model.parameters(), lr=1.0), rule="gap", decay=decay, **settings)
    numbers: list[Any] = [np.int64(80), np.int64(9), np.float32(3.0)]
    length, steps, loss = numbers
    scheduler.extend(length)
    for _ in range(2):
        scheduler.decay_now(steps)
        scheduler.optimizer.param_groups[0]["lr"] *= np.float64(0.5)
        scheduler.optimizer.step()
        scheduler.step(loss)
    buffer = io.BytesIO()
    torch.save([scheduler.state_dict(), scheduler.optimizer.state_dict()], buffer)
    buffer.seek(0)
    scheduler.load_state_dict(torch.load(buffer, weights_only=True)[0])


def test_a_damaged_state_changes_nothing() -> None:
    model, _, _ = problem()
    scheduler = AdaptiveWarmup(lion(model), 60)
    state = scheduler.state_dict()
    before = copy.deepcopy(state)
    damaged = [
        {**state, "last_epoch": 77, "base_lrs": ["x"] * 4},
        {**state, "last_epoch": 77, "schedule": {key: v for key, v in state["schedule"].items() if key != "version"}},
    ]
    for other in damaged:
        with pytest.raises(ValueError, match=r"damaged or was edited|no version"):
            scheduler.load_state_dict(other)
        assert scheduler.state_dict() == before


def test_a_loss_pending_from_a_device_is_dropped_where_losses_come_at_once() -> None:
    model, _, _ = problem()
    optimizer = lion(model)
    scheduler = AdaptiveWarmup(optimizer, 60)
    scheduler.load_state_dict({**scheduler.state_dict(), "late": [5.0, False]})
    optimizer.step()
    scheduler.step(4.0)
    assert scheduler.state_dict()["late"] is None


def test_get_lr_changes_nothing() -> None:
    model, _, _ = problem()
    scheduler = AdaptiveWarmup(Lion(model.parameters(), lr=1.0), 50)
    before = copy.deepcopy(scheduler.state_dict())
    assert scheduler.get_lr() == scheduler.get_lr() == scheduler.get_last_lr()
    assert scheduler.state_dict() == before


def test_peaks_and_rates_are_where_torch_keeps_them() -> None:
    model, _, _ = problem()
    scheduler = AdaptiveWarmup(Lion(model.parameters(), lr=1.0), 50, rule=LinearRule(0))
    assert scheduler._last_lr == scheduler.base_lrs == [1.0]
    scheduler.base_lrs = [0.5]
    scheduler.optimizer.step()
    scheduler.step()
    assert scheduler._last_lr == scheduler.get_last_lr() == scheduler.get_lr()
    assert 0.49 < scheduler._last_lr[0] < 0.5


def test_the_optimizer_does_not_keep_it_alive() -> None:
    model, _, _ = problem()
    optimizer = Lion(model.parameters(), lr=1.0)
    AdaptiveWarmup(optimizer, 50)
    gc.collect()
    optimizer.step()  # its hook finds nobody


def silent_steps(scheduler: AdaptiveWarmup, steps: int) -> None:
    for _ in range(steps):
        scheduler.optimizer.step()
        scheduler.step()


def test_calibration_lets_a_rule_start_on_evidence() -> None:
    model, x, y = problem()
    optimizer = Lion(model.parameters(), lr=1.0)
    scheduler = AdaptiveWarmup(optimizer, 100, rule="loss-ratio")
    assert optimizer.param_groups[0]["lr"] == 0.01
    scheduler.calibrate(lambda: nn.functional.mse_loss(model(x), y))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5)
    optimizer.step()
    scheduler.step(1.0)
    default = AdaptiveWarmup(Lion(model.parameters(), lr=1.0), 100)
    default.calibrate(lambda: 3.0)
    assert default.factor == 1.0
    with pytest.raises(TypeError, match=r"needs a function that returns the loss, got 3\.0"):
        default.calibrate(3.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="calibrate looks before the first step, and 1 were made"):
        scheduler.calibrate(lambda: 1.0)
    with pytest.raises(ValueError, match="must be finite, got nan"):
        AdaptiveWarmup(optimizer, 100).calibrate(lambda: math.nan)


def test_promise_1_a_first_step_above_the_floor_needs_evidence() -> None:
    model, _, _ = problem()

    def fresh(**settings: Any) -> AdaptiveWarmup:
        return AdaptiveWarmup(Lion(model.parameters(), lr=1.0), 100, **settings)

    observed, after, calibrated = fresh(), fresh(), fresh()
    calibrated.calibrate(lambda: 3.0)
    for scheduler in (observed, calibrated):
        scheduler.observe(3.0)
        scheduler.observe(3.0)
        scheduler.optimizer.step()
        assert scheduler.factor == 1.0
        scheduler.step()
    after.optimizer.step()
    assert after.factor == 0.01
    after.step(3.0)
    assert after.factor == 0.02
    assert observed.state_dict()["schedule"] == calibrated.state_dict()["schedule"]


def test_promise_1_the_size_of_the_first_step_is_evidence_and_holds_it() -> None:
    model, x, y = problem()
    scheduler = AdaptiveWarmup(Lion(model.parameters(), lr=0.1), 100)
    nn.functional.mse_loss(model(x), y).backward()
    scheduler.optimizer.step()  # no loss was observed
    assert scheduler.cap is not None
    assert 0.01 < scheduler.factor < 0.5
    assert 0.1 * scheduler.factor == pytest.approx(scheduler.cap.limit)
    assert scheduler.optimizer.param_groups[0]["lr"] == pytest.approx(scheduler.cap.limit)
    assert [event.reason for event in scheduler.events] == [
        "step size known",
        "step too large: held by the spectral cap",
    ]


@pytest.mark.parametrize(("rule", "loss"), [("auto", math.nan), ("gap", 3.0), ("linear", 3.0)])
def test_promise_1_the_first_step_is_made_at_the_floor_without_evidence_or_use_for_it(rule: str, loss: float) -> None:
    model, _, _ = problem()
    settings = {"target_loss": 0.0} if rule == "gap" else {}
    scheduler = AdaptiveWarmup(Lion(model.parameters(), lr=1.0), 100, rule=rule, **settings)  # type: ignore[arg-type]
    scheduler.observe(loss)
    scheduler.optimizer.step()
    assert scheduler.factor == scheduler.schedule.init().factor < 0.1


@pytest.mark.parametrize(("rule", "first"), [("auto", 1.0), ("loss-ratio", 0.5), ("gap", 0.01)])
def test_the_last_rates_are_true_before_the_first_step(rule: str, first: float) -> None:
    model, x, y = problem()
    optimizer = Lion(model.parameters(), lr=1e-3)
    scheduler = AdaptiveWarmup(optimizer, 100, rule=rule)
    loss = nn.functional.mse_loss(model(x), y)
    loss.backward()
    scheduler.observe(loss)
    early = scheduler.get_last_lr()
    optimizer.step()
    assert early == [optimizer.param_groups[0]["lr"]] == pytest.approx([1e-3 * first])


def test_a_first_loss_that_the_rule_refuses_is_refused_before_the_step() -> None:
    model, _, _ = problem()
    scheduler = AdaptiveWarmup(Lion(model.parameters(), lr=1.0), 100, rule="loss-ratio")
    scheduler.observe(-1.0)
    with pytest.raises(ValueError, match="needs positive losses"):
        scheduler.optimizer.step()
    assert scheduler.factor == 0.01


@pytest.mark.parametrize("start", [0.5, 0.01])  # 0.01 is the second one's floor too
def test_a_scheduler_whose_turn_has_not_come_sets_no_rate(start: float) -> None:
    def run(losses: list[float], saved: list[Any]) -> tuple[list[float], list[Any], AdaptiveWarmup]:
        model, _, _ = problem()
        optimizer = Lion(model.parameters(), lr=1.0)
        second = AdaptiveWarmup(optimizer, 100)
        first = torch.optim.lr_scheduler.LinearLR(optimizer, start, total_iters=8)
        both = torch.optim.lr_scheduler.SequentialLR(optimizer, [first, second], milestones=[4])
        parts: list[Any] = [optimizer, both]
        for part, state in zip(parts, saved, strict=False):
            part.load_state_dict(state)
        rates = []
        optimizer.register_step_post_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
        for loss in losses:
            second.observe(loss)
            optimizer.step()
            both.step()
        return rates, [optimizer.state_dict(), both.state_dict()], second

    losses = [9.0, 9.0, 9.0, 9.0, 5.0, 5.0]
    whole, _, second = run(losses, [])
    assert whole == pytest.approx([start + (1.0 - start) * t / 8 for t in range(4)] + [1.0, 1.0])
    assert second.events[0].loss == 5.0  # the losses of the first one's steps are not its own
    before, saved, _ = run(losses[:2], [])
    assert before + run(losses[2:], saved)[0] == whole


def test_what_a_discarded_first_step_started_on_is_forgotten() -> None:
    model, _, _ = problem()
    scheduler = AdaptiveWarmup(Lion(model.parameters(), lr=1.0), 100, rule="loss-ratio")
    scheduler.observe(12.0)
    scheduler.optimizer.step()
    assert scheduler.events[0].loss == 12.0
    scheduler.discard()
    assert scheduler.factor == scheduler.optimizer.param_groups[0]["lr"] == 0.01
    assert not scheduler.events
    scheduler.observe(5.0)
    scheduler.optimizer.step()
    scheduler.step()
    assert scheduler.events[0].loss == 5.0


def test_losses_that_never_come_are_told() -> None:
    model, _, _ = problem()
    optimizer = Lion(model.parameters(), lr=1.0)
    scheduler = AdaptiveWarmup(optimizer, 100)
    silent_steps(scheduler, 9)
    with pytest.warns(UserWarning, match="no finite loss for 10 steps"):
        silent_steps(scheduler, 1)
    silent_steps(scheduler, 20)  # once is enough
    silent_steps(AdaptiveWarmup(optimizer, 100, rule=LinearRule(50)), 20)  # and this rule needs none


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_iters": 0}, "total_iters must be at least 1"),
        ({"rule": "cosine"}, "rule must be one of 'auto'"),
        ({"rule": 3}, "rule must be a rule of warmgap.rules or its name, got 3"),
        ({"max_warmup": 2.0}, "max_warmup must lie strictly between 0 and 1, got 2.0"),
        ({"rule": GapRule(kappa=1.0), "max_warmup": 2.0}, "max_warmup must lie strictly between 0 and 1, got 2.0"),
        ({"rule": LinearRule(3), "max_warmup": 0.5}, "the rule 'linear' has no max_warmup; its settings are iters"),
        ({"roles": ["hidden", "head"]}, "one role for each of the 1 groups, got 2"),
        ({"roles": ["body"]}, r"role must be one of"),
        ({"groups": {1: None}}, "no parameter group has the index, name or role 1; there are 1"),
        ({"groups": {-2: None}}, "no parameter group has the index, name or role -2; there are 1"),
        ({"groups": {0: {"warm": 3}}}, r"schedule of groups\[0\] must be a mapping with 'warmup'"),
        ({"groups": {0: {"warmup": 1.0}}}, r"warmup of groups\[0\] must lie in \[0, 1\), got 1.0"),
        ({"groups": {0: {"decay_start": -0.1}}}, r"decay_start of groups\[0\] must lie in \[0, 1\), got -0.1"),
        ({"groups": {0: {"warmup": 50, "decay_start": 0.2}}}, "starts at step 20, within its warm-up of 50 steps"),
        ({"cap": "tight"}, "cap must be 'auto', None, a number or a SpectralCap"),
        ({"cap": -1.0}, "rho must be above 0"),
        ({"floor": 0.0}, "floor must lie strictly between 0 and 1, got 0.0"),
        ({"target_loss": math.nan}, "target_loss must be finite"),
        ({"decay": "step"}, "decay must be one of 'cosine'"),
        ({"norm": "l7"}, "norm must be 'auto' or one of"),
        ({"norm": "l7", "rule": "linear"}, "norm must be 'auto' or one of"),
        ({"floor": 5, "rule": "linear"}, "floor must lie strictly"),
        ({"target_loss": "low", "rule": "loss-ratio"}, "target_loss must be a number"),
        ({"total_iters": "100", "rule": "linear"}, "total_iters must be a whole number"),
        ({"last_epoch": 5}, "resume an adaptive schedule with load_state_dict"),
    ],
)
def test_promise_8_bad_arguments_are_named(settings: dict[str, Any], message: str) -> None:
    model, _, _ = problem()
    optimizer = Lion(model.parameters(), lr=1e-3)
    arguments = {"total_iters": 100, "rule": "gap", **settings}
    with pytest.raises(ValueError, match=message):
        AdaptiveWarmup(optimizer, **arguments)
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_what_is_no_optimizer_or_no_loss_is_named() -> None:
    model, _, _ = problem()
    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer, got Sequential"):
        AdaptiveWarmup(model, 10)  # type: ignore[arg-type]
    scheduler = AdaptiveWarmup(Lion(model.parameters(), lr=1e-3), 10)
    with pytest.raises(ValueError, match=r"must have one element, got a tensor of shape \(3,\); take its mean"):
        scheduler.step(torch.ones(3))
    with pytest.raises(TypeError, match="must be a number or a tensor with one element, got 'low'"):
        scheduler.observe("low")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite number >= 0, got -1"):
        scheduler.observe(1.0, weight=-1)


def test_an_unknown_optimizer_is_asked_for_its_norm() -> None:
    model, _, _ = problem()
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="a step of SGD is not known here: give norm='spectral'"):
        AdaptiveWarmup(optimizer, 100, rule="gap")
    assert isinstance(AdaptiveWarmup(optimizer, 100, rule="gap", norm="frobenius").schedule, Schedule)


def test_groups_that_share_a_tensor_as_their_rate_get_one_each() -> None:
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9))
    optimizer = Lion(split_parameters(model), lr=torch.tensor(1.0))
    scheduler = AdaptiveWarmup(optimizer, 100)
    tokens = torch.arange(9)
    nn.functional.cross_entropy(model(tokens), tokens).backward()
    optimizer.step()
    rates = {group["role"]: float(group["lr"]) for group in optimizer.param_groups}
    assert rates["embedding"] == rates["head"] == rates["other"] == 1.0
    assert rates["hidden"] == pytest.approx(scheduler.factor)
    assert scheduler.factor < 0.1
