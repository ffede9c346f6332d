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
    composition,
    deterministic,
    error_feedback,
    fixed_step,
    gluon,
    gluon_momentum,
    gradient_smoothness,
    inexact,
    nonconvergence,
    normalized_feedback,
    normalized_feedback_fixed,
    normalized_feedback_momentum,
    norms,
    polyak_lojasiewicz,
    power,
    power_noise,
    problems,
    self_bounding,
    stochastic,
    two_phases,
    two_points,
    unified,
    weight_decay,
)
from warmgap.theory.check import COLUMNS, Check, loosen
from warmgap.theory.constants import Constants
from warmgap.theory.descent import Iterate, Trajectory, descend
from warmgap.theory.problems import Problem

__all__ = [
    "COLUMNS",
    "GUARANTEES",
    "Check",
    "Constants",
    "Iterate",
    "Problem",
    "Trajectory",
    "check_all",
    "descend",
    "loosen",
    "norms",
    "problems",
]

GUARANTEES = (
    self_bounding,
    two_points,
    deterministic,
    boundedness,
    weight_decay,
    inexact,
    stochastic,
    gradient_smoothness,
    composition,
    two_phases,
    aiming,
    polyak_lojasiewicz,
    fixed_step,
    unified,
    power,
    power_noise,
    gluon,
    gluon_momentum,
    nonconvergence,
    error_feedback,
    normalized_feedback,
    normalized_feedback_momentum,
    normalized_feedback_fixed,
)
"""The modules of the guarantees, in the order of the table."""


def check_all() -> Iterator[Check]:
    """Run the examples of every guarantee, one after the other.

    Example:
        >>> import itertools
        >>> all(check.holds for check in itertools.islice(check_all(), 3))
        True
    """
    for guarantee in GUARANTEES:
        yield from guarantee.examples()
