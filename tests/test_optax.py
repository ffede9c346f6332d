from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.golden.courses import COURSES, TOTAL

from warmgap import Schedule, decay
from warmgap.optax import WarmupSchedule, WarmupState, check_restored, scale_by_warmup
from warmgap.rules import GapRule, LinearRule, LossRatioRule, MeasuredRule, PowerRule, Rule, SpectralRule

RULES: dict[str, Rule[Any]] = {
    "auto": SpectralRule(),
    "gap": GapRule(kappa=300.0),
    "gap-given": GapRule(kappa=65280.0, floor=0.05, target_loss=-9.0),
    "power": PowerRule(roles="all"),
    "loss-ratio": LossRatioRule(level=2.0),
    "loss-ratio-half": LossRatioRule(max_warmup=None),
    "measured": MeasuredRule(K0=9.0, K1=-1.0, K2=1.0, target_loss=-9.0),
    "linear": LinearRule(7),
}
NEEDS_POSITIVE = ("loss-ratio-half",)


def compiled(schedule: WarmupSchedule) -> Any:
    """The factors of each step, and hand-over and gap after it, in one compiled scan."""

    def body(state: WarmupState, loss: Any) -> tuple[WarmupState, Any]:
        after = schedule.update(state, value=loss)
        return after, (schedule(state, value=loss), after.base, after.handover, after.gap)

    return jax.jit(lambda losses: jax.lax.scan(body, schedule.init(), losses))


@functools.cache
def scan_of(name: str, total: int = TOTAL) -> Any:
    return compiled(WarmupSchedule(1.0, total, rule=RULES[name]))


def plain(schedule: Schedule, losses: Any) -> tuple[list[float], list[float], list[int], list[float]]:
    losses = [float(loss) for loss in losses]
    state = schedule.init()
    if math.isfinite(losses[0]):
        state = schedule.first(state, losses[0])
    factors, bases, handovers, gaps = [], [], [], []
    for loss in losses:
        factors.append(state.factor)
        state = schedule.step(state, loss)
        bases.append(state.base)
        handovers.append(-1 if state.handover is None else state.handover)
        gap = schedule.reading(state)[0]
        gaps.append(math.inf if gap is None else gap)
    return factors, bases, handovers, gaps


def assert_same(found: Any, wanted: Any) -> None:
    """The same hand-over at the same step, and factors as float32 has them; a cosine next to its end has few digits."""
    for mine, theirs in zip(found[:2], wanted[:2], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found[2], wanted[2])
    np.testing.assert_allclose(found[3], wanted[3], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:the loss (goes on|has) ris:UserWarning")
@pytest.mark.parametrize("rule", RULES)
def test_it_is_the_core_s_schedule_on_losses_of_every_kind(rule: str) -> None:
    courses = np.array([losses for losses in COURSES.values() if len(losses) == TOTAL], np.float32)
    for losses in courses:
        if rule in NEEDS_POSITIVE and not np.nanmin(losses, initial=1.0) > 0.0:
            continue
        assert_same(scan_of(rule)(losses)[1], plain(Schedule(TOTAL, RULES[rule]), losses))


# A loss that lies on a threshold to the last digit may lie on either side of it in float32: these lie on none.
some = st.floats(0.3, 20.0).map(lambda loss: float(np.float32(loss)) + 0.0009765625)
any_losses = st.lists(
    st.one_of(some, some, some, st.sampled_from([math.nan, math.inf])), min_size=TOTAL, max_size=TOTAL
)


@pytest.mark.filterwarnings("ignore:the loss (goes on|has) ris:UserWarning")
@pytest.mark.parametrize("rule", ["auto", "gap-given", "loss-ratio"])
@settings(max_examples=15)
@given(losses=any_losses)
def test_it_is_the_core_s_schedule_on_any_losses(rule: str, losses: list[float]) -> None:
    single = np.array(losses, np.float32)
    assert_same(scan_of(rule)(single)[1], plain(Schedule(TOTAL, RULES[rule]), single))


def falling(steps: int) -> list[float]:
    noise = np.random.default_rng(0).normal(scale=0.1, size=steps)
    return [float(np.float32(2.0 + 5.0 * math.exp(-5 * t / steps) + noise[t])) for t in range(steps)]


@pytest.mark.parametrize(("rule", "x64"), [("auto", False), ("gap", True)])
def test_it_is_the_core_s_schedule_over_a_long_run(rule: str, x64: bool) -> None:
    losses = [*falling(2000), *[2.0 + 0.02 * t for t in range(40)], *falling(2000)]
    with jax.enable_x64(x64):
        last, found = compiled(WarmupSchedule(1.0, 5000, rule=RULES[rule]))(jnp.asarray(losses, jnp.float32))
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(last)} == {"float32", "int32", "bool"}
    assert_same(found, plain(Schedule(5000, RULES[rule]), losses))


@pytest.mark.filterwarnings("ignore:the loss (goes on|has) ris:UserWarning")
@pytest.mark.parametrize("rule", ["auto", "gap", "power", "loss-ratio-half", "measured", "linear"])
def test_an_ensemble_under_vmap_has_a_schedule_each(rule: str) -> None:
    names = ("falls fast", "falls, noisy", "rises, then falls", "not a number")
    losses = np.array([COURSES[name] for name in names], np.float32)
    schedule = WarmupSchedule(1.0, TOTAL, rule=RULES[rule])
    step: Any = jax.vmap(lambda state, loss: (schedule.update(state, value=loss), schedule(state, value=loss)))
    start = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(names)), schedule.init())
    _, factors = jax.jit(lambda all_losses: jax.lax.scan(lambda s, x: step(s, x), start, all_losses.T))(losses)
    for index in range(len(names)):
        np.testing.assert_allclose(factors[:, index], scan_of(rule)(losses[index])[1][0], rtol=1e-6)


@pytest.mark.parametrize("rule", ["auto", "gap"])
def test_no_number_in_a_state_is_none(rule: str) -> None:
    schedule = WarmupSchedule(1.0, TOTAL, rule=RULES[rule])
    with jax.debug_nans(True):
        state, update = schedule.init(), jax.jit(lambda state, loss: schedule.update(state, value=loss))
        for loss in np.array([math.nan, 3.0, math.inf, 2.0, 2.5], np.float32):
            state = update(state, loss)
            assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(state))


def test_a_gradient_through_the_steps_is_that_of_fixed_factors() -> None:
    schedule = WarmupSchedule(1.0, 30, rule=LossRatioRule(level=1.0))

    def step(rate: Any, carry: Any, _: None) -> Any:
        weight, state = carry
        loss, slope = jax.value_and_grad(jnp.square)(weight)
        factor, state = schedule(state, value=loss), schedule.update(state, value=loss)
        return (weight - rate * factor * slope, state), factor

    def after(rate: Any) -> Any:
        (weight, _), factors = jax.lax.scan(functools.partial(step, rate), (2.0, schedule.init()), None, length=3)
        return weight, factors

    slope, factors = jax.jit(jax.jacfwd(after, has_aux=True))(0.1)
    slopes = [1.0 - 0.2 * float(factor) for factor in factors]
    assert [float(factor) for factor in factors[:2]] == pytest.approx([0.25, 0.25 / slopes[0] ** 2], rel=0.2)
    by_hand = sum(
        -2.0 * float(factor) * 2.0 * math.prod(slopes) / own for factor, own in zip(factors, slopes, strict=True)
    )
    assert float(slope) == pytest.approx(by_hand, rel=1e-5)
    assert float(jax.jit(jax.grad(lambda rate: after(rate)[0]))(0.1)) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("name", decay.NAMES)
def test_decays_are_the_core_s(name: str) -> None:
    losses = [1.0] * 20
    _, (factors, *_) = compiled(WarmupSchedule(1.0, 20, rule=LinearRule(3), decay=name))(jnp.asarray(losses))
    np.testing.assert_allclose(factors, plain(Schedule(20, LinearRule(3), name), losses)[0], rtol=1e-6)


@pytest.mark.parametrize("made", [decay.cosine(0.1), decay.linear(0.2), decay.wsd(0.5, 0.1), decay.inverse_sqrt(0.3)])
def test_so_are_those_with_settings(made: Callable[[float], float]) -> None:
    _, (factors, *_) = compiled(WarmupSchedule(1.0, 20, rule=LinearRule(3), decay=made))(jnp.ones(20))
    np.testing.assert_allclose(factors, plain(Schedule(20, LinearRule(3), made), [1.0] * 20)[0], rtol=1e-6)


def test_a_decay_of_ones_own() -> None:
    schedule = WarmupSchedule(1.0, 20, rule=LinearRule(3), decay=lambda progress: jnp.exp(-progress))
    _, (factors, *_) = compiled(schedule)(jnp.ones(20))
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
    schedule = Schedule(100)
    expected, losses, largest = schedule.init(), list[float](), list[float]()
    for _ in range(100):
        params, state, loss, updates = step(params, state)
        largest.append(float(jnp.abs(updates["b"]).max()))
        expected = expected if losses else schedule.first(expected, float(loss))
        expected = schedule.step(expected, float(loss))
        assert optax.tree.get(state, "factor") == pytest.approx(expected.factor, rel=1e-5)
        losses.append(float(loss))
    assert step._cache_size() == 1  # type: ignore[attr-defined]
    assert losses[-1] < 0.8 * losses[0]
    assert expected.phase == "decay"
    assert largest[0] == pytest.approx(max(largest), rel=0.3)
    assert optax.tree.get(state, "handover") == expected.handover == 0
    assert optax.tree.get(state, "gap") == math.inf


def test_it_is_a_hyperparameter_of_inject_hyperparams() -> None:
    params, loss_of = problem()
    injected = optax.inject_hyperparams(optax.lion)(learning_rate=WarmupSchedule(3e-3, 40), weight_decay=0.1)
    chained = optax.chain(optax.lion(3e-3, weight_decay=0.1), scale_by_warmup(40))
    states, weights = [injected.init(params), chained.init(params)], [params, params]
    schedule = Schedule(40)
    expected = schedule.init()
    for t in range(40):
        loss, grads = jax.value_and_grad(loss_of)(weights[0])
        expected = schedule.first(expected, float(loss)) if t == 0 else expected
        for i, optimizer in enumerate((injected, chained)):
            updates, states[i] = optimizer.update(grads, states[i], weights[i], value=loss)
            weights[i] = optax.apply_updates(weights[i], updates)
        assert states[0].hyperparams["learning_rate"] == pytest.approx(3e-3 * expected.factor, rel=1e-5)
        expected = schedule.step(expected, float(loss))
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
    for stop in (0, 1, 9, 100):
        state = jax.tree.map(jnp.asarray, saved[stop])
        for t in range(stop, TOTAL):
            state = update(state, losses[t])
            assert float(state.factor) == whole[t]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("first", [0.3, 7.3, 1e4, math.nan])
def test_the_first_step_starts_on_its_own_loss_as_the_core_s(rule: str, first: float) -> None:
    losses = [first, *falling(TOTAL - 1)]
    assert_same(scan_of(rule)(jnp.float32(losses))[1], plain(Schedule(TOTAL, RULES[rule]), losses))
    schedule = WarmupSchedule(1.0, TOTAL, rule=RULES[rule])
    assert float(schedule(schedule.init())) == pytest.approx(RULES[rule].init(TOTAL).factor, rel=1e-6)


def test_hyperparameters_of_the_first_step_start_on_its_loss() -> None:
    optimizer = optax.inject_hyperparams(optax.lion)(learning_rate=WarmupSchedule(1.0, TOTAL))
    state = optimizer.init(jnp.ones(3))
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(0.01)
    _, state = optimizer.update(jnp.ones(3), state, jnp.ones(3), value=7.3)
    assert float(state.hyperparams["learning_rate"]) == 1.0


@pytest.mark.parametrize("made", [optax.lion, optax.sgd], ids=["lion", "sgd"])
def test_an_optimizer_that_takes_it_for_a_plain_schedule_says_what_to_write(made: Any) -> None:
    optimizer = made(WarmupSchedule(1e-3, 10))
    with pytest.raises(TypeError, match=r"write optax.inject_hyperparams\(optax.lion\)\(learning_rate=WarmupSchedule"):
        optimizer.update(jnp.ones(3), optimizer.init(jnp.ones(3)), jnp.ones(3))


def test_roles_have_a_factor_each() -> None:
    rule = GapRule(kappa=65280.0, target_loss=-9.0)
    parts = {
        role: optax.chain(optax.sgd(1.0), scale_by_warmup(TOTAL, rule=rule, role=role)) for role in ("hidden", "head")
    }
    optimizer = optax.partition(parts, {"w": "hidden", "out": "head"})
    params = {"w": jnp.ones(()), "out": jnp.ones(())}
    state = optimizer.init(params)
    update = jax.jit(lambda state, loss: optimizer.update(params, state, params, value=loss))
    core = Schedule(TOTAL, rule)
    expected = core.first(core.init(), 9.0)
    for step in range(30):
        loss = 9.0 - 0.1 * step
        updates, state = update(state, loss)
        assert -float(updates["w"]) == pytest.approx(expected.factor, rel=1e-5)
        assert -float(updates["out"]) == expected.base == 1.0
        expected = core.step(expected, loss)
    assert expected.factor < 0.1


def test_several_micro_batches_and_donated_buffers() -> None:
    optimizer = optax.MultiSteps(optax.chain(optax.sgd(1.0), scale_by_warmup(TOTAL, rule="linear")), 2)
    update = jax.jit(lambda state: optimizer.update(jnp.ones(3), state, jnp.ones(3), value=2.0)[1], donate_argnums=0)
    state = optimizer.init(jnp.ones(3))
    for _ in range(6):
        state = update(state)
    assert int(optax.tree.get(state, "step")) == 3


def test_a_run_is_extended_and_decays_now() -> None:
    schedule, core = WarmupSchedule(1.0, 100), Schedule(100)
    update = jax.jit(lambda state, loss: schedule.update(state, value=loss))
    state, expected = schedule.init(), core.first(core.init(), 5.0)
    for step in range(90):
        if step in (20, 60):
            state, expected = schedule.extend(state, 100 + step), core.extend(expected, 100 + step)
            check_restored(state, WarmupSchedule(1.0, 100 + step).init())
        if step == 80:
            state, expected = schedule.decay_now(state, 15), core.decay_now(expected, 15)
        state, expected = update(state, 5.0 - 0.01 * step), core.step(expected, 5.0 - 0.01 * step)
        assert float(state.factor) == pytest.approx(expected.factor, rel=1e-5)
    assert update._cache_size() == 1  # type: ignore[attr-defined]


def test_the_hand_over_of_a_rule_that_has_nothing_to_wait_for_is_the_first_step() -> None:
    schedule = WarmupSchedule(1.0, TOTAL, rule=LossRatioRule(level=9.0))
    assert int(schedule.update(schedule.init(), value=7.3).handover) == 0


CHAINED: dict[str, Any] = {"total_iters": TOTAL, "rule": SpectralRule(), "decay": "cosine"}


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
        (
            {"total_iters": 80},
            r"total_iters differ \(saved for 160 steps, here 80: WarmupSchedule.extend goes on with another length\)",
        ),
        ({"decay": "wsd"}, "settings: decay differ"),
        ({"decay": lambda progress: 1.0 - progress}, "settings: decay differ"),
        ({"rule": SpectralRule(floor=0.02)}, "settings: settings of the rule differ"),
        ({"rule": PowerRule()}, "settings: rule, settings of the rule differ"),
    ],
)
def test_a_restored_state_of_other_settings_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_restored(optimizer_state(), optimizer_state(**settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state._replace(config=state.config.at[0].set(7)), r"version \[7\], this warmgap reads \[2\]"),
        (lambda state: state._replace(config=jnp.zeros((2, 3), jnp.int32)), "version .* this warmgap reads"),
        (lambda state: state._replace(factor=jnp.float32(math.nan)), "damaged or was edited: .* its factor nan"),
        (lambda state: state._replace(step=jnp.int32(-1)), "damaged or was edited: .* step -1"),
        (lambda state: state._replace(parts=()), "damaged or was edited: its arrays are not those of this schedule"),
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
def test_a_first_loss_that_a_rule_can_not_use_is_no_deadlock(rule: Rule[Any]) -> None:
    _, (factors, _, handovers, _) = compiled(WarmupSchedule(1.0, 100, rule=rule))(-jnp.ones(100))
    with pytest.raises(ValueError, match=r"must lie below the losses|needs positive losses"):
        plain(Schedule(100, rule), [-1.0])
    assert handovers[-1] == 40
    assert factors[19] == pytest.approx(0.01)
    assert factors[20] == pytest.approx(0.02)


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
        ({"rule": 3}, "rule must be a rule of warmgap.rules or its name"),
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


def test_a_norm_has_no_effect_any_more() -> None:
    with pytest.warns(DeprecationWarning, match="norm has no effect any more"):
        assert WarmupSchedule(1.0, 100, norm="spectral").schedule.rule == SpectralRule()
