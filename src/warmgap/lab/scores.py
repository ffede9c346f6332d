"""How good a method is over many workloads: regret, performance profile, worst case, flatness.

The clock schedules of a workload are its grid; the *oracle* is the best of them there, the *best clock schedule* the
single one that is best over the development workloads. Runs of one seed start from the same weights and see the same
batches, so every difference is taken seed by seed. A regret is in nats, or in seed deviations: what a change of the
seed alone does to the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.integrate import trapezoid

from warmgap.lab.results import Trial, is_clock

CONFIDENCE = 0.95
TAUS = tuple(np.linspace(0.0, 4.0, 81).tolist())

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """The losses on one workload at one peak rate, of the methods that have every seed."""

    workload: str
    rate: float  # the peak rate as a factor of the workload's own
    lr: float
    split: str  # `development`, `test` or empty
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    losses: Floats  # shape (methods, seeds), a run that diverged with its first loss
    failures: NDArray[np.bool_]  # which runs diverged or could not go on; same shape

    @property
    def name(self) -> str:
        """Its name for readers."""
        return self.workload if self.rate == 1.0 else f"{self.workload}, rate x {self.rate:g}"

    @property
    def clocks(self) -> list[int]:
        """Rows of the clock schedules."""
        return [row for row, method in enumerate(self.methods) if is_clock(method)]

    @property
    def deviation(self) -> float:
        """Seed deviation: root mean square over the clock schedules without failures."""
        rows = [row for row in self.clocks if not self.failures[row].any()] or self.clocks
        return max(float(np.sqrt(np.mean(self.losses[rows].var(axis=1, ddof=1)))), 1e-9)

    def of(self, method: str) -> Floats:
        """The losses of a method, one a seed."""
        found: Floats = self.losses[self.methods.index(method)]
        return found

    def regrets(self) -> Floats:
        """Mean regret of each method against the oracle, in nats; the oracle is chosen on the other seeds."""
        grid, others = self.losses[self.clocks], ~np.eye(len(self.seeds), dtype=bool)
        best = [grid[grid[:, keep].mean(axis=1).argmin(), seed] for seed, keep in enumerate(others)]
        found: Floats = (self.losses - np.array(best)).mean(axis=1)
        return found

    def regret(self, method: str) -> float:
        """Mean regret of a method in seed deviations."""
        return float(self.regrets()[self.methods.index(method)]) / self.deviation


def shared(found: Sequence[Cell]) -> list[str]:
    """The methods that every one of these cells has."""
    return [method for method in found[0].methods if all(method in cell.methods for cell in found)] if found else []


def cells(trials: Sequence[Trial]) -> list[Cell]:
    """The trials by workload and rate; a method counts where it has every seed that most methods have."""
    groups: dict[tuple[str, float], list[Trial]] = {}
    for trial in trials:
        if trial.counted is not None:
            groups.setdefault((trial.workload, trial.lr), []).append(trial)
    found = []
    for (workload, lr), members in groups.items():
        by_method: dict[str, dict[int, Trial]] = {}
        for trial in members:
            by_method.setdefault(trial.method, {})[trial.seed] = trial
        most = max(map(len, by_method.values()))
        seeds = sorted(set.intersection(*(set(runs) for runs in by_method.values() if len(runs) == most)))
        rows = {name: [runs[seed] for seed in seeds] for name, runs in by_method.items() if {*seeds} <= runs.keys()}
        losses = np.array([[trial.counted for trial in runs] for runs in rows.values()], dtype=float)
        failures = np.array([[trial.loss is None for trial in runs] for runs in rows.values()])
        first = members[0]
        found.append(Cell(workload, first.rate, lr, first.split, tuple(rows), tuple(seeds), losses, failures))
    return found


def judged(found: Sequence[Cell]) -> list[Cell]:
    """Those of the cells that can be judged: a clock schedule, and two seeds or more."""
    return [cell for cell in found if cell.clocks and len(cell.seeds) > 1]


@dataclass(frozen=True)
class Score:
    """One method over cells; deviations are seed deviations."""

    method: str
    cells: int  # how many cells it has
    nats: float  # mean regret against the oracle, in nats
    mean: float  # the same in deviations
    interval: tuple[float, float]  # Student's, of the mean over cells
    within: float  # share of cells with a regret of one deviation at most
    worst: tuple[str, float]  # the cell with the largest regret in deviations, and that regret
    failures: int  # runs that diverged or could not go on
    against: float | None  # mean difference to the best clock schedule in deviations; None for that one itself
    p: float | None  # of that difference: the larger one of the paired t test's and Wilcoxon's
    profile: tuple[float, ...]  # share of cells with a regret of at most each of `TAUS`, in deviations

    @property
    def verdict(self) -> str:
        """Against the best clock schedule: `better` or `worse` beyond chance, else `cannot tell`."""
        if self.against is None or self.p is None:
            return ""
        return "cannot tell" if self.p >= 1 - CONFIDENCE else ("better" if self.against < 0 else "worse")


def best_clock(found: Sequence[Cell]) -> str | None:
    """The clock schedule with the lowest mean regret in deviations over the development cells (all, if there are none).

    Only schedules that every one of these cells has are candidates; None where there are none.
    """
    chosen = [cell for cell in found if cell.split == "development"] or list(found)
    names = [method for method in shared(chosen) if is_clock(method)]
    return min(names, key=lambda name: float(np.mean([cell.regret(name) for cell in chosen])), default=None)


def score(found: Sequence[Cell], *, reference: str) -> list[Score]:
    """The score of every method that all these cells (of one split) have, the lowest mean regret first.

    `reference` is the best clock schedule.
    """
    result, methods = [], shared(found)
    for method in methods:
        regrets = np.array([cell.regret(method) for cell in found])
        against = p = None
        if method != reference and reference in methods:
            differences = regrets - np.array([cell.regret(reference) for cell in found])
            against, p = float(differences.mean()), 1.0
            if len(found) > 1 and np.ptp(differences) > 1e-12:
                p = max(float(stats.ttest_1samp(differences, 0.0).pvalue), float(stats.wilcoxon(differences).pvalue))
        at = int(regrets.argmax())
        result.append(
            Score(
                method=method,
                cells=len(found),
                nats=float(np.mean([cell.regret(method) * cell.deviation for cell in found])),
                mean=float(regrets.mean()),
                interval=interval(regrets),
                within=float((regrets <= 1.0).mean()),
                worst=(found[at].name, float(regrets[at])),
                failures=int(sum(cell.failures[cell.methods.index(method)].sum() for cell in found)),
                against=against,
                p=p,
                profile=tuple(float((regrets <= tau).mean()) for tau in TAUS),
            )
        )
    return sorted(result, key=lambda each: each.mean)


def flatness(found: Sequence[Cell]) -> dict[str, dict[str, float]]:
    """How little the peak rate matters: workload -> method -> mean height above the lower envelope, in nats.

    The envelope is the lowest mean loss of any method at each rate; heights are averaged over the logarithm of the
    rate. Only workloads with three rates or more, and methods that have all of them.
    """
    result: dict[str, dict[str, float]] = {}
    for workload in dict.fromkeys(cell.workload for cell in found):
        own = sorted((cell for cell in found if cell.workload == workload), key=lambda cell: cell.lr)
        rates = np.log10([cell.lr for cell in own])
        if len(own) < 3:
            continue
        lowest = np.array([cell.losses.mean(axis=1).min() for cell in own])
        for method in shared(own):
            means = np.array([cell.of(method).mean() for cell in own])
            result.setdefault(workload, {})[method] = float(trapezoid(means - lowest, rates) / np.ptp(rates))
    return result


def interval(values: Any) -> tuple[float, float]:
    """Student's interval of a mean; infinite for fewer than two values."""
    data = np.asarray(values, dtype=float)
    if len(data) < 2:
        return -math.inf, math.inf
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(data) - 1)) * float(data.std(ddof=1)) / math.sqrt(len(data))
    return float(data.mean()) - half, float(data.mean()) + half


def compare(first: Any, second: Any, deviation: float) -> tuple[float, tuple[float, float], str]:
    """Compare the losses of two methods on one cell, seed by seed; `deviation` is the seed deviation.

    Returns:
        The mean difference in nats, its interval, and the verdict: `better` or `worse` (the interval is on one side of
        zero), `tie` (it holds zero, and the difference is below a seed deviation), `cannot tell` (too few seeds).
    """
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    mean = float(differences.mean())
    low, high = interval(differences)
    if high < 0.0 or low > 0.0:
        verdict = "better" if high < 0.0 else "worse"
    else:
        verdict = "tie" if len(differences) > 1 and abs(mean) <= deviation else "cannot tell"
    return mean, (low, high), verdict


def summary_rows(scores: Sequence[Score]) -> list[Mapping[str, str]]:
    """The scores as text, a row a method."""
    return [
        {
            "method": each.method,
            "regret, nats": f"{each.nats:+.4f}",
            "in deviations": f"{each.mean:+.2f}",
            "95% interval": "{:+.2f} to {:+.2f}".format(*each.interval),
            "within 1": f"{each.within:.0%}",
            "worst": f"{each.worst[1]:+.1f} on {each.worst[0]}",
            "failures": str(each.failures),
            "against best clock": "" if each.against is None else f"{each.against:+.2f} (p = {each.p:.2g})",
            "verdict": each.verdict,
        }
        for each in scores
    ]
