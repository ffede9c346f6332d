from __future__ import annotations

import itertools
import json
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmgap import Schedule, ScheduleState, decay
from warmgap.rules import GapRule, LinearRule, LossRatioRule, PaceRule, PowerRule, Rule

RULES: dict[str, Rule[Any]] = {
    "gap": GapRule(kappa=65280),
    "gap-given": GapRule(kappa=65280, target_loss=-5.0),
    "loss-ratio": LossRatioRule(),
    "power": PowerRule(),
    "pace": PaceRule(),
    "linear": LinearRule(7),
    "none": LinearRule(0),
}
TOTAL = 60
ANY: Any = lambda value: value  # noqa: E731 - lets a test pass what types forbid

# losses of every kind: falling, flat, rising, not a number, spikes, negative
finite = st.floats(-3.0, 20.0)
trouble = st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e30, None])
any_losses = st.lists(st.one_of(finite, trouble), min_size=TOTAL + 10, max_size=TOTAL + 10)


def factors(schedule: Schedule, losses: list[float | None]) -> tuple[list[float], ScheduleState]:
    state = schedule.init()
    out = [state.factor]
    for loss in losses:
        state, factor = schedule.step(state, loss)
        assert factor == state.factor
        out.append(factor)
    return out, state


def positive(losses: list[float | None], rule: str) -> list[float | None]:
    """The loss ratio is a ratio, and a given target must lie below the first loss: give them losses they accept."""
    if rule not in ("loss-ratio", "gap-given"):
        return losses
    return [abs(loss) + 0.1 if loss is not None and math.isfinite(loss) else loss for loss in losses]


@pytest.mark.parametrize("rule", RULES)
@given(losses=any_losses)
def test_promise_1_the_factor_stays_in_bounds_and_at_most_doubles(rule: str, losses: list[float | None]) -> None:
    schedule = Schedule(TOTAL, RULES[rule])
    out, state = factors(schedule, positive(losses, rule))
    assert all(0.0 < factor <= 1.0 for factor in out)
    assert all(after <= 2.0 * before for before, after in itertools.pairwise(out))
    assert state.handover is not None
    assert out[state.handover] == 1.0


@pytest.mark.parametrize("rule", ["gap", "gap-given", "loss-ratio", "power", "pace"])
@given(losses=any_losses)
def test_promise_2_warm_up_ends_within_its_share(rule: str, losses: list[float | None]) -> None:
    schedule = Schedule(TOTAL, RULES[rule])
    _, state = factors(schedule, positive(losses, rule))
    assert state.handover is not None
    assert state.handover <= math.ceil(schedule.rule.max_warmup * TOTAL)


@pytest.mark.parametrize("total", [1, 2, 5, 9, 17, 100])
def test_promise_2_holds_in_runs_shorter_than_the_doublings(total: int) -> None:
    schedule = Schedule(total, GapRule(kappa=10.0, floor=0.01))
    out, state = factors(schedule, [5.0] * (total + 10))
    assert state.handover is not None
    assert state.handover <= max(math.ceil(0.4 * total), math.ceil(math.log2(100)))
    assert all(after <= 2.0 * before for before, after in itertools.pairwise(out))


def test_a_flat_loss_is_no_deadlock() -> None:
    out, state = factors(Schedule(1000, GapRule(kappa=65280, target_loss=0.0)), [9.0] * 1000)
    assert state.handover == 400
    assert out[200] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("rule", "first"),
    [("gap", 0.01), ("power", 0.01), ("pace", 0.01), ("loss-ratio", 0.01), ("linear", 1 / 8), ("none", 1.0)],
)
def test_the_first_step_runs_at_the_rules_own_factor(rule: str, first: float) -> None:
    assert Schedule(TOTAL, RULES[rule]).init().factor == first


@pytest.mark.parametrize("loss", [3.0, math.nan, None])
def test_a_linear_warm_up_then_a_cosine(loss: float | None) -> None:
    out, state = factors(Schedule(20, LinearRule(4)), [loss] * 25)
    assert out[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert state.handover == 4
    assert out[4:20] == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 16)) for k in range(16)])
    assert out[20:] == [out[19]] * 6  # past the end the last rate stays


def test_the_gap_rule_follows_the_curve_of_a_clean_descent() -> None:
    schedule = Schedule(10_000, GapRule(kappa=65280, target_loss=3.2))
    losses: list[float | None] = [3.2 + 7.8 * math.exp(-t / 300) for t in range(2000)]
    out, state = factors(schedule, losses)
    assert state.handover is not None
    # by then the gap is 0.3262 of the initial one: after 300*ln(1/0.3262) = 336 steps, and the average's lag
    assert 336 <= state.handover <= 356
    warming = out[: state.handover + 1]
    assert warming == sorted(warming)


@pytest.mark.parametrize("rule", RULES)
def test_promise_4_a_state_comes_back_as_json_at_every_step(rule: str) -> None:
    schedule = Schedule(TOTAL, RULES[rule])
    losses = [2.0 + 6.0 * math.exp(-t / 10) for t in range(TOTAL)]
    state = schedule.init()
    for t, loss in enumerate(losses):
        revived = schedule.from_dict(json.loads(json.dumps(state.to_dict())))
        assert revived == state
        if t % 7 == 0:
            ours, theirs = state, revived
            for later in losses[t:]:
                ours, theirs = schedule.step(ours, later)[0], schedule.step(theirs, later)[0]
            assert ours == theirs
        state, _ = schedule.step(state, loss)


def only_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and only_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(only_plain(item) for item in value)
    return value is None or type(value) in (int, float, str, bool)


@pytest.mark.parametrize("rule", RULES)
def test_promise_6_a_states_dict_is_plain(rule: str) -> None:
    schedule = Schedule(TOTAL, RULES[rule], decay.linear(0.1))
    state, _ = schedule.step(schedule.init(), 5.0)
    assert only_plain(state.to_dict())


def test_promise_6_a_state_that_does_not_fit_is_refused() -> None:
    schedule = Schedule(TOTAL, GapRule(kappa=10.0))
    data = schedule.init().to_dict()
    with pytest.raises(ValueError, match=r"other settings \(total_iters: saved 60, here 61\)"):
        Schedule(61, GapRule(kappa=10.0)).from_dict(data)
    with pytest.raises(ValueError, match=r"rule: saved .*'floor': 0.01.*here .*'floor': 0.1"):
        Schedule(TOTAL, GapRule(kappa=10.0, floor=0.1)).from_dict(data)
    with pytest.raises(ValueError, match="other settings"):
        Schedule(TOTAL, GapRule(kappa=10.0), decay.linear(0.1)).from_dict(data)
    with pytest.raises(ValueError, match="version 99 and this warmgap reads version 1"):
        schedule.from_dict({**data, "version": 99})
    with pytest.raises(ValueError, match="it has no version"):
        schedule.from_dict({"step": 3})
    with pytest.raises(ValueError, match="damaged or was edited"):
        schedule.from_dict({**data, "step": "three"})
    with pytest.raises(ValueError, match=r"got 7\.0 and 0: this state is damaged"):
        schedule.from_dict({**data, "factor": 7.0})
    with pytest.raises(ValueError, match="it needs the fields"):
        schedule.from_dict({key: value for key, value in data.items() if key != "factor"})
    with pytest.raises(ValueError, match="GapState"):
        schedule.from_dict({**data, "rule": {"factor": 0.5}})


@pytest.mark.parametrize("rule", [GapRule(kappa=10.0, target_loss=3.0), LossRatioRule()])
def test_no_loss_can_stop_a_run_that_is_past_its_warm_up(rule: Rule[Any]) -> None:
    schedule = Schedule(TOTAL, rule)
    _, state = factors(schedule, [None] * 30 + [-2.0] * 30)
    assert state.phase == "decay"


@pytest.mark.parametrize("name", decay.NAMES)
def test_a_schedule_can_be_pickled(name: str) -> None:
    schedule = Schedule(TOTAL, RULES["pace"], name)
    copied = pickle.loads(pickle.dumps(schedule))  # noqa: S301
    assert copied == schedule
    assert factors(copied, [3.0] * 80) == factors(schedule, [3.0] * 80)


def test_a_callable_decay_is_held_to_its_contract() -> None:
    with pytest.raises(ValueError, match="exactly 1 at progress 0"):
        Schedule(TOTAL, LinearRule(3), lambda progress: 0.5 - 0.5 * progress)
    schedule = Schedule(TOTAL, LinearRule(3), lambda progress: 1.0 - 2.0 * progress)
    with pytest.raises(ValueError, match="a decay must stay in"):
        factors(schedule, [1.0] * TOTAL)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule(0, LinearRule(0)), "total_iters must be at least 1, got 0"),
        (lambda: Schedule(ANY(10.5), LinearRule(0)), "total_iters must be a whole number"),
        (lambda: Schedule(10, LinearRule(10)), "does not end within total_iters=10"),
        (lambda: Schedule(10, LinearRule(1), "cosinus"), "decay must be one of"),
        (lambda: Schedule(10, LinearRule(1), ANY(3)), "decay must be a name"),
        (lambda: PaceRule(max_warmup=1.5), "max_warmup must lie strictly"),
        (lambda: Schedule(10, ANY("linear")), "rule must be a rule of warmgap.rules"),
        (lambda: LinearRule(-1), "iters must be at least 0"),
        (lambda: GapRule(kappa=0.0), "kappa must be above 0"),
        (lambda: GapRule(kappa=1.0, floor=2.0), "floor must lie strictly"),
        (lambda: GapRule(kappa=1.0, target_loss=ANY("low")), "target_loss must be a number"),
        (lambda: PowerRule(rho=0.0), "rho must be above 0"),
        (lambda: LossRatioRule(level=0.0), "level must be above 0"),
    ],
)
def test_promise_8_bad_arguments_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_target_above_the_first_loss_is_refused() -> None:
    schedule = Schedule(TOTAL, GapRule(kappa=10.0, target_loss=4.0))
    with pytest.raises(
        ValueError, match=r"target_loss must lie below the losses.*target_loss=4.0 and a first loss of 3.0"
    ):
        schedule.step(schedule.init(), 3.0)
