import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warmgap.torch import singular
from warmgap.torch.singular import gram_singular_values, leading


def spectral_norm(matrix: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


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


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (256, 256), (128, 1024)])
@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.12, 0.15, 0.2, 0.3])
def test_no_spectrum_that_ends_is_between_the_precisions(rows: int, columns: int, share: float) -> None:
    # The hardest: every value that is zero comes out as a root of rounding, above zero.
    generator = torch.Generator().manual_seed(0)
    rank = round(share * rows)
    left, right = (
        torch.linalg.qr(torch.randn(size, rank, generator=generator, dtype=torch.float64))[0]
        for size in (rows, columns)
    )
    found = gram_singular_values((left @ right.mT).float()).double().sum()
    assert float(found) == pytest.approx(rank, rel=1e-3)


def test_the_usual_spectra_need_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    eigenvalues = singular._eigenvalues

    def watched(matrix: torch.Tensor) -> torch.Tensor:
        seen.append(matrix.dtype)
        return eigenvalues(matrix)

    monkeypatch.setattr(singular, "_eigenvalues", watched)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(384, 1024, generator=generator)
    left, right = (torch.linalg.qr(torch.randn(size, 384, generator=generator))[0] for size in (384, 1024))
    few = torch.randn(384, 32, generator=generator) @ torch.randn(32, 1024, generator=generator)
    for matrix in (noise, few + 0.3 * noise, (left / torch.arange(1, 385)) @ right.mT):
        exact = torch.linalg.svdvals(matrix.double()).sum()
        assert float(gram_singular_values(matrix).double().sum() / exact) == pytest.approx(1.0, rel=1e-5)
    assert seen == [torch.float32] * 3
    gram_singular_values((left / torch.arange(1, 385) ** 2) @ right.mT)
    assert seen[3:] == [torch.float32, torch.float64]


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


@pytest.mark.parametrize("shape", [(64, 64), (48, 200), (200, 48), (1, 30), (30, 1)])
@pytest.mark.parametrize("kind", ["gauss", "sign", "rank one", "low rank sign", "steep"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rank", [1, 8])
def test_the_estimate_is_at_most_a_fifth_below_the_norm(
    shape: tuple[int, int], kind: str, seed: int, rank: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    gauss = torch.randn(shape, generator=random)
    left, right = torch.randn(shape[0], 3, generator=random), torch.randn(3, shape[1], generator=random)
    matrix = {
        "gauss": gauss,
        "sign": gauss.sign(),
        "rank one": left[:, :1] @ right[:1],
        "low rank sign": (left @ right).sign(),
        "steep": gauss * torch.arange(1, shape[1] + 1) ** -1.0,
    }[kind]
    found = leading(matrix.unsqueeze(0), rank)
    largest = float(found.values.max())
    assert (0.8 if rank == 1 else 0.85) * spectral_norm(matrix) <= largest <= spectral_norm(matrix) * (1 + 1e-5)
    small = leading(1e-8 * matrix.unsqueeze(0), rank)
    assert largest == pytest.approx(float(small.values.max()) * 1e8, rel=1e-3)
    # What is cut never makes a singular value larger.
    rest = matrix - (found.left[0].mT * torch.rand(found.values.shape, generator=random)) @ found.right[0]
    values = torch.linalg.svdvals(matrix)
    assert bool((torch.linalg.svdvals(rest) <= values * (1 + 1e-4) + 1e-5 * values[0]).all())


def test_going_on_from_the_last_directions_finds_the_largest_singular_values() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(48, 96) @ torch.diag(torch.arange(1, 97) ** -0.5)
    start = None
    for _ in range(30):
        found = leading(matrix.unsqueeze(0), 8, start)
        start = found.start
    torch.testing.assert_close(found.values[0], torch.linalg.svdvals(matrix)[:8], rtol=0.05, atol=0.0)


def test_directions_of_a_zero_matrix_and_of_one_that_is_not_finite_keep_their_starts() -> None:
    found = leading(torch.zeros(1, 6, 6), 2)
    assert found.values[0].tolist() == [0.0, 0.0]
    poisoned = leading(torch.full((1, 6, 6), math.nan), 2, found.start)
    assert torch.equal(poisoned.start, found.start)
    again = leading(torch.eye(6, dtype=torch.bfloat16).unsqueeze(0), 2, poisoned.start)
    assert again.values.dtype == torch.float32
    assert again.values[0].tolist() == pytest.approx([1.0, 1.0], rel=1e-4)
