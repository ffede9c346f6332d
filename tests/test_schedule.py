from __future__ import annotations

import functools
import itertools
import json
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmgap import Event, Schedule, ScheduleState, decay
from warmgap.rules import (
    NAMES,
    GapRule,
    LinearRule,
    LossRatioRule,
    MeasuredRule,
    PowerRule,
    Rule,
    SpectralRule,
    by_name,
)
from warmgap.schedule import MOST_EVENTS, REASONS

RULES: dict[str, Rule[Any]] = {
    "auto": SpectralRule(),
    "gap": GapRule(kappa=65280),
    "gap-given": GapRule(kappa=65280, target_loss=-5.0),
    "loss-ratio": LossRatioRule(),
    "power": PowerRule(roles="all"),
    "measured": MeasuredRule(K0=4.0, K1=1.0, K2=1.0, target_loss=-5.0),
    "linear": LinearRule(7),
    "none": LinearRule(0),
}
PUBLISHED = ("gap", "gap-given", "loss-ratio", "power", "measured")
TOTAL = 60
ANY: Any = lambda value: value  # noqa: E731 - lets a test pass what types forbid

# losses of every kind: falling, flat, rising, not a number, spikes, negative
finite = st.floats(-3.0, 20.0)
trouble = st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e30, None])
any_losses = st.lists(st.one_of(finite, trouble), min_size=TOTAL, max_size=TOTAL)
no_warning = pytest.mark.filterwarnings("ignore:the loss (goes on|has) ris:UserWarning")

Losses = list[float | None]


def states(schedule: Schedule, losses: Losses, known: bool = False) -> list[ScheduleState]:
    state = schedule.init()
    if known and losses[0] is not None and math.isfinite(losses[0]):
        state = schedule.first(state, losses[0])
    out = [state]
    for loss in losses:
        state = schedule.step(state, loss)
        out.append(state)
    return out


def factors(schedule: Schedule, losses: Losses) -> list[float]:
    return [state.factor for state in states(schedule, losses)]


def positive(losses: Losses, rule: str) -> Losses:
    """The loss ratio is a ratio, and a given target must lie below the first loss: give them losses they accept."""
    if rule not in ("loss-ratio", "gap-given", "measured"):
        return losses
    return [abs(loss) + 0.1 if loss is not None and math.isfinite(loss) else loss for loss in losses]


@no_warning
@pytest.mark.parametrize("rule", RULES)
@given(losses=any_losses, known=st.booleans())
def test_promise_1_factors_stay_in_bounds_and_at_most_double(rule: str, losses: Losses, known: bool) -> None:
    schedule = Schedule(TOTAL, RULES[rule])
    out = states(schedule, positive(losses, rule), known)
    for values in ([state.factor for state in out], [state.base for state in out]):
        assert all(0.0 < factor <= 1.0 for factor in values)
        assert all(after <= 2.0 * before for before, after in itertools.pairwise(values))
    ended = out[-1].handover
    assert ended is not None
    assert out[ended].rule.factor == 1.0
    assert [name for name, _ in itertools.groupby(state.phase for state in out)] in (
        ["warmup", "stable", "decay"], ["stable", "decay"], ["warmup", "decay"], ["decay"]
    )  # fmt: skip


@pytest.mark.parametrize("rule", PUBLISHED)
@given(losses=any_losses)
def test_promise_2_warm_up_ends_within_its_share(rule: str, losses: Losses) -> None:
    schedule = Schedule(TOTAL, RULES[rule])
    ended = states(schedule, positive(losses, rule))[-1].handover
    assert ended is not None
    assert ended <= math.ceil((schedule.rule.max_warmup or 0.0) * TOTAL)


@pytest.mark.parametrize("total", [1, 2, 5, 9, 17, 100])
def test_promise_2_holds_in_runs_shorter_than_the_doublings(total: int) -> None:
    schedule = Schedule(total, GapRule(kappa=10.0, floor=0.01))
    state, out = schedule.init(), []
    for _ in range(total):
        state = schedule.step(state, 5.0)
        out.append(state.factor)
    if total > 7:
        assert state.handover is not None
        assert state.handover <= max(math.ceil(0.4 * total), math.ceil(math.log2(100)))
    assert all(after <= 2.0 * before for before, after in itertools.pairwise(out))


def test_a_flat_loss_is_no_deadlock() -> None:
    out = states(Schedule(1000, GapRule(kappa=65280, target_loss=0.0)), [9.0] * 1000)
    assert out[-1].handover == 140  # seven doublings, after two stretches of a hundredth of the run each
    assert [event.reason for event in out[-1].events if event.step == 20] == ["deadlock: rate raised"]


def test_without_exit_and_deadline_a_deadlock_is_the_papers() -> None:
    rule = GapRule(kappa=65280, target_loss=0.0, deadlock_exit=False, max_warmup=None)
    out = states(Schedule(1000, rule), [9.0] * 1000)
    assert out[-1].handover is None
    assert max(state.factor for state in out) == pytest.approx(0.01)
    assert {state.base for state in out[7:]} == {1.0}


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_a_user_says_when_warm_up_must_end(share: float) -> None:
    losses: Losses = [11.0 - 0.001 * t for t in range(500)]
    rule = GapRule(kappa=65280, target_loss=0.0, max_warmup=share, deadlock_exit=False)
    out = states(Schedule(500, rule), losses)
    assert out[-1].handover == share * 500
    last = [state.factor for state in out[int(share * 500) - 7 : int(share * 500) + 1]]
    assert last[1:] == pytest.approx([2.0**-k for k in range(6, -1, -1)])
    assert out[-1].events[1].reason == "deadline: warm-up ended"


@pytest.mark.parametrize(("rule", "first"), [("gap", 0.01), ("power", 0.01), ("auto", 0.01), ("linear", 1 / 8)])
def test_the_first_step_runs_at_the_rules_own_factor(rule: str, first: float) -> None:
    assert Schedule(TOTAL, RULES[rule]).init().factor == first
    assert Schedule(TOTAL, RULES["none"]).init().handover == 0


# ---------------------------------------------------------------------------------------------------------------- roles


def test_a_published_rule_holds_back_the_hidden_matrices_alone() -> None:
    schedule = Schedule(200, GapRule(kappa=65280, target_loss=-9.0, floor=0.02))
    losses: Losses = [11.0 * 0.99**t for t in range(200)]
    out = states(schedule, losses)
    assert [state.base for state in out[:8]] == pytest.approx([0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0])
    ended = out[-1].handover
    assert ended is not None
    assert {state.base for state in out[6:ended]} == {1.0}
    assert out[40].factor < 0.1
    assert [state.factor for state in out[ended:]] == [state.base for state in out[ended:]]
    by_role = [schedule.factor_of(out[40], role) for role in ("hidden", None, "embedding", "head", "other")]
    assert by_role == [out[40].factor] * 2 + [1.0] * 3


def test_with_evidence_the_others_start_at_the_peak() -> None:
    schedule = Schedule(200, GapRule(kappa=65280, target_loss=-9.0))
    for state in (schedule.first(schedule.init(), 11.0), schedule.first(schedule.init())):
        assert [state.factor, state.base] == pytest.approx([0.01, 1.0])


def test_a_rule_may_govern_everything() -> None:
    schedule = Schedule(200, GapRule(kappa=65280, target_loss=-9.0, roles="all"))
    out = states(schedule, [11.0 - 0.05 * t for t in range(200)], known=True)
    assert all(state.factor == state.base for state in out)
    assert schedule.factor_of(out[20], "head") == out[20].factor < 0.1


def test_the_guard_holds_for_both() -> None:
    losses: Losses = [5.0 + 0.1 * max(0, t - 30) for t in range(60)]
    state = states(Schedule(200), losses, known=True)[-1]
    assert state.factor == state.base < 1.0


# --------------------------------------------------------------------------------------------------------------- events


def test_what_it_did_is_said() -> None:
    losses: Losses = [*[5.0] * 40, *[5.0 + 0.2 * t for t in range(10)], *[4.0 - 0.001 * t for t in range(150)]]
    state = states(Schedule(200), losses, known=True)[-1]
    said = [(event.step, event.reason, event.role) for event in state.events]
    assert [reason for _, reason, _ in said] == [
        "first loss seen", "loss rose: rate halved", "rate recovered", "decay began"
    ]  # fmt: skip
    assert said[0][0] == 0
    assert 40 < said[1][0] < 50
    assert said[3][0] == 120
    first, rose = state.events[:2]
    assert (first.loss, first.before, first.after) == (5.0, 0.01, 1.0)
    assert (rose.loss, rose.before, rose.after) == (losses[said[1][0] - 1], 1.0, 0.5)
    assert str(first) == "step 0, loss 5: first loss seen, factor 1"
    assert str(Event(7, None, 0.5, 0.5, "extended", "hidden")) == "step 7: extended (hidden weights), factor at 0.5"


@no_warning
@given(losses=any_losses)
def test_promise_9_no_step_in_the_factor_is_unsaid(losses: Losses) -> None:
    for rule in ("auto", "gap-given", "linear"):  # the others follow an estimate, or the loss itself
        schedule = Schedule(TOTAL, RULES[rule], "constant")
        out = states(schedule, positive(losses, rule), known=True)
        for before, after in itertools.pairwise(out):
            if after.factor < before.factor:
                assert any(event.step == after.step for event in after.events)
        assert len(out[-1].events) <= MOST_EVENTS
        assert {event.reason for event in out[-1].events} <= set(REASONS)


def test_events_are_bounded() -> None:
    schedule = Schedule(10_000)
    state = schedule.init()
    for total in range(10_001, 10_101):
        state = schedule.extend(state, total)
    assert len(state.events) == MOST_EVENTS
    assert state.events[-1].reason == "extended"


def test_a_loss_that_says_nothing_is_said_once() -> None:
    losses: Losses = [0.02 * (1.0 - math.exp(-t / 300)) for t in range(1000)]
    with pytest.warns(UserWarning, match="rising whatever the learning rate.*rule='linear' uses no losses") as seen:
        state = states(Schedule(1000), losses, known=True)[-1]
    assert len(seen) == 1
    assert [event.reason for event in state.events].count("loss rises at any rate: guard off") == 1


def test_steps_past_the_end_are_named_once_and_change_nothing() -> None:
    schedule = Schedule(20, LinearRule(4))
    state = states(schedule, [3.0] * 20)[-1]
    with pytest.warns(
        UserWarning, match=r"20 steps are over, and another was made.*total_iters, or call extend"
    ) as seen:
        after = [state := schedule.step(state, 3.0) for _ in range(5)]
    assert len(seen) == 1
    assert {one.factor for one in after} == {states(schedule, [3.0] * 19)[-1].factor}


@pytest.mark.parametrize("loss", [3.0, math.nan, None])
def test_a_linear_warm_up_then_a_cosine(loss: float | None) -> None:
    out = factors(Schedule(20, LinearRule(4)), [loss] * 20)
    assert out[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert out[4:20] == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 16)) for k in range(16)])


# ------------------------------------------------------------------------------------------------------ longer, shorter


@pytest.mark.parametrize("name", decay.NAMES)
@pytest.mark.parametrize("rule", ["auto", "gap", "linear"])
@pytest.mark.parametrize("at", [0, 3, 20, 40, 90])
def test_a_run_is_extended_without_a_step_in_the_rate(name: str, rule: str, at: int) -> None:
    schedule = Schedule(100, RULES[rule], name)
    losses: Losses = [8.0 * 0.97**t for t in range(400)]
    state = states(schedule, losses[:at])[-1]
    for total in (400, at + 5, 101):
        after = schedule.extend(state, total)
        assert (after.factor, after.base, after.total_iters) == (state.factor, state.base, total)
        assert after.events[-1] == Event(at, None, state.factor, state.factor, "extended")
    longer = schedule.extend(state, 400)
    out = [longer := schedule.step(longer, loss) for loss in losses[at:]]
    assert all(b.factor >= 0.75 * a.factor for a, b in itertools.pairwise(out[:-20]))
    end = {"cosine": 1e-3, "linear": 0.02, "wsd": 0.1, "inverse-sqrt": 0.11, "constant": 1.0}[name]
    assert out[-1].factor <= end
    assert schedule.from_dict(json.loads(json.dumps(schedule.to_dict(longer)))) == longer


def test_an_extended_decay_is_the_rest_of_the_curve_stretched() -> None:
    schedule = Schedule(100, LinearRule(0), "linear")
    state = states(schedule, [1.0] * 50)[-1]
    longer = schedule.extend(state, 150)
    out = []
    for _ in range(100):
        out.append(longer.factor)
        longer = schedule.step(longer, 1.0)
    assert out == pytest.approx([0.5 - 0.005 * k for k in range(100)])


def test_extended_before_the_decay_the_peak_is_held_for_its_share_of_the_new_length() -> None:
    schedule = Schedule(100)
    state = states(schedule, [5.0] * 30)[-1]
    assert (schedule.extend(state, 1000).decay_start, schedule.extend(state, 50).decay_start) == (600, 30)
    early = schedule.extend(schedule.init(), 1000)
    assert (early.hold_until, early.decay_start) == (600, None)


def test_a_low_peak_is_held_longer() -> None:
    schedule = Schedule(100)
    state = states(schedule, [5.0] * 59)[-1]
    longer = schedule.hold_on(state)
    assert (longer.decay_start, longer.events[-1].reason) == (80, "peak is low: held longer")
    assert schedule.hold_on(longer) is longer
    assert schedule.from_dict(schedule.to_dict(longer)) == longer
    out = [longer.factor]
    for _ in range(41):
        longer = schedule.step(longer, 5.0)
        out.append(longer.factor)
    assert out[:22] == [1.0] * 22
    assert out[22:] == pytest.approx([0.5 * (1.0 + math.cos(math.pi * k / 20)) for k in range(1, 20)] + out[-1:])
    assert schedule.extend(schedule.hold_on(state), 1000).decay_start == 800
    before = schedule.hold_on(schedule.init())
    assert (before.hold_until, schedule.first(before, 5.0).decay_start) == (80, 80)


@pytest.mark.parametrize("rule", [SpectralRule(hold=0.6), LinearRule(10)])
def test_a_hold_that_was_given_is_not_made_longer(rule: Any) -> None:
    schedule = Schedule(100, rule)
    state = states(schedule, [5.0] * 59)[-1]
    assert schedule.hold_on(state) is state


@pytest.mark.parametrize("decay", ["cosine", "constant"])
def test_a_decay_that_has_begun_or_never_comes_is_not_put_off(decay: str) -> None:
    schedule = Schedule(100, decay=decay)
    state = states(schedule, [5.0] * 61)[-1]
    assert schedule.hold_on(state) is state


def test_extended_near_its_deadline_a_warm_up_keeps_what_it_has_reached() -> None:
    schedule = Schedule(100, GapRule(kappa=65280, target_loss=-50.0, deadlock_exit=False))
    state = states(schedule, [9.0 - 0.01 * t for t in range(38)])[-1]
    assert state.factor == 0.25
    longer = schedule.extend(state, 1000)
    assert (longer.deadline, schedule.step(longer, 8.0).factor) == (400, 0.25)


@pytest.mark.parametrize("name", decay.NAMES)
@pytest.mark.parametrize(("rule", "at"), [("auto", 20), ("auto", 70), ("gap", 20), ("auto", 3)])
def test_it_decays_now(name: str, rule: str, at: int) -> None:
    schedule = Schedule(100, RULES[rule], name)
    state = states(schedule, [5.0 - 0.01 * t for t in range(at)])[-1]
    now = schedule.decay_now(state, 20)
    assert (now.factor, now.phase, now.total_iters) == (state.factor, "decay", at + 20)
    assert now.events[-1] == Event(at, None, state.factor, state.factor, "decay moved up")
    out = []
    for _ in range(20):
        out.append(now.factor)
        now = schedule.step(now, 4.0)
    assert out == sorted(out, reverse=True)
    if name == "inverse-sqrt":
        assert out[-1] < 0.8 * out[0]
    else:
        assert out[-1] < 0.11 * out[0]
        assert out[1] < out[0]  # a plateau of the decay is over


def test_a_constant_rate_stays_until_decay_now() -> None:
    schedule = Schedule(100, decay="constant")
    state = states(schedule, [5.0 - 0.01 * t for t in range(90)], known=True)[-1]
    assert (state.factor, state.phase, state.decay_start) == (1.0, "stable", None)
    assert [event.reason for event in state.events] == ["first loss seen"]


def test_decay_now_takes_the_rest_of_a_decay_that_has_begun() -> None:
    schedule = Schedule(100, LinearRule(0), "wsd")
    state = states(schedule, [1.0] * 90)[-1]
    assert state.factor == pytest.approx(0.5)
    now = schedule.decay_now(state, 5)
    out = []
    for _ in range(5):
        out.append(now.factor)
        now = schedule.step(now, 1.0)
    assert out == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1])
    assert now.decay_start == state.decay_start


@pytest.mark.parametrize("name", decay.NAMES)
def test_a_state_of_another_length_goes_on(name: str) -> None:
    short, long = Schedule(100, SpectralRule(), name), Schedule(200, SpectralRule(), name)
    state = states(short, [2.0 * 0.97**t for t in range(70)])[-1]
    loaded = long.from_dict(short.to_dict(state))
    assert loaded == short.extend(state, 200)
    longer = short.extend(state, 300)
    assert short.from_dict(short.to_dict(longer)) == longer  # its own length is no other
    with pytest.raises(ValueError, match="total_iters must lie above the 70 steps made, got 60"):
        Schedule(60, SpectralRule(), name).from_dict(short.to_dict(state))


@pytest.mark.parametrize("name", decay.NAMES)
@pytest.mark.parametrize("rule", [*NAMES, "linear(iters=30)"])
@pytest.mark.parametrize("at", [4, 60])
@pytest.mark.parametrize("total", [90, 300])
def test_a_rule_by_name_goes_on_over_another_length(name: str, rule: str, at: int, total: int) -> None:
    def schedule(steps: int) -> Schedule:
        return Schedule(steps, by_name(rule, steps, kappa=lambda: 300.0), name)

    first, other = schedule(100), schedule(total)
    losses = [5.0 * 0.99**t for t in range(at)]
    state = first.first(first.init(), losses[0])
    for loss in losses:
        state = first.step(state, loss)
    data = json.loads(json.dumps(first.to_dict(state)))
    loaded = other.from_dict(data)
    assert loaded == first.extend(state, total)  # as in the run itself
    assert (loaded.step, loaded.total_iters, loaded.factor) == (at, total, state.factor)
    again = other.from_dict(json.loads(json.dumps(other.to_dict(loaded))))
    last = loaded
    for t in range(at, total):
        now, again = other.step(last, 5.0 * 0.99**t), other.step(again, 5.0 * 0.99**t)
        assert now == again
        assert 0.0 < now.factor <= 2.0 * last.factor
        last = now
    assert last.phase == ("stable" if name == "constant" else "decay")


@pytest.mark.parametrize(("total", "ends"), [(200, 20), (50, 6)])
def test_a_line_over_a_share_of_the_run_follows_its_length(total: int, ends: int) -> None:
    short = Schedule(100, "linear")
    state = states(short, [1.0] * 5)[-1]
    longer = short.extend(state, total)
    line = [longer.factor]
    while longer.phase == "warmup":
        longer = short.step(longer, 1.0)
        line.append(longer.factor)
    assert longer.step == ends
    assert line == pytest.approx([state.factor + (1.0 - state.factor) * k / (ends - 5) for k in range(ends - 4)])


def test_a_rule_may_be_named() -> None:
    assert Schedule(100, ANY("loss-ratio(level=4.0)")) == Schedule(100, LossRatioRule(level=4.0))


def test_promise_8_bad_lengths_are_named() -> None:
    schedule = Schedule(100)
    state = states(schedule, [5.0] * 30)[-1]
    with pytest.raises(ValueError, match="total_iters must lie above the 30 steps made, got 30"):
        schedule.extend(state, 30)
    with pytest.raises(ValueError, match="total_iters must be a whole number"):
        schedule.extend(state, ANY(50.5))
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        schedule.decay_now(state, 0)
    with pytest.raises(ValueError, match="first is for the time before the first step, and 30 were made"):
        schedule.first(state, 5.0)
    with pytest.raises(ValueError, match="the first loss must be finite, got nan"):
        schedule.first(schedule.init(), math.nan)


# --------------------------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("rule", RULES)
def test_promise_4_a_state_comes_back_as_json_at_every_step(rule: str) -> None:
    schedule = Schedule(TOTAL, RULES[rule])
    losses = [2.0 + 6.0 * math.exp(-t / 10) for t in range(TOTAL)]
    state = schedule.init()
    for t, loss in enumerate(losses):
        revived = schedule.from_dict(json.loads(json.dumps(schedule.to_dict(state))))
        assert revived == state
        if t % 7 == 0:
            ours, theirs = state, revived
            for later in losses[t:]:
                ours, theirs = schedule.step(ours, later), schedule.step(theirs, later)
            assert ours == theirs
        state = schedule.step(state, loss)


def only_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and only_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(only_plain(item) for item in value)
    return value is None or type(value) in (int, float, str, bool)


def sizes(value: Any) -> Any:
    if isinstance(value, tuple):
        return [sizes(item) for item in value]
    return type(value)


@pytest.mark.parametrize("rule", RULES)
def test_promise_6_a_states_dict_is_plain_finite_and_of_fixed_size(rule: str) -> None:
    schedule = Schedule(TOTAL, RULES[rule], decay.linear(0.1))
    out = states(schedule, [math.nan, *[9.0 - 0.1 * t for t in range(TOTAL - 1)]])
    for state in out:
        data = schedule.to_dict(state)
        assert only_plain(data)
        assert "NaN" not in json.dumps({**data["state"], "events": []})
        assert "Infinity" not in json.dumps({**data["state"], "events": []})
        assert sizes(state._replace(events=())) == sizes(out[0]._replace(events=()))


def test_promise_6_a_state_that_does_not_fit_is_refused() -> None:
    schedule = Schedule(TOTAL, GapRule(kappa=10.0))
    data = schedule.to_dict(schedule.init())
    with pytest.raises(ValueError, match=r"rule: saved .*'floor': 0.01.*here .*'floor': 0.1"):
        Schedule(TOTAL, GapRule(kappa=10.0, floor=0.1)).from_dict(data)
    with pytest.raises(ValueError, match="other settings"):
        Schedule(TOTAL, GapRule(kappa=10.0), decay.linear(0.1)).from_dict(data)
    with pytest.raises(ValueError, match="version 99 and this warmgap reads versions 1 and 2"):
        schedule.from_dict({**data, "version": 99})
    with pytest.raises(ValueError, match="it has no version"):
        schedule.from_dict({"step": 3})
    with pytest.raises(ValueError, match="its config is None"):
        schedule.from_dict({**data, "config": None})
    with pytest.raises(ValueError, match="damaged or was edited"):
        schedule.from_dict({**data, "state": {**data["state"], "step": "three"}})
    with pytest.raises(ValueError, match=r"got 7\.0, 0.01 and 0: this state is damaged"):
        schedule.from_dict({**data, "state": {**data["state"], "factor": 7.0}})
    with pytest.raises(ValueError, match="it needs the fields"):
        schedule.from_dict({**data, "state": {key: x for key, x in data["state"].items() if key != "factor"}})
    with pytest.raises(ValueError, match="this is not a GapState"):
        schedule.from_dict({**data, "state": {**data["state"], "rule": {"factor": 0.5}}})


@pytest.mark.parametrize("rule", [GapRule(kappa=10.0, target_loss=3.0), LossRatioRule()])
def test_no_loss_can_stop_a_run_that_is_past_its_warm_up(rule: Rule[Any]) -> None:
    state = states(Schedule(TOTAL, rule), [None] * 30 + [-2.0] * 30)[-1]
    assert state.phase == "decay"


@pytest.mark.parametrize("name", decay.NAMES)
def test_a_schedule_can_be_pickled(name: str) -> None:
    schedule = Schedule(TOTAL, RULES["gap"], name)
    copied = pickle.loads(pickle.dumps(schedule))  # noqa: S301
    assert copied == schedule
    assert factors(copied, [3.0] * 60) == factors(schedule, [3.0] * 60)


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
        (lambda: GapRule(kappa=1.0, max_warmup=1.5), "max_warmup must lie strictly"),
        (lambda: Schedule(10, ANY("square")), "rule must be one of 'auto'"),
        (lambda: Schedule(10, ANY(3)), "rule must be a rule of warmgap.rules or its name, got 3"),
        (lambda: LinearRule(-1), "iters must be at least 0"),
        (lambda: GapRule(kappa=0.0), "kappa must be above 0"),
        (lambda: GapRule(kappa=1.0, floor=2.0), "floor must lie strictly"),
        (lambda: GapRule(kappa=1.0, target_loss=ANY("low")), "target_loss must be a number"),
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


def test_a_loss_that_swings_by_itself_is_named() -> None:
    schedule = Schedule(1000)
    state = schedule.first(schedule.init(), 2.0)
    losses = [2.0 + math.sin(2.0 * math.pi * step / 300.0) + 0.1 * math.sin(7.0 * step) for step in range(1000)]
    with pytest.warns(UserWarning, match="risen 4 times and come down again") as record:
        functools.reduce(schedule.step, losses, state)
    assert len(record) == 1
    assert record[0].filename == __file__
