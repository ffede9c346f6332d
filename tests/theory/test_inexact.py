import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmgap.theory import inexact, problems


@given(seed=st.integers(0, 999), delta=st.floats(0.005, 0.03), norm=st.sampled_from(["frobenius", "max"]))
def test_cosh_and_the_star_convex_problem(seed: int, delta: float, norm: str) -> None:
    x = np.random.default_rng(seed).uniform(-2.0, 2.0, 2) + np.array([0.5, 0.0])
    for problem in (problems.cosh(norm, (2,)), problems.star(norm)):
        distance = 1.2 * problem.norm.norm(x) if norm == "frobenius" else problem.distance(x)
        if problem.value(x) > 4.0 * distance * delta:
            assert inexact.check(problem, x, delta, distance=distance).holds


@given(seed=st.integers(0, 999), delta=st.floats(0.01, 2.0), norm=st.sampled_from(["frobenius", "max"]))
def test_the_error_has_the_dual_norm_it_should_and_turns_the_direction(seed: int, delta: float, norm: str) -> None:
    problem = problems.cosh(norm, (4,))
    g = np.random.default_rng(seed).standard_normal(4)
    error = inexact.worst_error(problem, g, delta)
    assert problem.norm.dual(error) <= delta * (1 + 1e-9)
    straight, turned = (np.vdot(g, problem.norm.lmo(h)) for h in (g, g + error))
    assert turned >= straight - 1e-12
    assert turned <= -problem.norm.dual(g) + 2.0 * delta + 1e-9


def test_a_descent_4_1_times_as_strong_fails_on_a_cone() -> None:
    cone, start = problems.huber(2), np.array([12.0, -16.0])
    assert inexact.check(cone, start, 0.2, distance=20.0, notch=3.9).holds
    assert not inexact.check(cone, start, 0.2, distance=20.0, notch=4.1).holds


def test_bad_arguments() -> None:
    x = np.array([0.5, 1.0])
    with pytest.raises(ValueError, match="eps must lie below the initial gap"):
        inexact.check(problems.cosh("max", (2,)), x, 9.0)
    with pytest.raises(ValueError, match="delta must be above 0"):
        inexact.check(problems.cosh("max", (2,)), x, 0.0)
    with pytest.raises(ValueError, match="known in l2 and the max norm"):
        inexact.check(problems.cosh("spectral", (2, 2)), np.eye(2), 0.1)
