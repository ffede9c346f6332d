"""The constants of the curvature bound, and how many steps they cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from warmgap._checks import check_finite, check_positive
from warmgap.theory.norms import Array


def check_eps(eps: float, initial_gap: float) -> float:
    """Return `eps`, the gap to reach, or raise ValueError unless 0 < eps < initial_gap."""
    check_positive("eps", eps)
    if not eps < initial_gap:
        raise ValueError(f"eps must lie below the initial gap {initial_gap!r}, got {eps!r}")
    return eps


@dataclass(frozen=True)
class Constants:
    """The curvature bound `K(gap) = K0 + K1*gap + Krho*gap**rho`.

    Two readings of it are in use. As printed (A2): `||grad f(x) - grad f(y)||_* <= K(gap(x)) ||x - y||` for all x
    and y; with y the minimiser this bounds f by a quadratic, which cosh, for one, is not. As curvature (A2-H):
    `|D^2 f(z)[u, v]| <= K(gap(z)) ||u|| ||v||` for all z; this is what a trajectory shows. The guarantees say which
    one they need. Source: arXiv 2602.05813, Assumption 2 (FOUND); A2-H: DERIVED.

    Attributes:
        K0: Constant term, not negative; infinite where f has no bound on its curvature.
        K1: Linear term, not negative.
        Krho: Term of the power rho, not negative.
        rho: The power, above 0.

    Raises:
        ValueError: If a constant is negative or rho is not above 0.

    Example:
        >>> Constants(1.0, 2.0)(3.0)
        7.0
        >>> Constants(1.0, 0.0, 1.0).step_size(gap=1.0, distance=2.0)
        0.25
    """

    K0: float
    K1: float = 0.0
    Krho: float = 0.0
    rho: float = 2.0

    def __post_init__(self) -> None:
        for name in ("K1", "Krho"):
            check_finite(name, getattr(self, name))
        for name in ("K0", "K1", "Krho"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)!r}")
        check_positive("rho", self.rho)

    def __call__(self, gap: float) -> float:
        """Return the bound at a gap."""
        return float(self.along(np.asarray(gap)))

    def along(self, gaps: Array) -> Array:
        """Return the bound at each gap of a trajectory."""
        return np.asarray(self.K0 + self.K1 * gaps + self.Krho * gaps**self.rho)

    def shrunk(self, factor: float) -> Constants:
        """Return the constants divided by a factor."""
        return Constants(self.K0 / factor, self.K1 / factor, self.Krho / factor, self.rho)

    def step_size(self, gap: float, distance: float) -> float:
        """Return Theorem 1's step size `gap / (distance * K(gap))`."""
        return gap / (distance * self(gap))

    def integral(self, initial_gap: float, eps: float) -> float:
        """Return the integral of `K(d) / d**2` from eps to initial_gap: the price of the way down.

        Raises:
            ValueError: If not 0 < eps < initial_gap.
        """
        check_eps(eps, initial_gap)
        log = math.log(initial_gap / eps)
        power = self.rho - 1.0
        last = (math.pow(initial_gap, power) - math.pow(eps, power)) / power if power else log
        return self.K0 * (1.0 / eps - 1.0 / initial_gap) + self.K1 * log + self.Krho * last

    def steps(self, initial_gap: float, eps: float, distance: float) -> float:
        """Return a bound on the steps from initial_gap to eps when each lowers the gap by `gap**2/(2*distance**2*K)`.

        `1 + 2*distance**2 * integral(initial_gap, eps)` for rho <= 2, where `K(d)/d**2` falls with d; for rho > 2
        each halving of the gap is counted on its own. DERIVED.

        Raises:
            ValueError: If not 0 < eps < initial_gap.
        """
        price = self.integral(initial_gap, eps)
        if self.rho <= 2.0 or self.Krho == 0.0:
            return 1.0 + 2.0 * distance**2 * price
        halvings = math.ceil(math.log2(initial_gap / eps))
        power = self.rho - 1.0
        last = self.Krho * math.pow(initial_gap, power) / (2.0 * (1.0 - math.pow(2.0, -power)))
        return halvings + 2.0 * distance**2 * (4.0 * self.K0 / eps + self.K1 * halvings + last)
