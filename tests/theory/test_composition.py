import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmgap.theory import Constants, composition, problems
from warmgap.theory.fixed_step import cosh_of


@given(h=st.lists(st.floats(0.2, 4.0), min_size=4, max_size=4), apart=st.floats(0.0, 2.0))
def test_a_sum_of_functions_with_different_minimisers(h: list[float], apart: float) -> None:
    parts = [
        problems.shifted(cosh_of(h[0], h[1]), np.array([apart])),
        problems.shifted(cosh_of(h[2], h[3]), np.array([-apart])),
    ]
    grid = np.linspace(-3.0, 3.0, 61)[:, None]
    # Any number up to the least value makes a gap that is not too small.
    lowest = min(sum(part.value(x) for part in parts) for x in grid) * 0.98
    assert composition.check(composition.total(parts, lowest), grid[::4]).holds


def test_the_rules_written_out() -> None:
    parts = [Constants(1.0, 2.0), Constants(3.0, 0.5)]
    assert composition.of_sum(parts, 0.25) == Constants(4.5, 2.0)
    assert composition.of_affine(parts[0], np.diag([3.0, 1.0])) == Constants(9.0, 18.0)


def test_stronger_statements_fail() -> None:
    for check in composition.examples():
        assert check.holds
        assert check.looseness < 1.02


@pytest.mark.parametrize(
    ("parts", "excess", "message"),
    [
        ([], 0.0, "at least one"),
        ([Constants(1.0, 0.0, 1.0)], 0.0, "linear in the gap"),
        ([Constants(1.0)], -0.1, "cannot lie below"),
    ],
)
def test_bad_arguments(parts: list[Constants], excess: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        composition.of_sum(parts, excess)
    with pytest.raises(ValueError, match="got none"):
        composition.check(problems.cosh("frobenius", (1,)), np.zeros((0, 1)))
