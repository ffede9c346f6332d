import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmgap.theory import Constants, gradient_smoothness, problems

BARRIER = 24.0 / 4.0 ** (4 / 3)


@given(size=st.floats(0.1, 6.0))
def test_cosh(size: float) -> None:
    problem = problems.cosh("frobenius", (1,))
    assert gradient_smoothness.check(problem, np.linspace(-size, size, 41)[:, None], 1.0, 1.0, 1.0).holds


@given(size=st.floats(0.05, 0.97))
def test_the_barrier(size: float) -> None:
    problem = problems.barrier("frobenius", (1,))
    assert gradient_smoothness.check(problem, np.linspace(-size, size, 41)[:, None], 4.0, BARRIER, 4 / 3).holds


def test_the_constants() -> None:
    assert gradient_smoothness.to_gap(3.0, 2.0, 1.0) == Constants(6.0, 32.0)
    quadratic = gradient_smoothness.to_gap(4.0, BARRIER, 4 / 3)
    assert quadratic.rho == pytest.approx(2.0)
    # Lrho^3 is 54.
    assert quadratic.Krho == pytest.approx(2 ** (20 / 3) * 54)
    assert quadratic.Krho == pytest.approx(5486, abs=1)


@settings(max_examples=15)
@given(norm=st.sampled_from(["frobenius", "max"]), seed=st.integers(0, 999), size=st.integers(1, 4))
def test_functions_of_several_variables(norm: str, seed: int, size: int) -> None:
    points = np.random.default_rng(seed).uniform(-2.0, 2.0, (10, size))
    flat = 1.0 if norm == "frobenius" else float(size)
    assert gradient_smoothness.check(problems.cosh(norm, (size,)), points, flat, 1.0, 1.0).holds
    inside = 0.45 * points
    assert gradient_smoothness.check(problems.barrier(norm, (size,)), inside, 4.0 * flat, BARRIER, 4 / 3).holds
    C = 4.5 if norm == "frobenius" else 9.0
    assert gradient_smoothness.check(problems.star(norm), points[:, :1] * [1.0, 0.3], C, 2**0.5 * C, 1.0).holds


def test_the_norm_of_a_hessian() -> None:
    point = np.array([0.5, -1.0])
    assert gradient_smoothness.curvature(problems.cosh("frobenius", (2,)), point) == pytest.approx(np.cosh(1.0))
    assert gradient_smoothness.curvature(problems.cosh("max", (2,)), point) == pytest.approx(np.cosh(point).sum())
    with pytest.raises(ValueError, match="in l2 and the max norm"):
        gradient_smoothness.curvature(problems.cosh("spectral", (2, 2)), np.eye(2))


def test_constants_a_fiftieth_below_half_fail() -> None:
    # K0 = 2 L0 is twice what is needed at the minimiser, and no less can be said: see the module.
    cosh, points = problems.cosh("frobenius", (1,)), np.linspace(-3.0, 3.0, 41)[:, None]
    assert gradient_smoothness.check(cosh, points, 1.0, 1.0, 1.0, factor=1.98).holds
    assert not gradient_smoothness.check(cosh, points, 1.0, 1.0, 1.0, factor=2.04).holds


def test_an_assumption_that_fails_is_found() -> None:
    barrier, points = problems.barrier("frobenius", (1,)), np.linspace(-0.97, 0.97, 41)[:, None]
    assert not gradient_smoothness.check(barrier, points, 4.0, 0.9 * BARRIER, 4 / 3).holds
    assert gradient_smoothness.check(barrier, points, 0.1, 0.1, 1.0).measured > 1.0


def test_points_are_needed_and_lie_in_the_domain() -> None:
    barrier = problems.barrier("frobenius", (1,))
    with pytest.raises(ValueError, match=r"in the domain, got \[1\.5\] for barrier"):
        gradient_smoothness.check(barrier, np.array([[0.1], [1.5], [0.2]]), 4.0, BARRIER, 4 / 3)
    with pytest.raises(ValueError, match="got none"):
        gradient_smoothness.check(barrier, np.array([]), 4.0, BARRIER, 4 / 3)


@pytest.mark.parametrize(("L0", "Lrho", "rho"), [(-1.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 1.0, 2.0)])
def test_constants_out_of_range(L0: float, Lrho: float, rho: float) -> None:
    with pytest.raises(ValueError, match="must"):
        gradient_smoothness.to_gap(L0, Lrho, rho)
