"""A rule made from measured constants: the learning rate follows `gap / K(gap)` of a run that was probed.

Source: arXiv 2602.05813, section 5, with constants fitted to a trajectory (`warmgap.smoothness`) instead of ones that
follow from a wished-for shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from warmgap.curve import Smoothness
from warmgap.rules._gap_driven import GapDriven


@dataclass(frozen=True, kw_only=True)
class MeasuredRule(GapDriven):
    """The factor is `step_size(gap) / peak`, of the gap of the lowest clean loss; warm-up ends at the peak gap.

    Only the shape is used: the peak learning rate stays the optimizer's own, because the bound leaves open the distance
    that the step size is divided by. The first step, which no loss precedes, runs at `floor`. Where the first gap lies
    below the peak gap already, warm-up is over with the first loss.

    Attributes:
        K0: Constant term of the curvature bound `K0 + K1*gap + K2*gap**2`, > 0.
        K1: Linear term.
        K2: Quadratic term, > 0: without it the step size has no peak.
        floor: Factor of the first step, in (0, 1).
        target_loss: The loss that the gaps of the measurement were taken to; it cannot be `"auto"`.
        signal: How the raw losses are cleaned.

    Raises:
        ValueError: If an attribute lies outside its range, the target loss is `"auto"`, or, at the first loss, if that
            is not above `target_loss`.

    Source: arXiv 2602.05813, section 5.
    """

    K0: float
    K1: float
    K2: float

    name: ClassVar[str] = "measured"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_loss == "auto":
            raise ValueError(
                "target_loss must be the loss that the measured gaps were taken to, got 'auto'; give that number"
            )
        if self._smoothness.K0 == 0.0 or self.K2 == 0.0:
            raise ValueError(
                f"the step size gap/K(gap) has its peak at sqrt(K0/K2), and with K0={self.K0!r}, K2={self.K2!r} it has "
                "none: these measurements ask for no warm-up that ends; use another rule"
            )

    @property
    def _smoothness(self) -> Smoothness:
        return Smoothness(self.K0, self.K1, self.K2)

    def _share(self, initial_gap: float) -> float:
        return self._smoothness.peak_gap / initial_gap

    def _factor(self, initial_gap: float, gap: float, share: float) -> float:
        del initial_gap, share
        return min(1.0, self._smoothness.step_size(gap) / self._smoothness.peak_lr)
