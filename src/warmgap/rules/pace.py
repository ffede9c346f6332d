"""This project's own rule: the loss may fall so fast and no faster, and the length of the run says how fast.

The first descent sets up much of what a model ends as, and steps that are too large then do harm that no decay repairs;
steps that are too small waste the run. How large is right depends on the rate, the model and the run, but the loss
against the distance travelled shows what a step does here: it gives the length of the descent in steps at the peak,
and the rule takes it at such a factor that it lasts a time that grows with the square root of the run. What the rule
was tested against, with the runs it lost, is in LOG.md.
"""

from __future__ import annotations

import math
from bisect import bisect
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import ClassVar, Literal

from warmgap._checks import check_finite, check_fraction, check_positive, plain_fields
from warmgap._state import State
from warmgap.rules._rule import Rule, RuleState
from warmgap.signal import Signal, SignalState
from warmgap.target import Descent, Target

MATURE = 0.5  # weight of the average below which it is too noisy to have a lowest value
SEEN, TRAVELLED, KNEE_TRAVELLED = 6, 0.5, 2.0  # losses and distance before the aim is measured, and before the knee is
JUDGED = 8  # losses after which a model is known to have learned before, or not
SECOND_TO_DEVIATION = 1.0 / (0.6745 * math.sqrt(6.0))  # median |second difference| -> standard deviation
RECENT, EARLIER = (0.75, 1.0), (0.375, 0.5)  # the stretches of the distance that are compared
CERTAIN, KNEE_CERTAIN = 3.0, 2.0  # standard errors that make a fall, and a knee, beyond doubt
MOST_FALLEN, LEAST_FALLEN = 0.99, 1e-9  # where the time constant is cut off
ROUNDING = 2.0**-7  # share of a loss that is no rise: a step of bfloat16
BURST = 1.5  # times the level of the first losses: too high, however noisy
FORGOTTEN = 0.1  # share of the largest noise that is forgotten while the average forgets all of a loss
INTERVALS = 64


@dataclass(frozen=True)
class Course(State):
    """The loss against the distance travelled, in at most `INTERVALS` stretches of equally many steps.

    A loss belongs to the step that led to it, so that the first one has none, and the latest step has no loss yet.

    Attributes:
        distances: Sum of the factors in each stretch, the oldest first.
        sums: Sum of factor * loss in each.
        stride: Steps in each stretch but the last, which may have fewer.
        steps: Steps in all.
        ahead: Factor of the step that has no loss yet.
    """

    distances: tuple[float, ...] = ()
    sums: tuple[float, ...] = ()
    stride: int = 1
    steps: int = 0
    ahead: float = 0.0

    @property
    def distance(self) -> float:
        """The distance travelled, in steps at the peak."""
        return math.fsum(self.distances)

    def add(self, loss: float, factor: float) -> Course:
        """Return the course with the loss after the step ahead, and that of the factor `factor` made."""
        if self.ahead == 0.0:
            return replace(self, ahead=factor)
        distances, sums, stride = self.distances, self.sums, self.stride
        if self.steps == INTERVALS * stride:
            distances, sums, stride = _in_pairs(distances), _in_pairs(sums), 2 * stride
        if self.steps % stride == 0:
            distances, sums = (*distances, 0.0), (*sums, 0.0)
        distances = (*distances[:-1], distances[-1] + self.ahead)
        sums = (*sums[:-1], sums[-1] + self.ahead * loss)
        return Course(distances, sums, stride, self.steps + 1, factor)

    def mean(self, stretch: tuple[float, float]) -> tuple[float, float]:
        """Return the mean loss over a stretch, given in shares of the distance, and the number of losses in it."""
        ends = list(accumulate(self.distances))
        low, high = stretch[0] * ends[-1], stretch[1] * ends[-1]
        summed = covered = count = 0.0
        for index in range(bisect(ends, low), min(bisect(ends, high), len(ends) - 1) + 1):
            end, distance = ends[index], self.distances[index]
            share = max(0.0, min(end, high) - max(end - distance, low)) / distance
            summed += share * self.sums[index]
            covered += share * distance
            count += share * min(self.stride, self.steps - index * self.stride)
        return summed / covered, max(1.0, count)


def _in_pairs(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(first + second for first, second in zip(values[::2], values[1::2], strict=True))


@dataclass(frozen=True)
class PaceState(RuleState):
    """State of a `PaceRule`.

    Attributes:
        signal: The loss filter's state.
        descent: The first loss, and what else is known of the run for the gap that is shown.
        course: The loss against the distance, until the knee.
        best_loss: The lowest clean loss since the last retreat; None before the first.
        noise: The largest standard deviation of a single loss, slowly forgotten; for retreats.
        level: The first loss, or the mean of the first few where that is higher; None until they were seen.
        rest: Steps until the next retreat may come.
        knee_step: The step from which the factor rises by the clock; None before it.
        knee_factor: The factor there.
        steps: Losses seen.
        total_iters: Optimizer steps in the whole run; 0 where unknown.
    """

    signal: SignalState = field(default_factory=SignalState)
    descent: Descent = field(default_factory=Descent)
    course: Course = field(default_factory=Course)
    best_loss: float | None = None
    noise: float = 0.0
    level: float | None = None
    rest: int = 0
    knee_step: int | None = None
    knee_factor: float | None = None
    steps: int = 0
    total_iters: int = 0


@dataclass(frozen=True)
class PaceRule(Rule[PaceState]):
    """The factor makes the first descent last about `sqrt(total_iters)/pace` steps, then rises to 1 by the clock.

    The first step is made at `start`, if its loss was seen before it (`calibrate`); else at `floor`, and the factor
    doubles at every step up to `start`. From then on the loss is looked at as a function of the distance travelled (the
    sum of the factors). The mean over the last quarter of the distance, against the first loss, says which share `x` of
    the way to `(1 - depth)` of the first loss is done; of an exponential fall that gives the length `s =
    -distance/log(1 - x)` in steps at the peak. The factor aims at `pace*s/sqrt(total_iters)`, between `low` and 1. The
    descent is over at the knee: where `fallen` of the way is done, or the loss of the later distance lies hardly lower
    than that of the earlier (by less than `flat` of all that it fell, which is beyond doubt); not before two steps'
    worth of distance. From there the factor rises to 1 at the share `max_warmup` of the run, geometrically: by the same
    part at every step. A factor of 1 is held until the knee, and for the share `hold` of the run at least. When the
    averaged loss lies more than `tolerance` standard deviations of a single loss above its lowest, and by more than
    rounding makes, or half as high again as the first losses, the factor is halved, and rises by the clock from there;
    again, if need be, after as many steps as the average goes over. The clock counts the losses that were seen; a step
    without one does not move it.

    A model that has learned before tells batches apart: where the noise of the first losses (the median of their second
    differences, as a standard deviation) is more than the share `varied` of the first loss, there is no pace, and the
    rise by the clock begins there, from the factor `known`. A loss that is not positive at first has no scale: then the
    factor stays at `start` until the knee, or the rise that the schedule asks for. The rule needs no norm, though the
    spectral one wants no pace (`for_norm`), and only shows the gap to the target loss.

    Attributes:
        floor: Factor of a first step that no loss precedes, in (0, 1).
        start: Factor before anything but the first loss is known, in (0, 1].
        low: Lowest factor that the pace asks for, in (0, 1]; where it and `start` are 1 there is no pace.
        pace: What the time constant of the descent is, inversely, in square roots of the run's length; > 0.
        depth: Share of the first loss that a descent is taken to go down, in (0, 1).
        fallen: Share of that way at which the descent is over, in (0, 1).
        flat: Share of the fall below which the later part of it counts as none, in (0, 1).
        varied: Noise of the first losses, as a share of the first one, above which the model had learned before; > 0.
        known: Factor at which such a model begins the rise by the clock, in (0, 1].
        hold: Share of the run before which a factor of 1 is not left, in [0, 1).
        max_warmup: Share of the run within which warm-up ends, in (0, 1).
        tolerance: Rise that sends the factor back, in standard deviations of a single loss, > 0.
        target_loss: The loss that the gap shown is taken to, or `"auto"`.
        signal: How the raw losses are cleaned.

    Raises:
        ValueError: If an attribute lies outside its range.
    """

    floor: float = 0.01
    start: float = 0.25
    low: float = 0.1
    pace: float = 0.4
    depth: float = 0.6
    fallen: float = 0.75
    flat: float = 0.2
    varied: float = 0.015
    known: float = 0.5
    hold: float = 0.2
    max_warmup: float = 0.6
    tolerance: float = 3.0
    target_loss: float | Literal["auto"] = "auto"
    signal: Signal = field(default_factory=Signal)

    name: ClassVar[str] = "pace"

    def __post_init__(self) -> None:
        plain_fields(self)
        check_fraction("floor", self.floor, "it is starting learning rate / peak learning rate")
        for name in ("depth", "fallen", "flat", "max_warmup"):
            check_fraction(name, getattr(self, name))
        for name in ("start", "low", "pace", "varied", "known", "tolerance"):
            check_positive(name, getattr(self, name))
        for name in ("start", "low", "known"):
            if getattr(self, name) > 1.0:
                raise ValueError(f"{name} must be at most 1, the peak, got {getattr(self, name)!r}")
        if not 0.0 <= check_finite("hold", self.hold) < 1.0:
            raise ValueError(f"hold must lie in [0, 1), got {self.hold!r}; it is a share of the run")
        Target(self.target_loss)  # raises where it is neither a number nor "auto"

    @classmethod
    def for_norm(
        cls, norm: str | None, *, floor: float = 0.01, target_loss: float | Literal["auto"] = "auto"
    ) -> PaceRule:
        """Return the rule for steps bounded in that norm; None where it is not known.

        A step in the spectral norm changes every direction of a matrix by the same amount, and no slow descent was
        found to help it: there the factor starts at 1, or doubles up to it, and only a rise of the loss sends it back.
        """
        start, low = (1.0, 1.0) if norm == "spectral" else (cls.start, cls.low)
        return cls(floor=floor, target_loss=target_loss, start=start, low=low)

    def init(self, total_iters: int | None = None) -> PaceState:
        """Return the state before the first step; without `total_iters` the factor doubles up to 1."""
        descent = Target(self.target_loss).init(total_iters)
        return PaceState(factor=self.floor, descent=descent, total_iters=total_iters or 0)

    def calibrate(self, state: PaceState, loss: float) -> PaceState:
        """Return the state that begins at `start`, given the loss measured before the first step."""
        descent = replace(state.descent, initial_loss=loss, best_loss=loss)
        return replace(state, descent=descent, factor=max(self.floor, self.start))

    def least(self, share: float) -> float:
        """Return the factor that rises from `floor` to 1 by the same part at every step."""
        lowest: float = self.floor ** (1.0 - share)
        return lowest

    def step(self, state: PaceState, loss: float) -> tuple[PaceState, float]:
        """Take in one loss; return the new state and the factor of the next step."""
        signal, clean = self.signal.step(state.signal, loss)
        if clean is None or signal.accepted is None:
            return state, state.factor
        descent, _ = Target(self.target_loss).step(state.descent, clean, state.factor)
        if state.done:  # it only looks on
            return replace(state, signal=signal, descent=descent), 1.0
        best = None
        if signal.weight >= MATURE:
            best = clean if state.best_loss is None else min(clean, state.best_loss)
        # Noise that is averaged over a few losses is now and then far too small, most of all between rounded losses.
        noise = max(signal.noise or 0.0, (1.0 - FORGOTTEN * (1.0 - self.signal.averaging)) * state.noise)
        most = math.inf if best is None else best + max(self.tolerance * noise, ROUNDING * abs(best))
        if state.level is not None and state.level > 0.0:
            most = min(most, BURST * state.level)
        course = state.course
        if state.knee_step is None:
            # The filter takes the start of a steep fall for a spike; here two low losses in a row are a fall.
            course = course.add(min(signal.accepted, max(signal.window[-2:])), state.factor)
        state = replace(
            state,
            signal=signal,
            descent=descent,
            course=course,
            best_loss=best,
            noise=noise,
            rest=max(0, state.rest - 1),
            steps=state.steps + 1,
        )
        if state.steps == JUDGED and descent.initial_loss is not None:
            state = replace(state, level=max(descent.initial_loss, math.fsum(signal.window[-JUDGED:]) / JUDGED))
        if clean > most and state.rest == 0:
            factor = max(self.floor, 0.5 * state.factor)
            rest = round(1.0 / (1.0 - self.signal.averaging))
            state = replace(state, factor=factor, best_loss=clean, rest=rest)
            return replace(state, knee_step=state.steps, knee_factor=factor), factor
        aim = 1.0
        if state.knee_factor is None:
            aim, knee_factor = self._paced(state)
            if knee_factor is not None:
                state = replace(state, knee_step=state.steps, knee_factor=knee_factor)
        if state.knee_step is not None and state.knee_factor is not None:
            aim = self._risen(state, state.knee_step, state.knee_factor)
        factor = min(1.0, aim, 2.0 * state.factor)
        over = state.knee_step is not None and state.steps >= self.hold * state.total_iters
        done = over and factor == 1.0
        return replace(state, factor=factor, done=done), factor

    def _knew(self, state: PaceState) -> bool:
        """Return whether these are the first losses of a model that has learned before: they vary more."""
        losses, first = state.signal.window[-JUDGED:], state.descent.initial_loss
        if state.steps != JUDGED or first is None:
            return False
        bends = sorted(abs(a - 2.0 * b + c) for a, b, c in zip(losses, losses[1:], losses[2:], strict=False))
        return bool(bends) and SECOND_TO_DEVIATION * bends[(len(bends) - 1) // 2] > self.varied * first > 0.0

    def _risen(self, state: PaceState, knee_step: int, knee_factor: float) -> float:
        """Return the factor after the knee."""
        left = self.max_warmup * state.total_iters - knee_step
        return float(knee_factor ** max(0.0, 1.0 - (state.steps - knee_step) / left)) if left > 0.0 else 1.0

    def _paced(self, state: PaceState) -> tuple[float, float | None]:
        """Return the factor that keeps the descent at its pace, and where the knee is now, the factor there."""
        if state.total_iters == 0:
            return 1.0, 1.0
        if self._knew(state):
            return self.known, max(self.known, self.low, state.factor)
        first, distance = state.descent.initial_loss, state.course.distance
        if first is None or state.steps < SEEN or distance < TRAVELLED:
            return self.start, None
        noise = state.signal.noise or 0.0
        recent, count = state.course.mean(RECENT)
        earlier, earlier_count = state.course.mean(EARLIER)
        drop, error = first - recent, noise / math.sqrt(count)
        fell = drop > max(CERTAIN * noise * math.sqrt(1.0 + 1.0 / count), LEAST_FALLEN * abs(first))
        aim, way = self.start, 0.0
        if first > 0.0:
            way = min(MOST_FALLEN, max(LEAST_FALLEN, (max(0.0, drop) + error) / self.depth / first))
            length = 0.5 * sum(RECENT) * distance / -math.log1p(-way)
            lowest = self.low if fell else self.start
            aim = min(1.0, max(lowest, self.pace * length / math.sqrt(state.total_iters)))
        slack = KNEE_CERTAIN * noise * math.sqrt(1.0 / count + 1.0 / earlier_count)
        flat = fell and earlier - recent + slack < self.flat * drop
        return aim, state.factor if distance >= KNEE_TRAVELLED and (way >= self.fallen or flat) else None

    def reading(self, state: PaceState) -> tuple[float | None, float | None]:
        """Return the gap of the lowest clean loss, and the target loss."""
        return Target(self.target_loss).reading(state.descent)
