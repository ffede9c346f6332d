"""The operations that a schedule is written in: here for Python's floats; `warmgap.optax` has those of `jax.numpy`.

A rule, a filter or a guard is one function of these. In it no number may be NaN and nothing may be divided by 0, not
even on the side of a `where` that is not taken. A branch that is expensive, or may raise, goes into `when` as a
function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

LARGEST = 1e38  # losses beyond it count as infinite: differences of such would not fit a float32


class Floats:
    """Operations on Python's numbers."""

    minimum = staticmethod(min)
    maximum = staticmethod(max)
    log1p = staticmethod(math.log1p)
    sqrt = staticmethod(math.sqrt)
    sin = staticmethod(math.sin)

    @staticmethod
    def finite(loss: float) -> bool:
        """Return whether the loss is a number to work with."""
        return -LARGEST < loss < LARGEST

    @staticmethod
    def no(condition: bool) -> bool:
        """Return `not condition`."""
        return not condition

    @staticmethod
    def where(condition: bool, yes: T, no: T) -> T:
        """Return one of two numbers; both were computed."""
        return yes if condition else no

    @staticmethod
    def when(condition: bool, make: Callable[[], T], old: T) -> T:
        """Return what `make` returns, a number or a state, if the condition holds; else `old`."""
        return make() if condition else old

    once = when  # so expensive that a compiled function must branch, too

    @staticmethod
    def host(function: Callable[[float], float], value: float) -> float:
        """Return `function(value)`, of a function of floats alone."""
        return function(value)

    @staticmethod
    def decay(function: Callable[[float], float]) -> Callable[[float], float]:
        """Return a decay as a function of these operations' numbers, whatever numbers it returns."""
        return lambda progress: float(function(progress))

    @staticmethod
    def require(holds: bool, message: Callable[[], str]) -> None:
        """Raise ValueError unless the condition holds; a compiled function goes on without."""
        if not holds:
            raise ValueError(message())

    @staticmethod
    def power(base: float, exponent: float) -> float:
        """Return `base**exponent` for a base >= 0."""
        return float(base**exponent)

    @staticmethod
    def push(window: tuple[float, ...], value: float) -> tuple[float, ...]:
        """Return the window with the value at its end, without its first."""
        return (*window[1:], value)

    @staticmethod
    def median(window: tuple[float, ...], count: int) -> float:
        """Return the median of the last `count` values; of an even number the lower middle one."""
        return sorted(window[len(window) - count :])[(count - 1) // 2]

    @staticmethod
    def distances(window: tuple[float, ...], value: float) -> tuple[float, ...]:
        """Return the absolute difference of each value of the window from `value`."""
        return tuple([abs(item - value) for item in window])


Ops = Any
"""`Floats`, or a class with the same operations on arrays."""
