"""What the norms of the field say about a model from its parameter shapes alone.

Source: arXiv 2602.05813, appendix D.1 (closed-form kappa) and section 1 (sup over blocks).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

NormName = Literal["spectral", "max", "frobenius"]
NORMS: tuple[str, ...] = get_args(NormName)


def check_norm(norm: str) -> None:
    """Raise ValueError unless `norm` is `"auto"` or one of `NORMS`."""
    if norm != "auto" and norm not in NORMS:
        raise ValueError(f"norm must be 'auto' or one of {', '.join(map(repr, NORMS))}, got {norm!r}")


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return the (rows, columns) under which a block is treated as a matrix.

    The first dimension stays, all others are flattened: a convolution (out, in, k, k) is an out x (in*k*k) matrix, a
    vector of length n is an n x 1 matrix, and a scalar is 1 x 1.
    """
    rows = shape[0] if len(shape) else 1
    return int(rows), math.prod(int(side) for side in shape[1:])


def kappa(norm: str, shapes: Iterable[Sequence[int]]) -> float:
    """Return the sup of dual norm / norm, summed over parameter blocks.

    Per block it is min(rows, columns) for the spectral norm (dual: nuclear), the number of entries for the max norm
    (dual: l1) and 1 for the Frobenius norm. Over a model, whose norm is the max over blocks and whose dual norm is
    the sum, the constants add.

    Args:
        norm: `"spectral"` (Muon), `"max"` (Lion, signSGD) or `"frobenius"` (normalized SGD).
        shapes: One shape a block, in parameter order; blocks with no entries add nothing. The published code counts
            the two-dimensional parameters only: pass those to reproduce its numbers.

    Returns:
        The sum as a float; 0.0 for no blocks.

    Raises:
        ValueError: If the norm is unknown or a side of a shape is negative.

    Example:
        >>> shapes = [(768, 768), (2048, 768), (768,)]
        >>> kappa("spectral", shapes), kappa("frobenius", shapes)
        (1537.0, 3.0)

    Source: arXiv 2602.05813, appendix D.1.
    """
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(map(repr, NORMS))}, got {norm!r}")
    total = 0
    for shape in shapes:
        if any(side < 0 for side in shape):
            raise ValueError(f"a shape's sides must not be negative, got {tuple(shape)}")
        entries = math.prod(shape)
        if entries == 0:
            continue
        if norm == "spectral":
            total += min(matrix_shape(shape))
        elif norm == "max":
            total += entries
        else:
            total += 1
    return float(total)
