"""Liu's power law: the learning rate grows as a power of the falling gap.

Source: arXiv 2509.07972 (Liu, Ge, Pan, Kang, Zhang), whose step size of gradient descent is `c * min(1/K0, gap**-rho /
(3**rho * K_rho))`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from warmgap._checks import check_positive
from warmgap._ops import Ops
from warmgap.rules._gap_driven import GapDriven


@dataclass(frozen=True, kw_only=True)
class PowerRule(GapDriven):
    """The factor is `min(1, (peak_gap/gap)**rho)`, of the gap of the lowest clean loss.

    With `K0` and `K_rho` the peak gap is the paper's, `(K0/K_rho)**(1/rho) / 3`; `peak_lr` gives its peak rate,
    `c/K0`. Without them the rule is fixed by what a user knows: the peak gap is `initial_gap * floor**(1/rho)`, so that
    the factor starts at `floor`. Either way warm-up ends when the gap has fallen to the peak gap.

    Attributes:
        rho: Exponent of the gap in the curvature bound `K0 + K_rho*gap**rho`, > 0.
        K0: Constant term of that bound, > 0; None where it is not known.
        K_rho: Factor of its other term, > 0; None where it is not known.
        target_loss: The loss taken as optimal, below every loss of the warm-up; or `"auto"`, an estimate from the run
            itself.
        floor: Factor of a first step that no loss precedes, in (0, 1).
        roles, max_warmup, deadlock_exit, loss_filter: As in every rule that follows the loss (`LossDriven`).

    Raises:
        ValueError: If an attribute lies outside its range, one of `K0` and `K_rho` is given without the other, or, at
            the first loss, if that is not above `target_loss`.

    Example:
        >>> rule = PowerRule(target_loss=3.0, K0=2.0, K_rho=50.0)
        >>> state = rule.step(rule.init(1000), 7.0)
        >>> print(f"{state.factor:.6f} of {rule.peak_lr(c=0.5)}")
        0.000278 of 0.25

    Source: arXiv 2509.07972, the step size of gradient descent; the value of its c is not public.
    """

    rho: float = 2.0
    K0: float | None = None
    K_rho: float | None = None

    name: ClassVar[str] = "power"
    title: ClassVar[str] = "a power of the loss gap (arXiv 2509.07972)"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("rho", self.rho)
        if (self.K0 is None) != (self.K_rho is None):
            raise ValueError(f"K0 and K_rho go together, got {self.K0!r} and {self.K_rho!r}: give both or none")
        if self.K0 is not None and self.K_rho is not None:
            check_positive("K0", self.K0)
            check_positive("K_rho", self.K_rho)

    def peak_lr(self, c: float) -> float:
        """Return the paper's largest step size, `c/K0`: the peak learning rate to give the optimizer.

        Args:
            c: The paper's constant, > 0; 1/2 is enough for the loss of gradient descent to fall at every step.

        Raises:
            ValueError: If the rule has no `K0`, or `c` is not above 0.
        """
        if self.K0 is None:
            raise ValueError("the paper's peak is c/K0, and this rule has no K0: PowerRule(K0=..., K_rho=...)")
        return check_positive("c", c) / self.K0

    def _share(self, initial_gap: float, ops: Ops) -> float:  # noqa: ARG002
        if self.K0 is None or self.K_rho is None:
            return float(self.floor ** (1.0 / self.rho))
        return float((self.K0 / self.K_rho) ** (1.0 / self.rho)) / 3.0 / initial_gap

    def _factor(self, gap: float, initial_gap: float, peak_gap: float, ops: Ops) -> float:  # noqa: ARG002
        factor: float = ops.power(peak_gap / gap, self.rho)
        return factor
