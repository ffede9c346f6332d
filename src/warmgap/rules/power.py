"""Liu's power law: the learning rate grows as a power of the falling gap.

Source: arXiv 2509.07972 (Liu, Ge, Pan, Kang, Zhang), whose step size of gradient descent is `c * min(1/K0, gap**-rho /
(3**rho * K_rho))`. The value of c and the constants on real models are not public, so here the rule is fixed by what a
user knows: the floor at the initial gap, 1 at the peak gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from warmgap._checks import check_positive
from warmgap.rules._gap_driven import GapDriven


@dataclass(frozen=True, kw_only=True)
class PowerRule(GapDriven):
    """The factor is `min(1, (peak_gap/gap)**rho)`, of the gap of the lowest clean loss.

    The peak gap is `initial_gap * floor**(1/rho)`: the factor starts at `floor` and warm-up ends when the gap has
    fallen to the peak gap.

    Attributes:
        rho: Exponent of the gap in the curvature bound `K0 + K_rho*gap**rho`, > 0.
        floor: Starting learning rate / peak learning rate, in (0, 1).
        target_loss: The loss taken as optimal, below every loss of the warm-up; or `"auto"`, an estimate from the run
            itself.
        signal: How the raw losses are cleaned.

    Raises:
        ValueError: If an attribute lies outside its range, or, at the first loss, if that is not above `target_loss`.

    Source: arXiv 2509.07972, the step size of gradient descent.
    """

    rho: float = 2.0

    name: ClassVar[str] = "power"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("rho", self.rho)

    def _share(self, initial_gap: float) -> float:
        del initial_gap
        return float(self.floor ** (1.0 / self.rho))

    def _factor(self, initial_gap: float, gap: float, share: float) -> float:
        return min(1.0, float((share * initial_gap / gap) ** self.rho))
