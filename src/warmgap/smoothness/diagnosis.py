"""Does a curvature estimate say something about the function, or only about the length of the steps?

A gradient that turns round within one step has changed by about its own size, whatever the step's length. The ratio
`||grad f(x) - grad f(y)||_* / ||x - y||` then is a number near one times `dual norm / step length`, and constants
fitted to it give back the learning rate that was put in. The published layer-wise measurements are of this kind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from warmgap._checks import check_count
from warmgap.smoothness._points import Points, check_gaps, check_resamples, points_of, resampled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from warmgap.smoothness.records import Record

LONG_STEP = 0.5
"""From this share on, a step changes the gradient by so much that the ratio is no longer local curvature."""

AT_THE_POINT = ("directional", "eigenvalue")
"""Estimators that look at the Hessian at the start of the step."""

NARROW = 1.5
"""The share is called constant where its quartiles lie within this factor of each other."""


@dataclass(frozen=True)
class StepLengthDiagnosis:
    """How far the gradient's change within a step is the gradient itself.

    Attributes:
        share: Median of `step length * ratio / dual norm`: the gradient's change as a share of the gradient. NaN for
            an estimate at the point itself (`"directional"`, `"eigenvalue"`), in which no step has a part.
        low: Its lower quartile.
        high: Its upper quartile.
        verdict: `"local"`: steps are short against the curvature. `"follows the step length"`: the share is large and
            nearly constant, so that the estimate is the dual norm over the step length up to a constant.
            `"long steps"`: large, but it varies: the estimate mixes both. `"unknown"`: no record has a gradient that is
            not zero, and the numbers are NaN.

    Example:
        >>> StepLengthDiagnosis(0.1, 0.08, 0.12, "local").sentence
        'The estimate is local: a step changes the gradient by 0.1 of itself (quartiles 0.08, 0.12).'
    """

    share: float
    low: float
    high: float
    verdict: str

    @property
    def informative(self) -> bool:
        """Whether the estimate is one of local curvature."""
        return self.verdict == "local"

    @property
    def sentence(self) -> str:
        """What that means, in words."""
        if self.verdict == "local" and math.isnan(self.share):
            return "The estimate is local: it is the curvature at the point itself, whatever the step."
        if self.verdict == "unknown":
            return "Unclear how long the steps are: the gradient is zero in every record."
        seen = f"a step changes the gradient by {self.share:.2g} of itself (quartiles {self.low:.2g}, {self.high:.2g})"
        if self.verdict == "local":
            return f"The estimate is local: {seen}."
        if self.verdict == "follows the step length":
            return (
                f"The estimate only follows the step length: {seen}, so the ratio is dual norm / step length up to a "
                "constant and says little about the function; measure again at a quarter and at four times the rate."
            )
        return (
            f"The steps are long: {seen}; the estimate mixes curvature and step length; measure again at a quarter "
            "of the rate."
        )


def diagnose_step_length(records: Sequence[Record]) -> StepLengthDiagnosis:
    """Return what `step length * ratio / dual norm` says of these records.

    Raises:
        ValueError: If no record has a finite ratio, step length and dual norm.

    Example:
        >>> from warmgap.smoothness import Record
        >>> diagnose_step_length([Record(n, 2.0, 1.0, 4.0, 0.1, 2.0) for n in range(9)]).verdict
        'local'
    """
    return diagnosis_of(points_of(records))


def diagnosis_of(points: Points) -> StepLengthDiagnosis:
    """The same, of points that were already picked out."""
    import numpy as np

    if points.estimator in AT_THE_POINT:
        return StepLengthDiagnosis(math.nan, math.nan, math.nan, "local")
    usable = points.dual_norm > 0.0
    if not usable.any():
        return StepLengthDiagnosis(math.nan, math.nan, math.nan, "unknown")
    shares = (points.step_length * points.ratio)[usable] / points.dual_norm[usable]
    low, share, high = (float(value) for value in np.quantile(shares, (0.25, 0.5, 0.75)))
    if share < LONG_STEP:
        verdict = "local"
    elif high <= NARROW * low:
        verdict = "follows the step length"
    else:
        verdict = "long steps"
    return StepLengthDiagnosis(share, low, high, verdict)


Belongs = Literal["function", "step length", "both", "unclear"]


def belongs(interval: tuple[float, float]) -> Belongs:
    """Return what an exponent of the step length in this interval says.

    `"function"` where the interval lies above -1/2 and reaches 0, up to a tenth; `"step length"` where it lies below
    -1/2 and reaches -1, up to a tenth, or further; `"both"` where it reaches neither; `"unclear"` where it is too wide
    for any of these.

    Example:
        >>> belongs((-0.2, 0.1)), belongs((-1.1, -0.7))
        ('function', 'step length')
    """
    low, high = interval
    zero, one = low <= 0.1 and high >= -0.1, low <= -0.9
    if zero and low > -0.5:
        return "function"
    if one and high < -0.5:
        return "step length"
    return "unclear" if zero or one or not low <= high else "both"


@dataclass(frozen=True)
class RateDependence:
    """What becomes of the ratio, at the same gap, when the steps are made longer or shorter.

    Attributes:
        exponent: Slope of log ratio against log step length, between runs and within bins of the gap: 0 where the
            ratio belongs to the function, -1 where it only follows the step length.
        bins: Bins of the gap in which at least two runs have points.
        interval: Its interval of 95 % coverage, from a block bootstrap over each run. Runs that differ in their seed
            alone differ by more: compare the exponents of several.

    Example:
        >>> RateDependence(-0.98, bins=6, interval=(-1.1, -0.9)).verdict
        'step length'
    """

    exponent: float
    bins: int
    interval: tuple[float, float] = (math.nan, math.nan)

    @property
    def verdict(self) -> Belongs:
        """What the interval says the ratio belongs to, see `belongs`."""
        return belongs(self.interval)

    @property
    def sentence(self) -> str:
        """What that means, in words."""
        if not self.bins:
            return "The runs share no gap at which ratios of steps of different length could be compared."
        low, high = self.interval
        seen = (
            f"at the same gap the ratio goes with the step length to the power {self.exponent:.2f}, between {low:.2f} "
            f"and {high:.2f} at 95 % ({self.bins} bins of the gap)"
        )
        return {
            "step length": f"The estimate follows the step length: {seen}; its constants give back the rate put in.",
            "function": f"The estimate belongs to the function: {seen}.",
            "both": f"The estimate depends on the function and on the step length: {seen}.",
            "unclear": f"Unclear whether the estimate follows the step length: {seen}; measure longer.",
        }[self.verdict]


def rate_dependence(
    runs: Mapping[float, Sequence[Record]], *, bins: int = 8, resamples: int = 200, seed: int = 0
) -> RateDependence:
    """Compare runs of one model at several learning rates, best at a quarter, one and four times the tuned one.

    Args:
        runs: The records of each run by its rate (any number that tells them apart), two at least.
        bins: Bins of equal width in log gap, over the range that all runs together cover.
        resamples: Bootstrap resamples, 20 at least.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If there are fewer than two runs, one has no usable record or a gap that is not above 0, bins is
            not a whole number of at least 1, or resamples not one of at least 20.

    Example:
        >>> from warmgap.smoothness import Record
        >>> gaps = [8 * 0.95**n for n in range(60)]
        >>> runs = {
        ...     rate: [Record(n, gap, gap, 1 + gap, 0.01 * rate, 1.0) for n, gap in enumerate(gaps)]
        ...     for rate in (0.25, 1, 4)
        ... }
        >>> rate_dependence(runs).verdict  # the ratio is 1 + gap, whatever the step
        'function'
    """
    import numpy as np

    if len(runs) < 2:
        raise ValueError(f"a comparison needs the records of at least two rates, got {len(runs)}")
    check_count("bins", bins, minimum=1)
    check_resamples(resamples, seed)
    points = [points_of(records) for records in runs.values()]
    for run in points:
        check_gaps(run)
    logs = [np.log(run.gap) for run in points]
    edges = np.linspace(min(log.min() for log in logs), max(log.max() for log in logs), bins + 1)
    exponent, used = _exponent(points, edges)
    if not used:
        return RateDependence(math.nan, 0)
    # Each run with a seed of its own, so that they are drawn independently.
    drawn = zip(*(resampled(run, resamples, seed + 7919 * index) for index, run in enumerate(points)), strict=True)
    found = [value for value, some in (_exponent(sample, edges) for sample in drawn) if some]
    low, high = np.quantile(found, (0.025, 0.975)) if len(found) >= 0.9 * resamples else (-math.inf, math.inf)
    return RateDependence(exponent, used, (min(float(low), exponent), max(float(high), exponent)))


def _exponent(points: Sequence[Points], edges: NDArray[Any]) -> tuple[float, int]:
    """The slope, and in how many bins runs can be compared; NaN and 0 where the steps differ in none."""
    import numpy as np

    logs = [np.log(run.gap) for run in points]
    lengths, ratios, used = [], [], 0
    for index in range(len(edges) - 1):
        length_of, ratio_of = [], []
        for run, log in zip(points, logs, strict=True):
            last = index == len(edges) - 2
            inside = (log >= edges[index]) & ((log < edges[index + 1]) | last) & (run.ratio > 0.0)
            if inside.sum() >= 3:
                length_of.append(float(np.median(np.log(run.step_length[inside]))))
                ratio_of.append(float(np.median(np.log(run.ratio[inside]))))
        if len(length_of) >= 2:
            used += 1
            lengths += [length - float(np.mean(length_of)) for length in length_of]
            ratios += [ratio - float(np.mean(ratio_of)) for ratio in ratio_of]
    spread = float(np.dot(lengths, lengths)) if used else 0.0
    return (float(np.dot(lengths, ratios)) / spread, used) if spread > 0.0 else (math.nan, 0)
