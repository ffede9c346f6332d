"""Compressors: what a worker sends instead of a tensor, and how much of it arrives.

A compressor C is contractive: `E ||C(v) - v||^2 <= (1 - alpha) ||v||^2` in l2 for every v, with an alpha in (0, 1] that
follows from the shape. Error feedback needs nothing else (arXiv 2410.16871, Assumption 4).

    compressor         message for d entries                       alpha
    Identity           all d values                                1
    TopK(fraction)     k = ceil(fraction d) values and places      k/d
    ScaledSign         d bits and one number                       1/d for the worst v, (||v||_1/||v||_2)^2/d for each
    LowRank(rank)      rank (rows + columns) values                rank/min(rows, columns), in expectation

Where the message would be no shorter than the tensor, the tensor itself is sent, and alpha is 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from warmgap._checks import check_count, check_finite
from warmgap.torch.orthogonalize import as_matrix

__all__ = ["Compressor", "Identity", "LowRank", "ScaledSign", "TopK", "compress", "message_bytes"]

Message = tuple[Tensor, ...]
"""What is sent for one tensor: tensors whose shapes and dtypes follow from its own shape and dtype."""


class Compressor(Protocol):
    """What error feedback asks of a compressor.

    The length of a message may depend on the tensor's shape and dtype only, so that all workers send as much.

    Example:
        >>> [each.alpha((10, 10)) for each in (Identity(), TopK(0.05), ScaledSign(), LowRank(2))]
        [1.0, 0.05, 0.01, 0.2]
    """

    def alpha(self, shape: Sequence[int]) -> float:
        """The contraction constant for tensors of this shape, in (0, 1]; 1 says that nothing is lost."""

    def encode(self, v: Tensor, seed: int = 0) -> Message:
        """The message for v; `seed` is another one at every step, the same on every worker."""

    def decode(self, message: Message, like: Tensor) -> Tensor:
        """C(v) from its message, of the shape, dtype and device of `like`; the same bits on every worker."""


@final
@dataclass(frozen=True)
class Identity:
    """Sends everything: error feedback becomes the method without compression, to the bit.

    Example:
        >>> compress(Identity(), torch.tensor([1.0, -3.0]))
        tensor([ 1., -3.])
    """

    def alpha(self, shape: Sequence[int]) -> float:
        """1."""
        del shape
        return 1.0

    def encode(self, v: Tensor, seed: int = 0) -> Message:
        """All entries of v."""
        del seed
        return (v,)

    def decode(self, message: Message, like: Tensor) -> Tensor:
        """The entries that were sent."""
        return message[0].reshape(like.shape)


@final
@dataclass(frozen=True)
class TopK:
    """Keeps the entries of largest modulus of each tensor; values and places (32 bits, 64 from 2^31 entries) are sent.

    The places cost as much as float32 values: above half of the entries everything is sent instead.

    Attributes:
        fraction: The share of the entries that is kept, rounded up to whole entries; above 0 and at most 1.

    Raises:
        ValueError: If fraction is out of range.

    Example:
        >>> TopK(0.25).count((8,)), TopK(0.25).alpha((8,))
        (2, 0.25)
    """

    fraction: float

    def __post_init__(self) -> None:
        if not 0.0 < check_finite("fraction", self.fraction) <= 1.0:
            raise ValueError(
                f"fraction must be above 0 and at most 1, got {self.fraction!r}; for k of d entries give k / d"
            )

    def count(self, shape: Sequence[int]) -> int:
        """How many entries of a tensor of this shape are kept."""
        size = math.prod(shape)
        # 0.07 * 100 is 7.000000000000001, and means 7.
        kept = math.ceil(self.fraction * size - 1e-9 * size)
        return size if 2 * kept >= size else max(1, kept)

    def alpha(self, shape: Sequence[int]) -> float:
        """k/d: the entries dropped are no larger than those kept."""
        size = math.prod(shape)
        return self.count(shape) / size if size else 1.0

    def encode(self, v: Tensor, seed: int = 0) -> Message:
        """Values and places of the k largest entries; all entries where that is no longer."""
        del seed
        count = self.count(v.shape)
        if count == v.numel():
            return (v,)
        flat = v.reshape(-1)
        _, places = torch.topk(flat.abs(), count, sorted=False)
        return flat[places], places if v.numel() >= 2**31 else places.to(torch.int32)

    def decode(self, message: Message, like: Tensor) -> Tensor:
        """The values at their places, zero elsewhere."""
        if len(message) == 1:
            return message[0].reshape(like.shape)
        values, places = message
        flat = torch.zeros(like.numel(), dtype=like.dtype, device=like.device)
        return flat.scatter_(0, places.to(torch.int64), values).reshape(like.shape)


@final
@dataclass(frozen=True)
class ScaledSign:
    """Sends each entry's sign, a bit, and the mean modulus: `C(v) = (||v||_1/d) sign(v)`, with sign(0) = 1.

    alpha is that of the worst v, with a single entry that is not zero. Of a v whose entries have about one size nearly
    everything arrives: for normal entries 2/pi.

    Example:
        >>> compress(ScaledSign(), torch.tensor([1.0, -3.0, 2.0, 0.0]))
        tensor([ 1.5000, -1.5000,  1.5000,  1.5000])
    """

    def alpha(self, shape: Sequence[int]) -> float:
        """1/d: ||C(v) - v||^2 = ||v||_2^2 - ||v||_1^2/d."""
        return 1.0 / max(1, math.prod(shape))

    def encode(self, v: Tensor, seed: int = 0) -> Message:
        """The mean modulus, and the signs, eight to a byte; v itself where it is a single entry."""
        del seed
        if v.numel() <= 1:
            return (v,)
        negative = (v.reshape(-1) < 0).to(torch.uint8)
        negative = torch.nn.functional.pad(negative, (0, -v.numel() % 8)).reshape(-1, 8)
        return v.abs().mean().reshape(1), (negative * _bits(v)).sum(1, dtype=torch.uint8)

    def decode(self, message: Message, like: Tensor) -> Tensor:
        """The mean modulus with each entry's sign."""
        if len(message) == 1:
            return message[0].reshape(like.shape)
        scale, packed = message
        negative = (packed.unsqueeze(1).bitwise_and(_bits(like)) != 0).reshape(-1)[: like.numel()].reshape(like.shape)
        return torch.where(negative, -scale, scale).to(like.dtype)


@final
@dataclass(frozen=True)
class LowRank:
    """Projects a matrix on few directions, found by power iteration from a random start: PowerSGD's compressor.

    With an orthonormal basis P (rows x rank) of `(M M^T)^(iterations - 1) M Q` for normal random Q, P and `M^T P` are
    sent and `C(M) = P P^T M`. The start is drawn anew at every step: from the step before it could miss what is new.

    A convolution is taken as the matrix (out, in*k*k), and a stack of matrices (experts) as the matrix (experts, rest).
    Vectors are sent whole, and so is what has fewer entries than its message.

    Attributes:
        rank: How many directions are kept, at least 1.
        iterations: Power iterations, at least 1; more bring it closer to the best approximation of this rank.

    alpha: `E ||P^T M||^2 >= E ||M Q'||^2 = rank/min(rows, columns) ||M||^2` for the projection Q' of the start on
        the rows' span, as M Q' lies in the span of P; and a power iteration does not lower `||P^T M||`.

    Raises:
        ValueError: If a number is under 1.

    Example:
        >>> rank_one = torch.outer(torch.arange(1.0, 7.0), torch.ones(6))
        >>> bool(torch.allclose(compress(LowRank(1), rank_one), rank_one, atol=1e-5))
        True

    Source: Vogels et al., arXiv 1905.13727, Algorithm 1; the bound on alpha DERIVED.
    """

    rank: int = 1
    iterations: int = 1

    def __post_init__(self) -> None:
        check_count("rank", self.rank, minimum=1)
        check_count("iterations", self.iterations, minimum=1)

    def alpha(self, shape: Sequence[int]) -> float:
        """rank/min(rows, columns), in expectation over the start."""
        rows, columns = _sides(shape)
        return 1.0 if self._sends_all(rows, columns) else self.rank / min(rows, columns)

    def encode(self, v: Tensor, seed: int = 0) -> Message:
        """P and M^T P; v itself where that is no longer."""
        rows, columns = _sides(v.shape)
        if self._sends_all(rows, columns):
            return (v,)
        matrix = as_matrix(v)
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(columns, self.rank, generator=generator).to(matrix)
        # Powers of a small or a large matrix leave the range of its precision; its directions do not depend on scale.
        unit = matrix / matrix.abs().amax().clamp_min(torch.finfo(matrix.dtype).tiny)
        basis, _ = torch.linalg.qr(unit @ start)
        for _ in range(self.iterations - 1):
            basis, _ = torch.linalg.qr(unit @ (unit.mT @ basis))
        return basis, matrix.mT @ basis

    def decode(self, message: Message, like: Tensor) -> Tensor:
        """P (M^T P)^T."""
        if len(message) == 1:
            return message[0].reshape(like.shape)
        basis, weights = message
        return (basis @ weights.mT).to(like.dtype).reshape(like.shape)

    def _sends_all(self, rows: int, columns: int) -> bool:
        return self.rank >= min(rows, columns) or self.rank * (rows + columns) >= rows * columns


def compress(compressor: Compressor, v: Tensor, seed: int = 0) -> Tensor:
    """C(v), of v's shape, dtype and device: what arrives of a tensor.

    Args:
        compressor: One of those above, or one's own.
        v: A tensor; not changed.
        seed: What the compressor's random numbers follow from, where it has any.

    Example:
        >>> import torch
        >>> from warmgap.torch.compression import TopK, compress
        >>> compress(TopK(0.25), torch.tensor([1.0, -3.0, 2.0, 0.5]))
        tensor([ 0., -3.,  0.,  0.])
    """
    return compressor.decode(compressor.encode(v, seed), v)


def message_bytes(message: Message) -> int:
    """How many bytes a message is.

    Example:
        >>> v = torch.arange(100.0)
        >>> message_bytes(TopK(0.05).encode(v)), message_bytes(Identity().encode(v))
        (40, 400)
    """
    return sum(part.numel() * part.element_size() for part in message)


def _sides(shape: Sequence[int]) -> tuple[int, int]:
    rows = shape[0] if shape else 1
    return rows, math.prod(shape[1:])


def _bits(like: Tensor) -> Tensor:
    # Made on the device: a copy from the host would wait.
    return 2 ** torch.arange(8, dtype=torch.uint8, device=like.device)
