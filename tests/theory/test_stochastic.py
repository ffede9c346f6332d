import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmgap.theory import problems, stochastic

START = np.array([[0.5, -0.3], [0.2, 0.4]])


@settings(max_examples=10)
@given(
    norm=st.sampled_from(["frobenius", "max", "spectral"]),
    seed=st.integers(0, 999),
    sigma=st.floats(0.005, 0.03),
    decay=st.booleans(),
)
def test_quadratics(norm: str, seed: int, sigma: float, decay: bool) -> None:
    problem = problems.quadratic(norm, (2, 2))
    x = np.random.default_rng(seed).standard_normal((2, 2))
    x *= 0.9 / problem.norm.norm(x)
    eps = problem.value(x) / 3.0
    distance, lam = (None, 1.0) if decay else (1.1, 0.0)
    assert stochastic.check(problem, x, eps, sigma, seeds=2, distance=distance, weight_decay=lam).holds


def test_the_constants_written_out() -> None:
    problem = problems.quadratic("max", (2, 2))
    c, steps = stochastic.bound(problem, START, 0.1, 0.6, 0.05)
    assert c == pytest.approx(0.1**2 / (576 * 0.6**2 * 4 * 0.05**2))
    gap = problem.value(START)
    assert steps == pytest.approx(8 * 0.36 / c * 4 * (1 / 0.1 - 1 / gap) + 14.4 * 0.36 * 4 / 0.1)
    assert stochastic.bound(problem, START, 0.1, 0.6, 1e-6)[0] == 1 / 18


def test_more_noise_than_assumed_is_found() -> None:
    problem = problems.quadratic("frobenius", (2, 2))
    assert stochastic.check(problem, START, 0.05, 0.05, distance=1.0, seeds=1).holds
    assert not stochastic.check(problem, START, 0.05, 0.05, distance=1.0, seeds=1, noise=0.06).holds


def test_what_momentum_lags_is_within_a_tenth_of_its_bound() -> None:
    problem = problems.quadratic("frobenius", (2, 2))
    assert stochastic.check(problem, START, 0.05, 0.05, distance=1.0, seeds=1, drift_notch=1.05).holds
    assert not stochastic.check(problem, START, 0.05, 0.05, distance=1.0, seeds=1, drift_notch=1.12).holds


def test_a_descent_2_3_times_as_strong_fails_on_a_cone() -> None:
    cone, start = problems.huber(2), np.array([3.0, -4.0])
    assert stochastic.check(cone, start, 2.0, 0.1, distance=5.1, seeds=1).holds
    assert not stochastic.check(cone, start, 2.0, 0.1, distance=5.1, seeds=1, notch=2.3).holds


def test_the_steps_go_with_eps_to_the_power_minus_three() -> None:
    problem, x = problems.quadratic("frobenius", (5,)), np.random.default_rng(0).standard_normal(5)
    x *= 1.6 / np.linalg.norm(x)
    hits = [stochastic.check(problem, x, eps, 0.5, distance=2.0, seeds=1).measured for eps in (0.4, 0.2)]
    assert hits == pytest.approx([7100, 55076], rel=1e-3)
    assert np.log2(hits[1] / hits[0]) == pytest.approx(2.955, abs=0.005)


def test_a_distance_that_is_not_kept_to_is_found() -> None:
    assert not stochastic.check(problems.quadratic("max", (2, 2)), START, 0.1, 0.03, distance=0.4, seeds=1).holds


def test_bad_arguments() -> None:
    quadratic, barrier = problems.quadratic("max", (2, 2)), problems.barrier("max", (2, 2), power=1)
    with pytest.raises(ValueError, match="either distance or weight_decay"):
        stochastic.check(quadratic, START, 0.1, 0.1)
    with pytest.raises(ValueError, match="either distance or weight_decay"):
        stochastic.check(quadratic, START, 0.1, 0.1, distance=1.0, weight_decay=1.0)
    with pytest.raises(ValueError, match="rho <= 2"):
        stochastic.check(barrier, START, 0.1, 0.1, distance=1.0)
    with pytest.raises(ValueError, match="seeds"):
        stochastic.check(quadratic, START, 0.1, 0.1, distance=1.0, seeds=0)
