from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmgap import Schedule, decay
from warmgap.optax import WarmupSchedule, WarmupState, check_restored, scale_by_warmup
from warmgap.rules import GapRule, LinearRule, LossRatioRule, MeasuredRule, PaceRule, PowerRule, Rule

TOTAL = 60

RULES: dict[str, Rule[Any]] = {
    "pace": PaceRule(),
    "pace-spectral": PaceRule.for_norm("spectral", floor=0.005),
    "pace-small": PaceRule(
        floor=0.2, start=0.3, low=0.25, pace=0.9, fallen=0.4, hold=0.1, tolerance=0.5, target_loss=-9.0
    ),
    "gap": GapRule(kappa=300.0),
    "gap-given": GapRule(kappa=65280.0, floor=0.05, target_loss=-9.0),
    "power": PowerRule(),
    "loss-ratio": LossRatioRule(level=2.0),
    "loss-ratio-half": LossRatioRule(),
    "measured": MeasuredRule(K0=9.0, K1=-1.0, K2=1.0, target_loss=-9.0),
    "linear": LinearRule(7),
}
NEEDS_POSITIVE = ("loss-ratio-half",)

# losses of every kind, as float32 like a model's; without those next to 0, which XLA takes for 0 and Python does not
finite = st.floats(-3.0, 20.0, width=32).map(lambda loss: loss if abs(loss) > 1e-30 else 0.0)
trouble = st.sampled_from([math.nan, math.inf, -math.inf])
any_losses = st.lists(st.one_of(finite, finite, finite, trouble), min_size=TOTAL + 5, max_size=TOTAL + 5)


def compiled(schedule: WarmupSchedule) -> Any:
    """The factor of each step, and hand-over and gap after it, in one compiled scan."""

    def body(state: WarmupState, loss: Any) -> tuple[WarmupState, Any]:
        after = schedule.update(state, value=loss)
        return after, (schedule(state, value=loss), after.handover, after.gap)

    return jax.jit(lambda losses: jax.lax.scan(body, schedule.init(), losses))


@functools.cache
def scan_of(name: str, total: int = TOTAL) -> Any:
    return compiled(WarmupSchedule(1.0, total, rule=RULES[name]))


def plain(schedule: Schedule, losses: list[float]) -> tuple[list[float], list[int], list[float]]:
    state = schedule.init()
    if math.isfinite(losses[0]):
        state = schedule.calibrate(state, losses[0])
    factors, handovers, gaps = [], [], []
    for loss in losses:
        factors.append(state.factor)
        state, _ = schedule.step(state, loss)
        handovers.append(-1 if state.handover is None else state.handover)
        gap = schedule.reading(state)[0]
        gaps.append(math.nan if gap is None else gap)
    return factors, handovers, gaps


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=30)
@given(losses=any_losses)
def test_it_is_the_core_s_schedule(rule: str, losses: list[float]) -> None:
    if rule in NEEDS_POSITIVE:
        losses = [abs(loss) + 0.125 for loss in losses]
    _, (factors, handovers, gaps) = scan_of(rule)(jnp.asarray(losses, jnp.float32))
    expected = plain(Schedule(TOTAL, RULES[rule]), losses)
    np.testing.assert_allclose(factors, expected[0], rtol=1e-6)
    np.testing.assert_array_equal(handovers, expected[1])
    np.testing.assert_allclose(gaps, expected[2], rtol=1e-6, atol=1e-6)


def falling(steps: int) -> list[float]:
    noise = np.random.default_rng(0).normal(scale=0.1, size=steps)
    return [float(np.float32(2.0 + 5.0 * math.exp(-5 * t / steps) + noise[t])) for t in range(steps)]


@pytest.mark.parametrize("rule", ["pace", "gap", "power", "loss-ratio-half"])
@pytest.mark.parametrize("x64", [False, True])
def test_it_is_the_core_s_schedule_over_a_long_run(rule: str, x64: bool) -> None:
    losses = falling(2000)
    with jax.enable_x64(x64):
        _, (factors, handovers, _) = compiled(WarmupSchedule(1.0, 2000, rule=RULES[rule]))(jnp.asarray(losses))
    expected = plain(Schedule(2000, RULES[rule]), losses)
    np.testing.assert_allclose(factors, expected[0], rtol=1e-6)
    np.testing.assert_array_equal(handovers, expected[1])


STEPS = np.arange(700)
COURSES: dict[str, Any] = {
    "slow": 8.0 - 2.0 * STEPS / 700,
    "steep": 3.2 + 4.8 * np.exp(-STEPS / 8),
    "long": 3.2 + 4.8 * np.exp(-STEPS / 80),
    "rises twice": 8.0 - 0.01 * STEPS + 1.5 * (STEPS > 100) + 1.5 * (STEPS > 160),
    "bursts": np.where(STEPS < 12, 5.5, 10.0 + np.random.default_rng(4).normal(scale=3.0, size=700)),
    "has learned": 5.0 - 0.001 * STEPS + np.random.default_rng(2).normal(scale=0.2, size=700),
}


@pytest.mark.parametrize("rule", ["pace", "pace-spectral", "pace-small"])
@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_it_is_the_core_s_pace(rule: str, course: str, noise: float) -> None:
    losses = COURSES[course] + np.random.default_rng(3).normal(scale=noise, size=700)
    losses = losses.astype(np.float32)
    _, (factors, handovers, _) = scan_of(rule, 700)(jnp.asarray(losses))
    expected = plain(Schedule(700, RULES[rule]), [float(loss) for loss in losses])
    np.testing.assert_allclose(factors, expected[0], rtol=1e-6)
    np.testing.assert_array_equal(handovers, expected[1])


@pytest.mark.parametrize("loss", [5.545177, 6.9, 0.1])
def test_it_is_the_core_s_schedule_where_the_loss_stays(loss: float) -> None:
    losses = np.full(700, loss, np.float32)
    _, (factors, _, _) = scan_of("pace", 700)(jnp.asarray(losses))
    expected = plain(Schedule(700, PaceRule()), [float(loss) for loss in losses])
    np.testing.assert_allclose(factors, expected[0], rtol=1e-6)


def test_the_default_goes_by_the_norm() -> None:
    assert WarmupSchedule(1.0, 100).schedule.rule == PaceRule()
    assert WarmupSchedule(1.0, 100, norm="spectral").schedule.rule == PaceRule.for_norm("spectral")
    with pytest.raises(ValueError, match="norm must be 'auto' or one of"):
        WarmupSchedule(1.0, 100, rule=PaceRule(), norm="nuclear")


@pytest.mark.parametrize("name", decay.NAMES)
def test_decays_are_the_core_s(name: str) -> None:
    losses = [1.0] * 25
    _, (factors, _, _) = compiled(WarmupSchedule(1.0, 20, rule=LinearRule(3), decay=name))(jnp.asarray(losses))
    np.testing.assert_allclose(factors, plain(Schedule(20, LinearRule(3), name), losses)[0], rtol=1e-6)


def test_a_decay_of_ones_own() -> None:
    schedule = WarmupSchedule(1.0, 20, rule=LinearRule(3), decay=lambda progress: jnp.exp(-progress))
    _, (factors, _, _) = compiled(schedule)(jnp.ones(20))
    np.testing.assert_allclose(factors[3:], np.exp(-np.arange(17) / 17), rtol=1e-6)


def problem() -> tuple[dict[str, jax.Array], Any]:
    params = {"w": jax.random.normal(jax.random.key(0), (8, 4)), "b": jnp.zeros(4)}
    x = jax.random.normal(jax.random.key(1), (64, 8))
    return params, lambda params: jnp.mean((jnp.tanh(x @ params["w"] + params["b"]) - jnp.sin(x[:, :4])) ** 2)


@pytest.mark.parametrize("make", [optax.lion, optax.contrib.muon], ids=["lion", "muon"])
def test_an_optimizer_trains_under_it_and_compiles_once(make: Any) -> None:
    params, loss_of = problem()
    optimizer = optax.chain(make(1e-2, weight_decay=0.1), scale_by_warmup(100))

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state, loss, updates

    state = optimizer.init(params)
    schedule = Schedule(100, PaceRule())
    expected, losses, largest = schedule.init(), list[float](), list[float]()
    for _ in range(100):
        params, state, loss, updates = step(params, state)
        largest.append(float(jnp.abs(updates["b"]).max()))
        expected = expected if losses else schedule.calibrate(expected, float(loss))
        expected, _ = schedule.step(expected, float(loss))
        assert optax.tree.get(state, "factor") == pytest.approx(expected.factor, rel=1e-6)
        losses.append(float(loss))
    assert step._cache_size() == 1  # type: ignore[attr-defined]
    assert losses[-1] < 0.8 * losses[0]
    assert expected.phase == "decay"
    assert largest[0] == pytest.approx(0.25 * max(largest), rel=0.3)
    assert optax.tree.get(state, "handover") == expected.handover
    assert optax.tree.get(state, "gap") == pytest.approx(schedule.reading(expected)[0], rel=1e-5)


def test_it_is_a_hyperparameter_of_inject_hyperparams() -> None:
    params, loss_of = problem()
    injected = optax.inject_hyperparams(optax.lion)(learning_rate=WarmupSchedule(3e-3, 40), weight_decay=0.1)
    chained = optax.chain(optax.lion(3e-3, weight_decay=0.1), scale_by_warmup(40))
    states, weights = [injected.init(params), chained.init(params)], [params, params]
    schedule = Schedule(40, PaceRule())
    expected = schedule.init()
    for t in range(40):
        loss, grads = jax.value_and_grad(loss_of)(weights[0])
        expected = schedule.calibrate(expected, float(loss)) if t == 0 else expected
        for i, optimizer in enumerate((injected, chained)):
            updates, states[i] = optimizer.update(grads, states[i], weights[i], value=loss)
            weights[i] = optax.apply_updates(weights[i], updates)
        assert states[0].hyperparams["learning_rate"] == pytest.approx(3e-3 * expected.factor, rel=1e-6)
        expected, _ = schedule.step(expected, float(loss))
    assert expected.phase == "decay"
    np.testing.assert_allclose(weights[0]["w"], weights[1]["w"], rtol=1e-4)


def test_promise_4_a_state_of_arrays_goes_on_bit_for_bit() -> None:
    schedule = WarmupSchedule(1.0, TOTAL, rule=RULES["gap"])
    update = jax.jit(lambda state, loss: schedule.update(state, value=loss))
    losses = falling(TOTAL)
    state, whole, saved = schedule.init(), [], {}
    for t, loss in enumerate(losses):
        saved[t] = jax.tree.map(np.asarray, state)
        state = update(state, loss)
        whole.append(float(state.factor))
    for stop in (0, 1, 9, 30):
        state = jax.tree.map(jnp.asarray, saved[stop])
        for t in range(stop, TOTAL):
            state = update(state, losses[t])
            assert float(state.factor) == whole[t]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("first", [0.3, 7.3, 1e4, math.nan])
def test_the_first_step_starts_on_its_own_loss_as_after_the_core_s_calibration(rule: str, first: float) -> None:
    losses = [first, *falling(TOTAL - 1)]
    schedule, core = WarmupSchedule(1.0, TOTAL, rule=RULES[rule]), Schedule(TOTAL, RULES[rule])
    state, expected = schedule.init(), core.init()
    if math.isfinite(first):
        expected = core.calibrate(expected, first)
    assert float(schedule(state, value=first)) == pytest.approx(expected.factor, rel=1e-6)
    for loss in losses:
        state = schedule.update(state, value=loss)
        expected, factor = core.step(expected, loss)
        assert float(schedule(state, value=loss)) == float(schedule(state)) == pytest.approx(factor, rel=1e-6)
        assert int(state.handover) == (-1 if expected.handover is None else expected.handover)


def test_hyperparameters_of_the_first_step_start_on_its_loss() -> None:
    optimizer = optax.inject_hyperparams(optax.lion)(learning_rate=WarmupSchedule(1.0, TOTAL))
    state = optimizer.init(jnp.ones(3))
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(0.01)
    _, state = optimizer.update(jnp.ones(3), state, jnp.ones(3), value=7.3)
    assert float(state.hyperparams["learning_rate"]) == 0.25


def test_the_hand_over_of_a_rule_that_has_nothing_to_wait_for_is_the_first_step() -> None:
    schedule = WarmupSchedule(1.0, TOTAL, rule=LossRatioRule(level=9.0))
    assert int(schedule.update(schedule.init(), value=7.3).handover) == 0


CHAINED: dict[str, Any] = {"total_iters": TOTAL, "rule": PaceRule(), "decay": "cosine"}


def optimizer_state(**settings: Any) -> Any:
    optimizer = optax.chain(optax.lion(1e-2), scale_by_warmup(**{**CHAINED, **settings}))
    return optimizer.init({"w": jnp.ones(3)})


def test_a_restored_state_of_the_same_settings_is_taken() -> None:
    check_restored(jax.tree.map(np.asarray, optimizer_state()), optimizer_state())
    own = optax.inject_hyperparams(optax.lion)(learning_rate=WarmupSchedule(1e-3, TOTAL, decay=lambda p: 1.0 - p))
    again = optax.inject_hyperparams(optax.lion)(learning_rate=WarmupSchedule(2e-3, TOTAL, decay=lambda p: 1.0 - p))
    check_restored(own.init(jnp.ones(3)), again.init(jnp.ones(3)))


def test_the_settings_go_through_a_compiled_run() -> None:
    schedule = WarmupSchedule(1.0, TOTAL)
    last, _ = compiled(schedule)(jnp.asarray(falling(TOTAL)))
    check_restored(last, schedule.init())
    with pytest.raises(ValueError, match="other settings: decay differ"):
        check_restored(last, WarmupSchedule(1.0, TOTAL, decay="linear").init())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_iters": 80}, r"total_iters differ \(saved for 60 steps, here 80\)"),
        ({"decay": "wsd"}, "settings: decay differ"),
        ({"decay": lambda progress: 1.0 - progress}, "settings: decay differ"),
        ({"rule": PaceRule(floor=0.02)}, "settings: settings of the rule differ"),
        ({"rule": PowerRule()}, "settings: rule, settings of the rule differ"),
    ],
)
def test_a_restored_state_of_other_settings_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_restored(optimizer_state(), optimizer_state(**settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state._replace(config=state.config.at[0].set(7)), r"version \[7\], this warmgap reads \[1\]"),
        (lambda state: state._replace(config=jnp.zeros((2, 3), jnp.int32)), "version .* this warmgap reads"),
        (lambda state: state._replace(factor=jnp.float32(math.nan)), "damaged or was edited: .* its factor nan"),
        (lambda state: state._replace(step=jnp.int32(-1)), "damaged or was edited: .* step -1"),
        (lambda state: state._replace(rule={}), "damaged or was edited: its arrays are not those of this schedule"),
        (lambda state: jnp.ones(3), "holds 0 WarmupState and the optimizer's own 1: restore into the tree"),
    ],
)
def test_a_damaged_state_is_refused(change: Any, message: str) -> None:
    own = WarmupSchedule(1.0, TOTAL).init()
    with pytest.raises(ValueError, match=message):
        check_restored(change(own), own)


def test_there_must_be_a_warm_up_to_check() -> None:
    plain_state = optax.sgd(1.0).init(jnp.ones(3))
    with pytest.raises(ValueError, match=r"holds 0 WarmupState .* with scale_by_warmup or WarmupSchedule in"):
        check_restored(plain_state, plain_state)


@pytest.mark.parametrize("rule", [PowerRule(target_loss=5.0), GapRule(kappa=9.0, target_loss=5.0), LossRatioRule()])
def test_a_first_loss_that_a_rule_can_not_use_warms_up_by_the_clock(rule: Rule[Any]) -> None:
    _, (factors, handovers, _) = compiled(WarmupSchedule(1.0, TOTAL, rule=rule))(-jnp.ones(TOTAL))
    with pytest.raises(ValueError, match=r"must lie below the losses|needs positive losses"):
        plain(Schedule(TOTAL, rule), [-1.0])
    assert handovers[-1] == 24
    expected = [0.01]
    for step in range(1, 24):
        expected.append(min(2 * expected[-1], step / 24))
    np.testing.assert_allclose(factors[:24], expected, rtol=1e-6)


def test_a_warm_up_by_the_clock_needs_no_value() -> None:
    params, loss_of = problem()
    optimizer = optax.chain(optax.sgd(1.0), scale_by_warmup(10, rule="linear", decay="constant"))
    updates, state = optimizer.update(jax.grad(loss_of)(params), optimizer.init(params), params)
    assert optax.tree.get(state, "factor") == 1.0
    assert updates["w"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "gap"}, r"the gap rule needs the constant of a norm: GapRule\(kappa="),
        ({"rule": "cosine"}, "rule must be one of 'auto'"),
        ({"total_iters": "100", "rule": "linear"}, "total_iters must be a whole number"),
        ({"rule": 3}, "rule must be a rule of warmgap.rules"),
        ({"total_iters": 0}, "total_iters must be at least 1"),
        ({"peak": -1.0}, "peak must be above 0"),
        ({"floor": 2.0}, "floor must lie strictly between 0 and 1"),
        ({"decay": "step"}, "decay must be one of"),
        ({"decay": lambda progress: 0.5 - progress}, "exactly 1 at progress 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WarmupSchedule(**{"peak": 1.0, "total_iters": 100, **arguments})


def test_a_missing_or_odd_value_is_named() -> None:
    schedule = WarmupSchedule(1.0, 10)
    with pytest.raises(ValueError, match=r"needs it: call update\(..., value=loss\)"):
        schedule.update(schedule.init())
    with pytest.raises(ValueError, match=r"must be a scalar, the mean loss of the step, got the shape \(2,\)"):
        schedule.update(schedule.init(), value=jnp.ones(2))
