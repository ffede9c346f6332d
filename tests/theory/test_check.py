import math

import numpy as np
import pytest

from warmgap.theory import COLUMNS, Check, loosen
from warmgap.theory.check import excess


@pytest.mark.parametrize(
    ("measured", "relation", "worst", "holds"),
    [
        (1.0, "<=", 0.0, True),
        (2.0, "<=", 0.0, True),
        (2.1, "<=", 0.0, False),
        (math.inf, "<=", 0.0, False),
        (math.nan, "<=", 0.0, False),
        (1.0, "<=", 1e-9, False),
        (1.0, "<=", math.inf, False),
        (2.1, ">=", 0.0, True),
        (1.9, ">=", 0.0, False),
    ],
)
def test_it_holds_when_the_bound_and_every_step_do(measured: float, relation: str, worst: float, holds: bool) -> None:
    check = Check("a", "b", "c", measured, 2.0, relation, worst)  # type: ignore[arg-type]
    assert check.holds is holds
    assert check.ratio == pytest.approx(measured / 2.0, nan_ok=True)


def test_the_looseness_is_how_far_the_constants_may_shrink() -> None:
    tight = loosen(lambda factor: Check("a", "b", "c", 1.0, 3.0 / factor))
    assert tight.looseness == pytest.approx(3.0, rel=0.02)
    assert loosen(lambda factor: Check("a", "b", "c", 1.0, 1.0 / factor)).looseness == 1.0
    assert loosen(lambda factor: Check("a", "b", "c", 0.0, 1.0 / factor)).looseness == math.inf
    assert math.isnan(loosen(lambda factor: Check("a", "b", "c", 2.0, 1.0 / factor)).looseness)


def test_a_row_has_a_cell_for_each_column() -> None:
    cells = dict(zip(COLUMNS, Check("a", "b", "c", 1.0, 2.0).cells, strict=True))
    assert (cells["bound"], cells["looseness"], cells["holds"]) == ("<= 2", "-", "yes")


def test_the_excess_is_the_worst_step_on_the_scale_of_its_bound() -> None:
    assert excess(np.array([1.0, 3.0]), np.array([2.0, 2.0])) == pytest.approx(0.5)
    assert excess(np.array([0.2]), np.array([0.1])) == pytest.approx(0.1)
    assert excess(np.array([np.nan, 1.0]), np.array([2.0, 2.0])) == math.inf
    assert excess(np.array([]), np.array([])) == -math.inf
