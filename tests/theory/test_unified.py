from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmgap.smoothness import UnifiedCheck
from warmgap.theory import descend, problems, unified


@given(seed=st.integers(0, 999), size=st.floats(0.3, 3.0), share=st.floats(0.1, 1.0), steps=st.integers(1, 200))
def test_star_convex_problems_need_no_c2(seed: int, size: float, share: float, steps: int) -> None:
    x = np.random.default_rng(seed).standard_normal(2)
    x *= size / np.linalg.norm(x)
    for problem in (problems.cosh("frobenius", (2,)), problems.star("frobenius"), problems.rough(2)):
        if np.abs(x).max() < 2.9:
            assert unified.check(problem, x, steps, 1.0, share=share).holds
            c1 = 0.5 / problem.constants(problem.value(x))
            assert unified.check(problem, x, steps, c1, share=share, progress="gradient").holds


def test_the_bound_written_out() -> None:
    found = unified.check(problems.saturated(), np.array([2.0]), 400, 0.5, 0.4, share=0.5)
    path = descend(
        problems.saturated(),
        np.array([2.0]),
        lambda _: 0.5 * 0.5 / 4.0,
        steps=400,
        direction=lambda it: -it.gradient,
    )
    x = path.points[:-1, 0]
    outliers = int((2.0 * x**2 * np.exp(-(x**2)) < 0.5 * (1.0 - np.exp(-(x**2)))).sum())
    assert 0 < outliers < 400
    assert found.bound == pytest.approx(4.0 * 4.0 / (0.75 * 0.25 * 400) + 2 * 0.4 / (1.5 * 0.5) * outliers / 400)
    assert found.measured == pytest.approx((1.0 - np.exp(-(x**2))).mean())


def test_the_c2_that_a_trajectory_shows_is_the_one_that_holds() -> None:
    problem, start, c1 = problems.saturated(), np.array([2.0]), 0.5
    path = descend(problem, start, lambda _: c1 / 4.0, steps=300, direction=lambda it: -it.gradient)
    seen = UnifiedCheck.of([float(problem.gradient(x) @ x) for x in path.points], path.gaps)
    assert 0.0 < seen.outliers(c1) < 1.0
    assert unified.check(problem, start, 300, c1, seen.c2(c1)).holds
    assert not unified.check(problem, start, 300, c1).holds
    assert seen.largest_c1 < c1


def test_a_stronger_statement_fails() -> None:
    quadratic, start = problems.quadratic("frobenius", (3,)), np.array([0.5, 1.0, -2.0])
    assert not unified.check(quadratic, start, 50, 2.0, share=0.5, notch=1.01).holds
    # c2 of the first point is .5 P - <g, x> = .344; with small steps a tenth less is missed.
    assert unified.check(problems.saturated(), np.array([2.0]), 500, 0.5, 0.345, share=0.1).holds
    assert not unified.check(problems.saturated(), np.array([2.0]), 500, 0.5, 0.31, share=0.1).holds


def test_a_c1_that_is_too_large_is_found() -> None:
    start = np.array([1.0, -0.5])
    quadratic = problems.quadratic("frobenius", (2,))
    assert unified.check(quadratic, start, 50, 2.0).holds
    assert not unified.check(quadratic, start, 50, 3.0).holds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"c1": 0.0}, "c1 must be above 0"),
        ({"c2": -1.0}, "c2 must not be negative"),
        ({"share": 1.5}, "share must be at most 1"),
        ({"share": 0.0}, "share must be above 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"progress": "speed"}, "progress must be 'gap' or 'gradient'"),
        ({"problem": problems.cosh("max", (2,))}, "about l2"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {
        "problem": problems.quadratic("frobenius", (2,)),
        "start": np.ones(2),
        "steps": 5,
        "c1": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        unified.check(**(usual | arguments))
