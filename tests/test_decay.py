from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmgap import decay


@pytest.mark.parametrize("name", decay.NAMES)
@given(progress=st.floats(0.0, 1.0, exclude_max=True), later=st.floats(0.0, 1.0, exclude_max=True))
def test_every_decay_starts_at_one_and_never_rises(name: str, progress: float, later: float) -> None:
    factor = decay.by_name(name)
    assert factor(0.0) == 1.0
    low, high = sorted((progress, later))
    assert 0.0 <= factor(high) <= factor(low) <= 1.0


def test_the_usual_values() -> None:
    assert decay.cosine()(0.5) == pytest.approx(0.5)
    assert decay.cosine(0.1)(1.0) == pytest.approx(0.1)
    assert decay.linear()(0.25) == pytest.approx(0.75)
    assert decay.wsd()(0.8) == 1.0
    assert decay.wsd()(0.9) == pytest.approx(0.5)
    assert decay.wsd(0.5, 0.2)(1.0) == pytest.approx(0.2)
    assert decay.inverse_sqrt()(1.0) == pytest.approx(0.1)
    assert decay.constant()(0.7) == 1.0


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"decay must be one of 'cosine'.*got 'cosinus'"):
        decay.by_name("cosinus")
    with pytest.raises(ValueError, match="minimum must lie in"):
        decay.cosine(1.0)
    with pytest.raises(ValueError, match="share must lie strictly"):
        decay.wsd(1.0)
    with pytest.raises(ValueError, match="final must lie strictly"):
        decay.inverse_sqrt(0.0)
