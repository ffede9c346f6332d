"""The norms of the field on tensors: each owns its norm, dual norm, linear minimisation oracle (LMO) and kappa.

    norm                     dual(g)              lmo(g)                     kappa
    Spectral                 nuclear              -U V^T                     min(rows, columns)
    Max                      l1                   -sign(g)                   number of entries
    Frobenius                Frobenius            -g / ||g||_F               1
    Rows                     sum of row lengths   rows of length 1           number of rows
    Greedy (l1)              largest entry        -sign(g_j) e_j             1
    SupOverBlocks            sum of the duals     block by block             sum of the kappas
    scale * any              dual / scale         lmo / scale                kappa / scale^2

lmo(g) minimises <g, q> over ||q|| <= 1, so <g, lmo(g)> = -dual(g), and lmo(0) = 0. kappa is the sup of dual norm /
norm. `Greedy` is greedy coordinate descent: j is where g is largest.

The optimizers step by these objects: `steepest` is the LMO without its sign and scale, of several blocks at once. What
Scion and Gluon take a layer's norm to be is `layer_norm`.

Sharded tensors (DTensor) are refused with a TypeError: a norm is of the full tensor, `x.full_tensor()`.

Source: arXiv 2602.05813, section 1, appendices C and D.1; arXiv 2502.07529, tables of norms (`Rows`, `layer_norm`).
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, TypeVar, final

import torch
from torch import Tensor

from warmgap import geometry
from warmgap._checks import check_count, check_positive
from warmgap.torch.orthogonalize import (
    TINY,
    Coefficients,
    Method,
    as_matrix,
    check_compute_dtype,
    check_polynomial,
    iterate,
    polar,
)
from warmgap.torch.sharding import Sharding, full_norms

__all__ = ["Frobenius", "Greedy", "Max", "Norm", "Rows", "Spectral", "SupOverBlocks", "layer_norm"]

_Block = TypeVar("_Block")


LayerRule = Literal["spectral", "sign", "row", "rms"]

# Matrices of one shape are orthogonalized together on an accelerator, up to this many entries: beyond, a batch only
# costs memory. On the CPU only while calls cost more than products.
BATCH_ENTRIES = 2**27
_BATCH_SIDE_CPU = 256


class Norm(Protocol):
    """A norm of one parameter block; what `SupOverBlocks` is made of.

    Example:
        >>> norms: list[Norm] = [Spectral(), Max(), Frobenius()]
        >>> [norm.kappa((3, 2)) for norm in norms]
        [2.0, 6.0, 1.0]
    """

    def norm(self, x: Tensor) -> Tensor:
        """The norm of x, a 0-d tensor on x's device."""

    def dual(self, g: Tensor) -> Tensor:
        """The dual norm of g, a 0-d tensor on g's device."""

    def lmo(self, g: Tensor) -> Tensor:
        """The point of the unit ball that minimises <g, .>, of g's shape and dtype."""

    def kappa(self, shape: Sequence[int]) -> float:
        """The sup of dual norm / norm over tensors of this shape."""


@dataclass(frozen=True)
class _Scaled:
    """A norm times `scale`, by which dual norm and LMO are divided."""

    scale: float = 1.0
    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)

    def kappa(self, shape: Sequence[int]) -> float:
        """The sup of dual norm / norm over blocks of this shape."""
        return geometry.kappa(self.name, [shape]) / self.scale**2


@final
@dataclass(frozen=True)
class Spectral(_Scaled):
    """The largest singular value, times `scale`; its LMO is the step of Muon.

    A convolution (out, in, k, k) is taken as the matrix (out, in*k*k), a vector as one column.

    Attributes:
        scale: A factor on the norm, above 0.
        method: How `lmo` is computed: `"svd"`, exact, or `"newton-schulz"`, fast, whose singular values are near one
            only (the band is in `warmgap.torch.orthogonalize`).
        measure: How `norm` and `dual` are computed: `"svd"`, exact, or `"gram"`, several times as fast, see
            `warmgap.torch.singular`.
        steps: Newton-Schulz iterations.
        polynomial: That of Newton-Schulz, see `warmgap.torch.orthogonalize.newton_schulz`.
        compute_dtype: What Newton-Schulz computes in; None: the fastest of the device.

    Raises:
        ValueError: If scale is not above 0, or a choice is unknown.

    Example:
        >>> g = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
        >>> norm = Spectral()
        >>> norm.norm(g).item(), norm.dual(g).item(), norm.lmo(g).diag().tolist()
        (4.0, 7.0, [-1.0, 1.0])
    """

    method: Method = "svd"
    measure: Literal["svd", "gram"] = "svd"
    steps: int = 5
    polynomial: str | tuple[Coefficients, ...] = "jordan"
    compute_dtype: torch.dtype | None = None
    name: ClassVar[geometry.NormName] = "spectral"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("steps", self.steps, minimum=1)
        check_compute_dtype(self.compute_dtype)
        object.__setattr__(self, "polynomial", check_polynomial(self.polynomial, self.steps))  # type: ignore[arg-type]
        if self.method not in ("svd", "newton-schulz"):
            raise ValueError(f"method must be 'svd' or 'newton-schulz', got {self.method!r}")
        if self.measure not in ("svd", "gram"):
            raise ValueError(f"measure must be 'svd' or 'gram', got {self.measure!r}")

    def norm(self, x: Tensor) -> Tensor:
        """The largest singular value of x times scale."""
        return self.scale * _largest(self._singular_values(x))

    def dual(self, g: Tensor) -> Tensor:
        """The sum of g's singular values divided by scale (nuclear norm)."""
        return self._singular_values(g).sum() / self.scale

    def lmo(self, g: Tensor) -> Tensor:
        """-U V^T / scale for g = U S V^T, singular values that are zero left out."""
        _check_whole(g)
        return (self.steepest([as_matrix(g)])[0].reshape(g.shape) / -self.scale).to(g.dtype)

    def steepest(self, gs: Sequence[Tensor]) -> list[Tensor]:
        """U V^T of matrices of one shape, or of stacks of them, fresh; of any precision on the CPU."""
        first = gs[0]
        if first.device.type == "cpu":
            # A batch of one too, so that a matrix alone is stepped as among others, bit for bit.
            together = min(first.shape[-2:]) < _BATCH_SIDE_CPU and self.method != "svd"
            size = len(gs) if together else 1
        else:
            together, size = True, max(1, BATCH_ENTRIES // max(1, first.numel()))
        found: list[Tensor] = []
        for start in range(0, len(gs), size):
            batch = torch.stack(list(gs[start : start + size])) if together else gs[start]
            if self.method == "svd":
                factors = polar(batch)
            else:
                factors = iterate(batch, self.steps, self.polynomial, self.compute_dtype)
            if first.device.type != "cpu":  # there the sum with a parameter converts at less cost
                factors = factors.to(first.dtype)
            found += factors.unbind() if together else [factors]
        return found

    def _singular_values(self, x: Tensor) -> Tensor:
        values: Tensor
        if self.measure == "gram":
            # Not above: it imports SciPy.
            from warmgap.torch.singular import gram_singular_values

            values = gram_singular_values(x)
        else:
            values = torch.linalg.svdvals(_widen(as_matrix(x)))
        return values


@final
@dataclass(frozen=True)
class Max(_Scaled):
    """The largest absolute entry, times `scale`; its LMO is the step of signSGD and Lion.

    Attributes:
        scale: A factor on the norm, above 0.

    Raises:
        ValueError: If scale is not above 0.

    Example:
        >>> g = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
        >>> norm = Max()
        >>> norm.norm(g).item(), norm.dual(g).item(), norm.lmo(g).diag().tolist()
        (4.0, 7.0, [-1.0, 1.0])
    """

    name: ClassVar[geometry.NormName] = "max"

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

    def steepest(self, gs: Sequence[Tensor]) -> list[Tensor]:
        """The signs of tensors, fresh."""
        return list(torch._foreach_sign(list(gs)))


class _Lengths(_Scaled):
    """A norm of the lengths of vectors, into which a block falls."""

    def norm(self, x: Tensor) -> Tensor:
        """The largest length times scale."""
        return self.scale * _largest(_lengths(self._vectors(x))[1])

    def dual(self, g: Tensor) -> Tensor:
        """The sum of the lengths divided by scale."""
        return _lengths(self._vectors(g))[1].sum() / self.scale

    def lmo(self, g: Tensor) -> Tensor:
        """-g with every vector divided by its length, / scale; zero vectors stay zero."""
        return (_lengths(self._vectors(g))[0] / -self.scale).reshape(g.shape).to(g.dtype)

    @staticmethod
    def _vectors(x: Tensor) -> Tensor:
        """The block as a matrix whose rows are the vectors."""
        raise NotImplementedError

    @staticmethod
    def lengths(
        gs: Sequence[Tensor], cut: Sharding | None = None, along: Collection[int] | None = None
    ) -> list[Tensor]:
        """Lengths in float32 at least, no less than 1e-15.

        Args:
            gs: Tensors.
            cut: How they are sharded, where these are shards.
            along: The dimensions along which vectors lie, which are kept; None: the length of each tensor as one.
        """
        wide = torch.promote_types(gs[0].dtype, torch.float32)
        if along is None:
            found = list(torch._foreach_norm(list(gs), 2, dtype=wide))
        else:
            found = [torch.linalg.vector_norm(g, dim=tuple(along), keepdim=True, dtype=wide) for g in gs]
        found = full_norms(found, cut, along) if cut else found
        torch._foreach_clamp_min_(found, TINY)
        return found

    def steepest(
        self, gs: Sequence[Tensor], cut: Sharding | None = None, along: Collection[int] | None = None
    ) -> list[Tensor]:
        """Every vector divided by its length, fresh, zero where it is; arguments as for `lengths`."""
        found = torch._foreach_div(list(gs), self.lengths(gs, cut, along))
        return [unit.to(g.dtype) for unit, g in zip(found, gs, strict=True)]


@final
@dataclass(frozen=True)
class Frobenius(_Lengths):
    """The Euclidean norm of all entries, times `scale`; its LMO is the step of normalized SGD.

    Attributes:
        scale: A factor on the norm, above 0.

    Raises:
        ValueError: If scale is not above 0.

    Example:
        >>> g = torch.tensor([[3.0, 0.0], [0.0, -4.0]], dtype=torch.float64)
        >>> norm = Frobenius()
        >>> norm.norm(g).item(), norm.dual(g).item(), norm.lmo(g).diag().tolist()
        (5.0, 5.0, [-0.6, 0.8])
    """

    name: ClassVar[geometry.NormName] = "frobenius"

    @staticmethod
    def _vectors(x: Tensor) -> Tensor:
        return x.reshape(1, -1)


@final
@dataclass(frozen=True)
class Rows(_Lengths):
    """The largest length of a row, times `scale`; its LMO makes all rows of one length (Scion's `"row"`).

    A convolution (out, in, k, k) is taken as the matrix (out, in*k*k), a vector as one column.

    Attributes:
        scale: A factor on the norm, above 0.

    Raises:
        ValueError: If scale is not above 0.

    Example:
        >>> g = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
        >>> norm = Rows()
        >>> norm.norm(g).item(), norm.dual(g).item(), norm.lmo(g).diag().tolist()
        (4.0, 7.0, [-1.0, 1.0])
    """

    name: ClassVar[str] = "row"

    def kappa(self, shape: Sequence[int]) -> float:
        """The number of rows / scale^2."""
        return (geometry.matrix_shape(shape)[0] if math.prod(shape) else 0) / self.scale**2

    @staticmethod
    def _vectors(x: Tensor) -> Tensor:
        return as_matrix(x)

    def steepest(
        self, gs: Sequence[Tensor], cut: Sharding | None = None, along: Collection[int] | None = (-1,)
    ) -> list[Tensor]:
        """Every row divided by its length, fresh; of matrices or stacks of them unless `along` says where rows lie."""
        return super().steepest(gs, cut, along)


@final
@dataclass(frozen=True)
class Greedy(_Scaled):
    """The sum of the absolute entries (l1), times `scale`; its LMO is the step of greedy coordinate descent.

    Attributes:
        scale: A factor on the norm, above 0.

    Raises:
        ValueError: If scale is not above 0.

    Example:
        >>> g = torch.tensor([[3.0, 0.0], [0.0, -4.0]])
        >>> norm = Greedy()
        >>> norm.norm(g).item(), norm.dual(g).item(), norm.lmo(g).diag().tolist()
        (7.0, 4.0, [0.0, 1.0])
    """

    name: ClassVar[str] = "l1"

    def norm(self, x: Tensor) -> Tensor:
        """The sum of x's absolute entries times scale."""
        return self.scale * _widen(x).abs().sum()

    def dual(self, g: Tensor) -> Tensor:
        """The largest absolute entry of g divided by scale."""
        return _largest(_widen(g)) / self.scale

    def lmo(self, g: Tensor) -> Tensor:
        """-sign(g_j) e_j / scale at the first of g's largest entries, zero for a zero g."""
        _check_whole(g)
        out = torch.zeros_like(g, memory_format=torch.contiguous_format)
        if g.numel():
            entries = g.reshape(-1)
            where = entries.abs().argmax(dim=0, keepdim=True)
            out.view(-1).scatter_(0, where, entries[where].sign() / -self.scale)
        return out

    def kappa(self, shape: Sequence[int]) -> float:
        """1 / scale^2; 0 where there are no entries."""
        return float(math.prod(shape) > 0) / self.scale**2

    def steepest(self, gs: Sequence[Tensor]) -> list[Tensor]:
        """The sign of each tensor's largest entry, in its place, fresh."""
        return [self.lmo(g) * -self.scale for g in gs]


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

    Example:
        >>> norm = SupOverBlocks([Spectral(), Max()])
        >>> blocks = [torch.tensor([[3.0, 0.0], [0.0, -4.0]]), torch.tensor([1.0, -2.0])]
        >>> norm.norm(blocks).item(), norm.dual(blocks).item(), norm.kappa([(2, 2), (2,)])
        (4.0, 10.0, 4.0)
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
        raise TypeError(f"x must be a full tensor, got a DTensor of shape {tuple(x.shape)}; give x.full_tensor()")


def _widen(x: Tensor) -> Tensor:
    """Half precision as float32, so that sums over many entries keep their digits."""
    _check_whole(x)
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _largest(x: Tensor) -> Tensor:
    return x.abs().amax() if x.numel() else x.new_zeros(())


def _lengths(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of length 1, zero where they are, and their lengths."""
    rows = _widen(rows)
    # By the largest entry first, so that squares neither overflow nor vanish.
    largest = rows.abs().amax(dim=1, keepdim=True) if rows.numel() else rows.new_zeros(len(rows), 1)
    unit = rows / torch.where(largest > 0, largest, 1.0)
    lengths = torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    # The largest entry of a row that is not zero is 1, so its length is at least 1: the clamp acts on zero only.
    return unit / lengths.clamp_min(1.0), lengths * largest


def layer_norm(
    rule: LayerRule, shape: Sequence[int], *, spectral: Spectral | None = None
) -> Spectral | Max | Rows | Frobenius:
    """Return the norm that Scion and Gluon take a layer in: what it does to the root mean square of its input.

    Args:
        rule: `"spectral"`, `"sign"`, `"row"` or `"rms"`.
        shape: The layer's shape, (outputs, inputs, *kernel), or that of a vector.
        spectral: How `"spectral"` is to be computed; its scale is replaced.

    Returns:
        A norm whose scale is sqrt(inputs / outputs) * kernel entries for `"spectral"`, columns for `"sign"`,
        sqrt(columns) for `"row"`, 1 / sqrt(entries) for `"rms"`.

    Source: Pethick et al., arXiv 2502.07529, tables of norms.

    Example:
        >>> layer_norm("sign", (10, 4))
        Max(scale=4.0)
    """
    columns = math.prod(shape[1:])
    if rule == "spectral":
        outputs, inputs, *kernel = shape if len(shape) > 1 else (*shape, 1, 1)[:2]
        return replace(spectral or Spectral(), scale=math.prod(kernel) / math.sqrt(outputs / inputs))
    if rule == "sign":
        return Max(float(columns))
    return Rows(math.sqrt(columns)) if rule == "row" else Frobenius(1.0 / math.sqrt(math.prod(shape)))
