"""The paper's rule: the learning rate follows the loss gap along the response curve, from the floor up to the peak.

Source: arXiv 2602.05813, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from warmgap._checks import check_positive
from warmgap.curve import ResponseCurve
from warmgap.matching import best_share
from warmgap.rules._gap_driven import GapDriven


@dataclass(frozen=True, kw_only=True)
class GapRule(GapDriven):
    """The factor follows the response curve at the gap of the lowest clean loss; warm-up ends at the peak gap.

    The curve is `ResponseCurve(initial_gap, peak_gap, floor)`. The peak gap comes from `match_peak_gap`, at the first
    loss. The first step, which no loss precedes, runs at `floor`.

    Attributes:
        kappa: The constant of the optimizer's norm, from `warmgap.kappa`, > 0.
        floor: Starting learning rate / peak learning rate, in (0, 1).
        target_loss: The loss taken as optimal, below every loss of the warm-up; or `"auto"`, an estimate from the run
            itself.
        sigma: Curvature scale of the matching weight (the paper's sigma_F), > 0.
        signal: How the raw losses are cleaned.

    Raises:
        ValueError: If an attribute lies outside its range, or, at the first loss, if that is not above `target_loss`.

    Source: arXiv 2602.05813, section 5 and appendix D.2.
    """

    kappa: float
    sigma: float = 1e-3

    name: ClassVar[str] = "gap"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("kappa", self.kappa, "warmgap.kappa gives it from the parameter shapes")
        check_positive("sigma", self.sigma)

    def _share(self, initial_gap: float) -> float:
        return best_share(self.floor, self.sigma * self.kappa * initial_gap**2)[0]

    def _factor(self, initial_gap: float, gap: float, share: float) -> float:
        return ResponseCurve(initial_gap, share * initial_gap, self.floor)(gap)
