"""Regret of a warm-up rule: how much loss is given away by not tuning the warm-up length by hand.

The losses of a workload are a mapping method -> seed -> final loss, every method with the same seeds; some of the
methods are the hand-tuned *lengths*. Two runs of one seed start from the same weights and see the same batches, so
every difference is taken seed by seed. To put workloads side by side, a regret is divided by the workload's seed
deviation: what a change of the seed alone does to the loss.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from warmgap.lab.stats import CONFIDENCE, mean_interval, spread

Losses = Mapping[str, Mapping[int, float]]
"""Method -> seed -> final loss."""

_RESAMPLES = 10_000
_SAME = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A mean with Student's t interval.

    Attributes:
        mean: The mean.
        low: Lower end of the interval.
        high: Upper end.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """Regrets of one method over workloads, in seed deviations.

    Attributes:
        workloads: How many there are.
        mean: Mean with its t interval over workloads; the interval is infinite for a single workload.
        bootstrap: Percentile interval of the mean, from workloads drawn anew with replacement.
        median: Median.
        within: Share of the workloads with a regret of at most one seed deviation.
        worst: The workload with the largest regret.
        worst_regret: That regret.
    """

    workloads: int
    mean: Estimate
    bootstrap: tuple[float, float]
    median: float
    within: float
    worst: str
    worst_regret: float


@dataclass(frozen=True)
class Paired:
    """Regrets of one method minus those of another over the same workloads, in seed deviations.

    Attributes:
        workloads: How many there are.
        difference: Mean difference with its t interval; negative where the first method is better.
        t_p: p-value of the paired t test (two-sided), 1 where there is no difference at all.
        wilcoxon_p: p-value of Wilcoxon's signed-rank test (two-sided), 1 where there is no difference at all.
        better: Workloads where the first is better by more than a seed deviation.
        worse: Workloads where it is worse by more than that.
    """

    workloads: int
    difference: Estimate
    t_p: float
    wilcoxon_p: float
    better: int
    worse: int

    @property
    def significant(self) -> bool:
        """Whether both tests put the difference beyond chance, at the level of the intervals."""
        return max(self.t_p, self.wilcoxon_p) < 1 - CONFIDENCE


def seed_deviation(losses: Losses, lengths: Sequence[str]) -> float:
    """Pooled standard deviation over seeds of the final losses of the hand-tuned lengths: root mean square.

    Raises:
        ValueError: No length, or fewer than two seeds.
    """
    variances = [_deviation(losses[length].values()) ** 2 for length in lengths]
    if not variances:
        raise ValueError("the seed deviation needs a hand-tuned length, got none")
    return math.sqrt(math.fsum(variances) / len(variances))


def best_length(losses: Losses, lengths: Sequence[str], *, without: Collection[int] = ()) -> str:
    """The hand-tuned length with the lowest mean loss over the seeds, or over all but some of them.

    Raises:
        ValueError: No length, or no seed.
    """
    means = {
        length: spread(loss for seed, loss in losses[length].items() if seed not in without).mean for length in lengths
    }
    known = {length: mean for length, mean in means.items() if mean is not None}
    if not known:
        raise ValueError("the best length needs a hand-tuned length with a loss, got none")
    return min(known, key=lambda length: known[length])


def in_sample_regret(losses: Losses, lengths: Sequence[str], method: str) -> Estimate:
    """Mean loss of a method minus that of the best length, which was chosen on these same seeds.

    The lowest of several noisy means lies below its own expectation, which flatters the hand-tuned side.

    Raises:
        ValueError: No length, or fewer than two seeds.
    """
    best = losses[best_length(losses, lengths)]
    return _estimate([loss - best[seed] for seed, loss in losses[method].items()])


def cross_validated_regret(losses: Losses, lengths: Sequence[str], method: str) -> Estimate:
    """Mean over seeds of a method's loss minus that of the length which is the best one on the other seeds.

    So the hand-tuned side is tuned, and then judged on a run that the tuning has not seen. It is tuned on one seed
    less, which flatters the method: this is never above the regret in sample.

    Raises:
        ValueError: No length, or fewer than two seeds.
    """
    return _estimate(
        [loss - losses[best_length(losses, lengths, without=[seed])][seed] for seed, loss in losses[method].items()]
    )


def halved_regrets(losses: Losses, lengths: Sequence[str], method: str | None) -> list[float]:
    """Mean loss on half of the seeds minus that of the length which is the best one on these, for every half.

    Without a method it is that of the length which is the best one on the other seeds. So the two can be put side by
    side: a method, and tuning by hand by someone who has other seeds to tune on than those that count in the end.

    Raises:
        ValueError: No length, or fewer than two seeds.
    """
    seeds = sorted(losses[lengths[0]]) if lengths else []
    if len(seeds) < 2:
        raise ValueError(f"halves need a hand-tuned length and two seeds or more, got {len(seeds)} seeds")
    found = []
    for half in itertools.combinations(seeds, len(seeds) // 2):
        others = [seed for seed in seeds if seed not in half]
        taken = losses[best_length(losses, lengths, without=half) if method is None else method]
        best = losses[best_length(losses, lengths, without=others)]
        found.append(math.fsum(taken[seed] - best[seed] for seed in half) / len(half))
    return found


def is_stuck(first_loss: float, loss: float, best_loss: float) -> bool:
    """Whether a run made less than half of the descent that the best hand-tuned one made from the same first loss."""
    return first_loss - loss < 0.5 * (first_loss - best_loss)


def summarize(regrets: Mapping[str, float], *, seed: int = 0) -> Summary:
    """Sum up the regrets of a method, given by workload in seed deviations.

    Args:
        regrets: Workload -> regret.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: No workload, or a regret that is not finite.
    """
    values = np.array(list(regrets.values()))
    if not values.size or not np.isfinite(values).all():
        raise ValueError(f"regrets must be finite numbers, at least one, got {dict(regrets)}")
    draws = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values[draws].mean(axis=1), (tail, 100 - tail))
    worst = max(regrets, key=lambda workload: regrets[workload])
    mean = float(values.mean())
    return Summary(
        workloads=len(values),
        mean=_estimate(values.tolist()) if len(values) > 1 else Estimate(mean, -math.inf, math.inf),
        bootstrap=(float(low), float(high)),
        median=float(np.median(values)),
        within=profile(regrets, [1.0])[0],
        worst=worst,
        worst_regret=regrets[worst],
    )


def profile(regrets: Mapping[str, float], taus: Sequence[float]) -> list[float]:
    """Share of the workloads with a regret of at most tau seed deviations, for each tau: a performance profile.

    Raises:
        ValueError: No workload.
    """
    if not regrets:
        raise ValueError("a profile needs a workload, got none")
    values = np.array(list(regrets.values()))
    return [float((values <= tau).mean()) for tau in taus]


def compare_regrets(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Paired:
    """Compare two methods by their regrets on the same workloads, in seed deviations.

    Raises:
        ValueError: Other workloads on one side than on the other, or fewer than two.
    """
    from scipy.stats import ttest_rel, wilcoxon

    if ours.keys() != theirs.keys() or len(ours) < 2:
        raise ValueError(f"a comparison needs the same workloads, two or more, got {sorted(ours)} and {sorted(theirs)}")
    first, second = (np.array([side[workload] for workload in ours]) for side in (ours, theirs))
    differences = first - second
    t_p = wilcoxon_p = 1.0
    if np.ptp(differences) > _SAME:
        t_p = float(ttest_rel(first, second).pvalue)
    elif abs(differences[0]) > _SAME:
        t_p = 0.0
    if np.abs(differences).max() > _SAME:
        wilcoxon_p = float(wilcoxon(differences).pvalue)
    return Paired(
        workloads=len(differences),
        difference=_estimate(differences.tolist()),
        t_p=t_p,
        wilcoxon_p=wilcoxon_p,
        better=int((differences < -1).sum()),
        worse=int((differences > 1).sum()),
    )


def _estimate(values: Sequence[float]) -> Estimate:
    low, high = mean_interval(values)
    return Estimate(math.fsum(values) / len(values), low, high)


def _deviation(losses: Iterable[float]) -> float:
    found = spread(losses)
    if found.sd is None:
        raise ValueError(f"the seed deviation needs two or more seeds, got {found.count}")
    return found.sd
