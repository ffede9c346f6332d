import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmgap.theory import Constants, polyak_lojasiewicz, problems


@pytest.mark.parametrize("sharp", [False, True])
@given(
    shape=st.tuples(st.integers(1, 6)),
    seed=st.integers(0, 999),
    size=st.floats(0.5, 4.0),
    share=st.floats(1e-4, 0.9),
)
def test_cosh(sharp: bool, shape: tuple[int], seed: int, size: float, share: float) -> None:
    problem = problems.cosh("frobenius", shape)
    x = np.random.default_rng(seed).standard_normal(shape)
    x *= size / np.linalg.norm(x)
    assert polyak_lojasiewicz.check(problem, x, share * problem.value(x), 1.0, sharp=sharp).holds


@pytest.mark.parametrize("sharp", [False, True])
@given(seed=st.integers(0, 999), size=st.floats(0.5, 3.0))
def test_a_problem_that_is_not_convex(sharp: bool, seed: int, size: float) -> None:
    problem = problems.star("frobenius")
    x = np.random.default_rng(seed).standard_normal(2)
    x *= size / np.linalg.norm(x)
    assert polyak_lojasiewicz.check(problem, x, 1e-2 * problem.value(x), 0.5, sharp=sharp).holds


def test_the_sharper_step_size_is_many_times_faster() -> None:
    problem, start = problems.cosh("frobenius", (2,)), np.array([4.0, 4.0])
    slow, fast = (polyak_lojasiewicz.check(problem, start, 1e-8, 1.0, sharp=sharp).measured for sharp in (False, True))
    assert (slow, fast) == (201, 9)


def test_the_steps_of_the_specifications() -> None:
    # The starts that belong to them are not known; from these they come back.
    for start, steps in ((np.array([1.0, 1.7]), (86, 4)), (np.full(5, 2.5), (204, 10))):
        problem = problems.cosh("frobenius", start.shape)
        found = [polyak_lojasiewicz.check(problem, start, 1e-6, 1.0, sharp=sharp).measured for sharp in (False, True)]
        assert found == list(steps)


def test_the_printed_bound_is_negative_where_ours_is_not() -> None:
    # (40 H1/mu) gap_0 + (20 H0/mu) ln(H0/(2 H1 eps)), at gap_0 = 0 and with all constants 1.
    assert 20.0 * math.log(0.5) == pytest.approx(-13.86, abs=0.005)
    problem = replace(problems.cosh("frobenius", (1,)), constants=Constants(1.0, 1.0))
    x = np.array([1.4])
    assert problem.value(x) > 1.0
    assert polyak_lojasiewicz.check(problem, x, 1.0, 1.0).bound == pytest.approx(40.0 / 1.9 * problem.value(x))


@pytest.mark.parametrize("sharp", [False, True])
def test_a_stronger_statement_fails(sharp: bool) -> None:
    problem, x = problems.cosh("frobenius", (3,)), np.array([0.5, 1.0, -2.0])
    assert not polyak_lojasiewicz.check(problem, x, 1e-3, 1.0, sharp=sharp, notch=1.02).holds


def test_a_mu_that_is_too_large_is_found() -> None:
    start = np.array([0.5, 1.0])
    assert not polyak_lojasiewicz.check(problems.star("frobenius"), start, 1e-3, 4.0).holds
    problem = replace(problems.cosh("frobenius", (2,)), constants=Constants(0.01, 0.01))
    assert not polyak_lojasiewicz.check(problem, start, 1e-3, 1.0).holds


@pytest.mark.parametrize("eps", [0.0, 0.2, 99.0])
def test_eps_lies_below_the_initial_gap(eps: float) -> None:
    with pytest.raises(ValueError, match=r"eps must (lie below the initial gap|be above 0).*got"):
        polyak_lojasiewicz.check(problems.cosh("frobenius", (1,)), np.array([0.5]), eps, 1.0)


def test_a_bound_that_does_not_grow_with_the_gap_is_refused() -> None:
    with pytest.raises(ValueError, match="K1"):
        polyak_lojasiewicz.check(problems.quadratic("frobenius", (2,)), np.ones(2), 0.1, 1.0)
