import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmgap.theory import nonconvergence
from warmgap.theory.norms import maximum, spectral


@pytest.mark.parametrize(("steps", "value"), [(1500, 0.053298), (5000, 0.052832), (50000, 0.052652)])
def test_the_published_values(steps: int, value: float) -> None:
    check = nonconvergence.check(steps)
    assert check.holds
    assert check.measured == pytest.approx(value, abs=5e-7)


@settings(max_examples=15)
@given(beta=st.floats(0.0, 0.97), steps=st.integers(1, 1000))
def test_it_holds_for_every_momentum(beta: float, steps: int) -> None:
    assert nonconvergence.check(steps, beta, c=0.9 * nonconvergence.frozen_weight(beta)).holds


def test_a_sum_of_more_weight_is_not_frozen() -> None:
    check = nonconvergence.check(1500, c=0.5)
    assert not check.holds
    assert check.measured < 0.1


def test_on_a_diagonal_matrix_the_sign_is_muons_step() -> None:
    for entries in ([0.3, -2.0], [-1.0, -1e-6]):
        assert spectral.lmo(np.diag(entries)) == pytest.approx(np.diag(maximum.lmo(np.array(entries))), abs=1e-12)


@pytest.mark.parametrize("beta", [-0.1, 1.0, float("nan")])
def test_a_momentum_out_of_range(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must"):
        nonconvergence.check(10, beta)


def test_a_higher_floor_than_is_proved_is_not_there() -> None:
    check = nonconvergence.check(5000)
    assert 1.0 < check.ratio < 1.004
    assert not nonconvergence.check(5000, notch=1.01).holds
