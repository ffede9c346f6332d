import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmgap.theory import gluon_momentum
from warmgap.theory.gluon import cosh_layer

LAYER = cosh_layer("max", np.array([[1.0]]))


@settings(max_examples=15)
@given(
    names=st.lists(st.sampled_from(["frobenius", "max", "spectral"]), min_size=1, max_size=2),
    seed=st.integers(0, 999),
    sigma=st.floats(0.0, 2.0),
)
def test_layers_of_cosh(names: list[str], seed: int, sigma: float) -> None:
    starts = np.random.default_rng(seed).uniform(-1.5, 1.5, (len(names), 2, 2))
    layers = [cosh_layer(name, start) for name, start in zip(names, starts, strict=True)]
    assert gluon_momentum.check(layers, 50, sigma).holds


def test_the_sequences() -> None:
    found = gluon_momentum.weights(40)
    k, beta = np.arange(40), found.beta
    assert beta == pytest.approx(1 - (k + 1) ** -0.5)
    late = sum(found.shrink[j] * np.prod(beta[4 : j + 1]) for j in range(4, 40))
    assert found.lag[3] == pytest.approx(late)
    each = [(1 - beta[j]) * np.prod(beta[j + 1 : 31]) for j in range(31)]
    assert found.noise[30] == pytest.approx(np.sqrt(np.sum(np.square(each))))
    assert gluon_momentum.weights(3000).largest < 1.05


def test_the_bound_is_of_the_order_of_a_fourth_root() -> None:
    bounds = [gluon_momentum.check([LAYER], steps, 1.0, seeds=1).bound for steps in (100, 1600)]
    assert 1.3 < bounds[0] / bounds[1] < 2.0


def test_a_lag_1_7_times_smaller_fails_and_so_do_smaller_constants() -> None:
    assert gluon_momentum.check([LAYER], 60, 0.0, notch=1.5).holds
    assert not gluon_momentum.check([LAYER], 60, 0.0, notch=1.7).holds
    problem, start, L0, L1 = LAYER
    assert not gluon_momentum.check([(problem, start, L0 / 2.5, L1 / 2.5)], 60, 0.0).holds


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        gluon_momentum.check([], 5, 0.0)
    with pytest.raises(ValueError, match="sigma must not be negative"):
        gluon_momentum.check([LAYER], 5, -1.0)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        gluon_momentum.weights(0)
