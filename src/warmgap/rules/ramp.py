"""This project's own rule: fast to half the peak, and on with the fallen loss or by the clock.

Three observations make it. A rate close to zero teaches the model little and, with a long momentum, does lasting harm:
so the first few steps double it, up to half the peak. The other half is worth holding back while the loss is high: so
the rate follows the loss ratio of the (H0, H1) theory, and where the loss lingers a line by the clock. And a rate that
is far too high makes the loss rise: so a rise sends it back. What the rule was tested against, with the runs it lost,
is in LOG.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from warmgap._checks import check_fraction, check_positive, plain_fields
from warmgap.rules._rule import Rule, RuleState
from warmgap.signal import Signal, SignalState
from warmgap.target import Descent, Target

_MATURE = 0.5  # weight of the average below which it is too noisy to have a lowest value


@dataclass(frozen=True)
class RampState(RuleState):
    """State of a `RampRule`.

    Attributes:
        signal: The loss filter's state.
        descent: What is known of the run so far, for the gap that is shown.
        best_loss: The lowest clean loss since the last retreat; None before the first.
        retreats: Times the factor was halved.
        rest: Steps still to stay put after a retreat.
        held: Steps in a row at the peak.
        steps: Losses seen.
        total_iters: Optimizer steps in the whole run; 0 where unknown.
    """

    signal: SignalState = field(default_factory=SignalState)
    descent: Descent = field(default_factory=Descent)
    best_loss: float | None = None
    retreats: int = 0
    rest: int = 0
    held: int = 0
    steps: int = 0
    total_iters: int = 0


@dataclass(frozen=True)
class RampRule(Rule[RampState]):
    """The factor doubles up to `start`, then follows a line or the fallen loss, and halves when the loss rises.

    From `floor` the factor doubles at every step up to its aim, the higher one of two. The line goes from `start` to 1
    over the share `climb` of the run. The loss ratio is `(level * first loss / lowest loss)**power`, of the clean loss,
    where both are positive: with the power 1 the step size `1/(H0 + H1*gap)` of arXiv 2510.03164, with both constants
    put where a user can know them; with another, that of arXiv 2509.07972 (Liu et al.). Warm-up ends
    when the peak has been held for the share `hold` of the run. Meanwhile the loss is watched: when its average lies
    more than `tolerance` standard deviations of a single loss above its lowest since the last retreat, the factor is
    halved, stays put until the average has caught up, and from then on takes `hold` of the run for each doubling. It
    needs no norm, and only shows the gap to the target loss.

    Attributes:
        floor: Factor of the first step, in (0, 1).
        start: Factor where the line begins, in (0, 1).
        climb: Share of the run that the line takes, in (0, 1).
        level: Share of the first loss at which the loss ratio is 1, in (0, 1).
        power: Exponent of the loss ratio, > 0.
        hold: Share of the run for which the peak is held before warm-up ends, in (0, 1).
        tolerance: Rise that counts as resistance, in standard deviations of a single loss, > 0.
        target_loss: The loss that the gap shown is taken to, or `"auto"`.
        signal: How the raw losses are cleaned.

    Raises:
        ValueError: If an attribute lies outside its range.
    """

    floor: float = 0.01
    start: float = 0.5
    climb: float = 0.4
    level: float = 0.5
    power: float = 1.0
    hold: float = 0.05
    tolerance: float = 2.0
    target_loss: float | Literal["auto"] = "auto"
    signal: Signal = field(default_factory=Signal)

    name: ClassVar[str] = "ramp"

    def __post_init__(self) -> None:
        plain_fields(self)
        check_fraction("floor", self.floor, "it is starting learning rate / peak learning rate")
        check_fraction("start", self.start)
        check_fraction("climb", self.climb)
        check_fraction("level", self.level)
        check_positive("power", self.power)
        check_fraction("hold", self.hold)
        check_positive("tolerance", self.tolerance)
        Target(self.target_loss)  # raises where it is neither a number nor "auto"

    def init(self, total_iters: int | None = None) -> RampState:
        """Return the state before the first step; without `total_iters` the line is at 1 from the start."""
        descent = Target(self.target_loss).init(total_iters)
        return RampState(factor=self.floor, descent=descent, total_iters=total_iters or 0)

    def calibrate(self, state: RampState, loss: float) -> RampState:
        """Return the state that starts where the line does, given the loss measured before the first step."""
        descent = replace(state.descent, initial_loss=loss, best_loss=loss)
        return replace(state, descent=descent, factor=max(self.floor, self.start))

    def step(self, state: RampState, loss: float) -> tuple[RampState, float]:
        """Take in one loss; return the new state and the factor of the next step."""
        signal, clean = self.signal.step(state.signal, loss)
        if clean is None:
            return state, state.factor
        best = None
        if signal.weight >= _MATURE:
            best = clean if state.best_loss is None else min(clean, state.best_loss)
        descent, _ = Target(self.target_loss).step(state.descent, clean, state.factor)
        state = replace(state, signal=signal, descent=descent, best_loss=best, steps=state.steps + 1)
        if state.rest > 0:
            return replace(state, rest=state.rest - 1), state.factor
        hold = max(1.0, self.hold * state.total_iters)
        if best is not None and signal.noise is not None and clean > best + self.tolerance * signal.noise:
            retreat = max(self.floor, 0.5 * state.factor)
            rest = round(1.0 / (1.0 - self.signal.averaging))
            state = replace(
                state, factor=retreat, best_loss=clean, retreats=state.retreats + 1, rest=rest, held=0, done=False
            )
            return state, retreat
        growth = 2.0 ** (1.0 / hold) if state.retreats else 2.0
        factor = min(self._aim(state), state.factor * growth)
        held = state.held + 1 if state.factor == 1.0 else 0
        return replace(state, factor=factor, held=held, done=held >= hold), factor

    def _aim(self, state: RampState) -> float:
        line = self.climb * state.total_iters
        aim = self.start + (1.0 - self.start) * state.steps / line if state.steps < line else 1.0
        first, lowest = state.descent.initial_loss, state.descent.best_loss
        if first is None or lowest is None or lowest <= 0.0:
            return aim
        return max(aim, float(min(1.0, self.level * first / lowest) ** self.power))

    def reading(self, state: RampState) -> tuple[float | None, float | None]:
        """Return the gap of the lowest clean loss, and the target loss."""
        return Target(self.target_loss).reading(state.descent)
