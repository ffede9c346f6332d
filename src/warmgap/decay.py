"""Decays: progress through the steps after warm-up in, share of the peak learning rate out.

A decay is any callable from progress in [0, 1] to a factor in (0, 1] (0 is allowed at progress 1, which no step
reaches) that is exactly 1 at progress 0, so that the hand-over from warm-up is continuous. The functions below build
the usual ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from warmgap._checks import check_finite, check_fraction
from warmgap._ops import Floats, Ops

__all__ = ["NAMES", "Decay", "by_name", "constant", "cosine", "inverse_sqrt", "linear", "wsd"]

Decay = Callable[[float], float]
"""Progress in [0, 1] in, factor out."""


def cosine(minimum: float = 0.0) -> Decay:
    """Half a cosine from 1 to `minimum` in [0, 1) (Loshchilov and Hutter, arXiv 1608.03983).

    Raises:
        ValueError: If `minimum` lies outside [0, 1).

    Example:
        >>> decay = cosine(minimum=0.1)
        >>> [round(decay(progress), 3) for progress in (0.0, 0.5, 1.0)]
        [1.0, 0.55, 0.1]
    """
    low = _minimum(minimum)
    return partial(_cosine, low)


def linear(minimum: float = 0.0) -> Decay:
    """A straight line from 1 to `minimum` in [0, 1).

    Raises:
        ValueError: If `minimum` lies outside [0, 1).

    Example:
        >>> [linear()(progress) for progress in (0.0, 0.25, 1.0)]
        [1.0, 0.75, 0.0]
    """
    low = _minimum(minimum)
    return partial(_wsd, 1.0, low)


def wsd(share: float = 0.2, minimum: float = 0.0) -> Decay:
    """Warm-up stable decay: 1, then over the last `share` of the steps a straight line to `minimum` (arXiv 2404.06395).

    Args:
        share: Share of the steps after warm-up that decay, in (0, 1).
        minimum: Factor at the end, in [0, 1).

    Raises:
        ValueError: If `share` or `minimum` lies outside its range.

    Example:
        >>> decay = wsd(share=0.2)
        >>> [round(decay(progress), 3) for progress in (0.0, 0.8, 0.9, 1.0)]
        [1.0, 1.0, 0.5, 0.0]
    """
    share = check_fraction("share", share)
    low = _minimum(minimum)
    return partial(_wsd, share, low)


def inverse_sqrt(final: float = 0.1) -> Decay:
    """One over the square root of time, scaled to end at `final` in (0, 1) (Vaswani et al., arXiv 1706.03762).

    Raises:
        ValueError: If `final` does not lie strictly between 0 and 1.

    Example:
        >>> decay = inverse_sqrt(final=0.1)
        >>> [round(decay(progress), 3) for progress in (0.0, 0.1, 1.0)]
        [1.0, 0.303, 0.1]
    """
    steepness = check_fraction("final", final) ** -2 - 1.0
    return partial(_inverse_sqrt, steepness)


def constant() -> Decay:
    """No decay.

    Example:
        >>> constant()(0.5)
        1.0
    """
    return partial(_wsd, 1.0, 1.0)


_BUILDERS: dict[str, Callable[[], Decay]] = {
    "cosine": cosine,
    "linear": linear,
    "wsd": wsd,
    "inverse-sqrt": inverse_sqrt,
    "constant": constant,
}

NAMES: tuple[str, ...] = tuple(_BUILDERS)
"""The names that `by_name` and every `decay=` argument know."""


def by_name(name: str) -> Decay:
    """Return the decay of that name with its default arguments.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> by_name("linear")(0.25)
        0.75
    """
    if name not in _BUILDERS:
        raise ValueError(f"decay must be one of {', '.join(map(repr, NAMES))} or a callable, got {name!r}")
    return _BUILDERS[name]()


# Module-level functions, so that a decay, and with it a schedule, can be pickled.


def _cosine(low: float, progress: float, ops: Ops = Floats) -> float:
    sine = ops.sin(0.5 * math.pi * (1.0 - progress))  # (1 + cos(pi*progress))/2 is 0 before the end in float32
    factor: float = low + (1.0 - low) * sine * sine
    return factor


def _wsd(share: float, low: float, progress: float, ops: Ops = Floats) -> float:
    factor: float = 1.0 - (1.0 - low) * ops.maximum(0.0, progress - (1.0 - share)) / share
    return factor


def _inverse_sqrt(steepness: float, progress: float, ops: Ops = Floats) -> float:
    factor: float = 1.0 / ops.sqrt(1.0 + steepness * progress)
    return factor


def _minimum(value: float) -> float:
    if not 0.0 <= check_finite("minimum", value) < 1.0:
        raise ValueError(
            f"minimum must lie in [0, 1), got {value!r}; it is the last factor, a share of the peak learning rate"
        )
    return float(value)
