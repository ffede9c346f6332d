"""Norm, dual norm, LMO and kappa of one norm fit each other."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warmgap import geometry
from warmgap.torch.norms import Frobenius, Greedy, Max, Norm, Rows, Spectral, SupOverBlocks, layer_norm

FAMILIES = [Spectral, Max, Frobenius]
EVERY: list[Any] = [*FAMILIES, Rows, Greedy]

shapes = st.one_of(
    st.tuples(),
    st.tuples(st.integers(1, 7)),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)
norms = st.builds(
    lambda family, scale: family(scale=scale), st.sampled_from(EVERY), st.floats(1e-3, 1e3, allow_subnormal=False)
)
seeds = st.integers(0, 2**31 - 1)
exponents = st.integers(-150, 150)


def tensor(shape: tuple[int, ...], seed: int, exponent: int = 0) -> torch.Tensor:
    """Normal entries, about half of all seeds with many zeros, times a power of ten."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if seed % 2:
        x = x * (torch.rand(shape, generator=generator) < 0.5)
    return x * 10.0**exponent


@given(norms, shapes, seeds, exponents)
@settings(deadline=None)
def test_the_lmo_lies_on_the_unit_sphere_and_attains_minus_the_dual_norm(
    norm: Norm, shape: tuple[int, ...], seed: int, exponent: int
) -> None:
    g = tensor(shape, seed, exponent)
    q = norm.lmo(g)
    assert q.shape == g.shape
    assert q.dtype == g.dtype
    torch.testing.assert_close((g * q).sum(), -norm.dual(g), rtol=1e-9, atol=0)
    expected = 1.0 if g.any() else 0.0
    assert norm.norm(q).item() == pytest.approx(expected, rel=1e-9)


@given(norms, shapes, seeds, seeds, exponents)
@settings(deadline=None)
def test_the_pairing_is_bounded_by_dual_norm_times_norm(
    norm: Norm, shape: tuple[int, ...], seed: int, other: int, exponent: int
) -> None:
    g, x = tensor(shape, seed, exponent), tensor(shape, other)
    assert (g * x).sum().abs() <= norm.dual(g) * norm.norm(x) * (1 + 1e-9)


@given(norms, shapes, seeds)
@settings(deadline=None)
def test_kappa_bounds_dual_over_norm_and_is_attained_at_the_lmo(norm: Norm, shape: tuple[int, ...], seed: int) -> None:
    g = tensor(shape, seed)
    assert norm.dual(g) <= norm.kappa(shape) * norm.norm(g) * (1 + 1e-9)
    # A tensor without zeros, of full rank, has an LMO whose ratio is the largest there is.
    q = norm.lmo(tensor(shape, 2 * (seed // 2)))
    assert (norm.dual(q) / norm.norm(q)).item() == pytest.approx(norm.kappa(shape), rel=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_kappa_agrees_with_the_core(family: type[Spectral | Max | Frobenius]) -> None:
    shapes = [(), (5,), (4, 6), (8, 2, 3, 3), (0, 3)]
    assert SupOverBlocks([family()] * len(shapes)).kappa(shapes) == geometry.kappa(family.name, shapes)
    assert family(scale=2.0).kappa((4, 6)) == geometry.kappa(family.name, [(4, 6)]) / 4


@pytest.mark.parametrize("family", FAMILIES)
def test_scale_multiplies_the_norm_and_divides_dual_and_lmo(family: type[Spectral | Max | Frobenius]) -> None:
    plain, scaled, x = family(), family(scale=3.0), tensor((4, 3), 0)
    torch.testing.assert_close(scaled.norm(x), 3 * plain.norm(x))
    torch.testing.assert_close(scaled.dual(x), plain.dual(x) / 3)
    torch.testing.assert_close(scaled.lmo(x), plain.lmo(x) / 3)


def test_values_by_hand() -> None:
    x = torch.tensor([[3.0, 0.0], [0.0, -4.0]], dtype=torch.float64)
    assert [f().norm(x).item() for f in FAMILIES] == pytest.approx([4.0, 4.0, 5.0])
    assert [f().dual(x).item() for f in FAMILIES] == pytest.approx([7.0, 7.0, 5.0])
    torch.testing.assert_close(Spectral().lmo(x), torch.tensor([[-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(Max().lmo(x), torch.tensor([[-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(Frobenius().lmo(x), -x / 5)


def test_the_spectral_norm_of_a_convolution_is_that_of_its_flattened_matrix_and_of_a_vector_its_length() -> None:
    conv, vector = tensor((4, 3, 2, 2), 2), tensor((6,), 2)
    torch.testing.assert_close(Spectral().norm(conv), Spectral().norm(conv.reshape(4, 12)))
    torch.testing.assert_close(Spectral().lmo(conv).reshape(4, 12), Spectral().lmo(conv.reshape(4, 12)))
    torch.testing.assert_close(Spectral().norm(vector), vector.norm())
    torch.testing.assert_close(Spectral().lmo(vector), -vector / vector.norm())


def test_the_fast_spectral_lmo_is_near_the_exact_one() -> None:
    g = tensor((32, 128), 0).float()
    fast, exact = Spectral(scale=2.0, method="newton-schulz"), Spectral(scale=2.0)
    assert fast.norm(fast.lmo(g)).item() == pytest.approx(1.0, abs=0.25)
    assert (g * fast.lmo(g)).sum().item() == pytest.approx(-exact.dual(g).item(), rel=0.2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_an_empty_block_has_norm_zero(family: type[Spectral | Max | Frobenius], shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape)
    assert family().norm(x) == family().dual(x) == 0.0
    assert family().lmo(x).shape == shape


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_summed_in_single(family: type[Spectral | Max | Frobenius]) -> None:
    x = torch.full((300, 300), 0.1, dtype=torch.bfloat16)
    assert family().dual(x).item() == pytest.approx(family().dual(x.double()).item(), rel=1e-3)
    assert family().norm(x).dtype == torch.float32
    assert family().lmo(x).dtype == torch.bfloat16


@given(st.lists(st.tuples(norms, shapes, seeds), min_size=1, max_size=4))
@settings(deadline=None)
def test_over_blocks_the_norm_is_the_sup_and_its_dual_the_sum(
    blocks: list[tuple[Norm, tuple[int, ...], int]],
) -> None:
    model = SupOverBlocks([norm for norm, _, _ in blocks])
    g = [tensor(shape, seed) for _, shape, seed in blocks]
    q = model.lmo(g)
    torch.testing.assert_close(
        model.dual(g), torch.stack([n.dual(x) for (n, _, _), x in zip(blocks, g, strict=True)]).sum()
    )
    torch.testing.assert_close(
        model.norm(g), torch.stack([n.norm(x) for (n, _, _), x in zip(blocks, g, strict=True)]).max()
    )
    pairing = torch.stack([(x * y).sum() for x, y in zip(g, q, strict=True)]).sum()
    torch.testing.assert_close(pairing, -model.dual(g), rtol=1e-9, atol=1e-30)
    assert model.norm(q).item() == pytest.approx(1.0 if any(x.any() for x in g) else 0.0, rel=1e-9)
    expected = sum(norm.kappa(shape) for norm, shape, _ in blocks)
    assert math.isclose(model.kappa([shape for _, shape, _ in blocks]), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, "1"])
def test_a_scale_that_is_not_positive_is_refused(family: type[Spectral | Max | Frobenius], scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        family(scale=scale)


def test_bad_use_is_refused() -> None:
    with pytest.raises(ValueError, match="method"):
        Spectral(method="qr")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one block"):
        SupOverBlocks([])
    with pytest.raises(ValueError, match="expected 2 blocks"):
        SupOverBlocks([Max(), Max()]).norm([torch.zeros(2)])
    with pytest.raises(dataclasses.FrozenInstanceError):
        Max().scale = 2.0  # type: ignore[misc]


def test_rows_and_greedy_by_hand() -> None:
    g = torch.tensor([[3.0, -4.0], [0.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    assert (Rows().norm(g).item(), Rows().dual(g).item()) == (5.0, 7.0)
    expected = torch.tensor([[-0.6, 0.8], [0.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(Rows().lmo(g), expected)
    assert (Greedy().norm(g).item(), Greedy().dual(g).item()) == (9.0, 4.0)
    expected = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(Greedy().lmo(g), expected)
    assert (Rows(2.0).kappa((3, 2)), Greedy(2.0).kappa((3, 2)), Greedy().kappa((0, 2))) == (0.75, 0.25, 0.0)


@pytest.mark.parametrize("norm", [family(scale=2.0) for family in EVERY], ids=lambda norm: norm.name)
def test_several_blocks_at_once_are_the_lmo_of_each(norm: Any) -> None:
    gs = [tensor((4, 3), 0), tensor((4, 3), 2), torch.zeros(4, 3, dtype=torch.float64)]
    for steepest, g in zip(norm.steepest(gs), gs, strict=True):
        torch.testing.assert_close(steepest, -2.0 * norm.lmo(g))


@pytest.mark.parametrize(
    ("rule", "shape", "scale"),
    [
        ("spectral", (6, 4), (4 / 6) ** 0.5),
        ("spectral", (3, 2, 5, 5), 25 * (2 / 3) ** 0.5),
        ("spectral", (6,), 6**-0.5),
        ("sign", (5, 4), 4.0),
        ("row", (5, 4), 2.0),
        ("rms", (9,), 1 / 3),
    ],
)
def test_the_norms_of_layers(rule: Any, shape: tuple[int, ...], scale: float) -> None:
    norm = layer_norm(rule, shape)
    assert norm.scale == pytest.approx(scale)
    plain = {"spectral": Spectral, "sign": Max, "row": Rows, "rms": Frobenius}[rule]
    assert norm.kappa(shape) == pytest.approx(plain().kappa(shape) / scale**2)
