"""From run folders to the table: which rule reached which loss, with how much noise, and what that allows to be said.

A *workload* is everything that two runs must share to be compared (corpus, model, optimizer, peak rate, steps, batch,
decay); a *method* is what is compared on it (the warm-up rule and its settings); a method has one run a seed.
Hand-tuned methods are the ones whose warm-up length a person chose: `none` and `linear:N`. Runs that diverged, that
never left their warm-up or that are not finished stay in the table and are named as such.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmgap.lab.errors import UserError
from warmgap.lab.record import RunRecord
from warmgap.lab.stats import Comparison, Spread, compare, spread

METHOD_FIELDS = ("rule", "floor", "target_loss", "averaging")
"""Settings that make the method; every other setting but those of `PLACE_FIELDS` makes the workload."""

PLACE_FIELDS = ("seed", "output", "resume", "threads", "save_every")
"""Settings that tell apart the runs of one method, or change no number of a run."""

Series = tuple[list[int], list[float]]
"""Steps, and the values at these steps."""

ADAPTIVE_NAMES = {
    "auto": "adaptive (auto)",
    "auto-late": "adaptive, loss after the step",
    "gap": "gap rule",
    "loss-ratio": "loss ratio",
    "power": "power rule",
    "published": "gap rule as published",
}


@dataclass(frozen=True)
class Run:
    """One run folder, read.

    Attributes:
        folder: where it lies.
        record: its `run.json`.
    """

    folder: Path
    record: RunRecord

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings that decide its numbers."""
        return self.record.config

    @property
    def seed(self) -> int:
        """The seed of weights and batches."""
        return int(self.config["seed"])

    @property
    def rule(self) -> str:
        """The warm-up rule as it was asked for."""
        return str(self.config["rule"])

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train: it reached its last step, or diverged on the way."""
        return self.record.status in ("done", "diverged")

    @property
    def final_loss(self) -> float | None:
        """Final validation loss in nats a token; None where the run diverged or is not finished."""
        loss = self.record.final_val_loss
        return loss if self.record.status == "done" and loss is not None and math.isfinite(loss) else None

    @property
    def diverged(self) -> bool:
        """Whether the loss left the finite numbers."""
        return self.finished and self.final_loss is None

    @property
    def warmup_steps(self) -> int | None:
        """Steps before the hand-over; None where there was none."""
        return self.record.warmup_iters

    @property
    def stuck(self) -> bool:
        """Whether it trained to the end without ever handing over to the decay."""
        return self.final_loss is not None and self.warmup_steps is None

    def metrics(self) -> dict[str, Series]:
        """The numbers of `metrics.jsonl` by name, each with the steps at which it was written.

        A step that was trained twice (a resume) counts as it was trained last; values that are not finite are left out.

        Raises:
            UserError: a row that is not what a run writes.
        """
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        rows: dict[int, Mapping[str, Any]] = {}
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                rows[int(row["step"])] = row
            except (ValueError, TypeError, KeyError) as error:
                if number == len(lines) and not self.finished:
                    break  # a run that was killed may have left half a row behind
                raise UserError(
                    f"{path}, line {number} is not a row of a run's metrics: delete that folder and train it again."
                ) from error
        columns: dict[str, Series] = {}
        for step in sorted(rows):
            for name, value in rows[step].items():
                if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                    steps, values = columns.setdefault(name, ([], []))
                    steps.append(step)
                    values.append(float(value))
        return columns


def hand_tuned_steps(rule: str) -> int | None:
    """Warm-up length of a hand-tuned rule in steps, None for an adaptive one.

    Raises:
        UserError: a linear rule without a number of steps.
    """
    if rule == "none":
        return 0
    if not rule.startswith("linear:"):
        return None
    try:
        return int(rule.removeprefix("linear:"))
    except ValueError:
        raise UserError(f"The rule {rule!r} has no length: write linear:STEPS, such as linear:40.") from None


@dataclass(frozen=True)
class Method:
    """One rule on one workload, over its seeds.

    Attributes:
        label: its name in figures and tables.
        rule: the rule as asked for.
        settings: its settings (`METHOD_FIELDS`).
        runs: its runs by seed, in the seeds' order.
        comparison: against the best hand-tuned method of the workload; None where there is none, or for that method
            itself.
        best: whether it is the best hand-tuned method of its workload.
    """

    label: str
    rule: str
    settings: Mapping[str, Any]
    runs: Sequence[Run]
    comparison: Comparison | None = None
    best: bool = False

    @property
    def adaptive(self) -> bool:
        """Whether the rule finds the length itself."""
        return hand_tuned_steps(self.rule) is None

    @property
    def losses(self) -> dict[int, float | None]:
        """Final loss by seed of the finished runs, None where one diverged."""
        return {run.seed: run.final_loss for run in self.runs if run.finished}

    @property
    def loss(self) -> Spread:
        """Final loss over the seeds that have one."""
        return spread(loss for loss in self.losses.values() if loss is not None)

    @property
    def warmup(self) -> Spread:
        """Warm-up length in steps over the seeds that handed over; for a hand-tuned rule the length asked for."""
        asked = hand_tuned_steps(self.rule)
        if asked is not None:
            return Spread(float(asked), None, len(self.runs))
        return spread(float(run.warmup_steps) for run in self.runs if run.finished and run.warmup_steps is not None)

    @property
    def notes(self) -> list[str]:
        """What a mean would hide: runs that diverged, never handed over, or are not finished."""
        total = len(self.runs)
        counts = {
            "diverged": sum(run.diverged for run in self.runs),
            "never left the warm-up": sum(run.stuck for run in self.runs) if self.adaptive else 0,
            "not finished": sum(not run.finished for run in self.runs),
        }
        return [f"{count} of {total} {what}" for what, count in counts.items() if count]


@dataclass(frozen=True)
class Workload:
    """What runs share when they can be compared, and the methods tried on it.

    Attributes:
        title: its name for readers, short but different from that of the folder's other workloads.
        slug: the same for file names.
        settings: the settings its runs share.
        methods: hand-tuned ones by length, then adaptive ones by name.
    """

    title: str
    slug: str
    settings: Mapping[str, Any]
    methods: Sequence[Method]

    @property
    def steps(self) -> int:
        """Length of a run in optimizer steps."""
        return int(self.settings["steps"])

    @property
    def best(self) -> Method | None:
        """The best hand-tuned method, None where no hand-tuned run has finished."""
        return next((method for method in self.methods if method.best), None)


def load_runs(folder: Path) -> list[Run]:
    """Every run in or below a folder, in the order of the paths.

    Raises:
        UserError: no such folder, no run in it, or a `run.json` that is not one of ours.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: give the folder of a sweep or of a run.")
    runs = [Run(path.parent, RunRecord.load(path.parent)) for path in sorted(folder.rglob("run.json"))]
    if not runs:
        raise UserError(
            f"No run found in {folder}, there is no run.json in it or below: give the folder that `warmgap sweep` or "
            "`warmgap train` wrote to."
        )
    return runs


def tabulate(runs: Iterable[Run]) -> list[Workload]:
    """Sort runs into workloads and methods, and compare each method with the best hand-tuned one.

    The best hand-tuned method is the one with the lowest mean loss among those with the most finished seeds and the
    fewest diverged runs. Taking the lowest of several noisy means flatters the hand-tuned side a little.

    Raises:
        UserError: two runs that differ in nothing but their folders.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_key(run.config, exclude=(*METHOD_FIELDS, *PLACE_FIELDS)), []).append(run)
    names = _workload_names([members[0].config for members in groups.values()])
    return [
        Workload(title, slug, _without(members[0].config, (*METHOD_FIELDS, *PLACE_FIELDS)), _methods(members))
        for (title, slug), members in zip(names, groups.values(), strict=True)
    ]


def as_plain(workloads: Sequence[Workload]) -> list[dict[str, Any]]:
    """The table as plain values for `table.json`: every number of it, and every run's own loss."""
    return [
        {
            "workload": workload.title,
            "settings": dict(workload.settings),
            "best_hand_tuned": workload.best.label if workload.best else None,
            "methods": [_plain_method(method) for method in workload.methods],
        }
        for workload in workloads
    ]


HEADINGS = ("warm-up", "steps", "final loss", "difference", "95% interval", "verdict", "seeds", "remarks")


def as_rows(workload: Workload) -> list[tuple[str, ...]]:
    """The table of one workload as text, a tuple a method, in the columns of `HEADINGS`."""
    return [
        (
            method.label,
            format_spread(method.warmup, digits=0) if method.warmup.count else "-",
            format_spread(method.loss),
            *_difference(method),
            _verdict(method),
            str(len(method.losses)),
            "; ".join(method.notes),
        )
        for method in workload.methods
    ]


def format_spread(found: Spread, digits: int = 4) -> str:
    """Mean and deviation as text; a dash without a value."""
    if found.mean is None:
        return "-"
    return f"{found.mean:.{digits}f}" + (f" ± {found.sd:.{digits}f}" if found.sd is not None else "")


def _difference(method: Method) -> tuple[str, str]:
    comparison = method.comparison
    if comparison is None or comparison.difference is None:
        return "", ""
    interval = "" if comparison.low is None else f"{comparison.low:+.4f} to {comparison.high:+.4f}"
    return f"{comparison.difference:+.4f}", interval


def _verdict(method: Method) -> str:
    if method.best:
        return "best"
    if method.comparison is None or not method.adaptive:
        return ""
    return "no verdict" if method.comparison.verdict == "none" else method.comparison.verdict


def _plain_method(method: Method) -> dict[str, Any]:
    comparison = method.comparison
    return {
        "label": method.label,
        "rule": method.rule,
        "settings": dict(method.settings),
        "adaptive": method.adaptive,
        "best_hand_tuned": method.best,
        "warmup_steps": {"mean": method.warmup.mean, "sd": method.warmup.sd},
        "final_val_loss": {"mean": method.loss.mean, "sd": method.loss.sd, "seeds": method.loss.count},
        "comparison": None if comparison is None else vars(comparison).copy(),
        "remarks": method.notes,
        "runs": [
            {
                "folder": run.folder.name,
                "seed": run.seed,
                "status": run.record.status,
                "final_val_loss": run.final_loss,
                "warmup_steps": run.warmup_steps,
                "stuck": run.stuck,
            }
            for run in method.runs
        ],
    }


def _without(config: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in fields}


def _key(config: Mapping[str, Any], exclude: Sequence[str]) -> str:
    return json.dumps(_without(config, exclude), sort_keys=True, default=str)


def _methods(runs: Sequence[Run]) -> list[Method]:
    by_method: dict[str, dict[int, Run]] = {}
    for run in runs:
        settings = {name: run.config.get(name) for name in METHOD_FIELDS}
        seeds = by_method.setdefault(json.dumps(settings, default=str), {})
        if run.seed in seeds:
            raise UserError(
                f"{seeds[run.seed].folder} and {run.folder} are one run twice (same settings, same seed): keep one."
            )
        seeds[run.seed] = run
    found = [[seeds[seed] for seed in sorted(seeds)] for seeds in by_method.values()]
    methods = [
        Method(
            _method_label(members[0].config, [other[0].config for other in found]),
            members[0].rule,
            {name: members[0].config.get(name) for name in METHOD_FIELDS},
            members,
        )
        for members in found
    ]
    methods.sort(key=_method_order)
    best = _best_hand_tuned(methods)
    if best is None:
        return methods
    return [
        Method(
            method.label,
            method.rule,
            method.settings,
            method.runs,
            None if method is best else compare(method.losses, best.losses),
            method is best,
        )
        for method in methods
    ]


def _method_label(config: Mapping[str, Any], all_configs: Sequence[Mapping[str, Any]]) -> str:
    """The rule's name, with the settings that tell it from another method with the same rule."""
    same_rule = [other for other in all_configs if other["rule"] == config["rule"]]
    varying = [name for name in METHOD_FIELDS if len({other.get(name) for other in same_rule}) > 1]
    rule, steps = str(config["rule"]), hand_tuned_steps(str(config["rule"]))
    if steps is None:
        name = ADAPTIVE_NAMES.get(rule, rule)
    elif steps == 0:
        name = "no warm-up"
    else:
        name = f"linear, {100 * steps / int(config['steps']):.3g} %"
    return ", ".join([name, *(f"{field.replace('_', ' ')} {config.get(field)}" for field in varying)])


def _method_order(method: Method) -> tuple[bool, int, str]:
    return (method.adaptive, hand_tuned_steps(method.rule) or 0, method.label)


def _best_hand_tuned(methods: Iterable[Method]) -> Method | None:
    hand_tuned = [method for method in methods if not method.adaptive and method.losses]
    most = max((len(method.losses) for method in hand_tuned), default=0)
    complete = [method for method in hand_tuned if len(method.losses) == most]

    def rank(method: Method) -> tuple[int, float]:
        return sum(
            loss is None for loss in method.losses.values()
        ), math.inf if method.loss.mean is None else method.loss.mean

    return min(complete, key=rank, default=None)


def _workload_names(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Title and slug a workload: the usual settings, and whatever else tells the workloads apart."""
    usual = ("optimizer", "lr", "corpus", "model", "steps")
    fields = sorted({name for config in configs for name in config} - {*METHOD_FIELDS, *PLACE_FIELDS, *usual})
    telling = [name for name in fields if len({json.dumps(config.get(name), default=str) for config in configs}) > 1]
    names = []
    for config in configs:
        extra = [f"{name.replace('_', ' ')} {config.get(name)}" for name in telling]
        title = ", ".join(
            [
                f"{str(config['optimizer']).capitalize()}, peak rate {config['lr']:g}",
                f"{config['model']} on {config['corpus']}",
                f"{config['steps']} steps",
                *extra,
            ]
        )
        words = [config["optimizer"], f"lr{config['lr']:g}", config["model"], config["corpus"], config["steps"], *extra]
        slug = "-".join(
            "".join(sign if sign.isalnum() or sign in "._" else "-" for sign in str(word)) for word in words
        )
        names.append((title, slug))
    return names
