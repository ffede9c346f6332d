"""Roles, schedules of their own, and what others do to the rates of groups."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ChainedScheduler, MultiStepLR, ReduceLROnPlateau

from warmgap import decay
from warmgap.rules import GapRule, LinearRule
from warmgap.torch import AdaptiveWarmup, Lion, Muon, SpectralCap, split_parameters


def language_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 16))


def losses(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: AdaptiveWarmup, steps: range) -> None:
    for t in steps:
        tokens = torch.randint(0, 16, (8, 4), generator=torch.Generator().manual_seed(t))
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        scheduler.observe(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


def weights(scheduler: AdaptiveWarmup, lrs: list[Any]) -> dict[str, float]:
    return {str(g["role"]): float(lr) for g, lr in zip(scheduler.optimizer.param_groups, lrs, strict=True)}


def test_the_cap_holds_the_hidden_matrices_alone() -> None:
    model = language_model()
    optimizer = Lion(split_parameters(model), lr=0.1)
    scheduler = AdaptiveWarmup(optimizer, 60)
    rates: list[dict[str, float]] = []
    optimizer.register_step_post_hook(
        lambda *_: rates.append(weights(scheduler, [g["lr"] for g in optimizer.param_groups]))
    )
    losses(model, optimizer, scheduler, range(20))
    for rate in rates:
        assert rate["hidden"] < 0.5 * rate["head"]
        assert rate["embedding"] == rate["head"] == rate["other"] == 0.1
    for before, after in itertools.pairwise(rates):
        assert after["hidden"] <= 2.0 * before["hidden"]
    assert scheduler.roles["hidden"].held
    assert not scheduler.roles["head"].held
    assert scheduler.factor == scheduler.roles["hidden"].factor < scheduler.roles["head"].factor == 1.0
    assert scheduler.events[1].reason == "step too large: held by the spectral cap"
    assert scheduler.events[1].role == "hidden"
    assert repr(scheduler.roles).splitlines()[0].split() == ["role", "groups", "peak", "factor", "lr", "decay", "phase"]
    assert "stable, held" in repr(scheduler.roles)


@pytest.mark.parametrize("make", [Lion, AdamW])
def test_promise_4_a_held_run_resumes_bit_for_bit(make: Any) -> None:
    def fresh() -> tuple[nn.Module, Any, AdaptiveWarmup]:
        model = language_model()
        optimizer = make(split_parameters(model), lr=0.05)
        return model, optimizer, AdaptiveWarmup(optimizer, 40)

    model, optimizer, scheduler = fresh()
    losses(model, optimizer, scheduler, range(30))
    half = fresh()
    losses(*half, range(11))
    resumed = fresh()
    for part, saved in zip(resumed, half, strict=True):
        part.load_state_dict(saved.state_dict())
    losses(*resumed, range(11, 30))
    assert [g["lr"] for g in resumed[1].param_groups] == [g["lr"] for g in optimizer.param_groups]
    assert all(torch.equal(a, b) for a, b in zip(resumed[0].parameters(), model.parameters(), strict=True))
    assert resumed[2].events == scheduler.events
    assert resumed[2].summary() == scheduler.summary()


@pytest.mark.parametrize("how", ["model", "named", "roles"])
def test_roles_come_from_the_model_the_names_or_by_hand(how: str) -> None:
    model = language_model()
    roles = ["embedding", "hidden", "other", "other", "other", "hidden", "other", "head", "other"]
    if how == "model":
        scheduler = AdaptiveWarmup(AdamW(model.parameters(), lr=1e-3), 60, model=model)
    elif how == "named":
        parts = nn.ModuleDict(
            {"wte": model[0], "up": model[1], "norm": model[2], "down": model[3], "lm_head": model[4]}
        )
        scheduler = AdaptiveWarmup(AdamW(parts.named_parameters(), lr=1e-3), 60)
    else:
        groups = [{"params": [p]} for p in model.parameters()]
        scheduler = AdaptiveWarmup(AdamW(groups, lr=1e-3), 60, roles=roles)
    assert scheduler.roles["hidden"].phase == "stable"
    found = {id(p): g["role"] for g in scheduler.optimizer.param_groups for p in g["params"]}
    wanted = dict(zip(map(id, model.parameters()), roles, strict=True))
    assert {key for key, role in found.items() if role == "hidden"} == {k for k, r in wanted.items() if r == "hidden"}


def test_promise_5_without_roles_one_warning_says_what_is_lost() -> None:
    model = language_model()
    with pytest.warns(UserWarning, match=r"the groups of AdamW have no roles.*give AdaptiveWarmup model=model"):
        scheduler = AdaptiveWarmup(AdamW(model.parameters(), lr=0.1), 60)
    losses(model, scheduler.optimizer, scheduler, range(3))
    assert scheduler.factor == scheduler.optimizer.param_groups[0]["lr"] / 0.1 < 1.0
    AdaptiveWarmup(AdamW(model.parameters(), lr=0.1), 60, cap=None)  # there it makes no difference


def test_three_matrices_without_roles_are_enough_to_ask_for_them() -> None:
    def scheduler(matrices: int) -> AdaptiveWarmup:
        return AdaptiveWarmup(AdamW([nn.Parameter(torch.eye(4)) for _ in range(matrices)], lr=0.1), 60)

    scheduler(2)
    with pytest.warns(UserWarning, match="the groups of AdamW have no roles"):
        scheduler(3)


def test_a_decay_may_begin_where_a_groups_own_warm_up_ends() -> None:
    scheduler = linear(groups={0: {"warmup": 20, "decay_start": 0.2, "decay": "linear"}})
    rates = [rate[0] for rate in constant_losses(scheduler, 23)]
    assert rates[19:] == pytest.approx([20 / 21, 1.0, 1.0 - 1 / 80, 1.0 - 2 / 80])


def test_a_published_rule_warms_up_the_hidden_matrices_alone() -> None:
    optimizer = Muon(split_parameters(language_model()), lr=1.0)
    scheduler = AdaptiveWarmup(optimizer, 100, rule=GapRule(kappa=10.0, target_loss=0.0))
    scheduler.observe(5.0)
    optimizer.step()
    scheduler.step()
    rates = weights(scheduler, scheduler.get_last_lr())
    assert rates["hidden"] < 0.1
    assert rates["head"] == rates["embedding"] == 1.0


def constant_losses(scheduler: AdaptiveWarmup, steps: int, loss: float = 2.0) -> list[list[float]]:
    rates = []
    for _ in range(steps):
        scheduler.observe(loss)
        scheduler.optimizer.step()
        rates.append([float(group["lr"]) for group in scheduler.optimizer.param_groups])
        scheduler.step()
    return rates


@pytest.mark.parametrize("where", ["argument", "group"])
def test_groups_have_schedules_of_their_own(where: str) -> None:
    own: dict[int | str, Any] = {
        0: {"decay_start": 0.8, "decay": "linear"},
        "slow": {"warmup": 0.1},
        2: {"warmup": 4, "decay_start": 0.5, "decay": decay.linear()},
        3: None,
        -2: "constant",
    }
    groups: list[dict[str, Any]] = [{"params": [nn.Parameter(torch.ones(2))]} for _ in range(6)]
    groups[1]["name"] = "slow"
    if where == "group":
        for key, asked in own.items():
            groups[1 if key == "slow" else int(key)]["schedule"] = asked
    scheduler = AdaptiveWarmup(SGD(groups, lr=1.0), 40, groups=own if where == "argument" else None)
    halfway = scheduler.state_dict()
    rates = constant_losses(scheduler, 40)
    columns = list(zip(*rates, strict=True))
    assert columns[0] == pytest.approx([1.0] * 33 + [1.0 - t / 8 for t in range(1, 8)])
    assert columns[1][:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.5 + 0.5 * math.cos(math.pi / 36)])
    assert columns[2] == pytest.approx([0.2, 0.4, 0.6, 0.8, *[1.0] * 17, *[1.0 - t / 20 for t in range(1, 20)]])
    assert columns[3] == columns[4] == (1.0,) * 40
    assert columns[5] == pytest.approx([1.0] * 25 + [0.5 + 0.5 * math.cos(math.pi * t / 16) for t in range(1, 16)])
    assert scheduler.roles["slow (own)"].phase == "decay"
    assert scheduler.roles["group 3"].phase == "unscheduled"
    scheduler.load_state_dict(halfway)
    assert constant_losses(scheduler, 40) == rates
    with pytest.raises(ValueError, match=r"schedules of their own for the groups .*: give the same groups="):
        AdaptiveWarmup(SGD([{"params": g["params"]} for g in groups], lr=1.0), 40).load_state_dict(halfway)


def test_lr_scale_counts() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr_scale": 0.5**depth} for depth in range(3)]
    scheduler = AdaptiveWarmup(AdamW(groups, lr=1e-3), 20)
    assert scheduler.base_lrs == [1e-3, 5e-4, 2.5e-4]
    assert constant_losses(scheduler, 2)[1] == scheduler.get_last_lr() == [1e-3, 5e-4, 2.5e-4]


@pytest.mark.parametrize(
    ("own", "first", "last"),
    [
        ({"warmup": 0.3}, 30, 30),
        ({"warmup": 5, "decay_start": 0.5}, 8, 50),
        ({"warmup": 0.2, "decay_start": 0.4}, 20, 40),
    ],
)
def test_a_groups_own_schedule_goes_on_over_another_length(own: dict[str, Any], first: int, last: int) -> None:
    def fresh(total: int) -> AdaptiveWarmup:
        groups: list[dict[str, Any]] = [{"params": [nn.Parameter(torch.ones(4))]} for _ in range(2)]
        return AdaptiveWarmup(Lion([groups[0], {**groups[1], "schedule": own}], lr=1.0), total)

    scheduler, longer = fresh(50), fresh(100)
    before = constant_losses(scheduler, 8)[-1]
    longer.load_state_dict(scheduler.state_dict())
    scheduler.extend(100)
    assert before[1] <= longer.get_last_lr()[1] <= 2.0 * before[1]
    rates = constant_losses(longer, 92)
    assert constant_losses(scheduler, 92) == rates
    assert [step for step, rate in enumerate(rates, 8) if rate[1] == 1.0] == list(range(first, last + 1))
    assert rates[-1][1] < 0.01


def linear(**settings: Any) -> AdaptiveWarmup:
    optimizer = Lion([nn.Parameter(torch.ones(4))], lr=1.0)
    return AdaptiveWarmup(optimizer, 100, decay="constant", rule=LinearRule(0), **settings)


def test_what_other_schedulers_multiply_is_carried_on() -> None:
    chained, plateaued = linear(), linear()
    chain = ChainedScheduler([chained, MultiStepLR(chained.optimizer, [3, 5], 0.1)])
    plateau = ReduceLROnPlateau(plateaued.optimizer, factor=0.5, patience=0)
    rates = []
    for t in range(8):
        rates.append([s.optimizer.param_groups[0]["lr"] for s in (chained, plateaued)])
        for scheduler in (chained, plateaued):
            scheduler.observe(2.0)
            scheduler.optimizer.step()
        chain.step()
        plateaued.step()
        if t in (1, 3):
            plateau.step(1.0)
    by_chain, by_plateau = zip(*rates, strict=True)
    assert by_chain == pytest.approx([1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.01])
    assert by_plateau == pytest.approx([1.0] * 4 + [0.5] * 4)
    assert [event.step for event in plateaued.events if "from outside" in event.reason] == [4]
    again = linear()
    again.load_state_dict(plateaued.state_dict())
    assert again.get_last_lr() == [0.5]


def test_a_rate_changed_at_every_step_is_one_event() -> None:
    scheduler = linear()
    for _ in range(10):
        constant_losses(scheduler, 1)
        scheduler.optimizer.param_groups[0]["lr"] *= 0.9
    constant_losses(scheduler, 1)
    assert scheduler.get_last_lr() == pytest.approx([0.9**10])
    assert len([event for event in scheduler.events if "from outside" in event.reason]) == 1


def test_rates_changed_now_and_then_are_as_many_events() -> None:
    scheduler = linear()
    for _ in range(3):
        constant_losses(scheduler, 2)
        scheduler.optimizer.param_groups[0]["lr"] *= 0.5
    constant_losses(scheduler, 1)
    changes = [event for event in scheduler.events if "from outside" in event.reason]
    assert [(event.step, event.before, event.after) for event in changes] == [
        (2, 1.0, 0.5),
        (4, 0.5, 0.25),
        (6, 0.25, 0.125),
    ]


class SetCap(SpectralCap):
    """A cap that measures nothing: its rates are set by hand."""

    most = math.inf
    limit = room = property(lambda self: self.most)

    def before(self, *, closure: bool = False) -> None: ...

    def after(self) -> None: ...


def test_promise_9_what_the_cap_does_is_an_event_where_it_matters() -> None:
    optimizer = Lion(split_parameters(language_model()), lr=0.1)
    cap = SetCap(optimizer, rho=1.0, apply=False)
    scheduler = AdaptiveWarmup(optimizer, 100, cap=cap)
    happened = []
    for share in (1.2, 0.96, 0.94, 0.9, 1.09, 1.11, 0.94):
        cap.most, before = share * 0.1, len(scheduler.events)
        scheduler.observe(2.0)
        optimizer.step()
        assert scheduler.factor == pytest.approx(min(1.0, share))
        happened.append([event.reason for event in scheduler.events[before:] if "cap" in event.reason])
        assert ("(held)" in repr(scheduler)) == scheduler.roles["hidden"].held == (share in (0.94, 0.9, 1.09))
        scheduler.step()
    held, released = ["step too large: held by the spectral cap"], ["released by the spectral cap"]
    assert happened == [[], [], held, [], [], released, held]
    assert "lr 0.094 to 0.1, rule" in repr(scheduler)
    assert scheduler.events[-1].after == pytest.approx(0.94)


def test_promise_8_a_rate_changed_at_four_steps_in_a_row_is_said() -> None:
    scheduler = AdaptiveWarmup(Lion([nn.Parameter(torch.ones(4))], lr=1.0), 100)
    for changes in (3, 0, 3):
        for _ in range(changes):
            constant_losses(scheduler, 1)
            scheduler.optimizer.param_groups[0]["lr"] *= 0.99
        constant_losses(scheduler, 2)
    for _ in range(4):
        constant_losses(scheduler, 1)
        scheduler.optimizer.param_groups[0]["lr"] *= 0.99
    with pytest.warns(UserWarning, match="something else .* changes the rate at every step too, and both multiply"):
        constant_losses(scheduler, 1)


@pytest.mark.parametrize(
    ("lr", "settings", "start"),
    [(1e-4, {}, 24), (0.03, {}, 18), (1e-4, {"rule": "spectral(hold=0.6)"}, 18), (1e-4, {"cap": None}, 18)],
)
def test_promise_9_a_peak_of_which_the_cap_lets_most_pass_is_held_longer(lr: float, settings: Any, start: int) -> None:
    model = language_model()
    scheduler = AdaptiveWarmup(AdamW(split_parameters(model), lr=lr), 30, **settings)
    losses(model, scheduler.optimizer, scheduler, range(17))
    saved = copy.deepcopy(scheduler.state_dict())
    losses(model, scheduler.optimizer, scheduler, range(17, 30))
    assert scheduler._groups.state.decay_start == start
    assert [e.step for e in scheduler.events if e.reason == "peak is low: held longer"] == [17] * (start == 24)
    resumed = AdaptiveWarmup(AdamW(split_parameters(model), lr=lr), 30, **settings)
    resumed.load_state_dict(saved)
    losses(model, resumed.optimizer, resumed, range(17, 18))
    assert resumed._groups.state.decay_start == start


def test_promise_9_every_change_is_an_event_and_a_log_record(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "warmgap"):
        scheduler = AdaptiveWarmup(Lion([nn.Parameter(torch.ones(4))], lr=1.0), 40)
        constant_losses(scheduler, 5)
        scheduler.extend(60)
        scheduler.scale_peak(2.0)
        constant_losses(scheduler, 3, math.nan)
        constant_losses(scheduler, 40)
        scheduler.decay_now(5)
        constant_losses(scheduler, 5)
    reasons = [event.reason for event in scheduler.events]
    assert reasons[:4] == ["first loss seen", "extended", "peak scaled by 2", "no finite loss: rate halved"]
    assert "decay began" in reasons
    assert reasons[-1] == "decay moved up"
    assert [record.getMessage() for record in caplog.records] == [str(event) for event in scheduler.events]


@pytest.mark.parametrize("decays", ["cosine", "linear", "wsd", "inverse-sqrt", "constant"])
def test_a_state_goes_on_in_a_run_of_another_length(decays: str) -> None:
    def fresh(total: int) -> AdaptiveWarmup:
        return AdaptiveWarmup(Lion([nn.Parameter(torch.ones(4))], lr=1.0), total, decay=decays)

    scheduler, longer, extended = fresh(100), fresh(200), fresh(100)
    constant_losses(scheduler, 70)
    longer.load_state_dict(scheduler.state_dict())
    extended.load_state_dict(scheduler.state_dict())
    extended.extend(200)
    assert longer.get_last_lr() == scheduler.get_last_lr()
    rates = constant_losses(longer, 130)
    assert rates == constant_losses(extended, 130)
    assert all(after[0] <= before[0] for before, after in itertools.pairwise(rates))
    assert longer.total_iters == 200
    with pytest.raises(ValueError, match="total_iters must lie above the 200 steps made, got 150"):
        longer.extend(150)


def test_a_run_that_is_cut_short_decays_to_its_end() -> None:
    scheduler = AdaptiveWarmup(Lion([nn.Parameter(torch.ones(4))], lr=1.0), 1000)
    constant_losses(scheduler, 30)
    scheduler.decay_now(10)
    assert [rate[0] for rate in constant_losses(scheduler, 10)] == pytest.approx(
        [0.5 + 0.5 * math.cos(math.pi * t / 10) for t in range(10)]
    )
    assert scheduler.total_iters == 40
    with pytest.warns(UserWarning, match="40 steps are over"):
        constant_losses(scheduler, 2)


def test_another_peak_is_said_and_the_checkpoints_kept() -> None:
    def fresh(lr: float) -> AdaptiveWarmup:
        return AdaptiveWarmup(Lion([nn.Parameter(torch.ones(4))], lr=lr), 100)

    scheduler, lower = fresh(1e-2), fresh(1e-3)
    constant_losses(scheduler, 10)
    lower.optimizer.load_state_dict(scheduler.optimizer.state_dict())
    with pytest.warns(UserWarning, match=r"peak learning rates 0.01, which are kept, .* made with 0.001: call sched"):
        lower.load_state_dict(scheduler.state_dict())
    assert lower.get_last_lr() == [1e-2]
    lower.scale_peak(0.1)
    assert lower.get_last_lr() == lower.base_lrs == pytest.approx([1e-3])
    with pytest.raises(ValueError, match="factor must be above 0, got 0"):
        lower.scale_peak(0.0)


@pytest.mark.parametrize("first", ["scheduler", "load"])
def test_a_fresh_schedule_on_a_loaded_optimizer_starts_at_its_own_peak(first: str) -> None:
    def fresh(lr: float) -> tuple[nn.Linear, Lion]:
        model = nn.Linear(4, 1)
        return model, Lion(model.parameters(), lr=lr)

    def moved(model: nn.Linear, scheduler: AdaptiveWarmup, steps: int) -> list[float]:
        rates = []
        for _ in range(steps):
            model(torch.ones(2, 4)).square().mean().backward()
            scheduler.observe(2.0)
            scheduler.optimizer.step()
            rates.append(scheduler.optimizer.param_groups[0]["lr"])
            scheduler.step()
        return rates

    model, optimizer = fresh(1e-2)
    moved(model, AdaptiveWarmup(optimizer, 20, cap=None), 18)
    saved = optimizer.state_dict()
    model, optimizer = fresh(5e-3)
    if first == "scheduler":
        scheduler = AdaptiveWarmup(optimizer, 20, cap=None)
        optimizer.load_state_dict(saved)
    else:
        optimizer.load_state_dict(saved)
        with pytest.warns(
            UserWarning, match=r"has the peak learning rate 0.01, and it was made with lr=0.005: Adaptive"
        ):
            scheduler = AdaptiveWarmup(optimizer, 20, cap=None)
    assert scheduler.get_last_lr() == [5e-3]
    assert moved(model, scheduler, 8) == [5e-3] * 8


def test_a_state_of_version_1_goes_on() -> None:
    saved = json.loads((Path(__file__).parents[1] / "version_1.json").read_text())["linear"]
    schedule = saved["states"][1]
    step, total = schedule["step"], schedule["config"]["total_iters"]
    optimizer = Lion([nn.Parameter(torch.ones(4))], lr=1.0)
    scheduler = AdaptiveWarmup(optimizer, total, rule=LinearRule(17))
    old = {"version": 1, "schedule": schedule, "late_loss": 3.0, "base_lrs": [1.0]}
    scheduler.load_state_dict({**old, "last_epoch": step, "_step_count": step + 1})
    rates = [rate[0] for rate in constant_losses(scheduler, 20)]
    assert rates == pytest.approx(saved["factors"][step : step + 20])


def add_late(given: str) -> tuple[AdaptiveWarmup, list[dict[str, Any]]]:
    """Train for three steps, add a head, a hidden matrix and a bias, and train on; return the added groups."""
    model = language_model()
    first = [(p, "hidden" if p.ndim > 1 else "other") for p in (*model[1].parameters(), *model[2].parameters())]
    groups = [{"params": [p], "role": role} for p, role in [(model[0].weight, "embedding"), *first]]
    optimizer = Lion(groups, lr=0.1)
    scheduler = AdaptiveWarmup(optimizer, 60, model=model if given == "model" else None)
    losses(model, optimizer, scheduler, range(3))
    late: list[list[Any]] = [[*model[4].parameters()], [model[3].weight], [model[3].bias]]
    if given != "model":
        late = [[p for params in late[1:] for p in params]]
    for params in late:
        optimizer.add_param_group({"params": params, **({"role": "hidden"} if given == "role" else {})})
    losses(model, optimizer, scheduler, range(3, 8))
    return scheduler, optimizer.param_groups[len(groups) :]


def test_promise_5_a_group_added_without_a_role_is_held_and_said() -> None:
    with pytest.warns(UserWarning, match=r"group 5 has no role, .* put the groups of split_parameters\(module\) in"):
        scheduler, (late,) = add_late("nothing")
    assert (late["role"], late["lr"]) == ("hidden", scheduler.optimizer.param_groups[1]["lr"])
    assert late["lr"] < 0.05
    assert add_late("role")[1][0]["lr"] == late["lr"]  # which says nothing


def test_promise_5_a_group_without_a_role_beside_others_is_held_and_said() -> None:
    def fresh(last: dict[str, Any]) -> AdaptiveWarmup:
        model = language_model()
        groups = [{"params": [model[0].weight], "role": "embedding"}, {"params": [model[1].weight], "role": "hidden"}]
        return AdaptiveWarmup(Lion([*groups, {"params": [model[3].weight], **last}], lr=0.1), 60)

    with pytest.warns(UserWarning, match=r"parameter group 2 has no role, where others have theirs"):
        scheduler = fresh({})
    assert scheduler.roles["hidden"].groups == (1, 2)
    for said in ({"role": "head"}, {"schedule": "constant"}):
        assert fresh(said).roles["hidden"].groups == (1,)


def test_a_group_that_is_added_takes_its_role_from_the_model() -> None:
    scheduler, (head, matrix, bias) = add_late("model")
    assert [group["role"] for group in (head, matrix, bias)] == ["head", "hidden", "other"]
    assert head["lr"] == bias["lr"] == 0.1
    assert matrix["lr"] == scheduler.optimizer.param_groups[1]["lr"] < 0.05
    joined = [event.reason for event in scheduler.events if "joined" in event.reason]
    assert joined == [f"parameter group {5 + i} joined ({role})" for i, role in enumerate(("head", "hidden", "other"))]


def test_a_group_added_with_a_schedule_of_its_own_is_where_that_would_be() -> None:
    scheduler = linear()
    constant_losses(scheduler, 3)
    schedules: list[dict[str, Any]] = [{"decay": "linear", "decay_start": 0.0}, {"warmup": 9}]
    for own in schedules:
        scheduler.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4))], "schedule": own})
    assert constant_losses(scheduler, 2)[1] == pytest.approx([1.0, 0.96, 0.5])


def test_a_group_added_to_an_extended_run_is_where_it_would_be_in_that() -> None:
    scheduler = linear()
    scheduler.extend(200)
    constant_losses(scheduler, 119)
    own = {"decay": "linear", "decay_start": 0.0}
    scheduler.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4))], "schedule": own})
    assert constant_losses(scheduler, 2)[1] == pytest.approx([1.0, 0.4])


@pytest.mark.parametrize(
    "call",
    [
        lambda scheduler: scheduler.extend(80),
        lambda scheduler: scheduler.decay_now(20),
        lambda scheduler: scheduler.scale_peak(2.0),
        lambda scheduler: scheduler.get_lr(),
        lambda scheduler: scheduler.load_state_dict(scheduler.state_dict()),
    ],
)
def test_a_group_that_was_added_since_the_last_step_takes_part_in_every_call(
    call: Callable[[AdaptiveWarmup], Any],
) -> None:
    scheduler = linear()
    constant_losses(scheduler, 3)
    scheduler.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4))], "lr": 0.5})
    call(scheduler)
    first, late = scheduler.get_last_lr()
    assert late == 0.5 * first
    assert constant_losses(scheduler, 2)[0] == [first, late]


@pytest.mark.parametrize(
    "call", [lambda scheduler: scheduler.calibrate(lambda: 3.0), lambda scheduler: scheduler.discard()]
)
def test_a_group_that_was_added_before_the_first_step_takes_part(call: Callable[[AdaptiveWarmup], Any]) -> None:
    scheduler = AdaptiveWarmup(Lion([nn.Parameter(torch.ones(4))], lr=1.0), 100)
    scheduler.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4))], "lr": 0.5})
    scheduler.observe(3.0)
    assert scheduler.get_last_lr() == [1.0, 0.5]
    call(scheduler)
    assert [group["lr"] for group in scheduler.optimizer.param_groups] == [1.0, 0.5]


def test_a_group_whose_peak_is_0_stays_there() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(4))], "lr": lr} for lr in (1.0, 0.0)]
    scheduler = AdaptiveWarmup(Lion(groups, lr=1.0), 100)
    constant_losses(scheduler, 3)
    for group in scheduler.optimizer.param_groups:
        group["lr"] = 0.5
    constant_losses(scheduler, 1)
    assert scheduler.get_last_lr() == [0.5, 0.0]


def test_a_scheduler_that_was_given_up_leaves_nothing_behind() -> None:
    scheduler = linear()
    AdaptiveWarmup(scheduler.optimizer, 100, rule=LinearRule(9))  # sets a tenth, and is gone
    gc.collect()
    assert constant_losses(scheduler, 2)[1] == [1.0]
    assert not [event for event in scheduler.events if "outside" in event.reason]
