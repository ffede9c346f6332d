"""Functions that several workers have a part of each, and error feedback among them.

    name          f_i(x)                                                       L0, L1 of each part
    polynomial    sum (lam/24) x_j^4 + lam x_j^2/(1 + x_j^2), one worker       4, L1 = 1, 4 or 8
    cosh          sum cosh(x_j - b_ij) - 1                                     1, 1
    quadratic     (1/2) ||x - b_i||^2                                          1, 0
    logistic      mean ln(1 + exp(-y a.x)) + lam sum x_j^2/(1 + x_j^2)         2 lam + lam sqrt(d) max ||a||, max ||a||

f is the mean of the parts. Every part keeps `||grad f_i(x) - grad f_i(y)|| <= (L0 + L1 sup_u ||grad f_i(u)||) ||x -
y||` in l2, with the sup over the segment (arXiv 2410.16871, Assumption 3). Constants of the polynomial and of logistic
regression FOUND there, the others DERIVED.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from warmgap._checks import check_count, check_fraction, check_positive
from warmgap.theory.check import excess
from warmgap.theory.norms import Array

__all__ = [
    "State",
    "Workers",
    "arrival",
    "cosh",
    "descent",
    "feedback",
    "growth",
    "logistic",
    "path",
    "polynomial",
    "quadratic",
    "shrinkage",
    "top",
]

Compress = Callable[[Array], Array]


@dataclass(frozen=True)
class Workers:
    """A function in parts, one a worker.

    Attributes:
        name: Its name.
        values: The parts' values, of shape (..., workers), at points of shape (..., d).
        gradients: The parts' gradients, of shape (..., workers, d).
        L0: The constant term of the parts' smoothness.
        L1: Its factor of the gradient's length.
        least: The least value of f, or a lower bound.
        least_parts: The mean of the parts' least values, or a lower bound.
    """

    name: str
    values: Callable[[Array], Array]
    gradients: Callable[[Array], Array]
    L0: float
    L1: float
    least: float
    least_parts: float

    def shrunk(self, factor: float) -> Workers:
        """The same function with constants that are too small by a factor."""
        return replace(self, L0=self.L0 / factor, L1=self.L1 / factor)


class State(NamedTuple):
    """What error feedback steps from, after its messages have arrived.

    Attributes:
        x: The point, of shape (..., d).
        gradients: The parts' gradients there, of shape (..., workers, d).
        estimates: What each worker compresses: its gradient, or its momentum v_i.
        shared: g_i, what has arrived of them; the step is along their mean.
    """

    x: Array
    gradients: Array
    estimates: Array
    shared: Array


def feedback(
    problem: Workers,
    start: Array,
    gamma: float | Array,
    compress: Compress,
    *,
    eta: float = 1.0,
    noise: Callable[[int], Array | float] = lambda _: 0.0,
    first: Array | None = None,
    normalized: bool = True,
) -> Iterator[State]:
    """Run ||EF21|| (eta 1) or ||EF21-SGDM|| for ever.

    Args:
        problem: What is minimised.
        start: The first point, of shape (d,), or several of shape (..., d).
        gamma: The length of a step; one for each start where it is an array.
        compress: From what is to be sent to what arrives, along the last axis.
        eta: Weight of the newest gradient in the momentum.
        noise: What is added to the gradients in a step.
        first: g_i before the first message; zero by default.
        normalized: Whether steps have length gamma; without, they are gamma times the estimate (EF21).

    Yields:
        The state before each step.
    """
    x = np.asarray(start, dtype=float)
    step = 0
    shared = estimates = None
    while True:
        gradients = problem.gradients(x)
        seen = gradients + noise(step)
        estimates = seen if estimates is None else (1.0 - eta) * estimates + eta * seen
        if shared is None:
            shared = np.zeros_like(seen) if first is None else np.broadcast_to(first, seen.shape)
        shared = shared + compress(estimates - shared)
        yield State(x, gradients, estimates, shared)
        mean = shared.mean(axis=-2)
        length = np.linalg.norm(mean, axis=-1, keepdims=True) if normalized else np.ones(1)
        x = x - np.asarray(gamma)[..., None] * mean / np.where(length > 0.0, length, 1.0)
        step += 1


def top(k: int) -> Compress:
    """The compressor that keeps the k entries of largest modulus.

    Raises:
        ValueError: If k is not a whole number of at least 1.
    """
    check_count("k", k, minimum=1)

    def compress(v: Array) -> Array:
        if k >= v.shape[-1]:
            return v
        places = np.argpartition(np.abs(v), -k, axis=-1)[..., -k:]
        found = np.zeros_like(v)
        np.put_along_axis(found, places, np.take_along_axis(v, places, axis=-1), axis=-1)
        return found

    return compress


def shrinkage(alpha: float) -> float:
    """Return a = 1 - sqrt(1 - alpha): by what share what has not arrived shrinks with a message.

    Raises:
        ValueError: If alpha does not lie in (0, 1].
    """
    if alpha == 1.0:
        return 1.0
    return 1.0 - math.sqrt(1.0 - check_fraction("alpha", alpha))


def growth(z: float) -> tuple[float, float]:
    """Return (e^z - 1)/z and 2 (e^z - 1 - z)/z^2: how far (L0, L1)-smoothness lets a gradient, and f, change in a step.

    With z = L1 times the step's length h, the gradient changes by at most the first times `(L0 + L1 ||grad f(x)||) h`,
    and f less its linear part by at most the second times half of that times h.
    """
    if z < 1e-4:
        return 1.0 + z / 2.0 + z**2 / 6.0, 1.0 + z / 3.0 + z**2 / 12.0
    return math.expm1(z) / z, 2.0 * (math.expm1(z) - z) / z**2


def path(states: Iterator[State], steps: int) -> State:
    """The first `steps` states of a run, one after the other along a new first axis.

    Raises:
        ValueError: If steps is not a whole number of at least 1.
    """
    taken = [state for _, state in zip(range(check_count("steps", steps, minimum=1)), states, strict=False)]
    return State(*(np.stack(column) for column in zip(*taken, strict=True)))


def lengths(x: Array) -> Array:
    """The l2 length of each vector."""
    return np.asarray(np.linalg.norm(x, axis=-1))


def descent(problem: Workers, run: State, gamma: float) -> float:
    """How far f after a step of length gamma is above what it may be at most; at most 0 where the statement holds.

    The statement: `f(x+) <= f(x) - gamma ||grad f(x)|| + 2 gamma ||grad f(x) - g|| + s (gamma^2/2) mean_i (L0 + L1
    ||grad f_i(x)||)`, with s the second number of `growth`.
    """
    values = problem.values(run.x).mean(axis=-1)
    gradient = run.gradients.mean(axis=-2)
    off = lengths(gradient - run.shared.mean(axis=-2))
    curve = problem.L0 + problem.L1 * lengths(run.gradients).mean(axis=-1)
    bound = values + gamma * (2.0 * off - lengths(gradient)) + growth(problem.L1 * gamma)[1] * gamma**2 / 2.0 * curve
    return excess(values[1:], bound[:-1])


def arrival(run: State, alpha: float, *, notch: float = 1.0) -> float:
    """How far what has not arrived is above what it may be at most; at most 0 where the statement holds.

    The statement: `||v_i+ - g_i+|| <= (1 - a) (||v_i - g_i|| + ||v_i+ - v_i||)`. Made notch times stronger, a is
    notch times as large.
    """
    late = lengths(run.estimates - run.shared)
    kept = 1.0 - notch * shrinkage(alpha)
    return excess(late[1:], kept * (late[:-1] + lengths(np.diff(run.estimates, axis=0))))


def polynomial(L1: float, dimension: int = 4) -> Workers:
    """Return the paper's polynomial, of one worker: `L0 = 4` fixes its weight lam for this L1.

    Raises:
        ValueError: If L1 is not above 0.
    """
    lam = 4.0 / (9.0 * dimension**2 / (2.0 * check_positive("L1", L1) ** 2) + 2.0)

    def values(x: Array) -> Array:
        return np.asarray((lam / 24.0 * x**4 + lam * x**2 / (1.0 + x**2)).sum(axis=-1)[..., None])

    def gradients(x: Array) -> Array:
        return np.asarray((lam / 6.0 * x**3 + 2.0 * lam * x / (1.0 + x**2) ** 2)[..., None, :])

    return Workers(f"polynomial, L1 {L1:g}", values, gradients, 4.0, L1, 0.0, 0.0)


def cosh(shifts: Array) -> Workers:
    """Return the sum of `cosh(x_j - b_ij) - 1` over j, each worker's shift a row of b, in pairs of b and -b.

    Raises:
        ValueError: If the rows are not such pairs.
    """
    _check_pairs(shifts)
    return Workers(
        f"cosh, {len(shifts)} workers",
        lambda x: np.asarray((2.0 * np.sinh((x[..., None, :] - shifts) / 2.0) ** 2).sum(axis=-1)),
        lambda x: np.asarray(np.sinh(x[..., None, :] - shifts)),
        1.0,
        1.0,
        float((2.0 * np.sinh(shifts / 2.0) ** 2).sum(axis=-1).mean()),
        0.0,
    )


def quadratic(shifts: Array) -> Workers:
    """Return `(1/2) ||x - b_i||^2` with each worker's shift a row of b."""
    mean = shifts.mean(axis=0)
    return Workers(
        f"quadratic, {len(shifts)} workers",
        lambda x: np.asarray(0.5 * ((x[..., None, :] - shifts) ** 2).sum(axis=-1)),
        lambda x: np.asarray(x[..., None, :] - shifts),
        1.0,
        0.0,
        float(0.5 * ((shifts - mean) ** 2).sum(axis=-1).mean()),
        0.0,
    )


def logistic(parts: Sequence[tuple[Array, Array]], lam: float = 0.1, name: str = "logistic") -> Workers:
    """Return logistic regression with a regularizer that is not convex, each worker's data of the same size.

    Args:
        parts: Each worker's rows a, of shape (rows, d), and labels y of -1 and 1.
        lam: The weight of the regularizer.
        name: The name of the data.

    Raises:
        ValueError: If lam is not above 0, or workers have data of different shapes.
    """
    check_positive("lam", lam)
    if len({a.shape for a, _ in parts}) != 1:
        raise ValueError(f"workers need as much data each, got shapes {[a.shape for a, _ in parts]}; cut it evenly")
    signed = np.stack([a * y[:, None] for a, y in parts])
    longest = float(np.linalg.norm(signed, axis=-1).max())

    def values(x: Array) -> Array:
        margins = np.einsum("nrd,...d->...nr", signed, x)
        return np.asarray(np.logaddexp(0.0, -margins).mean(-1) + lam * (x**2 / (1.0 + x**2)).sum(-1)[..., None])

    def gradients(x: Array) -> Array:
        margins = np.einsum("nrd,...d->...nr", signed, x)
        weights = -0.5 * (1.0 - np.tanh(margins / 2.0)) / signed.shape[1]
        return np.asarray(
            np.einsum("...nr,nrd->...nd", weights, signed) + (2.0 * lam * x / (1.0 + x**2) ** 2)[..., None, :]
        )

    L0 = 2.0 * lam + lam * math.sqrt(signed.shape[-1]) * longest
    return Workers(f"{name}, {len(parts)} workers", values, gradients, L0, longest, 0.0, 0.0)


def _check_pairs(shifts: Array) -> None:
    if shifts.ndim != 2 or not np.array_equal(shifts[0::2], -shifts[1::2]):
        raise ValueError("shifts must be an array of rows in pairs of b and -b, so that the minimiser is 0")
