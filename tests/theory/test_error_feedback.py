import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmgap.theory import error_feedback


@pytest.mark.parametrize(("steps", "value"), [(1500, 0.0039), (5000, 0.0031), (50000, 0.00088)])
def test_the_published_values(steps: int, value: float) -> None:
    path, *_ = error_feedback.run(steps, lambda t: 1.0 / math.sqrt(t + 1))
    assert path.gaps[-1] == pytest.approx(value, rel=0.015)


@settings(max_examples=20)
@given(beta=st.floats(0.0, 0.95), steps=st.integers(1, 2000))
def test_the_bound(beta: float, steps: int) -> None:
    assert error_feedback.check(steps, beta).holds


def test_without_feedback_it_is_found_not_to_converge() -> None:
    assert error_feedback.check(30_000).holds
    assert error_feedback.check(200, beta=0.0).holds
    for row in error_feedback.examples():
        steps = int(row.quantity.split()[3])
        assert not error_feedback.check(steps, beta=0.0 if steps == 200 else 0.9, feedback=False).holds
    assert not error_feedback.check(200, beta=0.0, feedback=False).holds
    stuck, *_ = error_feedback.run(3000, lambda _: 0.01, beta=0.0, c=0.1, feedback=False)
    freed, *_ = error_feedback.run(3000, lambda _: 0.01, beta=0.0, c=0.1)
    assert stuck.gaps.min() > 0.15
    assert freed.gaps.min() < 0.05


def test_a_smaller_error_than_is_proved_is_not_seen() -> None:
    assert error_feedback.check(5000, notch=2.3).holds
    assert not error_feedback.check(5000, notch=2.5).holds
