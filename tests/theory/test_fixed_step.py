import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmgap.theory import fixed_step

constants = st.floats(0.2, 5.0)


@given(H0=constants, H1=constants, w=st.floats(0.3, 4.0))
def test_the_threshold_is_twice_the_distance_over_the_slope(H0: float, H1: float, w: float) -> None:
    problem = fixed_step.cosh_of(H0, H1)
    x = np.array([w])
    expected = 2 * w / float(problem.gradient(x)[0])
    assert fixed_step.threshold(H0, H1, problem.value(x)) == pytest.approx(expected, rel=1e-9)
    h = 1e-5
    curvature = float((problem.gradient(x + h) - problem.gradient(x - h))[0]) / (2 * h)
    assert problem.constants(problem.value(x)) == pytest.approx(curvature, rel=1e-5)


@pytest.mark.parametrize(("w", "steps"), [(2.0, 8), (4.0, 22), (8.0, 678)])
def test_just_below_the_threshold_converges_and_just_above_does_not(w: float, steps: int) -> None:
    problem = fixed_step.cosh_of(1.0, 1.0)
    gap = problem.value(np.array([w]))
    eta = fixed_step.threshold(1.0, 1.0, gap)
    assert fixed_step.run(problem, w, 0.99 * eta, eps=1e-6, steps=2000).steps_to(1e-6) == steps
    above = fixed_step.run(problem, w, 1.01 * eta, eps=1e-6, steps=2000)
    assert above.steps_to(1e-6) == math.inf
    assert above.gaps[-1] == math.inf
    assert fixed_step.check_threshold(1.0, 1.0, w).holds


@settings(max_examples=25)
@given(initial_gap=st.floats(20.0, 200.0), mu=st.floats(0.2, 1.0), eps=st.floats(1e-4, 1.0))
def test_the_steps_that_it_costs(initial_gap: float, mu: float, eps: float) -> None:
    assert fixed_step.check_steps(1.0, 1.0, initial_gap, eps, mu).holds


def test_a_threshold_for_other_constants_is_wrong() -> None:
    problem = fixed_step.cosh_of(2.0, 1.0)
    wrong = fixed_step.threshold(1.0, 1.0, problem.value(np.array([2.0])))
    assert fixed_step.run(problem, 2.0, wrong, eps=1e-6, steps=500).gaps[-1] == math.inf


@pytest.mark.parametrize("H0", [0.5, 2.0])
def test_a_function_of_another_curvature_is_found(H0: float) -> None:
    check = fixed_step.check_threshold(1.0, 1.0, 2.0, problem=fixed_step.cosh_of(H0, 1.0))
    assert not check.holds
    assert (check.measured > check.bound) == (H0 < 1.0)
    assert (check.excess > 0.0) == (H0 > 1.0)


def test_stronger_statements_fail() -> None:
    assert not fixed_step.check_threshold(1.0, 1.0, 4.0, notch=1.01).holds
    assert not fixed_step.check_steps(1.0, 1.0, 100.0, 1e-3, 0.5, notch=1.05).holds


def test_a_step_size_above_the_threshold_needs_fewer_steps() -> None:
    assert fixed_step.check_steps(1.0, 1.0, 100.0, 1e-3, 0.5).holds
    assert not fixed_step.check_steps(1.0, 1.0, 100.0, 1e-3, 0.5, step_size=0.5).holds


def test_what_has_no_threshold_is_refused() -> None:
    with pytest.raises(ValueError, match="eps must lie below the initial gap"):
        fixed_step.check_steps(1.0, 1.0, 100.0, 100.0, 0.5)
    for arguments in ((0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0)):
        with pytest.raises(ValueError, match="must be above 0, got 0"):
            fixed_step.threshold(*arguments)
    with pytest.raises(ValueError, match="initial_gap must be above 0"):
        fixed_step.check_threshold(1.0, 1.0, 0.0)


def test_a_quadratic_that_is_too_steep_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eta\*mu < 1"):
        fixed_step.check_steps(1.0, 1.0, 0.1, 1e-3, 1.0)
