"""Newton-Schulz and the exact polar factor."""

import sys
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warmgap.torch.orthogonalize import (
    POLYNOMIALS,
    Method,
    as_matrix,
    compute_dtype,
    newton_schulz,
    orthogonalize,
    polar,
)

module: Any = sys.modules["warmgap.torch.orthogonalize"]

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
    o = newton_schulz(x, dtype=torch.bfloat16)
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


def spectra(rows: int, columns: int) -> dict[str, torch.Tensor]:
    """Matrices that are hard for the Gram form, whose rounding is relative to the largest singular value."""
    side = min(rows, columns)
    ranks = torch.arange(side, dtype=torch.float64)
    return {
        "rank one": with_singular_values(torch.ones(1, dtype=torch.float64), rows, columns),
        "rank 20": with_singular_values(torch.linspace(1, 0.1, 20, dtype=torch.float64), rows, columns),
        "exponential": with_singular_values((-20 * ranks / side).exp(), rows, columns),
        "orthonormal": with_singular_values(torch.ones(side, dtype=torch.float64), rows, columns),
        "huge": 1e30 * normal(rows, columns),
        "tiny": 1e-12 * normal(rows, columns),
    }


def in_form(form: str, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch, **options: Any) -> torch.Tensor:
    def segments(steps: int, longest: int, *_: float) -> tuple[int, ...]:
        return (1,) * steps if form == "standard" else {1: (1,) * 5, 3: (2, 3), 5: (5,)}[longest]

    with monkeypatch.context() as patch:
        patch.setattr(module, "_segments", segments)
        patch.setattr(module, "_planned", module._planned.__wrapped__)
        return newton_schulz(x, **options).double()


@pytest.mark.parametrize("polynomial", POLYNOMIALS)
@pytest.mark.parametrize("shape", [(96, 256), (256, 96)])
def test_both_forms_agree_on_hard_spectra(
    polynomial: Any, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, x in spectra(*shape).items():
        expected = in_form("standard", x, monkeypatch, polynomial=polynomial, dtype=torch.float64)
        exact = in_form("gram", x, monkeypatch, polynomial=polynomial, dtype=torch.float64)
        assert (exact - expected).norm() <= 1e-10 * expected.norm(), name
        single = in_form("gram", x.float(), monkeypatch, polynomial=polynomial, dtype=torch.float32)
        assert (single - expected).norm() <= 3e-2 * expected.norm(), name
        for dtype in (torch.bfloat16, torch.float16):
            half = in_form("gram", x.float(), monkeypatch, polynomial=polynomial, dtype=dtype)
            # Rounding gives a matrix of low rank all the others, and the polynomial raises them: what must hold is how
            # far the step goes along the gradient, and that no singular value grows.
            assert float((half * x).sum() / (expected * x).sum()) == pytest.approx(1.0, abs=0.17), name
            limit = 1.5 * float(torch.linalg.matrix_norm(expected, 2))
            assert polynomial == "cans" or torch.linalg.matrix_norm(half, 2) < limit, name


def test_the_gram_form_is_left_out_in_half_precision_where_a_polynomial_comes_near_zero() -> None:
    assert [name for name in POLYNOMIALS if module._steps(name, 5).gram_in_half] == ["jordan"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(400, 500), (500, 400), (400, 900)])
def test_strips_give_what_whole_products_do(
    dtype: torch.dtype, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = normal(*shape, dtype=torch.float32)
    by_strips = newton_schulz(x, dtype=dtype).double()

    def addmm(plus: torch.Tensor | None, *factors: Any, **options: Any) -> torch.Tensor:
        return torch.mm(*factors) if plus is None else torch.addmm(plus, *factors, **options)

    monkeypatch.setattr(module, "_by_strips", addmm)
    whole = newton_schulz(x, dtype=dtype).double()
    assert (by_strips - whole).norm() <= (1e-5 if dtype == torch.float32 else 3e-2) * whole.norm()


@pytest.mark.parametrize(
    ("polynomial", "low", "high", "start"),
    [
        ("jordan", 0.68, 1.21, 2e-3),
        ("polar-express", 0.84, 1.15, 1e-3),
        ("cans", 0.88, 1.12, 1e-3),
        ("cubic", 0.77, 1.3, 1e-2),
    ],
)
def test_the_named_polynomials_keep_to_their_ranges_and_never_change_sign(
    polynomial: str, low: float, high: float, start: float
) -> None:
    steps = module._steps(polynomial, 5)
    x = torch.logspace(-8, 0, 200_001, dtype=torch.float64)
    y = x / steps.factor
    for a, b, c in steps.coefficients:
        y = y * (a + b * y**2 + c * y**4)
        assert y.min() > 0
    assert y[x >= start].min() > low
    assert y.max() < high


def test_coefficients_of_ones_own() -> None:
    x = normal(6, 9)
    own = [(2.0, -1.5, 0.5)]
    torch.testing.assert_close(
        newton_schulz(x, 3, polynomial=own, dtype=torch.float64),
        newton_schulz(x, 3, polynomial=own * 3, dtype=torch.float64),
    )
    # Takes singular values above .884 to below zero: a step along -U V^T would then climb.
    with pytest.raises(ValueError, match=r"step 1 changes sign: .* could go up the gradient; give coefficients"):
        newton_schulz(x, polynomial=[(1.0, 0.0, 0.0), (3.0, -5.0, 1.0)])
    with pytest.raises(ValueError, match=r"step 0, .* to 4, beyond 2; give coefficients that stay bounded"):
        newton_schulz(x, polynomial=[(4.0, 0.0, 0.0)])
    with pytest.raises(ValueError, match=r"polynomial must be one of 'jordan', .* got 'quintic'"):
        newton_schulz(x, polynomial="quintic")  # type: ignore[arg-type]
    for bad in ([], [(1.0, 2.0)], 3.0, (1.0, 2.0, 3.0)):
        with pytest.raises(ValueError, match="polynomial must be a name, or"):
            newton_schulz(x, polynomial=bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"type to compute in must be torch.bfloat16, .* got torch.int32"):
        newton_schulz(x, dtype=torch.int32)


def test_the_type_to_compute_in_is_that_of_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(capabilities: dict[str, bool], isa: str | None = None) -> list[torch.dtype]:
        module._fastest.cache_clear()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        if isa:
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
        return [compute_dtype(torch.device("cpu"), side) for side in (64, 256)]

    try:
        assert answer({"avx2": True}) == [torch.float32, torch.float32]
        assert answer({"avx512_bf16": True}) == [torch.float32, torch.bfloat16]
        assert answer({"amx_bf16": True}) == [torch.float32, torch.bfloat16]
        assert answer({"neon": True, "bf16": True}) == [torch.float32, torch.bfloat16]
        assert answer({"avx512_bf16": True}, "AVX2") == [torch.float32, torch.float32]
        assert answer({"avx512_bf16": True}, "AVX512_CORE_BF16") == [torch.float32, torch.bfloat16]
    finally:
        module._fastest.cache_clear()
    assert newton_schulz(normal(4, 3), dtype=torch.float16).dtype == torch.float16


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
