"""The response curve: which share of the peak learning rate a loss gap allows.

Source: arXiv 2602.05813, section 5 and appendix D.2. The published form `gap / (K0 + K1*gap + K2*gap**2)` cancels
badly (K1 is negative in every published calibration); the form used here is the same function, written so that
nothing cancels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from warmgap._checks import check_finite, check_fraction, check_positive

Number = TypeVar("Number")


@dataclass(frozen=True)
class Smoothness:
    """The constants of the curvature bound `K(gap) = K0 + K1*gap + K2*gap**2`.

    Source: arXiv 2602.05813, Assumption 2 with rho = 2. The assumption asks for constants >= 0, and a schedule's own
    constants violate that: K1 >= 0 needs a peak gap below about `floor/2` of the initial gap, which no calibration
    comes near. The bound itself stays positive, `K(gap) = gap/peak_lr + K2*(gap - peak_gap)**2`, and that is all the
    step size needs.

    Attributes:
        K0: Constant term, in units of gap / learning rate.
        K1: Linear term, in units of 1 / learning rate; may be negative.
        K2: Quadratic term, in units of 1 / (gap * learning rate).

    Raises:
        ValueError: If K0 or K2 is negative, or the bound is not positive for every gap.

    Example:
        >>> smoothness = Smoothness(K0=400.0, K1=0.0, K2=100.0)
        >>> smoothness.peak_gap, smoothness.peak_lr, smoothness.step_size(4.0)
        (2.0, 0.0025, 0.002)
    """

    K0: float
    K1: float
    K2: float

    def __post_init__(self) -> None:
        for name in ("K0", "K2"):
            if check_finite(name, getattr(self, name)) < 0.0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)!r}")
        if check_finite("K1", self.K1) + 2.0 * math.sqrt(self.K0 * self.K2) <= 0.0:
            raise ValueError(
                f"K0 + K1*gap + K2*gap**2 must be positive for every gap, got {self}; raise K1 above -2*sqrt(K0*K2)"
            )

    def __call__(self, gap: Number) -> Number:
        """Return the curvature bound at `gap` (any array type; same shape)."""
        x: Any = gap
        return cast("Number", self.K0 + x * (self.K1 + self.K2 * x))

    def step_size(self, gap: Number) -> Number:
        """Return the learning rate `gap / K(gap)` (any array type; same shape)."""
        x: Any = gap
        return cast("Number", x / self(x))

    @property
    def peak_gap(self) -> float:
        """The gap at which the step size is largest, `sqrt(K0/K2)`; infinite if K2 is 0."""
        return math.sqrt(self.K0 / self.K2) if self.K2 > 0.0 else math.inf

    @property
    def peak_lr(self) -> float:
        """The largest step size, `1 / (K1 + 2*sqrt(K0*K2))`."""
        return 1.0 / (self.K1 + 2.0 * math.sqrt(self.K0 * self.K2))

    def curve(self, initial_gap: float) -> ResponseCurve:
        """Return the response curve of a run that starts at `initial_gap`.

        Args:
            initial_gap: The gap at the start; above `peak_gap`.

        Returns:
            The curve whose `smoothness(self.peak_lr)` is this object, up to rounding.

        Raises:
            ValueError: If K0 or K2 is 0 (no peak), or `initial_gap` does not lie above the peak gap.
        """
        if self.K0 == 0.0 or self.K2 == 0.0:
            raise ValueError(
                f"a response curve has a peak, and K0 = {self.K0}, K2 = {self.K2} has none; both must be above 0"
            )
        check_positive("initial_gap", initial_gap)
        return ResponseCurve(initial_gap, self.peak_gap, self.step_size(initial_gap) / self.peak_lr)


@dataclass(frozen=True)
class ResponseCurve:
    """Learning rate as a share of its peak, as a function of the loss gap.

    `curve(gap)` is `1 / (1 + (1/floor - 1) * (initial_gap/gap) * ((gap - peak_gap)/(initial_gap - peak_gap))**2)`: it
    equals `floor` at `initial_gap`, rises while the gap falls, is exactly 1 at `peak_gap`, and falls again below it.
    Source: arXiv 2602.05813, equation for eta(gap) and appendix D.2, rewritten without the constants K0, K1, K2.

    Attributes:
        initial_gap: Loss minus target loss at the start, > 0.
        peak_gap: The gap at which the peak learning rate is reached, in (0, initial_gap).
        floor: Starting learning rate / peak learning rate, in (0, 1).

    Raises:
        ValueError: If an argument lies outside those ranges.

    Example:
        >>> curve = ResponseCurve(initial_gap=8.0, peak_gap=2.0, floor=0.01)
        >>> [round(curve(gap), 3) for gap in (8.0, 4.0, 2.0, 1.0)]
        [0.01, 0.043, 1.0, 0.043]
    """

    initial_gap: float
    peak_gap: float
    floor: float

    def __post_init__(self) -> None:
        check_positive("initial_gap", self.initial_gap, "the gap is loss minus target loss: give a lower target_loss")
        check_positive("peak_gap", self.peak_gap)
        check_fraction("floor", self.floor, "it is starting learning rate / peak learning rate")
        if self.peak_gap >= self.initial_gap:
            raise ValueError(
                f"peak_gap must be below initial_gap, got {self.peak_gap!r} and {self.initial_gap!r}; "
                "match_peak_gap finds one"
            )

    def __call__(self, gap: Number) -> Number:
        """Return the factor at `gap` > 0 (float, NumPy, torch or jax array; same shape).

        Gaps above `initial_gap` give factors below `floor`: bounding them is the rule's work, not the curve's.
        """
        return response(gap, self.initial_gap, self.peak_gap, self.floor)

    def smoothness(self, peak_lr: float) -> Smoothness:
        """Return the curvature constants that this curve means at the peak learning rate `peak_lr`.

        Source: arXiv 2602.05813, appendix D.2, step 3.

        Raises:
            ValueError: If `peak_lr` is not a finite number above 0.
        """
        check_positive("peak_lr", peak_lr)
        width = self.initial_gap - self.peak_gap
        k2 = self.initial_gap * (1.0 / self.floor - 1.0) / (peak_lr * width * width)
        return Smoothness(K0=k2 * self.peak_gap**2, K1=1.0 / peak_lr - 2.0 * k2 * self.peak_gap, K2=k2)


def response(gap: Number, initial_gap: float, peak_gap: float, floor: float) -> Number:
    """Return `ResponseCurve(initial_gap, peak_gap, floor)(gap)`, of arguments that are not checked."""
    x: Any = gap
    distance = (x - peak_gap) / (initial_gap - peak_gap)
    return cast("Number", 1.0 / (1.0 + (1.0 / floor - 1.0) * (initial_gap / x) * distance * distance))
