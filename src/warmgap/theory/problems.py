"""Problems with known constants. All have the least value 0, so that `value` is the gap, at 0 unless `shifted`.

    name           f(x)                                   norms                      constants
    cosh           sum cosh(x_i) - 1                      all                        A2-H, rho 1
    barrier        sum (1 - x_i^2)^-p - 1, p = 2 or 1     all                        A2-H, rho 2 or 3
    quadratic      sum x_i^2 / 2                          all                        A2 and A2-H
    star           cosh(N(x)) - 1, N = r sqrt(1 + cos(4 angle)/2)    frobenius, max  A2-H, star-convex, not convex
    rough          sum x_i^2/2 + int_0^x_i sin(4 t^5)/5   frobenius, ||x|| <= 3      A2, star-convex, not convex
    huber          h(||x||), h(r) = r^2/2 up to 1, r - 1/2 beyond    frobenius       A2, A2-H, convex
    wavy           sum x_i^2 + 3 sin(x_i)^2               frobenius                  A2, A2-H, aiming, not star-convex
    saturated      1 - exp(-||x||^2)                      frobenius                  A2 and A2-H, not star-convex
    absolute       c |x_1 + x_2| + |x_1 - x_2|            max                        none: not differentiable

In the spectral norm f is applied to the singular values. Constants: DERIVED, those of `star` and `rough` on a grid.
With r = min(rows, columns) and the excess e = |rows - columns|, the constant of the spectral norm is r + e/2 times
that of l2: the divided differences of f' are bounded by the mean of f'' at their ends (Hermite-Hadamard), and each of
the e surplus directions adds at most f''(0)/2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from warmgap.geometry import NORMS, kappa
from warmgap.theory.constants import Constants
from warmgap.theory.norms import Array, Norm, frobenius, maximum, singular_values, spectral

__all__ = [
    "Problem",
    "absolute",
    "barrier",
    "cosh",
    "huber",
    "quadratic",
    "rough",
    "saturated",
    "shifted",
    "star",
    "wavy",
]

_NORMS: dict[str, Norm] = {norm.name: norm for norm in (frobenius, maximum, spectral)}


@dataclass(frozen=True)
class Problem:
    """A function with minimiser 0 and least value 0.

    Attributes:
        name: Its name, with its norm and shape.
        norm: The norm its constants refer to.
        value: The gap at a point; infinite outside the domain.
        gradient: The gradient at a point (a subgradient where there is none).
        constants: The constants of its curvature bound in this norm.
        radius: A bound on ||x|| over the points whose gap is at most the given one.

    Example:
        >>> import numpy as np
        >>> problem = cosh("frobenius", (2,))
        >>> f"{problem.value(np.array([1.0, 0.0])):.3f}", problem.constants(1.0)
        ('0.543', 2.0)
    """

    name: str
    norm: Norm
    value: Callable[[Array], float]
    gradient: Callable[[Array], Array]
    constants: Constants
    radius: Callable[[float], float]

    def distance(self, start: Array) -> float:
        """Return a bound on the distance to the minimiser along a descent from start.

        It is the distance at the start in l2 (see `warmgap.theory.boundedness`), else the radius of the sublevel set.
        """
        return self.norm.norm(start) if self.norm is frobenius else self.radius(self.value(start))

    def shrunk(self, factor: float) -> Problem:
        """Return the same function with every constant of its curvature bound divided by a factor."""
        return replace(self, constants=self.constants.shrunk(factor))


def cosh(norm: str, shape: tuple[int, ...]) -> Problem:
    """Sum `cosh(x_i) - 1` over the entries: curvature at most `K0 + gap`, convex.

    Args:
        norm: `"frobenius"`, `"max"` or `"spectral"`, the last for matrices.
        shape: The shape of x.

    Raises:
        ValueError: If the norm is unknown or does not take this shape.
    """
    # 2 sinh(x/2)^2 is cosh(x) - 1 without its cancellation.
    return _separable(
        "cosh",
        norm,
        shape,
        lambda x: 2.0 * np.sinh(x / 2.0) ** 2,
        np.sinh,
        Constants(1.0, 1.0),
        lambda gap: math.acosh(1.0 + gap),
    )


def barrier(norm: str, shape: tuple[int, ...], power: int = 2) -> Problem:
    """Sum `(1 - x_i^2)^-power - 1` over the entries, on |x_i| < 1: convex, curvature a power of the gap.

    Args:
        norm: `"frobenius"`, `"max"` or `"spectral"`, the last for matrices.
        shape: The shape of x.
        power: 2 for `K = 4 + 18 gap + 24 gap^2`, 1 for `K = 2 + 21 gap + 17 gap^3`.

    Raises:
        ValueError: If the norm is unknown or does not take this shape, or power is neither 1 nor 2.
    """
    constants = {1: Constants(2.0, 21.0, 17.0, 3.0), 2: Constants(4.0, 18.0, 24.0)}
    if power not in constants:
        raise ValueError(f"power must be 1 or 2, got {power!r}")

    def inside(x: Array) -> Array:
        return np.where(np.abs(x) < 1.0, x, np.nan)

    return _separable(
        f"barrier^{power}",
        norm,
        shape,
        lambda x: np.nan_to_num(np.expm1(-power * np.log1p(-(inside(x) ** 2))), nan=np.inf),
        lambda x: 2.0 * power * x * (1.0 - inside(x) ** 2) ** (-power - 1),
        constants[power],
        lambda gap: math.sqrt(-math.expm1(-math.log1p(gap) / power)),
    )


def quadratic(norm: str, shape: tuple[int, ...]) -> Problem:
    """Return `sum x_i^2 / 2`, whose K is `kappa(norm, [shape])` in either reading of the assumption.

    Args:
        norm: `"frobenius"`, `"max"` or `"spectral"`, the last for matrices.
        shape: The shape of x.

    Raises:
        ValueError: If the norm is unknown or does not take this shape.
    """
    return Problem(
        _name("quadratic", norm, shape),
        _NORMS[_known(norm, shape)],
        lambda x: 0.5 * float((x * x).sum()),
        lambda x: x,
        Constants(kappa(norm, [shape])),
        lambda gap: math.sqrt(2.0 * gap),
    )


def star(norm: str) -> Problem:
    """Return `cosh(N(x)) - 1` in the plane, with `N(x) = r sqrt(1 + cos(4 angle)/2)`: star-convex, not convex.

    Any increasing convex function of a 1-homogeneous N >= 0 is star-convex. `K = C (1 + gap)` with C = 4.5 in l2 and
    9 in the max norm.

    Args:
        norm: `"frobenius"` or `"max"`.

    Raises:
        ValueError: If the norm is another.
    """
    c = {"frobenius": 4.5, "max": 9.0}.get(norm)
    if c is None:
        raise ValueError(f"norm must be 'frobenius' or 'max', got {norm!r}")

    def squared(x: Array) -> float:
        r2 = float(x @ x)
        return r2 + 0.5 * float(r2 - 8.0 * (x[0] * x[1]) ** 2 / r2) if r2 > 0.0 else 0.0

    def gradient(x: Array) -> Array:
        r2, n2 = float(x @ x), squared(x)
        if n2 == 0.0:
            return np.zeros(2)
        share = float(x[0] * x[1]) / r2
        half = 1.5 * x + 4.0 * share**2 * x - 4.0 * share * x[::-1]
        n = math.sqrt(n2)
        return np.asarray(np.sinh(n) / n * half)

    return Problem(
        _name("star", norm, (2,)),
        _NORMS[_known(norm, (2,))],
        lambda x: float(2.0 * np.sinh(math.sqrt(squared(x)) / 2.0) ** 2),
        gradient,
        Constants(c, c),
        lambda gap: math.sqrt(2.0) * math.acosh(1.0 + gap),
    )


def rough(size: int) -> Problem:
    """Return the sum of f with `f'(x) = x + sin(4 x^5)/5` on |x_i| <= 3, in l2: star-convex, f'' between -322 and 324.

    It keeps the assumption as printed, with `K = 2 + 15.6 gap^2`.

    Args:
        size: The number of entries.
    """
    return Problem(
        _name("rough", "frobenius", (size,)),
        frobenius,
        lambda x: float((0.5 * x * x + 0.2 * _wiggles(np.abs(x))).sum()) if np.abs(x).max() <= 3.0 else math.inf,
        lambda x: x + 0.2 * np.sin(4.0 * x**5),
        Constants(2.0, 0.0, 15.6),
        lambda gap: math.sqrt(2.0 * gap),
    )


def huber(size: int) -> Problem:
    """Return `h(||x||)` in l2 with `h(r) = r^2/2` up to 1 and `r - 1/2` beyond: convex, K = 1.

    Far out it is a cone, on which star-convexity is an equality: what a guarantee promises a step is least there.

    Args:
        size: The number of entries.
    """

    def value(x: Array) -> float:
        r = frobenius.norm(x)
        return 0.5 * r * r if r <= 1.0 else r - 0.5

    return Problem(
        _name("huber", "frobenius", (size,)),
        frobenius,
        value,
        lambda x: x / max(1.0, frobenius.norm(x)),
        Constants(1.0),
        lambda gap: math.sqrt(2.0 * gap) if gap <= 0.5 else gap + 0.5,
    )


def wavy(size: int) -> Problem:
    """Return `sum x_i^2 + 3 sin(x_i)^2` in l2, of curvature at most 8: no star-convexity, but aiming.

    `<grad f(x), x> >= theta f(x)` with theta = .496, least near |x_i| = 2.15, and `||grad f||^2 >= 2 mu f` with
    mu = .1755, least near |x_i| = 2.20; both DERIVED on a grid.

    Args:
        size: The number of entries.
    """
    return Problem(
        _name("wavy", "frobenius", (size,)),
        frobenius,
        lambda x: float((x * x + 3.0 * np.sin(x) ** 2).sum()),
        lambda x: 2.0 * x + 3.0 * np.sin(2.0 * x),
        Constants(8.0),
        lambda gap: math.sqrt(gap),
    )


def shifted(problem: Problem, minimiser: Array) -> Problem:
    """Return the problem with its minimiser moved; distances stay those to 0, as weight decay needs them.

    Args:
        problem: A problem.
        minimiser: Where its least value is to lie.
    """
    return replace(
        problem,
        name=f"{problem.name}, shifted",
        value=lambda x: problem.value(x - minimiser),
        gradient=lambda x: problem.gradient(x - minimiser),
        radius=lambda gap: problem.radius(gap) + problem.norm.norm(minimiser),
    )


def saturated() -> Problem:
    """Return `1 - exp(-||x||^2)` in l2, of curvature at most 2: flat far from the minimiser, and so not star-convex."""
    return Problem(
        "saturated, frobenius",
        frobenius,
        lambda x: float(-np.expm1(-(x * x).sum())),
        lambda x: 2.0 * x * np.exp(-(x * x).sum()),
        Constants(2.0),
        lambda gap: math.sqrt(-math.log1p(-gap)) if gap < 1.0 else math.inf,
    )


def absolute(c: float) -> Problem:
    """Return `c |x_1 + x_2| + |x_1 - x_2|`, convex and Lipschitz, without a bound on its curvature.

    Args:
        c: The weight of the sum, between 0 and 1.
    """
    return Problem(
        f"absolute, c {c:.3g}",
        maximum,
        lambda x: float(c * abs(x[0] + x[1]) + abs(x[0] - x[1])),
        lambda x: c * np.sign(x[0] + x[1]) * np.array([1.0, 1.0]) + np.sign(x[0] - x[1]) * np.array([1.0, -1.0]),
        Constants(math.inf),
        lambda gap: (gap / c + gap) / 2.0,
    )


def _separable(
    name: str,
    norm: str,
    shape: tuple[int, ...],
    value: Callable[[Array], Array],
    slope: Callable[[Array], Array],
    constants: Constants,
    radius: Callable[[float], float],
) -> Problem:
    """Return the sum of an even function over the entries, or over the singular values for the spectral norm."""
    chosen = _NORMS[_known(norm, shape)]
    size = kappa(norm, [shape])
    if chosen is not spectral:
        total, gradient = value, slope
    else:
        size += abs(shape[0] - shape[1]) / 2.0

        def total(x: Array) -> Array:
            return value(singular_values(x))

        def gradient(x: Array) -> Array:
            u, s, vt = np.linalg.svd(x, full_matrices=False)
            return np.asarray((u * slope(s)) @ vt)

    return Problem(
        _name(name, norm, shape),
        chosen,
        lambda x: float(total(x).sum()),
        gradient,
        Constants(constants.K0 * size, constants.K1, constants.Krho, constants.rho),
        radius if chosen is not frobenius else lambda gap: math.sqrt(math.prod(shape)) * radius(gap),
    )


def _name(name: str, norm: str, shape: tuple[int, ...]) -> str:
    return f"{name}, {norm}, {'x'.join(map(str, shape))}"


def _known(norm: str, shape: tuple[int, ...]) -> str:
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(map(repr, NORMS))}, got {norm!r}")
    if norm == "spectral" and len(shape) != 2:
        raise ValueError(f"the spectral norm needs a matrix's shape, (rows, columns), got {shape}")
    return norm


_NODES = 20_001


@cache
def _wiggle_table() -> tuple[Array, Array, Array]:
    """Gauss-Legendre nodes and weights on [0, 1], and the integral of sin(4 t^5) up to each node of a grid of [0, 3].

    On one interval of the grid the phase turns by less than 0.3: eight points are exact to rounding.
    """
    nodes, weights = np.polynomial.legendre.leggauss(8)
    nodes, weights = (nodes + 1.0) / 2.0, weights / 2.0
    grid = np.linspace(0.0, 3.0, _NODES)
    width = grid[1]
    pieces = width * np.sin(4.0 * (grid[:-1, None] + width * nodes) ** 5) @ weights
    return nodes, weights, np.concatenate([[0.0], np.cumsum(pieces)])


def _wiggles(x: Array) -> Array:
    """Return the integral of sin(4 t^5) from 0 to each x in [0, 3]."""
    nodes, weights, sums = _wiggle_table()
    width = 3.0 / (_NODES - 1)
    index = np.minimum(x / width, _NODES - 1).astype(int)
    left = index * width
    rest = x - left
    return np.asarray(sums[index] + rest * (np.sin(4.0 * (left[..., None] + rest[..., None] * nodes) ** 5) @ weights))
