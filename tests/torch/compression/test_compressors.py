"""Every compressor is contractive with the constant it states, and its message has the length it should."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warmgap.torch.compression import Compressor, Identity, LowRank, ScaledSign, TopK, compress, message_bytes

COMPRESSORS: list[Compressor] = [Identity(), TopK(0.01), TopK(0.3), TopK(1.0), ScaledSign()]

shapes = st.one_of(
    st.tuples(),
    st.tuples(st.integers(0, 40)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)


def tensor(shape: tuple[int, ...], seed: int, exponent: int = 0) -> torch.Tensor:
    """Normal entries, many of them zero for odd seeds, times a power of ten."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0**exponent
    return x * (torch.rand(shape, generator=generator) < 0.3) if seed % 2 else x


def lost(compressor: Compressor, v: torch.Tensor, seed: int = 0) -> float:
    """||C(v) - v||^2 / ||v||^2."""
    square = float(v.square().sum())
    return float((compress(compressor, v, seed) - v).square().sum()) / square if square else 0.0


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
@given(shape=shapes, seed=st.integers(0, 2**31), exponent=st.integers(-20, 20))
def test_it_is_contractive_with_its_alpha(
    compressor: Compressor, shape: tuple[int, ...], seed: int, exponent: int
) -> None:
    v = tensor(shape, seed, exponent)
    assert 0.0 < compressor.alpha(shape) <= 1.0
    assert lost(compressor, v) <= 1.0 - compressor.alpha(shape) + 1e-12


@settings(max_examples=20)
@given(
    shape=st.tuples(st.integers(3, 12), st.integers(3, 12)),
    rank=st.integers(1, 3),
    iterations=st.integers(1, 3),
    seed=st.integers(0, 2**20),
)
def test_low_rank_is_contractive_in_the_mean_over_its_starts(
    shape: tuple[int, int], rank: int, iterations: int, seed: int
) -> None:
    compressor, v = LowRank(rank, iterations), tensor(shape, seed)
    shares = [lost(compressor, v, seed=start) for start in range(200)]
    spread = 4.0 * float(torch.tensor(shares).std()) / math.sqrt(len(shares))
    assert max(shares) <= 1.0 + 1e-12
    assert sum(shares) / len(shares) <= 1.0 - compressor.alpha(shape) + spread + 1e-12


def test_each_alpha_is_reached_by_the_worst_tensor() -> None:
    flat, single = torch.ones(100, dtype=torch.float64), torch.zeros(100, dtype=torch.float64)
    single[3] = -2.0
    assert lost(TopK(0.07), flat) == pytest.approx(1.0 - TopK(0.07).alpha((100,)))
    assert lost(ScaledSign(), single) == pytest.approx(1.0 - ScaledSign().alpha((100,)))
    square = torch.eye(12, dtype=torch.float64)
    assert lost(LowRank(2), square) == pytest.approx(1.0 - LowRank(2).alpha((12, 12)))


def test_where_everything_fits_nothing_is_lost() -> None:
    cases: list[tuple[Compressor, tuple[int, ...]]] = [
        (TopK(0.5), (6, 5)),
        (ScaledSign(), (1,)),
        (LowRank(4), (9,)),
        (LowRank(3), (3, 8)),
    ]
    for compressor, shape in cases:
        v = tensor(shape, 2)
        assert compressor.alpha(shape) == 1.0
        assert torch.equal(compress(compressor, v), v)
    product = tensor((9, 2), 4) @ tensor((2, 8), 6)
    assert lost(LowRank(2), product) < 1e-24


def test_more_power_iterations_lose_less() -> None:
    v = tensor((30, 20), 8)
    shares = [sum(lost(LowRank(2, iterations), v, start) for start in range(20)) for iterations in (1, 2, 4)]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(
    ("compressor", "shape", "size"),
    [
        (Identity(), (10, 10), 400),
        (TopK(0.07), (100,), 7 * 8),
        (TopK(0.01), (10, 3), 8),
        (TopK(0.5), (10, 10), 400),
        (ScaledSign(), (10, 10), 4 + 13),
        (LowRank(2), (30, 20), 2 * 50 * 4),
        (LowRank(2), (6, 3, 3), 2 * (6 + 9) * 4),
        (LowRank(2), (5, 3), 60),
    ],
)
def test_the_length_of_a_message(compressor: Compressor, shape: tuple[int, ...], size: int) -> None:
    assert message_bytes(compressor.encode(torch.ones(shape))) == size


@pytest.mark.parametrize("compressor", [Identity(), TopK(0.2), ScaledSign(), LowRank(1, 2)], ids=repr)
def test_half_precision_and_what_is_random(compressor: Compressor) -> None:
    v = tensor((9, 8), 0).to(torch.bfloat16)
    found = compress(compressor, v, 5)
    assert (found.dtype, found.shape) == (v.dtype, v.shape)
    assert torch.equal(found, compress(compressor, v, 5))
    assert torch.equal(compress(compressor, v, 6), found) == (not isinstance(compressor, LowRank))
    assert compress(compressor, torch.zeros(9, 8)).abs().max() == 0.0


@pytest.mark.parametrize("value", [0.0, -0.1, 1.5, float("nan"), True])
def test_a_fraction_out_of_range(value: float) -> None:
    with pytest.raises(ValueError, match="fraction must"):
        TopK(value)


@pytest.mark.parametrize("settings", [{"rank": 0}, {"rank": 1.5}, {"iterations": 0}])
def test_a_rank_out_of_range(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        LowRank(**settings)
