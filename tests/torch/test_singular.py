import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warmgap.torch.singular import gram_singular_values


@settings(max_examples=30)
@given(rows=st.integers(1, 200), columns=st.integers(1, 40), exponent=st.floats(0, 4), scale=st.floats(-25, 25))
def test_they_are_those_of_the_decomposition(rows: int, columns: int, exponent: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    decay = torch.arange(1, columns + 1) ** -exponent
    x = torch.randn(rows, columns, generator=generator) * decay * 10.0**scale
    exact = torch.linalg.svdvals(x.double())
    found = gram_singular_values(x).double()
    assert found.shape == exact.shape
    assert float(found.max() / exact.max()) == pytest.approx(1.0, rel=1e-5)
    assert float(found.sum() / exact.sum()) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("rank", [1, 3, 64])
def test_few_large_values_and_many_zeros(rank: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(300, rank) @ torch.randn(rank, 256)
    exact = torch.linalg.svdvals(x.double()).sum()
    assert float(gram_singular_values(x).double().sum() / exact) == pytest.approx(1.0, rel=1e-3)


def test_float64_half_precision_convolutions_vectors_and_scalars() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 32, dtype=torch.float64)
    torch.testing.assert_close(gram_singular_values(x), torch.linalg.svdvals(x).flip(0), rtol=1e-9, atol=1e-9)
    half = x.bfloat16()
    torch.testing.assert_close(
        gram_singular_values(half), torch.linalg.svdvals(half.float()).flip(0), rtol=1e-3, atol=1e-3
    )
    conv = torch.randn(8, 3, 5, 5)
    assert gram_singular_values(conv).shape == (8,)
    vector = torch.tensor([3.0, 4.0])
    assert gram_singular_values(vector).tolist() == pytest.approx([5.0])
    assert gram_singular_values(torch.tensor(-2.0)).tolist() == [2.0]
    assert gram_singular_values(torch.zeros(0, 3)).shape == (0,)


def test_zero_and_not_finite() -> None:
    assert gram_singular_values(torch.zeros(4, 6)).tolist() == [0.0] * 4
    for bad in (torch.nan, torch.inf):
        x = torch.ones(4, 6)
        x[1, 2] = bad
        assert gram_singular_values(x).isnan().all()
