"""What a guarantee's check returns: the measured number, the bound, and whether the two agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from warmgap.theory.norms import Array

SLACK = 1e-12
"""How far rounding may carry an inequality, as a share of the larger of 1 and its scale."""


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
    """

    guarantee: str
    problem: str
    quantity: str
    measured: float
    bound: float
    relation: Literal["<=", ">="] = "<="
    excess: float = -math.inf

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


def excess(left: Array, right: Array) -> float:
    """Return the largest `left - right` over all steps, each as a share of the larger of 1 and |right|.

    It is infinite where either is NaN, and minus infinity where there are no steps.
    """
    shares = (np.asarray(left) - right) / np.maximum(1.0, np.abs(right))
    return float(np.where(np.isnan(shares), np.inf, shares).max(initial=-np.inf))
