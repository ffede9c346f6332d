from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmgap.theory import Constants, problems, self_bounding, two_points
from warmgap.theory.self_bounding import scattered

norms = st.sampled_from(["frobenius", "max", "spectral"])
shapes = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=20)
@given(norm=norms, shape=shapes, seed=st.integers(0, 999), size=st.floats(0.1, 4.0))
def test_lemmas_2_to_4_on_convex_problems(norm: str, shape: tuple[int, int], seed: int, size: float) -> None:
    for problem, far in (
        (problems.cosh(norm, shape), size),
        (problems.quadratic(norm, shape), size),
        (problems.barrier(norm, shape), 0.2 * size),
    ):
        points = scattered(norm, shape, far, 8, seed)
        assert self_bounding.check(problem, points).holds
        assert self_bounding.check_distances(problem, points).holds
        assert two_points.check(problem, points, seed=seed).holds


@given(norm=st.sampled_from(["frobenius", "max"]), seed=st.integers(0, 999))
def test_lemmas_2_to_4_on_the_star_convex_problem(norm: str, seed: int) -> None:
    points = scattered(norm, (2,), 3.0, 8, seed)
    assert self_bounding.check(problems.star(norm), points).holds
    assert self_bounding.check_distances(problems.star(norm), points).holds
    assert two_points.check(problems.star(norm), points, seed=seed).holds


def test_without_star_convexity_lemma_2_remains() -> None:
    points = np.linspace(0.1, 3.0, 30)[:, None]
    assert self_bounding.check(problems.saturated(), points).holds
    assert self_bounding.check(problems.wavy(1), points).holds
    beyond = replace(problems.saturated(), constants=Constants(0.2))
    assert not self_bounding.check(beyond, points).holds


def test_stronger_statements_fail() -> None:
    points = scattered("frobenius", (1,), 5.0)
    assert not self_bounding.check(problems.cosh("frobenius", (1,)).shrunk(1.001), points).holds
    assert not self_bounding.check_distances(problems.quadratic("frobenius", (1,)).shrunk(1.001), points).holds
    assert not two_points.check(problems.cosh("max", (3,)).shrunk(1.02), scattered("max", (3,), 4.0)).holds


def test_a_radius_twice_as_long_does_not_keep_the_gap_below_its_double() -> None:
    steep = problems.cosh("frobenius", (1,)), np.array([[8.0]])
    assert two_points.check(*steep, reach=1.9).excess < 0.0
    assert two_points.check(*steep, reach=2.0).excess > 0.0


def test_the_integral_of_the_bound() -> None:
    gaps = np.array([2.0])
    assert self_bounding._integral(Constants(1.0, 3.0, 5.0, 2.0), gaps) == pytest.approx(1 * 2 + 3 * 2 + 5 * 8 / 3)


def test_points_are_needed() -> None:
    for check in (self_bounding.check, self_bounding.check_distances, two_points.check):
        with pytest.raises(ValueError, match="points, got none"):
            check(problems.cosh("max", (1,)), np.zeros((0, 1)))
