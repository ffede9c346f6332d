from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmgap.theory import Constants, problems, weight_decay

MATRIX = np.array([[1.0, -0.5, 0.3], [0.2, 0.8, -1.1]])


@given(
    norm=st.sampled_from(["frobenius", "max", "spectral"]),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 999),
    ball=st.floats(0.7, 2.0),
    share=st.floats(0.7, 0.999),
)
def test_cosh(norm: str, shape: tuple[int, int], seed: int, ball: float, share: float) -> None:
    problem = problems.cosh(norm, shape)
    x = np.random.default_rng(seed).standard_normal(shape)
    x *= share * ball / problem.norm.norm(x)
    assert weight_decay.check(problem, x, problem.value(x) / 8.0, 1.0 / ball).holds


@given(seed=st.integers(0, 999), share=st.floats(0.3, 0.9))
def test_a_star_convex_problem_and_the_barrier(seed: int, share: float) -> None:
    x = np.random.default_rng(seed).standard_normal(2)
    x *= share / np.abs(x).max()
    for problem in (problems.star("max"), problems.barrier("max", (2,))):
        assert weight_decay.check(problem, x, problem.value(x) / 5.0, 1.0).holds


def test_it_is_twice_the_distance_and_half_the_step() -> None:
    problem = problems.cosh("max", (2, 3))
    check = weight_decay.check(problem, MATRIX, 0.1, 0.5)
    assert check.bound == problem.constants.steps(problem.value(MATRIX), 0.1, 4.0)


def test_constants_that_are_too_small_are_found() -> None:
    # Not the 2 of a bound in K0 and K1 that fits cosh near 0 only.
    problem = replace(problems.cosh("frobenius", (2, 3)), constants=Constants(0.05, 0.01))
    assert not weight_decay.check(problem, MATRIX, 1e-2, 0.5).holds


def test_a_start_outside_the_ball_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 1/weight_decay"):
        weight_decay.check(problems.cosh("max", (2, 3)), MATRIX, 0.1, 1.0)
    with pytest.raises(ValueError, match="weight_decay must be above 0"):
        weight_decay.check(problems.cosh("max", (2, 3)), MATRIX, 0.1, 0.0)
