import dataclasses
import math

import pytest
from tests.smoothness.trajectories import records_of

from warmgap.smoothness import RateDependence, Record, diagnose_step_length, rate_dependence


def curve(gap: float) -> float:
    return 2.0 + gap


@pytest.mark.parametrize(
    ("share", "verdict"),
    [(0.1, "local"), (0.4, "local"), (1.18, "follows the step length"), (2.0, "follows the step length")],
)
def test_the_share_decides(share: float, verdict: str) -> None:
    found = diagnose_step_length(records_of(curve, share=share))
    assert found.share == pytest.approx(share)
    assert found.verdict == verdict
    assert found.informative == (verdict == "local")
    assert verdict in found.sentence or verdict == "local"


def test_a_large_share_that_varies_is_a_mixture() -> None:
    records = [
        dataclasses.replace(record, dual_norm=record.dual_norm * (0.2 + index / 60))
        for index, record in enumerate(records_of(curve, share=1.0))
    ]
    assert diagnose_step_length(records).verdict == "long steps"


@pytest.mark.parametrize("estimator", ["directional", "eigenvalue"])
def test_an_estimate_at_the_point_knows_no_step(estimator: str) -> None:
    found = diagnose_step_length(
        [dataclasses.replace(record, estimator=estimator) for record in records_of(curve, share=1.2)]
    )
    assert found.informative
    assert math.isnan(found.share)
    assert "curvature at the point itself" in found.sentence


def test_without_gradients_nothing_is_claimed() -> None:
    found = diagnose_step_length([dataclasses.replace(record, dual_norm=0.0) for record in records_of(curve)])
    assert math.isnan(found.share)
    assert not found.informative
    assert found.verdict == "unknown"
    assert "the gradient is zero in every record" in found.sentence


def at_rate(rate: float, follows: float) -> list[Record]:
    return [
        dataclasses.replace(record, ratio=record.ratio * rate**-follows, step_length=record.step_length * rate)
        for record in records_of(curve)
    ]


@pytest.mark.parametrize("follows", [0.0, 0.5, 1.0])
def test_the_exponent_of_the_step_length_is_found(follows: float) -> None:
    found = rate_dependence({rate: at_rate(rate, follows) for rate in (0.25, 1.0, 4.0)})
    assert found.exponent == pytest.approx(-follows, abs=1e-9)
    low, high = found.interval
    assert low <= -follows <= high
    assert high - low < 0.05
    assert found.verdict == {0.0: "function", 0.5: "both", 1.0: "step length"}[follows]
    word = {0.0: "belongs to the function", 0.5: "on the function and on", 1.0: "follows the step length"}[follows]
    assert word in found.sentence


def test_the_interval_holds_the_truth_and_says_when_there_is_too_little_to_tell() -> None:
    inside = []
    for seed in range(20):
        runs = {}
        for index, rate in enumerate((0.25, 1.0, 4.0)):
            noisy = records_of(curve, 80, noise=0.3, seed=10 * seed + index)
            runs[rate] = [
                dataclasses.replace(record, ratio=abs(record.ratio) * rate**-0.5, step_length=record.step_length * rate)
                for record in noisy
            ]
        low, high = rate_dependence(runs, resamples=60).interval
        inside.append(low <= -0.5 <= high)
        assert high - low < 0.5
    assert sum(inside) >= 17
    few = {
        rate: [dataclasses.replace(r, step_length=0.01 * rate) for r in records_of(curve, 9, noise=0.5, seed=i)]
        for i, rate in enumerate((1.0, 1.05))
    }
    assert rate_dependence(few, bins=2).verdict == "unclear"


def test_an_exponent_outside_of_both_is_called_neither() -> None:
    assert RateDependence(0.4, 5, (0.3, 0.5)).verdict == "both"
    assert RateDependence(-1.3, 5, (-1.5, -1.1)).verdict == "step length"
    for wide in ((-0.64, 0.65), (-1.2, -0.3), (-1.5, 0.5), (math.nan, math.nan)):
        assert RateDependence(0.1, 2, wide).verdict == "unclear"


def test_runs_that_share_no_gap_are_not_compared() -> None:
    far = [dataclasses.replace(record, gap=record.gap * 1000) for record in at_rate(4.0, 1.0)]
    found = rate_dependence({1.0: at_rate(1.0, 1.0), 4.0: far}, bins=40)
    assert math.isnan(found.exponent)
    assert "share no gap" in found.sentence


def test_steps_of_one_length_say_nothing_of_it() -> None:
    found = rate_dependence({1.0: at_rate(1.0, 0.0), 2.0: at_rate(1.0, 0.0)})
    assert math.isnan(found.exponent)
    assert "of different length" in found.sentence


def test_one_run_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="resamples must be at least 20"):
        rate_dependence({rate: at_rate(rate, 0.0) for rate in (1.0, 4.0)}, resamples=3)
    with pytest.raises(ValueError, match="bins must be at least 1"):
        rate_dependence({rate: at_rate(rate, 0.0) for rate in (1.0, 4.0)}, bins=0)
    with pytest.raises(ValueError, match="at least two rates, got 1"):
        rate_dependence({1.0: at_rate(1.0, 0.0)})
