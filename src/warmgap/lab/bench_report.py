"""From the results of a bench to its table and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warmgap.lab.bench import Results, Row, share_of
from warmgap.lab.errors import UserError
from warmgap.lab.figures import house_style
from warmgap.lab.page import as_png
from warmgap.lab.regret import (
    Estimate,
    Paired,
    Summary,
    best_length,
    compare_regrets,
    cross_validated_regret,
    halved_regrets,
    in_sample_regret,
    is_stuck,
    seed_deviation,
    summarize,
)
from warmgap.lab.stats import CONFIDENCE
from warmgap.lab.table import ADAPTIVE_NAMES

if TYPE_CHECKING:
    from rich.console import Console

OURS = "auto"
RIVALS = ("none", "linear:10%", "loss-ratio", "power", "published", "gap", "auto-late")
"""The methods that `auto` is compared with, workload by workload."""

EXPLANATION = (
    "Regret: final validation loss minus that of the best hand-tuned length. In sample, the length is the best one on "
    "these same seeds, which flatters the hand-tuned side; cross-validated, it is for each seed the best one on the "
    "other seeds, a choice that is noisier, which flatters the rules. On half of the seeds, it is the best one on that "
    "half, for every half in turn, and tuning by hand is judged like a rule, by the length that is best on the other "
    "half: what the noise between seeds leaves to be had. "
    "In deviations: divided by the workload's seed deviation, the pooled standard deviation over seeds of "
    "the final losses of the hand-tuned lengths of which no run diverged. Interval: Student's, of "
    f"{CONFIDENCE:.0%}, over seeds for a workload, over workloads for a mean; bootstrap: the percentile interval over "
    "workloads drawn anew. Better, worse: workloads where the difference is more than a deviation. A run that diverged "
    "counts with its first loss. Stuck: it made less than half of the descent of the best hand-tuned length. Verdict: "
    f"both tests have p < {1 - CONFIDENCE:.2g}; they are not corrected for the number of methods compared with."
)


@dataclass(frozen=True)
class Judged:
    """One workload, judged.

    Attributes:
        name: The workload, with what was changed of it.
        settings: As in the results.
        seeds: The seeds that every method here has.
        losses: Method -> seed -> final loss, a diverged run with its first loss.
        best: The best hand-tuned length.
        deviation: The seed deviation.
        in_sample: Method -> regret, in nats.
        cross_validated: Method -> regret, in nats.
        diverged: Method -> runs that diverged, or whose rule could not go on.
        stuck: Method -> runs that are stuck.
    """

    name: str
    settings: Mapping[str, Any]
    seeds: Sequence[int]
    losses: Mapping[str, Mapping[int, float]]
    best: str
    deviation: float
    in_sample: Mapping[str, Estimate]
    cross_validated: Mapping[str, Estimate]
    diverged: Mapping[str, int]
    stuck: Mapping[str, int]

    @property
    def lengths(self) -> list[str]:
        """The hand-tuned lengths."""
        return [method for method in self.losses if share_of(method) is not None]

    @property
    def best_loss(self) -> float:
        """The mean final loss of the best hand-tuned length."""
        return math.fsum(self.losses[self.best].values()) / len(self.seeds)

    def regret(self, method: str) -> float:
        """Cross-validated regret in seed deviations."""
        return self.cross_validated[method].mean / self.deviation


@dataclass(frozen=True)
class Verdicts:
    """Several workloads together.

    Attributes:
        title: Which ones.
        workloads: They.
        summaries: Method -> its regrets summed up.
        pairs: Rival -> `auto` against it.
    """

    title: str
    workloads: Sequence[Judged]
    summaries: Mapping[str, Summary]
    pairs: Mapping[str, Paired]

    def in_sample(self, method: str) -> float:
        """Mean regret against the lengths that are the best ones on these same seeds, in seed deviations."""
        return math.fsum(each.in_sample[method].mean / each.deviation for each in self.workloads) / len(self.workloads)

    def halved(self, method: str | None) -> list[list[float]]:
        """Regrets on halves of the seeds, in deviations, a row a workload; without a method, of tuning by hand."""
        return [
            [regret / each.deviation for regret in halved_regrets(each.losses, each.lengths, method)]
            for each in self.workloads
        ]

    def count(self, what: str, method: str) -> tuple[int, int]:
        """How many runs of a method are `diverged` or `stuck`, and how many there are."""
        counts: list[Mapping[str, int]] = [getattr(workload, what) for workload in self.workloads]
        return sum(count.get(method, 0) for count in counts), sum(
            len(workload.seeds) for workload in self.workloads if method in workload.losses
        )


def judge(results: Results) -> tuple[list[Judged], list[str]]:
    """Every workload with enough runs, and a sentence on each workload and method without.

    A method counts on a workload where it has all the seeds that all its hand-tuned lengths have.
    """
    found, left_out = [], []
    plain = {settings["name"]: settings for settings in results.workloads if not settings["setting"]}
    for settings in results.workloads:
        rows = [row for row in results.rows if (row.workload, row.setting) == (settings["name"], settings["setting"])]
        name = " ".join(filter(None, (settings["name"], settings["setting"])))
        # The lengths of the workload itself, where the setting does not change them.
        if {**plain.get(settings["name"], {}), "setting": settings["setting"]} == settings and settings["setting"]:
            rows += [
                row
                for row in results.rows
                if row.workload == settings["name"] and not row.setting and share_of(row.method) is not None
            ]
        by_method: dict[str, dict[int, Row]] = {}
        for row in rows:
            by_method.setdefault(row.method, {})[row.seed] = row
        lengths = [method for method in by_method if share_of(method) is not None]
        seeds = sorted(set.intersection(*(set(by_method[length]) for length in lengths))) if lengths else []
        if len(seeds) < 2:
            left_out.append(f"{name} is left out: it needs a hand-tuned length with two seeds or more.")
            continue
        whole = {
            method: {seed: runs[seed] for seed in seeds}
            for method, runs in by_method.items()
            if runs.keys() >= set(seeds)
        }
        if missing := by_method.keys() - whole.keys():
            names = ", ".join(method_name(method) for method in sorted(missing))
            left_out.append(f"{name} has no regret of {names}: not every seed has a run.")
        found.append(_judge(name, settings, seeds, whole, lengths))
    return found, left_out


def _judge(
    name: str, settings: Mapping[str, Any], seeds: list[int], runs: dict[str, dict[int, Row]], lengths: list[str]
) -> Judged:
    firsts = {
        seed: next((row.first_loss for rows in runs.values() if (row := rows[seed]).first_loss is not None), None)
        for seed in seeds
    }
    fallen = {method: [row.seed for row in rows.values() if row.status != "done"] for method, rows in runs.items()}
    losses: dict[str, dict[int, float]] = {}
    for method, rows in runs.items():
        for seed, row in rows.items():
            loss = row.final_val_loss if row.status == "done" else firsts[seed]
            if loss is None:
                raise UserError(f"No run of {name} with seed {seed} has a first loss: there is nothing to judge.")
            losses.setdefault(method, {})[seed] = loss
    best = best_length(losses, lengths)
    sound = [length for length in lengths if not fallen[length]] or lengths
    return Judged(
        name=name,
        settings=settings,
        seeds=seeds,
        losses=losses,
        best=best,
        deviation=max(seed_deviation(losses, sound), 1e-9),
        in_sample={method: in_sample_regret(losses, lengths, method) for method in losses},
        cross_validated={method: cross_validated_regret(losses, lengths, method) for method in losses},
        diverged={method: len(seeds_fallen) for method, seeds_fallen in fallen.items()},
        stuck={
            method: sum(
                seed not in fallen[method] and is_stuck(first, loss, losses[best][seed])
                for seed, loss in by_seed.items()
                if (first := firsts[seed]) is not None
            )
            for method, by_seed in losses.items()
        },
    )


def verdicts(title: str, workloads: Sequence[Judged]) -> Verdicts:
    """Sum up the methods that all these workloads have."""
    methods = [method for method in workloads[0].losses if all(method in workload.losses for workload in workloads)]
    regrets = {method: {workload.name: workload.regret(method) for workload in workloads} for method in methods}
    pairs = {
        rival: compare_regrets(regrets[OURS], regrets[rival])
        for rival in RIVALS
        if OURS in regrets and rival in regrets and len(workloads) > 1
    }
    return Verdicts(title, workloads, {method: summarize(regrets[method]) for method in methods}, pairs)


def parts(workloads: Sequence[Judged]) -> list[Verdicts]:
    """The verdicts on the test workloads, on those for development, and on those with a changed setting."""
    plain = [workload for workload in workloads if not workload.settings["setting"]]
    groups = {
        "Test workloads": [workload for workload in plain if workload.settings["split"] == "test"],
        "Development workloads": [workload for workload in plain if workload.settings["split"] == "development"],
        "Changed settings": [workload for workload in workloads if workload.settings["setting"]],
    }
    found = [verdicts(title, group) for title, group in groups.items() if group]
    # One workload under ten settings is not ten workloads: no tests there.
    return [replace(part, pairs={}) if part.workloads[0].settings["setting"] else part for part in found]


# ------------------------------------------------------------------------------------------------------------- as text

SUMMARY_HEADINGS = (
    "warm-up", "mean regret", "95% interval", "in sample", "bootstrap", "median", "within 1", "worst", "worst on",
    "diverged", "stuck",
)  # fmt: skip
PAIR_HEADINGS = ("auto against", "mean difference", "95% interval", "t test", "Wilcoxon", "better", "worse", "verdict")
HALVES_HEADINGS = ("on half of the seeds", "mean regret", "within 1", "worse by more than 1")
WORKLOAD_HEADINGS = (
    "workload", "best length", "its loss", "auto's loss", "in sample", "cross-validated", "deviation", "in deviations",
)  # fmt: skip
_NOT_IN_TERMINAL = ("bootstrap", "median", "its loss", "deviation", "cross-validated")
"""Columns that do not fit a terminal."""


def method_name(method: str) -> str:
    """A method's name for readers."""
    if method == "none":
        return "no warm-up"
    return ADAPTIVE_NAMES.get(method, method.replace("linear:", "linear, ").replace("%", " %"))


def summary_rows(part: Verdicts) -> list[tuple[str, ...]]:
    """A row a method, the lowest mean regret first."""
    return [
        (
            method_name(method),
            f"{found.mean.mean:+.2f}",
            _interval(found.mean, 2),
            f"{part.in_sample(method):+.2f}",
            f"{found.bootstrap[0]:+.2f} to {found.bootstrap[1]:+.2f}",
            f"{found.median:+.2f}",
            f"{found.within:.0%}",
            f"{found.worst_regret:+.1f}",
            found.worst,
            "{} of {}".format(*part.count("diverged", method)),
            "{} of {}".format(*part.count("stuck", method)),
        )
        for method, found in sorted(part.summaries.items(), key=lambda item: item[1].mean.mean)
    ]


def pair_rows(part: Verdicts) -> list[tuple[str, ...]]:
    """A row a rival."""
    return [
        (
            method_name(rival),
            f"{found.difference.mean:+.2f}",
            _interval(found.difference, 2),
            f"p = {found.t_p:.3g}",
            f"p = {found.wilcoxon_p:.3g}",
            f"{found.better} of {found.workloads}",
            f"{found.worse} of {found.workloads}",
            ("better" if found.difference.mean < 0 else "worse") if found.significant else "not beyond chance",
        )
        for rival, found in part.pairs.items()
    ]


def halves_rows(part: Verdicts) -> list[tuple[str, ...]]:
    """Tuning by hand, then the rules, all judged on halves of the seeds."""
    rules = [method for method in part.summaries if share_of(method) is None]
    rows: list[tuple[str, ...]] = []
    for method in (None, *sorted(rules, key=lambda rule: part.summaries[rule].mean.mean)):
        regrets = part.halved(method)
        values = [regret for row in regrets for regret in row]
        within = sum(regret <= 1.0 for regret in values) / len(values)
        rows.append(
            (
                "a length tuned on the other half" if method is None else method_name(method),
                f"{math.fsum(values) / len(values):+.2f}",
                f"{within:.0%}",
                f"{(1.0 - within) * len(regrets):.1f} of {len(regrets)}",
            )
        )
    return rows


def workload_rows(part: Verdicts) -> list[tuple[str, ...]]:
    """A row a workload: how `auto` does there."""
    rows: list[tuple[str, ...]] = []
    for workload in part.workloads:
        ours = workload.losses.get(OURS)
        rows.append(
            (
                workload.name,
                method_name(workload.best),
                f"{workload.best_loss:.4f}",
                "-" if ours is None else _mean(ours),
                "-" if ours is None else _estimate(workload.in_sample[OURS]),
                "-" if ours is None else _estimate(workload.cross_validated[OURS]),
                f"{workload.deviation:.4f}",
                "-" if ours is None else f"{workload.regret(OURS):+.2f}",
            )
        )
    return rows


def regret_rows(part: Verdicts) -> list[tuple[str, ...]]:
    """A row a workload, a column a method of `part.summaries`: cross-validated regrets in deviations."""
    return [
        (workload.name, *(f"{workload.regret(method):+.2f}" for method in part.summaries))
        for workload in part.workloads
    ]


def cost(results: Results) -> str:
    """What tuning by hand cost in this bench, against a rule."""
    plain = [row for row in results.rows if not row.setting]
    lengths = [row.seconds for row in plain if share_of(row.method) is not None]
    ours = [row.seconds for row in plain if row.method == OURS]
    tried = len({row.method for row in plain if share_of(row.method) is not None})
    hours = f", here {sum(lengths) / 3600:.1f} h against {sum(ours) / 3600:.1f} h" if ours else ""
    return f"To tune the length by hand took {tried} runs for every one of a rule{hours}."


def markdown(results: Results, workloads: Sequence[Judged], left_out: Sequence[str]) -> str:
    """The whole table as Markdown."""
    lines: list[str] = []
    for part in parts(workloads):
        lines += [f"## {part.title} ({len(part.workloads)})", "", *_table(SUMMARY_HEADINGS, summary_rows(part)), ""]
        if part.pairs:
            lines += [*_table(PAIR_HEADINGS, pair_rows(part)), ""]
            lines += [*_table(HALVES_HEADINGS, halves_rows(part)), ""]
        lines += [*_table(WORKLOAD_HEADINGS, workload_rows(part)), ""]
        lines += [*_table(("regret in deviations", *map(method_name, part.summaries)), regret_rows(part)), ""]
    where = f"commit {results.commit}" if results.commit else "no checkout"
    made = f"Made by `{results.command}` ({where}; {', '.join(f'{n} {v}' for n, v in results.versions.items())})."
    return "\n".join([*lines, *left_out, cost(results), "", EXPLANATION, "", made, ""])


def write_bench_report(results: Results, folder: Path, console: Console) -> None:
    """Write `table.md` and the pictures into a folder, and print the table.

    Raises:
        UserError: There are too few runs to judge anything.
    """
    from warmgap.lab import bench_figures

    workloads, left_out = judge(results)
    if not workloads:
        raise UserError("No workload has a hand-tuned length with two seeds or more: there is no regret to tell yet.")
    groups = parts(workloads)
    pictures: dict[str, bytes] = {}
    with house_style():
        for part in groups:
            if not part.summaries:
                continue  # no method that all its workloads have
            slug = part.title.split()[0].lower()
            pictures[f"regret-{slug}.png"] = as_png(bench_figures.regret_figure(part))
            pictures[f"profile-{slug}.png"] = as_png(bench_figures.profile_figure(part))
        if bench_figures.with_rates(results, groups[0].workloads):
            pictures["rates.png"] = as_png(bench_figures.rates_figure(results, groups[0].workloads))
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    (folder / "table.md").write_text(markdown(results, workloads, left_out), encoding="utf-8")
    _print(groups, left_out, console)
    console.print(cost(results), highlight=False)
    console.print(f"Table and pictures: {folder / 'table.md'}", highlight=False, markup=False, soft_wrap=True)


def _print(groups: Sequence[Verdicts], left_out: Sequence[str], console: Console) -> None:
    from rich import box
    from rich.table import Table

    for part in groups:
        for title, headings, rows in (
            ("regret in seed deviations", SUMMARY_HEADINGS, summary_rows(part)),
            ("regret of auto minus that of another, in seed deviations", PAIR_HEADINGS, pair_rows(part)),
            ("regret of auto", WORKLOAD_HEADINGS, workload_rows(part)),
        ):
            shown = Table(
                title=f"{part.title}: {title}",
                title_justify="left",
                title_style="bold",
                box=box.SIMPLE_HEAD,
                pad_edge=False,
            )
            columns = [index for index, heading in enumerate(headings) if heading not in _NOT_IN_TERMINAL]
            for index in columns:
                shown.add_column(headings[index])
            for row in rows:
                shown.add_row(*(row[index] for index in columns))
            if rows:
                console.print(shown)
    for sentence in left_out:
        console.print(sentence, highlight=False, markup=False)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (headings, ("---",) * len(headings), *rows)]


def _estimate(found: Estimate) -> str:
    return f"{found.mean:+.4f} ({_interval(found, 4)})"


def _interval(found: Estimate, digits: int) -> str:
    return "-" if math.isinf(found.low) else f"{found.low:+.{digits}f} to {found.high:+.{digits}f}"


def _mean(losses: Mapping[int, float]) -> str:
    return f"{math.fsum(losses.values()) / len(losses):.4f}"
