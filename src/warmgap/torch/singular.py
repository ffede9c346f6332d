"""Singular values without a singular value decomposition, for measurements.

They are the roots of the eigenvalues of the smaller Gram matrix. For a 768 x 2048 matrix that takes about a tenth of
the time of a full decomposition in float32 (`benchmarks/probe.py`). The price is that the small ones drown in rounding
from the square root of machine precision on; how much of the nuclear norm is at stake is bounded from the values
themselves, and where that is more than `TOLERANCE` the Gram matrix is taken in float64, at three times the time.
Relative errors of the nuclear norm of 768 x 2048 matrices, against the decomposition in float64:

    a Gaussian matrix                              4e-8
    rank 64 and noise                              7e-7
    k-th singular value k^-1/2, k^-1               5e-8, 7e-8
    k-th singular value k^-2, exp(-k/30)           3e-8, 5e-9     (in float64)
    rank one                                       1e-6           (in float64)

Taking <G, U V^T> with the factor of five Newton-Schulz steps instead, whose singular values lie in [0.68, 1.21], was
23 % off for the second of these and took twice as long on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from warmgap.torch.orthogonalize import as_matrix

TOLERANCE = 5e-3
"""Largest share of the nuclear norm that may be rounding in float32 at worst; what was seen is a tenth of it."""

_HALVINGS = 3


@torch.no_grad()
def gram_singular_values(x: Tensor) -> Tensor:
    """Return the singular values of a block, ascending.

    It reads a number on the host: not for use within an optimizer's step.

    Args:
        x: A block of any shape, taken as a matrix as in `as_matrix`; half precision is computed in float32.

    Returns:
        min(rows, columns) values; NaN where x is not finite.
    """
    matrix = as_matrix(x)
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    if matrix.shape[0] > matrix.shape[1]:
        matrix = matrix.mT
    if matrix.numel() == 0:
        return matrix.new_zeros(0)
    if matrix.shape[0] == 1:
        length: Tensor = torch.linalg.vector_norm(matrix, dim=1)
        return length
    # By the largest entry, so that squares neither overflow nor vanish.
    largest = matrix.abs().amax()
    if not bool(torch.isfinite(largest)):
        return torch.full_like(matrix[:, 0], torch.nan)
    matrix = matrix / torch.where(largest > 0, largest, 1.0)
    values = _eigenvalues(matrix).clamp_min(0.0).sqrt()
    if matrix.dtype == torch.float32 and matrix.device.type != "mps":
        noise = torch.finfo(torch.float32).eps * values[-1] ** 2  # of an eigenvalue
        doubt = torch.minimum(noise / (2.0 * values), noise.sqrt()).nan_to_num().sum()
        if bool(doubt > TOLERANCE * values.sum()):
            values = _eigenvalues(matrix.double()).clamp_min(0.0).sqrt().float()
    return values * largest


def _eigenvalues(matrix: Tensor) -> Tensor:
    size = matrix.shape[0]
    gram = matrix.new_zeros(size, size)
    _fill_lower(gram, matrix, 0, size, _HALVINGS)
    values: Tensor = torch.linalg.eigvalsh(gram, UPLO="L")
    return values


def _fill_lower(gram: Tensor, matrix: Tensor, low: int, high: int, halvings: int) -> None:
    """Fill the lower triangle of matrix @ matrix^T between two rows, leaving out most of what mirrors it."""
    if halvings == 0 or high - low < 128:
        torch.mm(matrix[low:high], matrix[low:high].mT, out=gram[low:high, low:high])
        return
    middle = (low + high) // 2
    torch.mm(matrix[middle:high], matrix[low:middle].mT, out=gram[middle:high, low:middle])
    _fill_lower(gram, matrix, low, middle, halvings - 1)
    _fill_lower(gram, matrix, middle, high, halvings - 1)
