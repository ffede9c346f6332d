"""The guarantees that this library quotes, each run on a problem with known constants.

One module a guarantee, each in the same order: assumption, step size, statement, source, proof, problem. FOUND says
that a statement stands in a public text, DERIVED that it is proved here, NOT FOUND that the original wording was not
to be had. Every module has `check`, which runs one problem, and `examples`, which the table is made of.
"""

from __future__ import annotations

from collections.abc import Iterator

from warmgap.theory import (
    aiming,
    boundedness,
    deterministic,
    error_feedback,
    fixed_step,
    gluon,
    gradient_smoothness,
    nonconvergence,
    normalized_feedback,
    normalized_feedback_fixed,
    normalized_feedback_momentum,
    norms,
    polyak_lojasiewicz,
    power,
    problems,
    stochastic,
    unified,
    weight_decay,
)
from warmgap.theory.check import Check
from warmgap.theory.constants import Constants
from warmgap.theory.descent import Iterate, Trajectory, descend
from warmgap.theory.problems import Problem

__all__ = [
    "GUARANTEES",
    "Check",
    "Constants",
    "Iterate",
    "Problem",
    "Trajectory",
    "check_all",
    "descend",
    "norms",
    "problems",
]

GUARANTEES = (
    deterministic,
    boundedness,
    weight_decay,
    stochastic,
    gradient_smoothness,
    aiming,
    polyak_lojasiewicz,
    unified,
    fixed_step,
    power,
    gluon,
    nonconvergence,
    error_feedback,
    normalized_feedback,
    normalized_feedback_momentum,
    normalized_feedback_fixed,
)
"""The modules of the guarantees, in the order of the table."""


def check_all() -> Iterator[Check]:
    """Run the examples of every guarantee, one after the other."""
    for guarantee in GUARANTEES:
        yield from guarantee.examples()
