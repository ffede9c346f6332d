from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmgap.theory import Constants, Problem, descend, problems, weight_decay

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


BORDER = np.array([0.6, -0.8])
CONE = problems.shifted(problems.huber(2), -10.0 * BORDER)
BOWL = problems.shifted(problems.quadratic("frobenius", (2,)), -BORDER)


def test_a_descent_2_06_times_as_strong_fails_on_a_cone() -> None:
    assert weight_decay.check(CONE, 10.0 * BORDER, 1.0, 0.1, notch=2.04).holds
    assert not weight_decay.check(CONE, 10.0 * BORDER, 1.0, 0.1, notch=2.06).holds


def test_the_largest_step_goes_half_of_the_way_and_no_further() -> None:
    path = descend(BOWL, BORDER, lambda it: 0.25 * it.gap / BOWL.constants(it.gap), steps=1, weight_decay=1.0)
    assert path.step_sizes[0] == pytest.approx(0.5)
    assert weight_decay.check(BOWL, BORDER, 5e-2, 1.0).holds
    # Constants a little too small, and it goes further: nothing else sees that.
    assert not weight_decay.check(BOWL.shrunk(1.01), BORDER, 5e-2, 1.0).holds


@pytest.mark.parametrize(
    ("problem", "steps"),
    [
        (problems.quadratic("frobenius", (6,)), 234),
        (problems.cosh("frobenius", (6,)), 240),
        (problems.cosh("max", (6,)), 1360),
        (problems.star("max"), 2278),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_steps_from_the_border_of_the_ball(problem: Problem, steps: int) -> None:
    # Specifications: 374 to 4927 over problems and starts that are not given.
    x = np.random.default_rng(0).standard_normal((4, 4)).ravel()[: 2 if "star" in problem.name else 6]
    x *= 1.5 / problem.norm.norm(x)
    assert weight_decay.check(problem, x, 1e-3, 0.999999 / 1.5).measured == steps


def test_constants_that_are_too_small_are_found() -> None:
    # Not the 2 of a bound in K0 and K1 that fits cosh near 0 only.
    problem = replace(problems.cosh("frobenius", (2, 3)), constants=Constants(0.05, 0.01))
    assert not weight_decay.check(problem, MATRIX, 1e-2, 0.5).holds


def test_a_start_outside_the_ball_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 1/weight_decay"):
        weight_decay.check(problems.cosh("max", (2, 3)), MATRIX, 0.1, 1.0)
    with pytest.raises(ValueError, match="weight_decay must be above 0"):
        weight_decay.check(problems.cosh("max", (2, 3)), MATRIX, 0.1, 0.0)
