import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmgap.theory import Problem, descend, problems

MATRICES = ((2, 2), (3, 5))
CURVED = [
    problem
    for shape in MATRICES
    for norm in ("frobenius", "max", "spectral")
    for problem in (
        problems.cosh(norm, shape),
        problems.barrier(norm, shape),
        problems.barrier(norm, shape, power=1),
        problems.quadratic(norm, shape),
    )
]
SHAPES: dict[int, tuple[int, ...]] = {id(problem): MATRICES[index // 12] for index, problem in enumerate(CURVED)}
PLANE = [problems.star("frobenius"), problems.star("max")]
SHAPES |= {id(problem): (2,) for problem in PLANE}
ROUGH = [problems.rough(1), problems.rough(3)]
SHAPES |= {id(ROUGH[0]): (1,), id(ROUGH[1]): (3,)}
ALL = [*CURVED, *PLANE, *ROUGH]


def point(problem: Problem, seed: int) -> np.ndarray:
    """A random point of the domain, of any size."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(SHAPES[id(problem)])
    if "barrier" in problem.name:
        return x / np.linalg.norm(x) * rng.uniform(0.01, 0.9)
    return x / np.linalg.norm(x) * rng.uniform(0.01, 2.9)


@pytest.mark.parametrize("problem", ALL, ids=lambda problem: problem.name)
@given(seed=st.integers(0, 10_000))
def test_gradients_are_those_of_the_value_and_the_function_is_star_convex(problem: Problem, seed: int) -> None:
    x = point(problem, seed)
    u = np.random.default_rng(seed + 1).standard_normal(x.shape)
    u /= np.linalg.norm(u)
    h = 1e-5
    slope = (problem.value(x + h * u) - problem.value(x - h * u)) / (2 * h)
    gradient = problem.gradient(x)
    scale = 1.0 + float(np.linalg.norm(gradient))
    # The third derivative of the rough problem goes up to 5e5, that of the barrier near its wall further still.
    assert np.vdot(gradient, u) == pytest.approx(slope, abs=2e-4 * scale)
    assert np.vdot(gradient, x) >= problem.value(x) * (1 - 1e-9)


@pytest.mark.parametrize("problem", [*CURVED, *PLANE], ids=lambda problem: problem.name)
@given(seed=st.integers(0, 10_000))
def test_the_curvature_keeps_to_its_bound(problem: Problem, seed: int) -> None:
    x = point(problem, seed)
    rng = np.random.default_rng(seed + 1)
    # Directions from the border of the unit ball: random ones, and the LMO's.
    u = rng.standard_normal(x.shape)
    for direction in (u / problem.norm.norm(u), problem.norm.lmo(u), problem.norm.lmo(problem.gradient(x))):
        h = 1e-5
        change = problem.norm.dual(problem.gradient(x + h * direction) - problem.gradient(x - h * direction)) / (2 * h)
        assert change <= problem.constants(problem.value(x)) * (1 + 1e-3)


@pytest.mark.parametrize("problem", ALL, ids=lambda problem: problem.name)
@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 1.0))
def test_a_step_along_the_lmo_descends_whatever_its_size(problem: Problem, seed: int, share: float) -> None:
    # The descent lemma: up to 2 ||g||_*/K, and the gradient bounds itself by the gap.
    x = point(problem, seed)
    g, gap = problem.gradient(x), problem.value(x)
    dual, curvature = problem.norm.dual(g), problem.constants(gap)
    eta = share * 2.0 * dual / curvature
    there = problem.value(x + eta * problem.norm.lmo(g))
    assert there <= gap - eta * dual + curvature * eta**2 / 2.0 + 1e-12 * (1.0 + gap)
    assert dual**2 <= 2.0 * curvature * gap * (1.0 + 1e-9)


def test_a_step_descends_less_where_the_curvature_is_taken_for_smaller() -> None:
    problem, x = problems.cosh("frobenius", (2, 2)), np.array([[0.4, -1.1], [2.0, 0.3]])
    g, gap = problem.gradient(x), problem.value(x)
    dual = problem.norm.dual(g)
    for share, descends in ((1.0, True), (0.05, False)):
        curvature = share * problem.constants(gap)
        eta = dual / curvature
        there = problem.value(x + eta * problem.norm.lmo(g))
        assert (there <= gap - eta * dual + curvature * eta**2 / 2.0) == descends


@pytest.mark.parametrize(("problem", "share"), [(PLANE[0], 0.97), (PLANE[1], 0.97)])
def test_the_constants_of_the_star_are_not_too_large(problem: Problem, share: float) -> None:
    largest = 0.0
    h = 1e-6
    for angle in np.linspace(0.0, np.pi, 100):
        x = 0.05 * np.array([math.cos(angle), math.sin(angle)])
        for turn in np.linspace(0.0, np.pi, 60):
            u = np.array([math.cos(turn), math.sin(turn)])
            u /= problem.norm.norm(u)
            change = problem.norm.dual(problem.gradient(x + h * u) - problem.gradient(x - h * u)) / (2 * h)
            largest = max(largest, change / problem.constants(problem.value(x)))
    assert share <= largest <= 1.0


def test_the_star_and_the_rough_are_not_convex() -> None:
    star = problems.star("frobenius")
    a, b = np.array([1.0, 0.6]), np.array([0.6, 1.0])
    line = [star.value(a + s * (b - a)) for s in np.linspace(0.0, 1.0, 5)]
    angles = [star.value(np.array([math.cos(t), math.sin(t)])) for t in np.linspace(0.0, 1.6, 33)]
    assert star.value((a + b) / 2) < max(line)
    assert min(angles) < star.value(np.array([1.0, 0.0])) > star.value(np.array([math.sqrt(0.5), math.sqrt(0.5)]))
    rough = problems.rough(1)
    slopes = rough.gradient(np.linspace(0.0, 2.0, 400))
    assert np.diff(slopes).min() < 0.0


@given(x=st.floats(-3.0, 3.0), seed=st.integers(0, 1000))
def test_the_rough_problem_keeps_the_assumption_as_printed(x: float, seed: int) -> None:
    problem = problems.rough(1)
    at = np.array([x])
    others = np.random.default_rng(seed).uniform(-3.0, 3.0, 200)
    for y in (*others, *np.clip(x + 0.01 * others, -3.0, 3.0)):
        change = abs(float((problem.gradient(np.array([y])) - problem.gradient(at))[0]))
        assert change <= problem.constants(problem.value(at)) * abs(y - x) * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("problem", ALL, ids=lambda problem: problem.name)
@given(seed=st.integers(0, 10_000))
def test_no_point_of_a_sublevel_set_is_further_than_its_radius(problem: Problem, seed: int) -> None:
    x = point(problem, seed)
    assert problem.norm.norm(x) <= problem.radius(problem.value(x)) * (1 + 1e-9)


def test_the_value_of_the_rough_problem_is_an_exact_integral() -> None:
    from scipy import integrate

    for x in (0.3, 0.9999, 1.7):
        exact, _ = integrate.quad(lambda t: t + 0.2 * np.sin(4 * t**5), 0.0, x, epsabs=1e-13, limit=500)
        assert problems.rough(1).value(np.array([x])) == pytest.approx(exact, abs=1e-12)
    assert problems.rough(2).value(np.array([0.0, 3.1])) == math.inf


@pytest.mark.parametrize(
    ("constants", "expected"),
    [
        (problems.cosh("spectral", (2, 5)).constants, (3.5, 1.0, 0.0)),
        (problems.cosh("max", (2, 5)).constants, (10.0, 1.0, 0.0)),
        (problems.barrier("spectral", (3, 3)).constants, (12.0, 18.0, 24.0)),
        (problems.barrier("max", (4,)).constants, (16.0, 18.0, 24.0)),
        (problems.quadratic("spectral", (3, 2)).constants, (2.0, 0.0, 0.0)),
    ],
)
def test_the_constants_as_published_with_the_problems(constants: object, expected: tuple[float, ...]) -> None:
    assert (constants.K0, constants.K1, constants.Krho) == expected  # type: ignore[attr-defined]


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="norm must be one of"):
        problems.cosh("nuclear", (2, 2))
    with pytest.raises(ValueError, match="matrix"):
        problems.barrier("spectral", (2,))
    with pytest.raises(ValueError, match="power"):
        problems.barrier("max", (2,), power=3)
    with pytest.raises(ValueError, match="'frobenius' or 'max'"):
        problems.star("spectral")


def test_the_sign_without_momentum_is_stuck_for_1500_steps() -> None:
    # arXiv 2605.08980's example without momentum: the sum stays, until a tie in floating point frees it much later.
    path = descend(problems.absolute(0.5), np.array([0.75, 0.5]), lambda it: (it.step + 1) ** -0.51, steps=1500)
    assert path.gaps[-1] == pytest.approx(0.6250, abs=1e-4)
    assert path.points.sum(axis=1) == pytest.approx(np.full(1501, 1.25))


@pytest.mark.parametrize("size", [1, 3])
def test_the_cone_and_the_wavy_problem(size: int) -> None:
    for problem in (problems.huber(size), problems.wavy(size)):
        for seed in range(20):
            x, u = 3.0 * np.random.default_rng(seed).standard_normal((2, size))
            slope = (problem.value(x + 1e-6 * u) - problem.value(x - 1e-6 * u)) / 2e-6
            assert slope == pytest.approx(float(problem.gradient(x) @ u), rel=1e-5, abs=1e-6)
            change = np.linalg.norm(problem.gradient(x) - problem.gradient(x + u))
            assert change <= problem.constants.K0 * np.linalg.norm(u) * (1 + 1e-12)
            assert problem.norm.norm(x) <= problem.radius(problem.value(x)) * (1 + 1e-12)
            inner, square = float(problem.gradient(x) @ x), float((problem.gradient(x) ** 2).sum())
            aims = 1.0 if "huber" in problem.name else 0.496
            assert inner >= aims * problem.value(x) * (1 - 1e-12)
            if "wavy" in problem.name:
                assert square >= 2.0 * 0.1755 * problem.value(x)
