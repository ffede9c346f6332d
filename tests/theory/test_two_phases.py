import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmgap.theory import two_phases


@settings(max_examples=10)
@given(x=st.floats(0.3, 3.0), y=st.floats(0.3, 3.0), share=st.floats(0.02, 0.4))
def test_curvature_falls_until_half_is_learned(x: float, y: float, share: float) -> None:
    start = share * (y / x) ** 0.5
    assert two_phases.check(x, y, start).holds
    assert two_phases.check_turn(x, y, start).holds
    _, seen = two_phases.run(x, y, start)
    turn = int(seen.argmin())
    assert (np.diff(seen[: turn + 1]) < 0.0).all()
    assert (np.diff(seen[turn:]) > 0.0).all()


def test_stronger_statements_fail() -> None:
    assert not two_phases.check(1.0, 1.0, 0.05, factor=1.02).holds
    assert not two_phases.check_turn(1.0, 1.0, 0.05, notch=6.0).holds


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"start must lie below sqrt\(y/x\) = 1"):
        two_phases.check(1.0, 1.0, 1.5)
    with pytest.raises(ValueError, match="y must be above 0"):
        two_phases.check(1.0, -1.0, 0.5)
