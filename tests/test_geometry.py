from __future__ import annotations

import pytest

from warmgap import kappa
from warmgap.geometry import matrix_shape


def llama(layers: int, width: int, feed_forward: int, vocabulary: int, *, tied: bool) -> list[tuple[int, int]]:
    layer = [(width, width)] * 4 + [(feed_forward, width)] * 2 + [(width, feed_forward)]
    return layer * layers + [(vocabulary, width)] * (1 if tied else 2)


@pytest.mark.parametrize(
    ("layers", "vocabulary", "tied", "expected"),
    [
        (12, 32000, True, (65280, 109510656, 85)),
        (12, 50304, True, (65280, 123568128, 85)),
        (12, 50304, False, (66048, 162201600, 86)),
        (24, 50304, True, (129792, 208502784, 169)),
    ],
)
def test_the_papers_models(layers: int, vocabulary: int, tied: bool, expected: tuple[float, float, float]) -> None:
    shapes = llama(layers, 768, 2048, vocabulary, tied=tied)
    assert (kappa("spectral", shapes), kappa("max", shapes), kappa("frobenius", shapes)) == expected


def test_shapes_that_are_no_matrices() -> None:
    assert matrix_shape((64, 3, 7, 7)) == (64, 147)
    assert matrix_shape((5,)) == (5, 1)
    assert matrix_shape(()) == (1, 1)
    assert kappa("spectral", [(64, 3, 7, 7), (5,), ()]) == 66.0
    assert kappa("max", [(2, 3, 4), ()]) == 25.0
    assert kappa("frobenius", [(2, 3), (0, 5), (4,)]) == 2.0
    assert kappa("max", []) == 0.0


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="norm must be one of 'spectral', 'max', 'frobenius', got 'l2'"):
        kappa("l2", [(2, 2)])
    with pytest.raises(ValueError, match="must not be negative"):
        kappa("max", [(2, -2)])
