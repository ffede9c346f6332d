"""The method's published rule with its faults, to compare with; `warmgap.GapRule` is the one to use.

Source: arXiv 2602.05813, section 5 and appendix D.2, as its published research code runs it.
"""

import math
import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

from warmgap.rules import Rule, RuleState

_SCAN = 500
_EDGE = 0.01


def published_peak_gap(initial_gap: float, floor: float, kappa: float, peak_lr: float, sigma: float = 1e-3) -> float:
    """The peak gap as the published solver finds it: not the minimiser of the stated objective.

    The objective is integrated over the gap by `scipy.integrate.quad` with its default tolerances, for 500 candidates
    from 0.01 to `initial_gap - 0.01`. The integrand is of the order of the learning rate squared and lies below the
    default absolute tolerance, so the quadrature never refines, and its 21 nodes miss the narrow weight. The result
    depends on `peak_lr`, which the true minimiser does not (`warmgap.match_peak_gap`).

    Args:
        initial_gap: Gap at the first loss, > 0.02.
        floor: Starting learning rate / peak learning rate.
        kappa: The constant of the optimizer's norm.
        peak_lr: Peak learning rate.
        sigma: Curvature scale of the weight.
    """
    from scipy.integrate import IntegrationWarning, quad

    ratio = 1.0 / floor

    def integrand(gap: float, peak_gap: float) -> float:
        k2 = initial_gap * (ratio - 1.0) / (peak_lr * (initial_gap - peak_gap) ** 2)
        rate = gap / (gap / peak_lr + k2 * (gap - peak_gap) ** 2)
        if gap <= peak_gap:
            target = 0.5 * peak_lr * (1.0 - math.cos(math.pi * gap / peak_gap))
        else:
            target = peak_lr + (peak_lr * floor - peak_lr) * (gap - peak_gap) / (initial_gap - peak_gap)
        return math.exp(-0.5 * sigma * kappa * (gap - peak_gap) ** 2) * (rate - target) ** 2

    step = (initial_gap - 2.0 * _EDGE) / (_SCAN - 1)
    candidates = [_EDGE + step * index for index in range(_SCAN)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IntegrationWarning)
        return min(candidates, key=lambda peak_gap: float(quad(integrand, 0.0, initial_gap, args=(peak_gap,))[0]))


@dataclass(frozen=True)
class PublishedState(RuleState):
    """What the published rule keeps: the gap at the first loss, the peak gap found there, the latest gap."""

    initial_gap: float | None = None
    peak_gap: float | None = None
    gap: float | None = None


@dataclass(frozen=True)
class PublishedRule(Rule[PublishedState]):
    """The published rule, faults and all.

    The first step runs at the peak learning rate, since no loss has been seen. Then the raw loss sets the factor,
    without averaging, and warm-up ends for good the first time the gap is at or below the peak gap. Nothing ends it
    otherwise: it can stay at the floor for the whole run.

    Attributes:
        kappa: The constant of the optimizer's norm, from `warmgap.kappa`.
        target_loss: The loss taken as optimal, set by hand.
        peak_lr: Peak learning rate (the published solver depends on it, see `published_peak_gap`).
        floor: Starting learning rate / peak learning rate.
        sigma: Curvature scale of the weight.

    Raises:
        ValueError: At the first loss, if that is not above `target_loss`.
    """

    kappa: float
    target_loss: float
    peak_lr: float
    floor: float = 0.01
    sigma: float = 1e-3

    name: ClassVar[str] = "published"
    bounded: ClassVar[bool] = False

    def init(self, total_iters: int | None = None) -> PublishedState:
        """Return the state before the first step, which runs at the peak."""
        del total_iters
        return PublishedState(factor=1.0)

    def step(self, state: PublishedState, loss: float) -> tuple[PublishedState, float]:
        """Take in one raw loss; return the new state and the factor of the next step."""
        if not math.isfinite(loss):
            return state, state.factor
        gap = loss - self.target_loss
        initial_gap, peak_gap = state.initial_gap, state.peak_gap
        if initial_gap is None or peak_gap is None:
            if gap <= 2.0 * _EDGE:
                raise ValueError(
                    f"target_loss must lie well below the first loss, {loss:.4g}, got {self.target_loss:.4g}; "
                    "give a lower one"
                )
            initial_gap = gap
            peak_gap = published_peak_gap(gap, self.floor, self.kappa, self.peak_lr, self.sigma)
        done = state.done or gap <= peak_gap
        factor = 1.0
        if not done:
            bend = (1.0 / self.floor - 1.0) * initial_gap / (initial_gap - peak_gap) ** 2
            factor = gap / (gap + bend * (gap - peak_gap) ** 2)
        return replace(state, factor=factor, done=done, initial_gap=initial_gap, peak_gap=peak_gap, gap=gap), factor

    def reading(self, state: PublishedState) -> tuple[float | None, float | None]:
        """Return the latest raw gap, and the target loss."""
        return state.gap, self.target_loss
