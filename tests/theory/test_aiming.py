from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmgap.theory import Constants, aiming, problems


@pytest.mark.parametrize("sharp", [False, True])
@given(
    shape=st.tuples(st.integers(1, 6)), seed=st.integers(0, 999), size=st.floats(0.5, 3.0), theta=st.floats(0.3, 1.0)
)
def test_cosh(sharp: bool, shape: tuple[int], seed: int, size: float, theta: float) -> None:
    x = np.random.default_rng(seed).standard_normal(shape)
    x *= size / np.linalg.norm(x)
    check = aiming.check(problems.cosh("frobenius", shape), x, 0.05, theta, sharp=sharp)
    assert check.holds
    # What was derived implies what was printed.
    assert check.bound <= 1.0 + (40.0 / 0.05 + 40.0) * size**2 / theta**2


@pytest.mark.parametrize("sharp", [False, True])
@given(seed=st.integers(0, 999), size=st.floats(0.5, 2.5))
def test_a_problem_that_is_not_convex(sharp: bool, seed: int, size: float) -> None:
    x = np.random.default_rng(seed).standard_normal(2)
    assert aiming.check(problems.star("frobenius"), x * size / np.linalg.norm(x), 0.05, sharp=sharp).holds


def test_a_function_that_aims_and_is_not_star_convex() -> None:
    problem, x = problems.wavy(2), np.array([3.0, -4.0])
    away = np.array([2.15, 0.0])
    assert np.vdot(problem.gradient(away), away) < 0.5 * problem.value(away)
    for sharp in (False, True):
        assert aiming.check(problem, x, 1e-2, 0.496, sharp=sharp).holds
        # A theta above the true one is seen in the distances.
        assert not aiming.check(problem, np.array([4.0]), 1e-2, 1.2, sharp=sharp).holds


@pytest.mark.parametrize(("sharp", "notch"), [(False, 1.12), (True, 2.0)])
def test_a_stronger_statement_fails(sharp: bool, notch: float) -> None:
    problem, x = problems.wavy(1), np.array([4.0])
    assert aiming.check(problem, x, 1e-2, 0.496, sharp=sharp, notch=notch - 0.03).holds
    assert not aiming.check(problem, x, 1e-2, 0.496, sharp=sharp, notch=notch).holds


def test_constants_that_are_too_small_are_found() -> None:
    problem = replace(problems.cosh("frobenius", (3,)), constants=Constants(0.02, 0.001))
    assert not aiming.check(problem, np.array([0.5, 1.0, -4.0]), 1e-2).holds


def test_a_function_that_does_not_aim_is_found() -> None:
    assert aiming.check(problems.saturated(), np.array([0.5]), 1e-2).holds
    assert not aiming.check(problems.saturated(), np.array([3.0]), 1e-2).holds


@pytest.mark.parametrize("eps", [0.0, 0.2, 99.0])
def test_eps_lies_below_the_initial_gap(eps: float) -> None:
    problem, start = problems.cosh("frobenius", (1,)), np.array([0.5])
    assert problem.value(start) < 0.2
    with pytest.raises(ValueError, match=r"eps must (lie below the initial gap|be above 0).*got"):
        aiming.check(problem, start, eps)


def test_other_problems_are_refused() -> None:
    for problem in (problems.cosh("max", (2,)), problems.barrier("frobenius", (2,))):
        with pytest.raises(ValueError, match="about l2 and a bound linear in the gap"):
            aiming.check(problem, np.full(2, 0.5), 0.1)
