import math
from typing import Any

import numpy as np
import pytest

from warmgap.smoothness import TrajectoryChecker


def descend(loss: Any, gradient: Any, start: Any, rate: float, steps: int) -> TrajectoryChecker:
    x, checker = np.asarray(start, dtype=float), TrajectoryChecker()
    for _ in range(steps):
        g = gradient(x)
        checker.record(x, g, loss(x))
        x = x - rate * g
    return checker


def test_a_quadratic_needs_no_c2_up_to_twice_convexity() -> None:
    checker = descend(lambda x: 0.5 * float(x @ x), lambda x: x, [3.0, -2.0], 0.1, 50)
    found = checker.finalize(np.zeros(2), lambda x, _: 0.5 * float(x @ x))
    assert len(found.inner) == len(checker) == 50
    assert found.largest_c1 == pytest.approx(2.0)
    assert found.c2(1.0) == 0.0
    assert found.outliers(1.0) == 0.0
    assert found.residual(1.0) == 0.0
    assert found.outliers(2.1) == 1.0
    assert found.c2(3.0) == pytest.approx(0.5 * 13.0)
    assert checker.finalize(np.zeros(2), progress="gradient").largest_c1 == pytest.approx(1.0)


def test_the_reference_is_the_last_point_unless_given() -> None:
    checker = descend(lambda x: 0.5 * float(x @ x), lambda x: x, [3.0, -2.0], 0.1, 100)
    found = checker.finalize(loss_fn=lambda x, _: 0.5 * float(x @ x))
    assert len(found.inner) == 99
    assert found.largest_c1 >= 1.0  # convex: <grad, x - y> >= f(x) - f(y) for every y


def test_a_function_that_climbs_towards_its_minimum_is_caught() -> None:
    # between 2.1 and 4 the gradient of this valley in a slope points away from 0
    def loss(x: Any) -> float:
        return float(0.05 * x[0] ** 2 - math.cos(2 * x[0]) + 1)

    checker = TrajectoryChecker()
    for value in np.linspace(0.5, 4.0, 36):
        checker.record([value], [0.1 * value + 2 * math.sin(2 * value)], loss([value]))
    found = checker.finalize([0.0], lambda x, _: loss(x))
    assert found.largest_c1 < 0.0
    assert 0.0 < found.outliers(0.1) < 1.0
    assert found.c2(0.1) > 0.0
    assert np.all(found.inner >= 0.1 * found.progress - found.c2(0.1) - 1e-12)


def test_the_reference_loss_is_taken_on_the_points_own_batch() -> None:
    checker = TrajectoryChecker()
    for shift in (1.0, 2.0, 3.0):
        checker.record([5.0], [5.0 - shift], 0.5 * (5.0 - shift) ** 2, batch=shift)
    seen = []

    def loss(x: Any, shift: float) -> float:
        seen.append(shift)
        return 0.5 * float((x[0] - shift) ** 2)

    found = checker.finalize([0.0], loss)
    assert seen == [1.0, 2.0, 3.0]
    np.testing.assert_allclose(found.progress, [0.5 * ((5 - s) ** 2 - s**2) for s in seen])


def test_rows_that_are_not_finite_are_counted() -> None:
    checker = TrajectoryChecker()
    checker.record([1.0], [math.nan], 1.0)
    checker.record([1.0], [1.0], 1.0)
    assert checker.finalize([0.0], progress="gradient").dropped == 1


def test_bad_input() -> None:
    checker = TrajectoryChecker()
    with pytest.raises(ValueError, match="at least two points, got 0"):
        checker.finalize(progress="gradient")
    checker.record([1.0, 2.0], [1.0, 2.0], 1.0)
    with pytest.raises(ValueError, match="one shape at every point"):
        checker.record([1.0], [1.0], 1.0)
    with pytest.raises(ValueError, match="one shape at every point"):
        checker.record([1.0, 2.0], [1.0], 1.0)
    checker.record([math.nan, 2.0], [1.0, 2.0], 1.0)
    with pytest.raises(ValueError, match="progress must be"):
        checker.finalize(progress="speed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs loss_fn"):
        checker.finalize()
    with pytest.raises(ValueError, match="reference must have"):
        checker.finalize([1.0], progress="gradient")
    broken = TrajectoryChecker()
    for _ in range(2):
        broken.record([1.0], [math.nan], 1.0)
    with pytest.raises(ValueError, match="no point of the trajectory is finite"):
        broken.finalize(progress="gradient")
    with pytest.raises(ValueError, match="the last point, which is the reference, is not finite"):
        checker.finalize(progress="gradient")
    with pytest.raises(ValueError, match="the reference is not finite"):
        checker.finalize([math.inf, 0.0], progress="gradient")
    checker.record([1.0, 2.0], [1.0, 2.0], 1.0)
    with pytest.raises(ValueError, match="c1 must be finite"):
        checker.finalize(progress="gradient").c2(math.inf)
