import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from warmgap.theory.norms import Norm, frobenius, maximum, spectral
from warmgap.torch import norms as torch_norms

NORMS = (frobenius, maximum, spectral)
TORCH: dict[str, torch_norms.Norm] = {
    "frobenius": torch_norms.Frobenius(),
    "max": torch_norms.Max(),
    "spectral": torch_norms.Spectral(),
}
shapes = st.tuples(st.integers(1, 5), st.integers(1, 5))
seeds = st.integers(0, 10_000)


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
@given(shape=shapes, seed=seeds)
def test_the_lmo_is_a_unit_vector_that_takes_the_dual_norm(norm: Norm, shape: tuple[int, int], seed: int) -> None:
    g, x = np.random.default_rng(seed).standard_normal((2, *shape))
    assert np.vdot(g, norm.lmo(g)) == pytest.approx(-norm.dual(g), rel=1e-12)
    assert norm.norm(norm.lmo(g)) == pytest.approx(1.0, rel=1e-12)
    assert abs(np.vdot(g, x)) <= norm.dual(g) * norm.norm(x) * (1 + 1e-12)
    assert norm.dual(g) <= norm.euclidean(shape) * np.linalg.norm(g) * (1 + 1e-12)


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
@given(shape=shapes, seed=seeds)
def test_they_are_the_norms_of_the_torch_side(norm: Norm, shape: tuple[int, int], seed: int) -> None:
    g = np.random.default_rng(seed).standard_normal(shape)
    other, tensor = TORCH[norm.name], torch.from_numpy(g)
    assert norm.norm(g) == pytest.approx(float(other.norm(tensor)), rel=1e-10)
    assert norm.dual(g) == pytest.approx(float(other.dual(tensor)), rel=1e-10)
    assert norm.lmo(g) == pytest.approx(other.lmo(tensor).numpy(), abs=1e-6)


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)
def test_zero_has_no_direction(norm: Norm) -> None:
    assert not norm.lmo(np.zeros((2, 3))).any()


def test_the_spectral_lmo_leaves_zero_singular_values_out() -> None:
    assert spectral.lmo(np.diag([3.0, 0.0])) == pytest.approx(np.diag([-1.0, 0.0]), abs=1e-15)


@pytest.mark.parametrize(("norm", "expected"), [(frobenius, 1.0), (maximum, 6**0.5), (spectral, 2**0.5)])
def test_the_sup_of_the_dual_norm_is_taken(norm: Norm, expected: float) -> None:
    flat = {"max": np.ones((2, 3)), "spectral": np.eye(2, 3)}.get(norm.name, np.ones((2, 3)))
    assert norm.dual(flat) / np.linalg.norm(flat) == pytest.approx(expected)
    assert norm.euclidean((2, 3)) == pytest.approx(expected)
