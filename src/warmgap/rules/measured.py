"""A rule made from measured constants: the learning rate follows the step size of a run that was probed.

Source: arXiv 2602.05813, section 5, and arXiv 2510.03164, with constants fitted to a trajectory (`warmgap.smoothness`)
instead of ones that follow from a wished-for shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from warmgap._ops import Ops
from warmgap.curve import Smoothness
from warmgap.rules._gap_driven import GapDriven


@dataclass(frozen=True, kw_only=True)
class MeasuredRule(GapDriven):
    """The factor is step size / peak, of the gap of the lowest clean loss; warm-up ends where the step size peaks.

    The step size is `gap/K(gap)`, `K(gap) = K0 + K1*gap + K2*gap**2`, which peaks at `sqrt(K0/K2)` (2602.05813). Where
    `K2` is 0 that has no peak; then it is the step size of 2510.03164 with `H0 = K0` and `H1 = K1`, `1/(10*H0 +
    20*H1*gap)`, and warm-up ends where its two terms are equal, at `H0/(2*H1)`: from there on it would at most double.

    Only the shape is used: the peak learning rate stays the optimizer's own, because the bounds leave open the distance
    that the step size is divided by. Where the first gap lies below the peak gap already, warm-up is over with the
    first loss.

    Attributes:
        K0: Constant term of the curvature bound, > 0.
        K1: Linear term; > 0 where `K2` is 0.
        K2: Quadratic term, >= 0.
        target_loss: The loss that the gaps of the measurement were taken to; it cannot be `"auto"`.
        floor: Factor of a first step that no loss precedes, in (0, 1).
        roles, max_warmup, deadlock_exit, loss_filter: As in every rule that follows the loss (`LossDriven`).

    Raises:
        ValueError: If an attribute lies outside its range, the target loss is `"auto"`, the constants ask for no
            warm-up, or, at the first loss, if that is not above `target_loss`.

    Example:
        >>> rule = MeasuredRule(K0=4.0, K1=1.0, K2=1.0, target_loss=1.0)
        >>> state = rule.step(rule.init(1000), 11.0)
        >>> print(f"{state.factor:.3f}, peak gap {rule.peak_gap}")
        0.439, peak gap 2.0

    Source: arXiv 2602.05813, section 5; arXiv 2510.03164, the step size of gradient descent.
    """

    K0: float
    K1: float
    K2: float

    name: ClassVar[str] = "measured"
    title: ClassVar[str] = "the step size of measured constants (arXiv 2602.05813, 2510.03164)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_loss == "auto":
            raise ValueError(
                "target_loss must be the loss that the measured gaps were taken to, got 'auto'; give that number"
            )
        if self._bound.K0 == 0.0:
            raise ValueError(
                f"the step size of K0={self.K0!r}, K1={self.K1!r}, K2={self.K2!r} reaches no peak on the way down: "
                "these measurements ask for no warm-up that ends; use another rule"
            )

    @property
    def peak_gap(self) -> float:
        """The gap at which warm-up ends."""
        return self.K0 / (2.0 * self.K1) if self.K2 == 0.0 else self._bound.peak_gap

    @cached_property
    def _bound(self) -> Smoothness:
        return Smoothness(self.K0, self.K1, self.K2)  # raises where the bound is not positive

    def _share(self, initial_gap: float, ops: Ops) -> float:  # noqa: ARG002
        return self.peak_gap / initial_gap

    def _factor(self, gap: float, initial_gap: float, peak_gap: float, ops: Ops) -> float:  # noqa: ARG002
        if self.K2 == 0.0:
            return 2.0 * self.K0 / (self.K0 + 2.0 * self.K1 * gap)
        return self._bound.step_size(gap) / self._bound.peak_lr
