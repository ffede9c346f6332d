import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

from warmgap import ResponseCurve
from warmgap.theory import Constants

terms = st.floats(0.0, 50.0)
constants = st.builds(Constants, terms, terms, terms, st.floats(0.2, 4.0))


@given(K=constants, eps=st.floats(1e-2, 1.0), share=st.floats(1.1, 50.0))
def test_the_integral_is_that_of_the_curvature_over_the_squared_gap(K: Constants, eps: float, share: float) -> None:
    numeric, _ = integrate.quad(lambda d: K(d) / d**2, eps, share * eps, epsabs=0.0, epsrel=1e-10)
    assert K.integral(share * eps, eps) == pytest.approx(numeric, rel=1e-7, abs=1e-12)


@given(
    K=constants.filter(lambda K: K.K0 + K.Krho > 0.1),
    eps=st.floats(0.05, 1.0),
    share=st.floats(1.1, 20.0),
    distance=st.floats(0.2, 1.0),
)
def test_the_slowest_sequence_it_allows_needs_no_more_steps(
    K: Constants, eps: float, share: float, distance: float
) -> None:
    gap, steps, bound = share * eps, 0, K.steps(share * eps, eps, distance)
    while gap > eps and steps <= bound:
        gap -= gap**2 / (2 * distance**2 * K(gap))
        steps += 1
    assert steps <= bound


def test_the_step_size_is_the_schedules() -> None:
    smoothness = ResponseCurve(6.0, 0.01, 0.01).smoothness(1e-2)
    K = Constants(smoothness.K0, smoothness.K1, smoothness.K2)
    for gap in (6.0, 1.0, 0.01):
        assert K.step_size(gap, distance=1.0) == pytest.approx(smoothness.step_size(gap), rel=1e-12)


def test_the_bound_of_theorem_1_written_out() -> None:
    expected = 1 + 2 * 4 * (3 * (1 / 0.1 - 1 / 2) + 5 * math.log(20) + 7 * (2 - 0.1))
    assert Constants(3.0, 5.0, 7.0).steps(2.0, 0.1, 2.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((-1.0,), "K0"), ((1.0, -1.0), "K1"), ((1.0, 0.0, math.nan), "Krho"), ((1.0, 0.0, 1.0, 0.0), "rho")],
)
def test_a_constant_out_of_range_is_named(arguments: tuple[float, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Constants(*arguments)


@pytest.mark.parametrize("eps", [0.0, -1.0, 1.0, 2.0, math.nan])
def test_eps_lies_below_the_initial_gap(eps: float) -> None:
    with pytest.raises(ValueError, match="eps"):
        Constants(1.0).integral(1.0, eps)
