import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.smoothness.trajectories import layered, records_of, walk

from warmgap import Schedule
from warmgap.smoothness import Fit, Record, fit_gap_linear, fit_layers, fit_smoothness, layer_dependence

METHODS = ("nnls", "lstsq", "envelope")
constants = st.floats(0.1, 10.0)


def quadratic(gap: float) -> float:
    return 4.0 + 18.0 * gap + 24.0 * gap**2  # T3 of the specifications


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15)
@given(k0=constants, k1=constants, k2=constants)
def test_known_constants_come_back_to_rounding(method: Any, k0: float, k1: float, k2: float) -> None:
    fit = fit_smoothness(records_of(lambda gap: k0 + k1 * gap + k2 * gap**2), method=method, resamples=20)
    assert fit.constants == pytest.approx({"K0": k0, "K1": k1, "Krho": k2}, rel=1e-6)
    assert fit.r2 == pytest.approx(1.0)
    assert fit.violations == 0.0
    for name, (low, high) in fit.intervals.items():
        assert low <= fit.constants[name] <= high
        assert high - low < 1e-5 * fit.constants[name]
    assert fit.trend.verdict == "rises"
    assert fit.diagnosis.informative


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rho", [0.5, 1.5, 3.0])
def test_another_exponent_is_found_by_a_search(method: Any, rho: float) -> None:
    fit = fit_smoothness(records_of(lambda gap: 2.0 + 5.0 * gap**rho), rho="search", method=method, resamples=20)
    bound = np.array([fit(record.gap) for record in records_of(quadratic)])
    truth = np.array([2.0 + 5.0 * record.gap**rho for record in records_of(quadratic)])
    assert fit.rho == fit.constants["rho"]
    np.testing.assert_allclose(bound, truth, rtol=1e-3)


@pytest.mark.parametrize("rho", [3, 3.0, np.int64(3), np.float32(3.0)])
def test_a_given_exponent_is_used(rho: Any) -> None:
    fit = fit_smoothness(records_of(lambda gap: 2.0 + 5.0 * gap**3), rho=rho, resamples=20)
    assert fit(2.0) == pytest.approx(42.0)
    assert fit.constants == pytest.approx({"K0": 2.0, "K1": 0.0, "Krho": 5.0}, abs=1e-8)
    assert fit.rho == 3.0


@pytest.mark.parametrize("method", ["nnls", "lstsq"])
def test_with_noise_the_truth_lies_in_the_intervals(method: Any) -> None:
    inside = []
    for seed in range(40):
        fit = fit_gap_linear(records_of(lambda gap: 3.0 + 2.0 * gap, 120, noise=0.1, seed=seed), method=method)
        for name, truth in (("H0", 3.0), ("H1", 2.0)):
            low, high = fit.intervals[name]
            inside.append(low <= truth <= high)
    assert 0.85 <= np.mean(inside) <= 0.99


@pytest.mark.parametrize("method", ["nnls", "lstsq"])
def test_with_noise_all_three_constants_lie_in_the_intervals(method: Any) -> None:
    inside = []
    for seed in range(10):
        fit = fit_smoothness(records_of(quadratic, 200, noise=0.02, seed=seed), method=method, resamples=60)
        for name, truth in (("K0", 4.0), ("K1", 18.0), ("Krho", 24.0)):
            low, high = fit.intervals[name]
            inside.append(low <= truth <= high)
        low, high = fit.intervals["Krho"]
        assert high - low < 0.3 * 24.0
    assert np.mean(inside) >= 0.85


def test_intervals_hold_where_neighbours_are_alike() -> None:
    # Resampling points one by one, as if they were independent, covers the truth in half of these.
    inside = []
    for seed in range(30):
        generator, error, records = np.random.default_rng(seed), 0.0, []
        for record in records_of(lambda gap: 3.0 + 2.0 * gap, 240):
            error = 0.8 * error + 0.06 * float(generator.standard_normal())
            records.append(dataclasses.replace(record, ratio=record.ratio * (1.0 + error)))
        fit = fit_gap_linear(records, method="lstsq", resamples=60)
        for name, truth in (("H0", 3.0), ("H1", 2.0)):
            low, high = fit.intervals[name]
            inside.append(low <= truth <= high)
    assert np.mean(inside) >= 0.75


def test_an_envelope_covers_its_share() -> None:
    records = records_of(quadratic, 400, noise=0.2)
    for quantile in (0.5, 0.9, 0.99):
        fit = fit_smoothness(records, method="envelope", quantile=quantile, resamples=20)
        assert fit.violations == pytest.approx(1.0 - quantile, abs=0.01)
        assert min(fit.constants.values()) >= 0.0
    assert fit.largest_violation > 0.0


def test_constants_are_kept_from_turning_negative_where_the_assumption_asks_for_it() -> None:
    records = records_of(lambda gap: 10.0 - gap)
    assert fit_gap_linear(records, resamples=20).constants == pytest.approx({"H0": 6.9, "H1": 0.0}, abs=0.5)
    plain = fit_gap_linear(records, method="lstsq", resamples=20)
    assert plain.constants == pytest.approx({"H0": 10.0, "H1": -1.0})
    assert plain.trend.verdict == "falls"
    assert any("opposite" in note for note in plain.notes)
    assert any("Negative, which the assumption does not allow: H1" in note for note in plain.notes)


def test_a_ratio_without_a_trend_is_said_to_have_none() -> None:
    fit = fit_gap_linear(records_of(lambda _: 5.0, noise=0.1), resamples=100)
    assert fit.trend.verdict == "unclear"
    assert any("Unclear from these records" in note for note in fit.notes)


def test_a_constant_ratio_has_no_r2_and_no_violations() -> None:
    fit = fit_gap_linear(records_of(lambda _: 5.0), resamples=20)
    assert math.isnan(fit.r2)
    assert fit.violations == 0.0
    assert fit.constants == pytest.approx({"H0": 5.0, "H1": 0.0})


def test_an_estimate_that_follows_the_step_length_is_called_so() -> None:
    fit = fit_gap_linear(records_of(lambda gap: 3.0 + gap, share=1.2), resamples=20)
    assert not fit.diagnosis.informative
    assert any("only follows the step length" in note for note in fit.notes)


# --------------------------------------------------------------------------------------- functions with known constants


def euclidean(x: Any) -> float:
    return float(np.linalg.norm(x))


def unit(g: Any) -> Any:
    return -g / euclidean(g)


def test_on_a_quadratic_the_ratio_is_its_constant() -> None:
    # T4: any step, however long.
    records = walk(
        lambda x: 0.5 * float(x @ x),
        lambda x: x,
        np.arange(1.0, 6.0),
        length=0.2,
        steps=30,
        norm=euclidean,
        dual=euclidean,
        lmo=unit,
    )
    fit = fit_gap_linear(records, resamples=20)
    assert fit.constants == pytest.approx({"H0": 1.0, "H1": 0.0}, abs=1e-9)


def scalar_walk(loss: Callable[[float], float], slope: Callable[[float], float], start: float) -> list[Record]:
    return walk(
        lambda x: loss(x.item()),
        lambda x: np.array([slope(x.item())]),
        np.array([start]),
        length=1e-4 * start,
        steps=8_000,
        norm=euclidean,
        dual=euclidean,
        lmo=unit,
    )[::40]


def test_on_cosh_and_on_the_barrier_the_known_constants_come_back() -> None:
    cosh = scalar_walk(lambda x: math.cosh(x) - 1.0, math.sinh, 3.0)  # T1: (1, 1)
    fit = fit_gap_linear(cosh, at="middle", resamples=20)
    assert fit.constants == pytest.approx({"H0": 1.0, "H1": 1.0}, rel=1e-4)
    assert fit_gap_linear(cosh, at="start", method="envelope", resamples=20)(1.0) == pytest.approx(2.0, rel=1e-3)

    barrier = scalar_walk(lambda x: (1 - x * x) ** -2 - 1, lambda x: 4 * x * (1 - x * x) ** -3, 0.7)  # T3
    assert all(record.ratio <= 4 + 18 * record.gap + 24 * record.gap**2 for record in barrier)
    envelope = fit_smoothness(barrier, resamples=20, method="envelope", quantile=0.99)
    assert envelope.violations <= 0.015
    gaps = np.array([record.gap for record in barrier])
    np.testing.assert_array_less(envelope(gaps), 1.1 * (4 + 18 * gaps + 24 * gaps**2))
    # near the minimum its bound is tight
    near = [record for record in barrier if record.gap < 0.1]
    fit = fit_smoothness(near, at="middle", method="lstsq", resamples=20)
    assert fit.constants["K0"] == pytest.approx(4.0, rel=1e-2)
    assert fit.constants["K1"] == pytest.approx(18.0, rel=5e-2)


def test_the_bound_of_cosh_in_the_max_norm() -> None:
    # T1 in l_inf: ratio in l1 over length in the max norm is at most d + gap, and reached where all entries are equal.
    records = walk(
        lambda x: float(np.sum(np.cosh(x) - 1)),
        np.sinh,
        np.full(4, 2.5),
        length=1e-4,
        steps=2_000,
        norm=lambda x: float(np.abs(x).max()),
        dual=lambda g: float(np.abs(g).sum()),
        lmo=lambda g: -np.sign(g),
    )[::20]
    fit = fit_gap_linear(records, at="middle", resamples=20)
    assert fit.constants == pytest.approx({"H0": 4.0, "H1": 1.0}, rel=1e-4)


# ----------------------------------------------------------------------------------------------------------- the layers


def test_layers_come_back_and_a_block_that_never_moves_is_named() -> None:
    found = fit_layers(layered(), resamples=20)
    assert found.fits["good"].constants == pytest.approx({"L0": 1.0, "L1": 3.0}, rel=1e-6)
    assert found.fits["good"].block == "good"
    assert found.fits["flat"].constants == pytest.approx({"L0": 5.0, "L1": 0.0}, abs=1e-9)
    assert "step that is not of length zero" in found.skipped["still"]


@pytest.mark.parametrize("method", ["hinge", "nnls", "lstsq", "envelope"])
def test_a_gradient_that_is_nearly_always_zero_keeps_no_other_block_from_its_fit(method: Any) -> None:
    rare = [
        dataclasses.replace(
            record,
            blocks=(
                record.blocks[0],
                dataclasses.replace(record.blocks[1], dual_norm=float(index == 5), ratio=2.0 * (index == 5)),
            ),
        )
        for index, record in enumerate(layered())
    ]
    found = fit_layers(rare, method=method, resamples=60)
    assert set(found.fits) == {"good", "flat"}
    low, high = found.fits["flat"].intervals["L1"]
    assert math.isfinite(low)
    assert math.isfinite(high)


def test_the_hinge_punishes_ratios_above_the_fit() -> None:
    noisy = layered(200, noise=0.3)
    hinge, plain = (fit_layers(noisy, method=method, resamples=20).fits["good"] for method in ("hinge", "nnls"))
    assert hinge.violations < plain.violations
    assert hinge(5.0) > plain(5.0)

    # against a general minimiser of the same sum
    from scipy import optimize

    x = np.array([record.blocks[0].dual_norm for record in noisy])
    y = np.array([record.blocks[0].ratio for record in noisy])

    def badness(c: Any) -> float:
        r = y - c[0] - c[1] * x
        return float(np.sum(r**2) + 5 * np.sum(np.maximum(r, 0) ** 2))

    best = optimize.minimize(badness, (1.0, 1.0), bounds=((0, None), (0, None)), method="L-BFGS-B", tol=1e-12)
    assert badness((hinge.constants["L0"], hinge.constants["L1"])) <= best.fun * (1 + 1e-6)


# -------------------------------------------------------------------------------------------------------- to a schedule


def test_from_a_fit_to_a_step_size_and_a_rule() -> None:
    fit = fit_smoothness(records_of(quadratic), resamples=20)
    assert fit.smoothness.step_size(2.0) == pytest.approx(2.0 / quadratic(2.0))
    rule = fit.rule(target_loss=1.0)
    assert rule.target_loss == 1.0
    assert pytest.approx(24.0) == rule.K2
    linear = fit_gap_linear(records_of(lambda gap: 1.0 + gap), resamples=20)
    assert linear.smoothness.step_size(3.0) == pytest.approx(0.75)


def test_h0_and_h1_become_a_rule() -> None:
    rule = fit_gap_linear(records_of(lambda gap: 1.0 + 2.0 * gap), resamples=20).rule(target_loss=1.0, floor=0.02)
    assert pytest.approx((1.0, 2.0, 0.0)) == (rule.K0, rule.K1, rule.K2)
    # The step size 1/(10 H0 + 20 H1 gap), whose terms are equal at H0/(2 H1).
    assert rule.peak_gap == pytest.approx(0.25)
    state = rule.step(rule.init(1000), 1.0 + 4.0)
    assert state.factor == pytest.approx((20.0 * 1.0) / (10.0 * 1.0 + 20.0 * 2.0 * 4.0))


def test_a_fit_that_makes_no_rule_says_what_to_do() -> None:
    falling = fit_gap_linear(records_of(lambda gap: 10.0 - gap), method="lstsq", resamples=20)
    with pytest.raises(ValueError, match=r"must be positive .*no warm-up follows from it: .*records\[:n\]"):
        falling.rule(target_loss=1.0)
    from_zero = fit_smoothness(records_of(lambda gap: gap + gap**2), resamples=20)
    with pytest.raises(ValueError, match=r"reaches no peak .*Try fit_gap_linear or method='envelope'"):
        replace_constants(from_zero, K0=0.0).rule(target_loss=1.0)
    with pytest.raises(ValueError, match="rho = 2"):
        fit_smoothness(records_of(quadratic), rho=3.0, resamples=20).rule(target_loss=1.0)
    with pytest.raises(ValueError, match=r"Gluon\.from_fits"):
        fit_layers(layered(), resamples=20).fits["good"].rule(target_loss=1.0)


def replace_constants(fit: Fit, **changes: float) -> Fit:
    return dataclasses.replace(fit, constants=fit.constants | changes)


# ------------------------------------------------------------------------------------------------------------ bad input

FITS: tuple[Callable[..., Fit], ...] = (fit_smoothness, fit_gap_linear)


@pytest.mark.parametrize("fit", FITS)
def test_too_few_points(fit: Callable[..., Fit]) -> None:
    with pytest.raises(ValueError, match=r"needs at least \d+ usable records, got 3"):
        fit(records_of(quadratic, 3))
    with pytest.raises(ValueError, match="none of the 0 records can be used"):
        fit([])


@pytest.mark.parametrize("fit", FITS)
def test_constant_losses(fit: Callable[..., Fit]) -> None:
    still = [dataclasses.replace(record, gap=2.0) for record in records_of(quadratic)]
    with pytest.raises(ValueError, match="the gap is 2 in all 60 records"):
        fit(still)


@pytest.mark.parametrize("fit", FITS)
def test_rows_that_are_not_finite_are_left_out_and_counted(fit: Callable[..., Fit]) -> None:
    records = records_of(quadratic)
    broken = [dataclasses.replace(record, ratio=math.nan) for record in records[:3]] + records[3:]
    found = fit(broken, resamples=20)
    assert (found.points, found.dropped) == (57, 3)
    assert any("3 of 60 records were left out" in note for note in found.notes)
    with pytest.raises(ValueError, match="none of the 60 records can be used"):
        fit([dataclasses.replace(record, loss=math.nan, gap=math.nan) for record in records])


@pytest.mark.parametrize("what", ["estimator", "norm"])
@pytest.mark.parametrize("fit", FITS)
def test_records_that_were_measured_in_several_ways(fit: Callable[..., Fit], what: str) -> None:
    records = records_of(quadratic)
    changed: Any = {what: "other"}
    with pytest.raises(ValueError, match=rf"more than one {what} \(.*other.*\)"):
        fit([dataclasses.replace(record, **changed) for record in records[:9]] + records[9:])


@pytest.mark.parametrize("rho", [1e4, -1e4])
def test_an_exponent_that_cannot_be_computed_with(rho: float) -> None:
    records = [
        dataclasses.replace(record, gap=record.gap ** (1 if rho > 0 else -1)) for record in records_of(quadratic)
    ]
    with pytest.raises(ValueError, match="give a rho nearer to 1"):
        fit_smoothness(records, rho=abs(rho))


def test_what_a_search_found_is_doubted_where_it_says_nothing() -> None:
    flat = fit_smoothness(records_of(lambda gap: 10.0 - gap), rho="search", resamples=20)
    assert flat.constants["Krho"] == 0.0
    assert "Krho is 0, so that rho says nothing." in flat.notes
    steep = fit_smoothness(records_of(lambda gap: 2.0 + gap**6), rho="search", resamples=20)
    assert any("the end of what is searched, 0.25 to 4" in note for note in steep.notes)
    assert fit_smoothness(records_of(quadratic), resamples=20).notes == ()


def test_a_target_above_the_losses() -> None:
    with pytest.raises(ValueError, match=r"at or above \d+ of 60 losses"):
        fit_smoothness(records_of(quadratic), target_loss=3.0)
    lower = fit_gap_linear(records_of(lambda gap: 1.0 + gap), target_loss=0.5, resamples=20)
    assert lower.constants == pytest.approx({"H0": 0.5, "H1": 1.0})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": 1.0}, "rho = 1 is the linear term"),
        ({"rho": -1.0}, "rho must be above 0"),
        ({"method": "guess"}, "method must be 'nnls'"),
        ({"quantile": 1.0}, "quantile must lie strictly between"),
        ({"at": "top"}, "at must be 'start'"),
        ({"resamples": 3}, "resamples must be at least 20"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_smoothness(records_of(quadratic), **arguments)


def test_layers_need_blocks() -> None:
    with pytest.raises(ValueError, match="the records have no blocks"):
        fit_layers(records_of(quadratic))


@pytest.mark.parametrize("follows", [0.0, 1.0])
def test_whether_the_layers_constants_follow_the_step_length(follows: float) -> None:
    runs = {}
    for index, rate in enumerate((0.25, 1.0, 4.0)):
        generator = np.random.default_rng(index)
        runs[rate] = [
            dataclasses.replace(
                record,
                blocks=tuple(
                    dataclasses.replace(
                        block,
                        ratio=block.ratio * rate**-follows * (1.0 + 0.1 * float(generator.standard_normal())),
                        step_length=block.step_length * rate,
                    )
                    for block in record.blocks
                ),
            )
            for record in layered()
        ]
    found = layer_dependence(runs)
    assert found.exponents["good"] == pytest.approx(-follows, abs=0.1)
    assert found.interval[0] <= found.exponent <= found.interval[1]
    only = {rate: [dataclasses.replace(r, blocks=r.blocks[:1]) for r in records] for rate, records in runs.items()}
    found = layer_dependence(only)
    assert found.verdict == ("step length" if follows else "function")
    assert ("follow the step length" if follows else "belong to the function") in found.sentence
    with pytest.raises(ValueError, match="at least two rates"):
        layer_dependence({1.0: runs[1.0]})
    with pytest.raises(ValueError, match="no layer has an L1 above 0 at two rates"):
        layer_dependence({1.0: only[1.0], 2.0: only[1.0]})


def test_a_schedule_runs_a_fitted_rule_at_the_rules_own_factors() -> None:
    rule = fit_smoothness(records_of(quadratic), resamples=20).rule(target_loss=1.0)
    schedule = Schedule(2000, rule)
    state, own = schedule.init(), rule.init(2000)
    steps = 0
    while not own.done and steps < 800:
        gap = 8.0 * 0.99**steps
        state, own = schedule.step(state, 1.0 + gap), rule.step(own, 1.0 + gap)
        # From a factor of 1/100 a doubling a step is all that a schedule allows; after eight it is the rule's.
        if steps > 8:
            assert state.factor == pytest.approx(own.factor, rel=1e-12)
        steps += 1
    assert own.factor == state.factor == 1.0
    # Warm-up ends where the averaged gap has come down to sqrt(K0/K2).
    assert gap <= (4.0 / 24.0) ** 0.5 <= gap / 0.99**25
