from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmgap.theory import Constants, Problem, power, problems

LINEAR, SQUARE = Constants(1.0, 0.0, 1.0, 1.0), Constants(13.0, 0.0, 33.0)


def problem(rho: float, shape: tuple[int, ...]) -> Problem:
    if rho == 1.0:
        return replace(problems.cosh("frobenius", shape), constants=LINEAR)
    return replace(problems.barrier("frobenius", shape), constants=SQUARE)


@given(
    rho=st.sampled_from([1.0, 2.0]),
    shape=st.tuples(st.integers(1, 6)),
    seed=st.integers(0, 999),
    share=st.floats(0.1, 1.0),
    steps=st.integers(1, 60),
    three=st.booleans(),
)
def test_it_descends(rho: float, shape: tuple[int], seed: int, share: float, steps: int, three: bool) -> None:
    x = np.random.default_rng(seed).standard_normal(shape)
    x *= share * (4.0 if rho == 1.0 else 0.9) / np.linalg.norm(x)
    assert power.check(problem(rho, shape), x, steps, three=three).holds


def test_a_factor_that_is_too_large_is_found() -> None:
    x = np.array([0.5, 1.0, -3.0])
    assert power.check(problem(1.0, (3,)), x, 20, three=False).holds
    assert not power.check(problem(1.0, (3,)), x, 20, c=4.0, three=False).holds


def test_a_descent_1_4_times_as_strong_fails() -> None:
    x = np.array([0.5, 1.0, -2.0])
    assert power.check(problem(1.0, (3,)), x, 5, three=False, notch=1.3).holds
    assert not power.check(problem(1.0, (3,)), x, 5, three=False, notch=1.4).holds


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        power.check(problem(1.0, (1,)), np.ones(1), 0)
    with pytest.raises(ValueError, match="c must be above 0"):
        power.check(problem(1.0, (1,)), np.ones(1), 5, c=0.0)


def test_other_bounds_are_refused() -> None:
    for other in (problems.cosh("frobenius", (2,)), problems.cosh("max", (2,)), problems.quadratic("frobenius", (2,))):
        with pytest.raises(ValueError, match="the power rule is about l2"):
            power.check(other, np.ones(2), 5)
