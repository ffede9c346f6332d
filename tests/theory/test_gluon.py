import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmgap.theory import gluon

names = st.lists(st.sampled_from(["frobenius", "max", "spectral"]), min_size=1, max_size=3)


@settings(max_examples=25)
@given(names=names, shape=st.tuples(st.integers(1, 3), st.integers(1, 3)), seed=st.integers(0, 999))
def test_layers_of_cosh(names: list[str], shape: tuple[int, int], seed: int) -> None:
    starts = np.random.default_rng(seed).uniform(-1.5, 1.5, (len(names), *shape))
    layers = [gluon.cosh_layer(name, start) for name, start in zip(names, starts, strict=True)]
    assert gluon.check(layers, 0.7).holds


def test_the_bound_written_out() -> None:
    start = np.array([[1.0]])
    layers = [gluon.cosh_layer("max", start), (*gluon.cosh_layer("max", start)[:2], 3.0, 2.0)]
    gap = 2 * (np.cosh(1.0) - 1)
    mean = (np.log(2.0) + 0.5) / 2
    bound = 2 * gap * (np.log(2.0) + 3 / 4) / (0.5 * mean) ** 2 + 2 * gap / (0.5 * mean)
    assert gluon.check(layers, 0.5).bound == np.ceil(bound)


def test_constants_that_are_too_small_are_found() -> None:
    problem, start, L0, L1 = gluon.cosh_layer("max", np.array([[2.0, -1.0]]))
    assert gluon.check([(problem, start, L0, L1)], 0.5).holds
    assert not gluon.check([(problem, start, 0.02 * L0, 0.2 * L1)], 0.5).holds


def test_a_descent_1_32_times_as_strong_fails() -> None:
    layers = [gluon.cosh_layer("max", np.array([[1.0]]))]
    assert gluon.check(layers, 0.3, notch=1.28).holds
    assert not gluon.check(layers, 0.3, notch=1.32).holds


def test_a_layer_needs_an_l1() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        gluon.check([], 0.5)
    problem, start, L0, _ = gluon.cosh_layer("max", np.array([[2.0]]))
    with pytest.raises(ValueError, match="L1 must be above 0"):
        gluon.check([(problem, start, L0, 0.0)], 0.5)
