"""The norms of the field on tensors: each owns its norm, dual norm, linear minimisation oracle (LMO) and kappa.

    norm                     dual(g)              lmo(g)                     kappa
    Spectral                 nuclear              -U V^T                     min(rows, columns)
    Max                      l1                   -sign(g)                   number of entries
    Frobenius                Frobenius            -g / ||g||_F               1
    SupOverBlocks            sum of the duals     block by block             sum of the kappas
    scale * any              dual / scale         lmo / scale                kappa / scale^2

lmo(g) minimises <g, q> over ||q|| <= 1, so <g, lmo(g)> = -dual(g), and lmo(0) = 0. kappa is the sup of dual norm /
norm.

Sharded tensors (DTensor) are refused with a TypeError: a norm is of the whole, `x.full_tensor()`.

Source: arXiv 2602.05813, section 1, appendices C and D.1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar, final

import torch
from torch import Tensor

from warmgap import geometry
from warmgap._checks import check_positive
from warmgap.torch.orthogonalize import Method, as_matrix, orthogonalize

__all__ = ["Frobenius", "Max", "Norm", "Spectral", "SupOverBlocks"]

_Block = TypeVar("_Block")


class Norm(Protocol):
    """A norm of one parameter block; what `SupOverBlocks` is made of."""

    def norm(self, x: Tensor) -> Tensor:
        """The norm of x, a 0-d tensor on x's device."""

    def dual(self, g: Tensor) -> Tensor:
        """The dual norm of g, a 0-d tensor on g's device."""

    def lmo(self, g: Tensor) -> Tensor:
        """The point of the unit ball that minimises <g, .>, of g's shape and dtype."""

    def kappa(self, shape: Sequence[int]) -> float:
        """The sup of dual norm / norm over tensors of this shape."""


@final
@dataclass(frozen=True)
class Spectral:
    """The largest singular value, times `scale`; its LMO is the step of Muon.

    A convolution (out, in, k, k) is taken as the matrix (out, in*k*k), a vector as one column.

    Attributes:
        scale: A factor on the norm, above 0.
        method: How `lmo` is computed: `"svd"`, exact, or `"newton-schulz"`, fast, whose singular values are near one
            only (the band is in `warmgap.torch.orthogonalize`). `norm` and `dual` are always exact.

    Raises:
        ValueError: If scale is not above 0 or method is unknown.
    """

    scale: float = 1.0
    method: Method = "svd"
    name: ClassVar[geometry.NormName] = "spectral"

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)
        if self.method not in ("svd", "newton-schulz"):
            raise ValueError(f"method must be 'svd' or 'newton-schulz', got {self.method!r}")

    def norm(self, x: Tensor) -> Tensor:
        """The largest singular value of x times scale."""
        return self.scale * _largest(_singular_values(x))

    def dual(self, g: Tensor) -> Tensor:
        """The sum of g's singular values divided by scale (nuclear norm)."""
        return _singular_values(g).sum() / self.scale

    def lmo(self, g: Tensor) -> Tensor:
        """-U V^T / scale for g = U S V^T, singular values that are zero left out."""
        _check_whole(g)
        return orthogonalize(as_matrix(g), method=self.method).reshape(g.shape) / -self.scale

    def kappa(self, shape: Sequence[int]) -> float:
        """min(rows, columns) / scale^2."""
        return geometry.kappa(self.name, [shape]) / self.scale**2


@final
@dataclass(frozen=True)
class Max:
    """The largest absolute entry, times `scale`; its LMO is the step of signSGD and Lion.

    Attributes:
        scale: A factor on the norm, above 0.

    Raises:
        ValueError: If scale is not above 0.
    """

    scale: float = 1.0
    name: ClassVar[geometry.NormName] = "max"

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)

    def norm(self, x: Tensor) -> Tensor:
        """The largest absolute entry of x times scale."""
        return self.scale * _largest(_widen(x))

    def dual(self, g: Tensor) -> Tensor:
        """The sum of g's absolute entries divided by scale."""
        return _widen(g).abs().sum() / self.scale

    def lmo(self, g: Tensor) -> Tensor:
        """-sign(g) / scale, zero where g is."""
        _check_whole(g)
        return g.sign() / -self.scale

    def kappa(self, shape: Sequence[int]) -> float:
        """The number of entries / scale^2."""
        return geometry.kappa(self.name, [shape]) / self.scale**2


@final
@dataclass(frozen=True)
class Frobenius:
    """The Euclidean norm of all entries, times `scale`; its LMO is the step of normalized SGD.

    Attributes:
        scale: A factor on the norm, above 0.

    Raises:
        ValueError: If scale is not above 0.
    """

    scale: float = 1.0
    name: ClassVar[geometry.NormName] = "frobenius"

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)

    def norm(self, x: Tensor) -> Tensor:
        """The root of the sum of x's squared entries times scale."""
        unit, largest = _by_largest(x)
        length: Tensor = torch.linalg.vector_norm(unit)
        return self.scale * largest * length

    def dual(self, g: Tensor) -> Tensor:
        """The root of the sum of g's squared entries divided by scale."""
        return self.norm(g) / self.scale**2

    def lmo(self, g: Tensor) -> Tensor:
        """-g / ||g||_F / scale, zero for a zero g."""
        unit, _ = _by_largest(g)
        length: Tensor = torch.linalg.vector_norm(unit)
        # The largest entry of a non-zero unit is 1, so its length is at least 1: the clamp acts on zero only.
        return (unit / (-self.scale * length.clamp_min(1.0))).to(g.dtype)

    def kappa(self, shape: Sequence[int]) -> float:
        """1 / scale^2."""
        return geometry.kappa(self.name, [shape]) / self.scale**2


@final
@dataclass(frozen=True)
class SupOverBlocks:
    """A model's norm: the largest of its blocks' norms.

    Its dual norm is the sum of the blocks' dual norms, its LMO goes block by block. Works on lists of tensors, one a
    block.

    Attributes:
        norms: The norm of each block, in the blocks' order; one norm object for all blocks may be repeated, as in
            `[Spectral()] * 3`.

    Raises:
        ValueError: If norms is empty, or a method is given another number of blocks.
    """

    norms: Sequence[Norm]

    def __post_init__(self) -> None:
        object.__setattr__(self, "norms", tuple(self.norms))
        if not self.norms:
            raise ValueError("SupOverBlocks needs the norm of at least one block, got none")

    def norm(self, x: Sequence[Tensor]) -> Tensor:
        """The largest of the blocks' norms, a 0-d tensor."""
        return torch.stack([norm.norm(block) for norm, block in self._pair(x)]).amax()

    def dual(self, g: Sequence[Tensor]) -> Tensor:
        """The sum of the blocks' dual norms, a 0-d tensor."""
        return torch.stack([norm.dual(block) for norm, block in self._pair(g)]).sum()

    def lmo(self, g: Sequence[Tensor]) -> list[Tensor]:
        """Each block's LMO."""
        return [norm.lmo(block) for norm, block in self._pair(g)]

    def kappa(self, shape: Sequence[Sequence[int]]) -> float:
        """The sum of the blocks' kappas, from the blocks' shapes."""
        return sum(norm.kappa(block) for norm, block in self._pair(shape))

    def _pair(self, blocks: Sequence[_Block]) -> Iterable[tuple[Norm, _Block]]:
        if len(blocks) != len(self.norms):
            raise ValueError(f"expected {len(self.norms)} blocks, one for each norm, got {len(blocks)}")
        return zip(self.norms, blocks, strict=True)


def _check_whole(x: Tensor) -> None:
    if hasattr(x, "full_tensor"):
        raise TypeError(
            f"x must be a tensor in one piece, got a DTensor of shape {tuple(x.shape)}; give x.full_tensor()"
        )


def _widen(x: Tensor) -> Tensor:
    """Half precision as float32, so that sums over many entries keep their digits."""
    _check_whole(x)
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _largest(x: Tensor) -> Tensor:
    return x.abs().amax() if x.numel() else x.new_zeros(())


def _by_largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x divided by its largest absolute entry, so that squares neither overflow nor vanish, and that entry."""
    wide = _widen(x)
    largest = _largest(wide)
    return wide / torch.where(largest > 0, largest, 1.0), largest


def _singular_values(x: Tensor) -> Tensor:
    values: Tensor = torch.linalg.svdvals(_widen(as_matrix(x)))
    return values
