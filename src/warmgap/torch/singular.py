"""Singular values without a singular value decomposition: all of them, or the leading ones with their directions.

All of them, for measurements: they are the roots of the eigenvalues of the smaller Gram matrix. For a 768 x 2048
matrix in float32 on one CPU core that takes less than a tenth of the time of a full decomposition
(`benchmarks/probe.py`). The price is that the small ones are lost in rounding below the square root of machine
precision. The share of the nuclear norm at stake is estimated from the values themselves, with an error of machine
precision times the largest eigenvalue for each of them: where an eigenvalue is smaller than that, every error counts
in full, since a root of rounding is never below zero; elsewhere errors have either sign, and add as squares. Where it
is more than `TOLERANCE` the Gram matrix is taken in float64, at about twice the time. Over 672 matrices, 112 spectra
from flat to rank one in six shapes from 64 x 64 to 128 x 8192, and over those below, no relative error of the nuclear
norm was above 8e-4; the largest are those of flat spectra that end at a fifth of the rank. Of 768 x 2048 matrices,
against the decomposition in float64:

    a Gaussian matrix                              2e-8
    rank 64 and noise                              4e-7
    k-th singular value k^-1/2, k^-1               4e-8, 7e-7
    k-th singular value k^-2, exp(-k/30)           3e-8, 2e-9     (in float64)
    rank 64, rank one                              9e-9, 8e-7     (in float64)

Taking <G, U V^T> with the factor of five Newton-Schulz steps instead, whose singular values lie in [0.68, 1.21], is 8
to 23 % off on these and takes several times as long on a CPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from warmgap.rules.spectral import ROUNDING, directions_of, noise_edge
from warmgap.torch.orthogonalize import as_matrix

TOLERANCE = 1e-3
"""Largest share of the nuclear norm that may be rounding in float32."""

TINY = 1e-30
"""Below it a length is none."""

_ITERATIONS = 4  # of the subspace method without a start
_SHIFT = 1e-10  # of the Gram matrix of rows of length one


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
        doubts = torch.minimum(noise / (2.0 * values), noise.sqrt()).nan_to_num()
        lost = values**2 < noise
        doubt = doubts[lost].sum() + torch.linalg.vector_norm(doubts[~lost])
        if bool(doubt > TOLERANCE * values.sum()):
            values = _eigenvalues(matrix.double()).clamp_min(0.0).sqrt().float()
    return values * largest


def _eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues of matrix @ matrix^T, ascending."""
    if matrix.device.type == "cpu":
        return torch.from_numpy(_lapack_eigenvalues(matrix.contiguous().numpy()))
    values: Tensor = torch.linalg.eigvalsh(matrix @ matrix.mT)
    return values


def _lapack_eigenvalues(matrix: NDArray[Any]) -> NDArray[Any]:
    """The same by way of LAPACK itself: half the product, and a work space large enough for its blocked code.

    The upper half, since reducing it to three diagonals is faster than the lower.
    """
    from scipy.linalg import blas, lapack

    multiply, solve = (blas.ssyrk, lapack.ssyev) if matrix.dtype == np.float32 else (blas.dsyrk, lapack.dsyev)
    size = len(matrix)
    gram = multiply(1.0, matrix.T, trans=1, lower=0)
    values, _, failed = solve(gram, compute_v=0, lower=0, overwrite_a=1, lwork=34 * size)
    if failed:
        raise RuntimeError(f"the eigenvalues of a matrix of {size} rows did not converge (LAPACK says {failed})")
    eigenvalues: NDArray[Any] = values
    return eigenvalues


class Leading(NamedTuple):
    """The leading singular directions of some matrices M of one shape, as far as the subspace method has come.

    Directions are rows: products of a flat matrix with a large one are three times as fast on CPUs as with a thin one.

    Attributes:
        left: Shape (n, k, rows); its rows have length at most 1 and are orthogonal.
        right: left M, shape (n, k, columns).
        values: The lengths of its rows, (n, k): estimates from below of the k largest singular values, in no order.
        start: What to go on from with the next matrices, shape (n, k, columns).
        edge: The largest singular value that is to be expected of matrices of these sizes and of independent entries,
            (n,): `warmgap.rules.noise_edge`.

    Example:
        >>> import torch
        >>> found = leading(torch.diag(torch.tensor([3.0, 1.0, 2.0])).unsqueeze(0), 2)
        >>> [round(value, 1) for value in found.values[0].tolist()]
        [3.0, 2.0]
    """

    left: Tensor
    right: Tensor
    values: Tensor
    start: Tensor
    edge: Tensor


def leading(batch: Tensor, rank: int, start: Tensor | None = None) -> Leading:
    """Estimate the leading singular values and directions of matrices by the subspace method.

    The same matrices and starts give the same numbers on every rank and after a resume. The host does not wait for the
    device. From the starts that the last step's matrices left, one product with each matrix and its transpose is
    enough; without, or for rank 1, there are four.

    Args:
        batch: Matrices of one shape, (n, rows, columns); half precision is computed in float32.
        rank: Directions a matrix; of one with a smaller side of m, at most half of it, rounded up.
        start: Shape (n, k, columns); by default the same random ones each time.

    Returns:
        What was found, in float32 or float64.

    Example:
        >>> import torch
        >>> found = leading(2.0 * torch.ones(1, 4, 4), 8)
        >>> [round(value, 3) for value in found.values[0].tolist()]
        [8.0, 0.0]
    """
    batch = batch.to(torch.promote_types(batch.dtype, torch.float32))
    iterations = _ITERATIONS if start is None or start.shape[1] == 1 else 1
    if start is None:
        count = directions_of(batch.shape[1:], rank)
        start = torch.randn(count, batch.shape[-1], generator=torch.Generator().manual_seed(0))
        start = start.to(batch, non_blocking=True).expand(len(batch), -1, -1)
    start = start.to(batch)  # the last one may be of another precision, or on another device
    for _ in range(iterations):
        left = start @ batch.mT
        left = left / torch.linalg.vector_norm(left, dim=-1, keepdim=True).clamp_min(TINY)
        left = (left.cpu() if left.device.type == "mps" else left).double()  # MPS has no float64
        # By Cholesky, which the host need not wait for, and in float64: rows may be parallel but for rounding. The
        # shift leaves those short.
        gram = left @ left.mT
        gram.diagonal(dim1=1, dim2=2).add_(_SHIFT)
        factor = torch.linalg.cholesky_ex(gram)[0]
        left = torch.linalg.solve_triangular(factor, left, upper=False).to(batch)
        right = left @ batch
        values = torch.linalg.vector_norm(right, dim=-1)
        lengths = values.unsqueeze(-1)
        # A direction that finds nothing but rounding keeps its start, and finds one when the matrix has it: else all
        # of them would come to lie in the few that a matrix of low rank has, and miss those of the next.
        longest = values.amax(dim=-1).clamp_min(TINY).view(-1, 1, 1)
        found = (lengths > ROUNDING * longest) & (lengths < torch.inf)
        start = torch.where(found, right / lengths.clamp_min(TINY), start)
    edge = torch.linalg.vector_norm(batch, dim=(1, 2)) * noise_edge(batch.shape[1:])
    return Leading(left, right, values, start, edge)
