"""Small honest statistics for comparing rules over seeds.

Two runs with the same seed start from the same weights and see the same batches, so rules are compared seed by seed:
the paired difference removes what the seed alone decides. A seed that diverged has no loss; it is written as `None`
and counted, never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["win", "tie", "loss", "none"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of one quantity over seeds.

    Attributes:
        mean: the mean, or None without a value.
        sd: the sample standard deviation (divisor count - 1), or None with fewer than two values.
        count: how many values there were.
    """

    mean: float | None
    sd: float | None
    count: int


@dataclass(frozen=True)
class Comparison:
    """What one candidate's losses say against a reference's, seed by seed.

    Attributes:
        verdict: `"win"` where the candidate's loss is lower beyond the noise, `"loss"` where it is higher, `"tie"`
            where it is the same within the noise, `"none"` where the seeds do not allow a verdict.
        difference: mean of candidate minus reference over the seeds where both have a loss (negative is better for
            the candidate), or None.
        low: lower end of the confidence interval of the difference, or None.
        high: upper end, or None.
        seeds: how many seeds the difference is taken over.
        reason: one sentence, for the reader of a table.
    """

    verdict: Verdict
    difference: float | None
    low: float | None
    high: float | None
    seeds: int
    reason: str


def spread(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation of finite values.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    found = list(values)
    if not all(math.isfinite(value) for value in found):
        raise ValueError(f"spread needs finite values, got {found}; leave diverged runs out and count them apart")
    if not found:
        return Spread(None, None, 0)
    mean = math.fsum(found) / len(found)
    if len(found) == 1:
        return Spread(mean, None, 1)
    return Spread(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in found) / (len(found) - 1)), len(found))


def mean_interval(values: Iterable[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student's t confidence interval of the mean of at least two values.

    Raises:
        ValueError: fewer than two values, or a confidence outside (0, 1).
    """
    from scipy.stats import t

    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}; 0.95 is usual")
    found = spread(values)
    if found.mean is None or found.sd is None:
        raise ValueError(f"an interval needs at least two values, got {found.count}; run more seeds")
    half = float(t.ppf(0.5 + confidence / 2, found.count - 1)) * found.sd / math.sqrt(found.count)
    return found.mean - half, found.mean + half


def compare(
    candidate: Mapping[int, float | None], reference: Mapping[int, float | None], confidence: float = CONFIDENCE
) -> Comparison:
    """Compare two rules by the losses they reached, paired by seed.

    The criterion: Student's t interval of the paired difference. It lies below zero: a win. It lies above: a loss. It
    holds zero: a tie, if the difference is no larger than the deviation between seeds (root mean square of the two
    rules'); else no verdict, since an interval from few seeds is wide and holds zero whatever the difference. Before
    that, divergence: over the seeds both have run, the rule that diverged more often loses. Fewer than two seeds give
    no verdict.

    Args:
        candidate: seed -> final loss, None where the run diverged.
        reference: the same for the rule compared with.
        confidence: level of the interval, in (0, 1).

    Raises:
        ValueError: a loss that is NaN or infinite, or a confidence outside (0, 1).
    """
    seeds = sorted(candidate.keys() & reference.keys())
    pairs = [(candidate[seed], reference[seed]) for seed in seeds]
    differences = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
    difference = spread(differences).mean
    if not seeds:
        return Comparison("none", None, None, None, 0, "no seed in common")
    if len(seeds) == 1:
        return Comparison("none", difference, None, None, len(differences), "one seed, more are needed")
    fell = sum(ours is None for ours, _ in pairs)
    reference_fell = sum(theirs is None for _, theirs in pairs)
    low, high = mean_interval(differences, confidence) if len(differences) > 1 else (None, None)
    if fell != reference_fell:
        verdict: Verdict = "loss" if fell > reference_fell else "win"
        reason = f"diverged on {fell} of {len(seeds)} seeds, the reference on {reference_fell}"
        return Comparison(verdict, difference, low, high, len(differences), reason)
    if low is None or high is None:
        reason = f"{len(differences)} of {len(seeds)} seeds have a loss on both sides, more are needed"
        return Comparison("none", difference, None, None, len(differences), reason)
    noise = math.hypot(_sd(ours for ours, _ in pairs), _sd(theirs for _, theirs in pairs)) / math.sqrt(2)
    if high < 0 or low > 0:
        verdict = "win" if high < 0 else "loss"
    else:
        verdict = "tie" if difference is not None and abs(difference) <= noise else "none"
    reason = (
        f"{confidence:.0%} interval of the paired difference over {len(differences)} seeds [{low:+.4f}, {high:+.4f}]"
    )
    return Comparison(verdict, difference, low, high, len(differences), reason)


def _sd(losses: Iterable[float | None]) -> float:
    return spread(loss for loss in losses if loss is not None).sd or 0.0
