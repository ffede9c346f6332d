from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmgap.theory import Constants, Problem, boundedness, problems

PROBLEMS = [
    (problems.cosh("frobenius", (4,)), 3.0),
    (problems.barrier("frobenius", (4,)), 0.9),
    (problems.star("frobenius"), 3.0),
    (problems.rough(4), 2.9),
]


@pytest.mark.parametrize(("problem", "largest"), PROBLEMS, ids=lambda value: getattr(value, "name", ""))
@given(seed=st.integers(0, 9999), share=st.floats(0.3, 1.0))
def test_the_distance_never_grows(problem: Problem, largest: float, seed: int, share: float) -> None:
    x = np.random.default_rng(seed).standard_normal(2 if "star" in problem.name else 4)
    x *= share * largest / np.linalg.norm(x)
    assert boundedness.check(problem, x, problem.value(x) / 200.0).holds


def test_constants_that_are_too_small_are_found() -> None:
    problem = replace(problems.star("frobenius"), constants=Constants(0.2, 0.0))
    check = boundedness.check(problem, np.array([1.0, 0.3]), 1e-2)
    assert not check.holds
    assert check.excess > 0.01


def test_the_squared_distance_falls_three_times_as_fast_as_promised_and_not_more() -> None:
    problem, start = problems.quadratic("frobenius", (3,)), np.array([0.5, 1.0, -2.0])
    assert boundedness.check(problem, start, 1e-2, notch=2.99).holds
    assert not boundedness.check(problem, start, 1e-2, notch=3.01).holds
    assert not boundedness.check(problem.shrunk(2.05), start, 1e-2).holds


def test_only_l2() -> None:
    with pytest.raises(ValueError, match="about l2"):
        boundedness.check(problems.cosh("max", (2,)), np.ones(2), 0.1)
