import math

import numpy as np
import pytest

import warmgap.smoothness
from warmgap.smoothness import UnifiedCheck, pooled, unified_figure


def check_of(points: np.ndarray, c: float = 2.0) -> UnifiedCheck:
    """Of `c x^2/2` seen from its minimiser: `<grad, x> = c x^2` is twice the gap."""
    return UnifiedCheck.of(c * points**2, 0.5 * c * points**2)


def test_a_quadratic_needs_no_c2_up_to_twice_convexity() -> None:
    found = check_of(np.array([3.0, -2.0, 0.5]), c=1.0)
    assert found.largest_c1 == pytest.approx(2.0)
    assert (found.c2(1.0), found.outliers(1.0), found.residual(1.0)) == (0.0, 0.0, 0.0)
    assert found.outliers(2.1) == 1.0
    assert found.c2(3.0) == pytest.approx(0.5 * 9.0)
    assert found.residual(3.0) == pytest.approx(0.5 * (9.0 + 4.0 + 0.25) / 3.0)


def test_a_function_that_climbs_towards_its_minimum_is_caught() -> None:
    # between 2.1 and 4 the gradient of this valley in a slope points away from 0
    x = np.linspace(0.5, 4.0, 36)
    loss = 0.05 * x**2 - np.cos(2 * x) + 1
    found = UnifiedCheck.of((0.1 * x + 2 * np.sin(2 * x)) * x, loss)
    assert found.largest_c1 < 0.0
    assert 0.0 < found.outliers(0.1) < 1.0
    assert found.c2(0.1) > 0.0
    assert np.all(found.margin(0.1) >= -found.c2(0.1) - 1e-12)


def test_points_that_are_not_finite_are_counted() -> None:
    assert UnifiedCheck.of([math.nan, 1.0, 2.0], [1.0, math.inf, 1.0]).dropped == 2
    with pytest.raises(ValueError, match="none of the 1 points of the trajectory is finite"):
        UnifiedCheck.of([math.nan], [1.0])
    with pytest.raises(ValueError, match="a number for each point"):
        UnifiedCheck.of([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="c1 must be finite"):
        check_of(np.ones(2)).c2(math.inf)


def test_seeds_share_their_constants() -> None:
    seeds = [check_of(np.array([1.0, 2.0]), c=1.0), UnifiedCheck.of([0.2, 1.0], [1.0, 1.0])]
    both = pooled(seeds)
    assert both.c2(1.0) == pytest.approx(max(seed.c2(1.0) for seed in seeds)) == pytest.approx(0.8)
    assert both.largest_c1 == pytest.approx(0.2)
    assert both.outliers(0.5) == 0.25
    with pytest.raises(ValueError, match="at least one run"):
        pooled([])


def test_the_picture_shows_mean_range_and_c2() -> None:
    seeds = [UnifiedCheck.of([0.2, 1.0, 3.0], [1.0, 1.0, 1.0]), UnifiedCheck.of([0.4, 0.5, 3.0], [1.0, 1.0, 1.0])]
    figure = unified_figure(seeds, 0.5)
    mean, lowest, _ = figure.axes[0].get_lines()
    assert list(mean.get_ydata()) == pytest.approx([-0.2, 0.25, 2.5])  # type: ignore[arg-type]
    assert list(lowest.get_ydata()) == pytest.approx([-0.3, -0.3])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="as many points each"):
        unified_figure([seeds[0], check_of(np.ones(2))], 0.5)


def test_the_old_name_says_where_it_went() -> None:
    with pytest.raises(AttributeError, match=r"warmgap\.torch\.TrajectoryChecker"):
        warmgap.smoothness.TrajectoryChecker  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        warmgap.smoothness.nothing  # noqa: B018
