"""The paper's rule: the learning rate follows the loss gap along the response curve, from the floor up to the peak.

Source: arXiv 2602.05813, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from warmgap._checks import check_positive
from warmgap._ops import Ops
from warmgap.curve import response
from warmgap.matching import best_share
from warmgap.rules._gap_driven import GapDriven


@dataclass(frozen=True, kw_only=True)
class GapRule(GapDriven):
    """The factor follows the response curve at the gap of the lowest clean loss; warm-up ends at the peak gap.

    The curve is `ResponseCurve(initial_gap, peak_gap, floor)`. The peak gap comes from `match_peak_gap`, at the first
    loss. The first step, which no loss precedes, runs at `floor`.

    Attributes:
        kappa: The constant of the optimizer's norm, from `warmgap.kappa`, > 0.
        sigma: Curvature scale of the matching weight (the paper's sigma_F), > 0.
        target_loss: The loss taken as optimal, below every loss of the warm-up; or `"auto"`, an estimate from the run
            itself.
        floor: Starting learning rate / peak learning rate, in (0, 1).
        roles, max_warmup, deadlock_exit, loss_filter: As in every rule that follows the loss (`LossDriven`).

    Raises:
        ValueError: If an attribute lies outside its range, or, at the first loss, if that is not above `target_loss`.

    Example:
        >>> from warmgap import Schedule
        >>> schedule = Schedule(10_000, GapRule(kappa=65_280, target_loss=3.2))
        >>> state = schedule.step(schedule.init(), 11.0)
        >>> print(f"{state.factor:.3f}")
        0.010

    Source: arXiv 2602.05813, section 5 and appendix D.2.
    """

    kappa: float
    sigma: float = 1e-3

    name: ClassVar[str] = "gap"
    title: ClassVar[str] = "the response curve of the loss gap (arXiv 2602.05813)"
    uses: ClassVar[frozenset[str]] = frozenset({"loss", "target", "norm"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("kappa", self.kappa, "warmgap.kappa gives it from the parameter shapes")
        check_positive("sigma", self.sigma)

    def _share(self, initial_gap: float, ops: Ops) -> float:
        share: float = ops.host(self._matched, initial_gap)
        return share

    def _matched(self, initial_gap: float) -> float:
        return best_share(self.floor, self.sigma * self.kappa * initial_gap * initial_gap)[0]

    def _factor(self, gap: float, initial_gap: float, peak_gap: float, ops: Ops) -> float:  # noqa: ARG002
        return response(gap, initial_gap, peak_gap, self.floor)
