from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmgap.theory import Constants, power_noise, problems

CONE = replace(problems.huber(2), constants=Constants(1.0, 0.0, 0.1, 1.0))


@settings(max_examples=15)
@given(seed=st.integers(0, 999), A=st.floats(0.0, 0.5), C=st.floats(0.0, 0.2), steps=st.integers(4, 200))
def test_rough_and_cone(seed: int, A: float, C: float, steps: int) -> None:
    x = np.random.default_rng(seed).uniform(-1.0, 1.0, 2)
    assert power_noise.check(problems.rough(2), x, steps, A, C, seeds=2).holds
    assert power_noise.check(CONE, 3.0 * x, steps, A, C, seeds=2).holds


def test_stronger_statements_fail() -> None:
    start = np.array([3.0, -4.0])
    assert power_noise.check(CONE, start, 200, 0.0, 0.1, seeds=1).holds
    assert not power_noise.check(CONE, start, 200, 0.0, 0.1, seeds=1, notch=1.02).holds
    assert not power_noise.check(CONE.shrunk(1.05), start, 200, 0.0, 0.1, seeds=1).holds


def test_bad_arguments() -> None:
    x = np.ones(2)
    for arguments, message in (
        ((3, 0.0, 0.1), "take 4 steps"),
        ((9, -1.0, 0.1), "A must not"),
        ((9, 0.0, -1.0), "C must not"),
    ):
        with pytest.raises(ValueError, match=message):
            power_noise.check(CONE, x, *arguments)
    with pytest.raises(ValueError, match="the power rule is about l2"):
        power_noise.check(problems.cosh("frobenius", (2,)), x, 9, 0.0, 0.1)
