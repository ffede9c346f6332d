"""What a guarantee's check returns: the measured number, the bound, whether the two agree, and how loosely."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Concatenate, Literal, ParamSpec

import numpy as np

from warmgap.theory.norms import Array
from warmgap.theory.problems import Problem

P = ParamSpec("P")

SLACK = 1e-12
"""How far rounding may carry an inequality, as a share of the larger of 1 and its scale."""

COLUMNS = ("guarantee", "problem", "quantity", "measured", "bound", "ratio", "looseness", "holds")
"""The headings of the table; `Check.cells` is a row of it."""

_LOOSEST = 1e6
_RESOLUTION = 1.02


@dataclass(frozen=True)
class Check:
    """One guarantee, run on one problem.

    Attributes:
        guarantee: What is claimed, and where.
        problem: The problem it was run on.
        quantity: What was measured.
        measured: The measured number; infinite where the run did not get there within the bound.
        bound: What the guarantee says about it.
        relation: Whether the measured number must be at most (`"<="`) or at least (`">="`) the bound.
        excess: The largest violation, over all steps, of what the guarantee says about a single step; at most 0 (up
            to `SLACK`) where every step keeps to it.
        looseness: By how much the constants may shrink (where there are none: the bound be tightened) before the row
            fails: 1 where the guarantee is tight on this problem, infinite where no factor up to a million is seen, NaN
            where it was not measured. See `loosen`.

    Example:
        >>> Check("Theorem", "cosh", "steps", measured=10.0, bound=12.0).holds
        True
    """

    guarantee: str
    problem: str
    quantity: str
    measured: float
    bound: float
    relation: Literal["<=", ">="] = "<="
    excess: float = -math.inf
    looseness: float = math.nan

    @property
    def ratio(self) -> float:
        """Measured / bound."""
        return self.measured / self.bound

    @property
    def holds(self) -> bool:
        """Whether the bound holds at the end, and the inequality of a single step at every step."""
        slack = SLACK * max(1.0, abs(self.bound))
        within = self.measured <= self.bound + slack if self.relation == "<=" else self.measured >= self.bound - slack
        return within and self.excess <= SLACK

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of the table, a text for each of `COLUMNS`."""
        loose = "-" if math.isnan(self.looseness) else f"{self.looseness:.3g}"
        return (
            self.guarantee,
            self.problem,
            self.quantity,
            f"{self.measured:.5g}",
            f"{self.relation} {self.bound:.5g}",
            f"{self.ratio:.3g}",
            loose,
            "yes" if self.holds else "NO",
        )


def loosen(run: Callable[[float], Check]) -> Check:
    """Return `run(1)` with its looseness: how far `run(factor)` still holds, to two percent.

    Args:
        run: The check with every constant of the assumption divided by a factor of at least 1 (for a row that has none:
            with its bound tightened by it). Step sizes and bounds that follow from the constants follow them.

    Example:
        >>> loosen(lambda factor: Check("Theorem", "cosh", "steps", 10.0, 20.0 / factor)).looseness > 1.9
        True
    """
    found, low, high = run(1.0), 1.0, 2.0
    if not found.holds:
        return found
    while run(high).holds:
        low, high = high, 2.0 * high
        if low > _LOOSEST:
            return replace(found, looseness=math.inf)
    while high > _RESOLUTION * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if run(middle).holds else (low, middle)
    return replace(found, looseness=low)


def row(check: Callable[Concatenate[Problem, P], Check], problem: Problem, *args: P.args, **kwargs: P.kwargs) -> Check:
    """Return `check(problem, ...)` with its looseness: the problem's constants shrink."""
    return loosen(lambda factor: check(problem.shrunk(factor), *args, **kwargs))


def excess(left: Array, right: Array) -> float:
    """Return the largest `left - right` over all steps, each as a share of the larger of 1 and |right|.

    It is infinite where either is NaN, and minus infinity where there are no steps.
    """
    shares = (np.asarray(left) - right) / np.maximum(1.0, np.abs(right))
    return float(np.where(np.isnan(shares), np.inf, shares).max(initial=-np.inf))
