"""Orthogonalisation: the nearest semi-orthogonal matrix, fast (Newton-Schulz) and exact (SVD).

For G = U S V^T (reduced SVD, zero singular values left out) both approximate the polar factor U V^T, which is minus the
linear minimisation oracle of the spectral norm (arXiv 2602.05813, appendix C). Newton-Schulz uses matrix products only
and no host synchronisation: every step applies an odd polynomial p(x) = a x + b x^3 + c x^5 to the singular values,
which start in [0, 1]. The named polynomials (`POLYNOMIALS`), five steps each:

    name               singular values in     from      slope at zero   source
    "jordan"           [0.68, 1.21]           0.002     485             Jordan et al. (2024), torch.optim.Muon's
    "polar-express"    [0.84, 1.15]           0.001     970             Amsel et al., arXiv 2505.16932
    "cans"             [0.88, 1.12]           0.001     1049            Grishina et al., arXiv 2506.10935
    "cubic"            [0.77, 1.30]           0.01      119             the third degree alone: a product less a step

The bounds are those of exact arithmetic. bfloat16 keeps to them within its rounding, but for "cans": its first step
takes singular values near 0.82 to almost zero, where rounding is larger than they are, and single ones came out at 2.5.

**Two forms** give the same result in exact arithmetic. With X the matrix on its smaller side n, and h(y) = a + b y +
c y^2:

    standard    A = X X^T;  X <- h(A) X
    Gram        R = X X^T, Q = I;  Q <- Q h(R), R <- R h(R)^2;  at the end X <- Q X

The Gram form has two products with the long side whatever the steps. It is taken where it costs less: from 1.5 times
as many columns as rows on, or earlier. In half precision rounding gives R small negative eigenvalues, which the
polynomials blow up: there it starts anew after two steps and after each three from then on, and is left out for
polynomials that come near zero. In float64 the two agree to rounding; in float32, for matrices of rank one or 20, with
singular values that fall off exponentially, or all equal, the result differs by at most 1.2e-2 of its length for
"jordan" (768 x 2048, rank one; 9e-4 and less for the others).

**What is computed in** follows the device, see `compute_dtype`.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from warmgap._checks import check_count, check_finite

__all__ = [
    "POLYNOMIALS",
    "check_polynomial",
    "compute_dtype",
    "largest_singular_value",
    "newton_schulz",
    "orthogonalize",
    "polar",
]

Method = Literal["newton-schulz", "svd"]

Coefficients = tuple[float, float, float]

PolynomialName = Literal["jordan", "polar-express", "cans", "cubic"]

Polynomial = PolynomialName | Sequence[Sequence[float]]
"""A name of `POLYNOMIALS`, or (a, b, c) of each step; the last is used again for steps beyond."""

POLYNOMIALS: dict[str, tuple[float, tuple[Coefficients, ...]]] = {
    # The largest slope at zero that keeps [0, 1] bounded.
    "jordan": (1.0, ((3.4445, -4.7750, 2.0315),)),
    "polar-express": (
        1.02,
        (
            (8.15655, -22.48329, 15.87877),
            (4.04293, -2.80892, 0.50002),
            (3.89167, -2.77248, 0.50606),
            (3.28575, -2.36813, 0.46449),
            (2.34654, -1.70978, 0.42324),
        ),
    ),
    "cans": (
        1.0,
        (
            (8.4703, -25.1081, 18.6293),
            (4.1828, -3.1087, 0.5806),
            (3.9619, -2.9541, 0.5630),
            (3.2866, -2.4647, 0.5074),
            (2.2737, -1.6447, 0.4162),
        ),
    ),
    "cubic": (
        1.0,
        (
            (3.36566, -3.34210, 0.0),
            (2.57444, -1.49574, 0.0),
            (2.53690, -1.43126, 0.0),
            (2.44189, -1.27640, 0.0),
            (2.22305, -0.96307, 0.0),
        ),
    ),
}
"""Name: what the Frobenius norm is multiplied by before it divides, and (a, b, c) of each step."""

# A norm under this counts as zero. Not smaller: squares under 1e-38 vanish in float32, so a norm can come out as 0 for
# entries of up to 1e-19, and dividing those by less would blow them up instead of normalising them.
TINY = 1e-15

# Singular values may rise this far before a set of coefficients is refused.
_LARGEST = 2.0

# By how much rounding in half precision may bring the largest singular value over 1.
_HALF_MARGIN = 1.02

# Where a + b x^2 + c x^4 falls under this share of a, rounding in half precision makes R negative within a step.
_GRAM_LOWEST = 0.1

# On CPUs with units for bfloat16, from this smaller side on they beat float32: at 64 the calls cost more than the
# products, at 128 x 344 they take 0.6 of its time, from 256 on half (benchmarks/optimizers.py).
_HALF_SIDE = 128

# From this smaller side on a symmetric product on the CPU is cheaper by strips.
_STRIPS_SIDE = {torch.float32: 192, torch.float64: 192}
_STRIPS_SIDE_HALF = 384
_STRIP = 128
_STRIPS_COST = 0.67


def orthogonalize(
    x: Tensor,
    *,
    method: Method = "newton-schulz",
    steps: int = 5,
    polynomial: Polynomial = "jordan",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the polar factor U V^T of x = U S V^T, nearly or exactly.

    Args:
        x: A matrix or a batch of matrices, shape (..., rows, columns), real. Not changed.
        method: `"newton-schulz"`, see `newton_schulz`, or `"svd"`, see `polar`.
        steps: Newton-Schulz iterations, at least one; not used by `"svd"`.
        polynomial: As for `newton_schulz`; not used by `"svd"`.
        dtype: As for `newton_schulz`; not used by `"svd"`.

    Returns:
        A tensor of x's shape and dtype.

    Raises:
        ValueError: If x has fewer than two dimensions, steps is under one, or method, polynomial or dtype is unknown.

    Example:
        >>> orthogonalize(torch.tensor([[3.0, 0.0], [0.0, -2.0]]), method="svd")
        tensor([[ 1.,  0.],
                [ 0., -1.]])
    """
    if method == "svd":
        return polar(x)
    if method != "newton-schulz":
        raise ValueError(f"method must be 'newton-schulz' or 'svd', got {method!r}")
    return newton_schulz(x, steps, polynomial=polynomial, dtype=dtype).to(x.dtype)


def compute_dtype(device: torch.device, side: int) -> torch.dtype:
    """Return what matrices whose smaller side is this are multiplied in fastest on a device.

    bfloat16 where the hardware has units for it: NVIDIA GPUs from compute capability 8 on, AMD's and Intel's where
    torch says that they support it, and for sides from 128 on x86 CPUs with AVX512-BF16 or AMX and, though not
    measured, ARM CPUs with BF16 instructions. float32 anywhere else: on a CPU without such units bfloat16 takes 7 to 70
    times as long. The answer is that of this machine, and the same at every call; `ONEDNN_MAX_CPU_ISA`, by which a user
    keeps such units from being used, counts.

    Example:
        >>> compute_dtype(torch.device("cpu"), side=64)
        torch.float32
    """
    return _fastest(device, side >= _HALF_SIDE)


@functools.cache
def _fastest(device: torch.device, large: bool) -> torch.dtype:
    if device.type == "cpu":
        in_half = large and _cpu_multiplies_half()
    else:
        in_half = device.type == "meta" or _multiplies_half(device)
    return torch.bfloat16 if in_half else torch.float32


def _cpu_multiplies_half() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "DEFAULT")).upper()
    if not any(name in allowed for name in ("DEFAULT", "ALL", "BF16", "FP16", "AMX", "AVX10")):
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16"))  # the last one ARM's


def _multiplies_half(device: torch.device) -> bool:
    if device.type == "cuda":
        if torch.version.hip is not None:
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "xpu" and bool(torch.xpu.is_bf16_supported(including_emulation=False))


class _Steps(NamedTuple):
    """How a polynomial is applied.

    Attributes:
        coefficients: (a, b, c) of each step.
        factor: What the Frobenius norm is multiplied by before it divides.
        half_factor: The same in half precision.
        gram_in_half: Whether the Gram form is safe in half precision.
        largest: The most that a singular value can be after them, in exact arithmetic.
    """

    coefficients: tuple[Coefficients, ...]
    factor: float
    half_factor: float
    gram_in_half: bool
    largest: float


def largest_singular_value(polynomial: Polynomial = "jordan", steps: int = 5) -> float:
    """Return the most that a singular value can be after so many Newton-Schulz iterations, in exact arithmetic.

    Example:
        >>> print(f"{largest_singular_value('jordan'):.2f} {largest_singular_value('polar-express'):.2f}")
        1.20 1.14
    """
    return _steps(check_polynomial(polynomial, steps), steps).largest


def _steps(polynomial: str | tuple[Coefficients, ...], steps: int) -> _Steps:
    factor, given = POLYNOMIALS[polynomial] if isinstance(polynomial, str) else (1.0, polynomial)
    coefficients = (*given[:steps], *([given[-1]] * (steps - len(given))))
    upper, half_upper = 1.0 / factor, _HALF_MARGIN / factor
    half_factor, gram_in_half = factor, True
    for index, (a, b, c) in enumerate(coefficients):
        lowest, after = _range(a, b, c, upper)
        if not lowest > 0.0:
            raise ValueError(
                f"the polynomial of step {index} changes sign: {a:g} x + {b:g} x^3 + {c:g} x^5 is not above 0 on all "
                f"of (0, {upper:.3g}], where the singular values are, so that a step could go up the gradient; give "
                "coefficients with a + b x^2 + c x^4 > 0 there, or a name: " + ", ".join(map(repr, POLYNOMIALS))
            )
        if not after <= _LARGEST:
            raise ValueError(
                f"the polynomial of step {index}, {a:g} x + {b:g} x^3 + {c:g} x^5, takes singular values of up to "
                f"{upper:.3g} to {after:.3g}, beyond {_LARGEST:g}; give coefficients that stay bounded, or a name: "
                + ", ".join(map(repr, POLYNOMIALS))
            )
        # Rounding must not carry a singular value of 1 past a zero that is near.
        half_lowest, half_after = _range(a, b, c, half_upper)
        if half_lowest < 0.5 * lowest or half_after > _LARGEST:
            half_factor = _HALF_MARGIN * factor
        gram_in_half &= lowest > _GRAM_LOWEST * a
        upper, half_upper = after, max(after, half_after)
    return _Steps(coefficients, factor, half_factor, gram_in_half, upper)


def _range(a: float, b: float, c: float, upper: float) -> tuple[float, float]:
    """The least a + b x^2 + c x^4 and the largest a x + b x^3 + c x^5 for x in [0, upper]."""
    end = upper * upper
    ys = [0.0, end]
    if c != 0.0 and 0.0 < -b / (2 * c) < end:
        ys.append(-b / (2 * c))
    lowest = min(a + b * y + c * y * y for y in ys)
    # Where a + 3 b y + 5 c y^2 = 0.
    turns = [end]
    if c == 0.0:
        turns += [-a / (3 * b)] if b else []
    elif (inside := 9 * b * b - 20 * a * c) >= 0.0:
        turns += [(-3 * b + sign * math.sqrt(inside)) / (10 * c) for sign in (1, -1)]
    largest = max(math.sqrt(y) * (a + b * y + c * y * y) for y in turns if 0.0 <= y <= end)
    return lowest, largest


def check_polynomial(polynomial: Polynomial, steps: int) -> str | tuple[Coefficients, ...]:
    """Return a polynomial by which `newton_schulz` can go, in a form that can be a key.

    Raises:
        ValueError: If the name is unknown, or the coefficients are no triples of numbers, change sign on the singular
            values that they meet, or let them grow beyond 2.

    Example:
        >>> check_polynomial([(1.5, -0.5, 0.0)], steps=5)
        ((1.5, -0.5, 0.0),)
    """
    plain: str | tuple[Coefficients, ...]
    if isinstance(polynomial, str):
        if polynomial not in POLYNOMIALS:
            raise ValueError(
                f"polynomial must be one of {', '.join(map(repr, POLYNOMIALS))}, or (a, b, c) of each step, got "
                f"{polynomial!r}"
            )
        plain = polynomial
    else:
        try:
            rows = [tuple(row) for row in polynomial]
        except TypeError:
            rows = []
        if not rows or any(len(row) != 3 for row in rows):
            raise ValueError(f"polynomial must be a name, or (a, b, c) of each step, got {polynomial!r}")
        a_b_c = [tuple(check_finite("a coefficient of polynomial", value) for value in row) for row in rows]
        plain = tuple((a, b, c) for a, b, c in a_b_c)
    _steps(plain, steps)
    return plain


def check_compute_dtype(dtype: torch.dtype | None) -> None:
    """Raise ValueError unless dtype is None or a floating-point type that matrices can be multiplied in."""
    if dtype not in (None, torch.bfloat16, torch.float16, torch.float32, torch.float64):
        raise ValueError(
            f"the type to compute in must be torch.bfloat16, float16, float32 or float64, got {dtype!r}; None takes "
            "the fastest of the device"
        )


def newton_schulz(
    x: Tensor,
    steps: int = 5,
    *,
    polynomial: Polynomial = "jordan",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return U S' V^T with singular values S' near one, for x = U S V^T.

    Args:
        x: A matrix or a batch of matrices, shape (..., rows, columns), real. Not changed.
        steps: Number of iterations, at least one.
        polynomial: A name of `POLYNOMIALS`, or (a, b, c) of each step, for a s + b s^3 + c s^5.
        dtype: What the iteration computes in; `compute_dtype`'s answer by default.

    Returns:
        A tensor of x's shape, in the type that it was computed in, detached. Zero matrices (no entry above 1e-15) and
        zero singular values stay zero.

    Raises:
        ValueError: If x has fewer than two dimensions, steps is not a whole number of at least one, the polynomial is
            refused by `check_polynomial`, or dtype is no floating-point type.

    Source: Jordan et al. (2024), "Muon: An optimizer for hidden layers in neural networks"; the Gram form: Dao AI Lab
        (2026), "Gram Newton-Schulz".

    Example:
        >>> newton_schulz(torch.eye(2), dtype=torch.float64).diagonal().mean().round(decimals=1)
        tensor(1.1000, dtype=torch.float64)
    """
    check_count("steps", steps, minimum=1)
    _check_matrices(x)
    check_compute_dtype(dtype)
    return iterate(x, steps, check_polynomial(polynomial, steps), dtype)


def iterate(
    x: Tensor, steps: int, polynomial: str | tuple[Coefficients, ...], dtype: torch.dtype | None = None
) -> Tensor:
    """`newton_schulz` of arguments that have been checked."""
    rows, columns = x.shape[-2:]
    plan = _plan(x.device, rows, columns, steps, polynomial, dtype)
    y = x.detach()
    if x.numel() == 0:
        return y.to(plan.dtype, copy=True)
    y = y.flatten(0, -3) if y.ndim > 3 else y
    # Divided by the Frobenius norm, which bounds the largest singular value; squares of float32 neither overflow nor
    # vanish in float64.
    wide = torch.float64 if y.device.type != "mps" else torch.float32
    norm = torch.linalg.vector_norm(y, dim=(-2, -1), keepdim=True, dtype=wide).clamp_min_(TINY)
    y = y.to(torch.promote_types(y.dtype, torch.float32))
    y = (y / (norm * plan.factor).to(y.dtype)).to(plan.dtype)
    # In a compiled step strips would be written to copies.
    by_strips = plan.strips and y.ndim == 2 and not torch.compiler.is_compiling()
    segments = plan.in_strips if by_strips else plan.whole
    if len(segments) < steps or by_strips:
        for coefficients in segments:
            y = _gram_steps(y, coefficients, by_strips)
        return y.reshape(x.shape)
    # The standard form as it stands: on small matrices calls cost as much as products.
    tall = rows > columns
    multiply_add = torch.addmm if y.ndim == 2 else torch.baddbmm
    for ((a, b, c),) in segments:
        gram = y.mT @ y if tall else y @ y.mT
        z = multiply_add(gram, gram, gram, beta=b, alpha=c) if c else gram * b
        y = multiply_add(y, y, z, beta=a) if tall else multiply_add(y, z, y, beta=a)
    return y.reshape(x.shape)


class _Plan(NamedTuple):
    """How matrices of one shape are taken through the steps.

    Attributes:
        dtype: What is computed in.
        factor: What the Frobenius norm is multiplied by before it divides.
        whole: (a, b, c) of each step, segment by segment: the Gram matrix is taken anew before each.
        in_strips: The same where symmetric products are made strip by strip.
        strips: Whether they are, of single matrices.
    """

    dtype: torch.dtype
    factor: float
    whole: tuple[tuple[Coefficients, ...], ...]
    in_strips: tuple[tuple[Coefficients, ...], ...]
    strips: bool


def _plan(
    device: torch.device,
    rows: int,
    columns: int,
    steps: int,
    polynomial: str | tuple[Coefficients, ...],
    dtype: torch.dtype | None,
) -> _Plan:
    return _planned(device, min(rows, columns), max(rows, columns), steps, polynomial, dtype)


# What torch.compiler.assume_constant_result does, by which a compiled step takes the answer as it is; that itself would
# import the compiler, which takes seconds.
_plan._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _planned(
    device: torch.device,
    side: int,
    other: int,
    steps: int,
    polynomial: str | tuple[Coefficients, ...],
    dtype: torch.dtype | None,
) -> _Plan:
    how = _steps(polynomial, steps)
    dtype = _fastest(device, side >= _HALF_SIDE) if dtype is None else dtype
    in_half = dtype.itemsize == 2
    longest = steps if not in_half else 3 if how.gram_in_half else 1
    strips = device.type == "cpu" and side >= _STRIPS_SIDE.get(dtype, _STRIPS_SIDE_HALF)

    def segments(symmetric: float) -> tuple[tuple[Coefficients, ...], ...]:
        found, start = [], 0
        for count in _segments(steps, longest, other / max(side, 1), symmetric):
            found.append(how.coefficients[start : start + count])
            start += count
        return tuple(found)

    return _Plan(dtype, how.half_factor if in_half else how.factor, segments(1.0), segments(_STRIPS_COST), strips)


def _segments(steps: int, longest: int, aspect: float, symmetric: float) -> tuple[int, ...]:
    """After how many steps the Gram matrix is taken anew, so that the whole is cheapest; 1 each is the standard form.

    Args:
        steps: How many.
        longest: How many may go by at most. Where it is not all of them the first time comes a step earlier, as small
            singular values grow most in the first steps.
        aspect: Columns by rows, at least 1.
        symmetric: What a symmetric product costs of one that is not.
    """

    def cost(count: int) -> float:
        """Of a segment, in products of square matrices: X X^T and Q X, squares, Q and R."""
        return aspect * (1 + symmetric) + symmetric * (4 * count - 3)

    gram = [min(longest if longest >= steps else max(1, longest - 1), steps)]
    while sum(gram) < steps:
        gram.append(min(longest, steps - sum(gram)))
    return tuple(gram) if sum(map(cost, gram)) < steps * cost(1) else (1,) * steps


def _gram_steps(x: Tensor, coefficients: Sequence[Coefficients], by_strips: bool) -> Tensor:
    """Some steps in Gram form; a single one is the standard form."""
    tall = x.shape[-2] > x.shape[-1]
    wide = x.mT if tall else x
    multiply_add = torch.addmm if x.ndim == 2 else torch.baddbmm
    symmetric = _by_strips if by_strips else multiply_add
    gram = _by_strips(None, wide, wide.mT) if by_strips else wide @ wide.mT
    last = len(coefficients) - 1
    q = gram  # set in the first step
    for index, (a, b, c) in enumerate(coefficients):
        z = symmetric(gram, gram, gram, beta=b, alpha=c) if c else gram * b
        if index == last == 0:
            # a X apart: it then meets the sum unrounded.
            return multiply_add(x, x, z, beta=a) if tall else multiply_add(x, z, x, beta=a)
        if index == 0:
            q = z.clone()
            q.diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            q = symmetric(q, q, z, beta=a)
        if index == last:
            break
        product = symmetric(gram, gram, z, beta=a)
        gram = symmetric(product, z, product, beta=a)
    return x @ q if tall else q @ x


def _by_strips(plus: Tensor | None, left: Tensor, right: Tensor, *, beta: float = 0.0, alpha: float = 1.0) -> Tensor:
    """`torch.addmm` where the result is symmetric: its lower half, strip by strip, and that mirrored.

    Torch has no symmetric product. For n rows in strips of w it does (n + w) / 2n of the work of a whole one.
    """
    size = len(left)
    out = left.new_empty(size, size)
    for start in range(0, size, _STRIP):
        stop = min(start + _STRIP, size)
        strip = out[start:stop, :stop]
        if plus is None:
            torch.mm(left[start:stop], right[:, :stop], out=strip)
        else:
            addend = plus[start:stop, :stop]
            torch.addmm(addend, left[start:stop], right[:, :stop], beta=beta, alpha=alpha, out=strip)
        out[:start, start:stop] = out[start:stop, :start].mT
    return out


def polar(x: Tensor) -> Tensor:
    """Return U V^T for x = U S V^T by a singular value decomposition: exact, slow, and on CUDA it waits for the host.

    Singular values up to max(rows, columns) * epsilon times the largest one count as zero and are left out, so a
    rank-deficient matrix gives a partial isometry of its rank and a zero matrix gives zero.

    Args:
        x: A matrix or a batch of matrices, shape (..., rows, columns), real. Half precision is computed in float32.

    Returns:
        A tensor of x's shape and dtype.

    Raises:
        ValueError: If x has fewer than two dimensions.

    Example:
        >>> polar(torch.tensor([[0.0, 2.0], [3.0, 0.0]])).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    _check_matrices(x)
    if x.numel() == 0:
        return x.clone()
    u, s, vh = torch.linalg.svd(x.to(torch.promote_types(x.dtype, torch.float32)), full_matrices=False)
    cutoff = s[..., :1] * max(x.shape[-2:]) * torch.finfo(s.dtype).eps
    factor: Tensor = (u * (s > cutoff).unsqueeze(-2)) @ vh
    return factor.to(x.dtype)


def as_matrix(x: Tensor) -> Tensor:
    """Return a parameter block as the matrix its norm is taken of.

    A convolution (out, in, k, k) becomes (out, in*k*k), a vector one column, a scalar 1 x 1. The tensor's counterpart
    of `warmgap.geometry.matrix_shape`.
    """
    return x.flatten(1) if x.ndim > 1 else x.reshape(-1, 1)


def _check_matrices(x: Tensor) -> None:
    if x.ndim < 2:
        raise ValueError(
            f"x must be a matrix or a batch of matrices, got shape {tuple(x.shape)}; "
            "make a vector a column with x.unsqueeze(-1)"
        )
