"""The schedules that are no `AdaptiveWarmup`: by step count, and the published rule with its faults.

Both are driven like `AdaptiveWarmup`: `observe(loss)` before the optimizer's step, here once, `step()` after it.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch.optim import Optimizer

from warmgap.curve import response
from warmgap.lab.errors import RuleError
from warmgap.lab.methods import Method, decay_by_name
from warmgap.torch.split import role_of

_SCAN = 500
_EDGE = 0.01


class ClockSchedule:
    """A schedule by step count alone; what it lacks of an `AdaptiveWarmup` is None."""

    gap: float | None = None
    target_loss: float | None = None
    verdict: str | None = None
    events: tuple[Any, ...] = ()
    kept: tuple[str, ...] = ("steps",)

    def __init__(self, optimizer: Optimizer, total: int, method: Method, decay: str) -> None:
        self.optimizer, self.total, self.method, self.decay = optimizer, total, method, decay
        self.steps = 0
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.warmup_iters: int | None = method.warmup.steps(total) if method.rule is None else None
        self._set()

    def observe(self, loss: Any) -> None:
        """Take no notice of the loss of a step, the mean over all ranks."""

    def step(self) -> None:
        """Set the rate of the next step."""
        self.steps += 1
        if self.steps < self.total:
            self._set()

    @property
    def phase(self) -> str:
        """Where the run stands."""
        begins = self.method.hold.steps(self.total) if self.method.hold else 0
        if self.warmup_iters is None or self.steps < self.warmup_iters:
            return "warmup"
        return "stable" if self.steps < begins else "decay"

    def factors(self) -> tuple[float, float]:
        """Factors of the next step: of what is warmed up, and of the rest."""
        return self.method.clock(self.steps, self.total, self.decay)

    def summary(self) -> str:
        """What the schedule did, in a sentence."""
        return f"Rate by step count: {self.method.label}, then {self.method.decay or self.decay}."

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {name: getattr(self, name) for name in self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        vars(self).update(state)
        self._set()

    def _set(self) -> None:
        factor, base = self.factors()
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (factor if role_of(group) == "hidden" else base)


class PublishedSchedule(ClockSchedule):
    """The gap rule as its published code runs it, faults and all, to compare with; `warmgap.GapRule` is the one to use.

    The first step runs at the peak learning rate, since no loss has been seen. Then the raw loss sets the factor,
    without averaging, and warm-up ends for good the first time the gap is at or below the peak gap. Nothing ends it
    otherwise: it can stay at the floor for the whole run.

    Source: arXiv 2602.05813, section 5 and appendix D.2, as its research code runs it.
    """

    kept = ("steps", "warmup_iters", "initial_gap", "peak_gap", "gap")
    target_loss: float

    def __init__(self, *schedule: Any, kappa: float, target_loss: float, peak_lr: float, floor: float) -> None:
        self.kappa, self.peak_lr, self.floor, self.target_loss = kappa, peak_lr, floor, target_loss
        self.initial_gap: float | None = None
        self.peak_gap: float | None = None
        super().__init__(*schedule)

    def observe(self, loss: Any) -> None:
        """Take in the raw loss of the step at hand.

        Raises:
            RuleError: The first loss is not above the target loss.
        """
        value = float(loss)
        if not math.isfinite(value):
            return
        self.gap = value - self.target_loss
        if self.initial_gap is None:
            if self.gap <= 2.0 * _EDGE:
                raise RuleError(
                    f"The published rule needs a target loss well below the first loss, {value:.4g}, got "
                    f"{self.target_loss:.4g}: give a lower --target-loss."
                )
            sigma = dict(self.method.options).get("sigma", 1e-3)
            self.initial_gap = self.gap
            self.peak_gap = published_peak_gap(self.gap, self.floor, self.kappa, self.peak_lr, sigma)
        if self.warmup_iters is None and self.peak_gap is not None and self.gap <= self.peak_gap:
            self.warmup_iters = self.steps + 1

    def factors(self) -> tuple[float, float]:
        """The factor of the curve at the raw gap, the same for every group."""
        factor = 1.0
        if self.warmup_iters is not None:
            progress = (self.steps - self.warmup_iters) / (self.total - self.warmup_iters)
            factor = decay_by_name(self.decay)(progress)
        elif self.gap is not None and self.initial_gap is not None and self.peak_gap is not None:
            factor = response(self.gap, self.initial_gap, self.peak_gap, self.floor)
        return factor, factor

    def summary(self) -> str:
        """What the rule did, in a sentence."""
        if self.warmup_iters is None:
            return "The published rule never ended its warm-up."
        return f"The published rule ended its warm-up at step {self.warmup_iters}, at a gap of {self.peak_gap:.4g}."


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

    def integrand(gap: float, peak_gap: float) -> float:
        rising = 0.5 * (1.0 - math.cos(math.pi * gap / peak_gap))
        target = rising if gap <= peak_gap else 1.0 - (1.0 - floor) * (gap - peak_gap) / (initial_gap - peak_gap)
        miss = peak_lr * (response(gap, initial_gap, peak_gap, floor) - target)
        return math.exp(-0.5 * sigma * kappa * (gap - peak_gap) ** 2) * miss**2

    step = (initial_gap - 2.0 * _EDGE) / (_SCAN - 1)
    candidates = [_EDGE + step * index for index in range(_SCAN)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IntegrationWarning)
        return min(candidates, key=lambda peak_gap: float(quad(integrand, 0.0, initial_gap, args=(peak_gap,))[0]))
