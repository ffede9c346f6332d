"""Newton-Schulz and the exact polar factor."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warmgap.torch.orthogonalize import Method, as_matrix, newton_schulz, orthogonalize, polar

METHODS = get_args(Method)

sides = st.integers(1, 24)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_singular_values(values: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    u, v = torch.linalg.qr(normal(rows, len(values)))[0], torch.linalg.qr(normal(columns, len(values), seed=1))[0]
    x: torch.Tensor = (u * values) @ v.T
    return x


@given(sides, sides, st.integers(0, 99))
@settings(deadline=None)
def test_the_polar_factor_is_semi_orthogonal_and_keeps_the_singular_vectors(rows: int, columns: int, seed: int) -> None:
    x = normal(rows, columns, seed=seed)
    o = polar(x)
    small = o @ o.T if rows <= columns else o.T @ o
    torch.testing.assert_close(small, torch.eye(min(rows, columns), dtype=o.dtype))
    gram = o.T @ x
    torch.testing.assert_close(gram, gram.T)
    assert torch.linalg.eigvalsh(gram).min() >= -1e-12 * x.norm()


@given(st.integers(1, 6), st.integers(0, 99))
@settings(deadline=None)
def test_a_rank_deficient_matrix_gives_a_partial_isometry_of_its_rank(rank: int, seed: int) -> None:
    x = normal(9, rank, seed=seed) @ normal(rank, 7, seed=seed + 100)
    values = torch.linalg.svdvals(polar(x))
    expected = torch.zeros(7, dtype=x.dtype)
    expected[:rank] = 1
    torch.testing.assert_close(values, expected, atol=1e-9, rtol=0)
    fast = torch.linalg.svdvals(newton_schulz(x, dtype=torch.float64))
    assert fast[rank:].abs().sum() < 1e-9
    assert fast.max() < 1.21


def test_the_documented_band() -> None:
    def mapped(s: torch.Tensor) -> torch.Tensor:
        """Where singular values s go, each in a 2 x 2 matrix of Frobenius norm one."""
        pairs = torch.stack([s, (1 - s * s).sqrt()], dim=-1)
        return newton_schulz(torch.diag_embed(pairs), dtype=torch.float64)[:, 0, 0]

    band = mapped(torch.linspace(2e-3, 1.0, 20_000, dtype=torch.float64))
    assert band.min() > 0.68
    assert band.max() < 1.21
    low, tiny = mapped(torch.tensor([1e-3, 1e-6], dtype=torch.float64))
    assert low.item() == pytest.approx(0.47, abs=0.005)
    assert tiny.item() == pytest.approx(485e-6, rel=1e-3)


@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (256, 64), (200, 300)])
def test_in_bfloat16_the_upper_end_of_the_band_holds_and_the_directions_agree(shape: tuple[int, int]) -> None:
    x = normal(*shape, dtype=torch.float32)
    o = newton_schulz(x)
    assert o.dtype == torch.bfloat16
    o = o.float()
    assert torch.linalg.svdvals(o).max() < 1.23
    assert torch.nn.functional.cosine_similarity(o.flatten(), polar(x).flatten(), dim=0) > 0.95


@given(sides, sides, st.integers(-12, 12))
@settings(deadline=None)
def test_the_length_of_the_input_does_not_matter(rows: int, columns: int, exponent: int) -> None:
    x = normal(rows, columns, dtype=torch.float32)
    torch.testing.assert_close(newton_schulz(x * 2.0**exponent), newton_schulz(x), rtol=0, atol=0)
    torch.testing.assert_close(polar(x * 2.0**exponent), polar(x))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6)])
def test_a_batch_is_its_matrices_one_by_one(method: Method, shape: tuple[int, int]) -> None:
    x = normal(2, 3, *shape)
    batch = orthogonalize(x, method=method)
    assert batch.shape == x.shape
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(batch[i, j], orthogonalize(x[i, j], method=method), atol=2e-2, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_zero_tiny_and_empty_inputs_give_no_nan_and_the_input_is_left_alone(method: Method, dtype: torch.dtype) -> None:
    for x in (torch.zeros(3, 4), torch.zeros(0, 4), torch.zeros(2, 0), torch.zeros(0, 2, 3), torch.full((3, 4), 1e-22)):
        x = x.to(dtype)
        before = x.clone()
        o = orthogonalize(x, method=method)
        assert o.shape == x.shape
        assert o.dtype == dtype
        assert o.isfinite().all()
        assert torch.equal(x, before)
    x = normal(3, 4).to(dtype)
    before = x.clone()
    orthogonalize(x, method=method)
    assert torch.equal(x, before)


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_matrix_gives_zero(method: Method) -> None:
    assert not orthogonalize(torch.zeros(3, 4), method=method).any()


def test_more_steps_and_float64_follow_the_polynomial() -> None:
    x = with_singular_values(torch.tensor([0.9, 0.3, 0.1], dtype=torch.float64), 5, 4)
    values = torch.linalg.svdvals(x) / x.norm()
    for _ in range(2):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    result = torch.linalg.svdvals(newton_schulz(x, 2, dtype=torch.float64))
    torch.testing.assert_close(result[:3], values[:3].sort(descending=True).values)


def test_blocks_as_matrices() -> None:
    assert as_matrix(torch.zeros(4, 3, 2, 2)).shape == (4, 12)
    assert as_matrix(torch.zeros(4, 3)).shape == (4, 3)
    assert as_matrix(torch.zeros(4)).shape == (4, 1)
    assert as_matrix(torch.zeros(())).shape == (1, 1)


def test_bad_use_is_refused() -> None:
    with pytest.raises(ValueError, match="matrix or a batch"):
        newton_schulz(torch.zeros(3))
    with pytest.raises(ValueError, match="matrix or a batch"):
        polar(torch.zeros(3))
    with pytest.raises(ValueError, match="steps"):
        orthogonalize(torch.zeros(3, 3), steps=0)
    with pytest.raises(ValueError, match="method"):
        orthogonalize(torch.zeros(3, 3), method="qr")  # type: ignore[arg-type]
