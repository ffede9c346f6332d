"""Train a recipe (a suite of workloads, or a row of a paper) with every method, rate and seed; score and report it."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from warmgap.lab.config import MethodSettings, TrainConfig
from warmgap.lab.engines import Engine
from warmgap.lab.errors import INTERRUPTED
from warmgap.lab.methods import WITH_TARGET, Method
from warmgap.lab.model import size_of
from warmgap.lab.recipes import Recipe, Workload
from warmgap.lab.report import write_report
from warmgap.lab.results import trial, write_results
from warmgap.lab.sweep import report_outcome, run_folder, run_plan, say

_A100 = 312e12 * 0.4  # flops a second of bfloat16, at 40 % of the card's peak


def train_recipe(
    recipe: Recipe, folder: Path, *, command: str, engine: Engine | None = None, quiet: bool = False
) -> int:
    """Train what is not trained yet, write `results.json` and the page, and print the scores (unless `quiet`).

    Returns:
        Exit code: 0, 1 where a run failed, 130 where it was interrupted.
    """
    console = Console(quiet=quiet)
    bases = plan_of_bases(recipe)
    if bases:
        runs = run_plan(bases, folder / "bases", command=f"{command} (bases)", engine=engine, console=console)
        if (code := report_outcome(runs, folder / "bases", console)) != 0:
            return code
    plan = plan_of(recipe, folder)
    say(console, f"{len(plan)} runs of {len(recipe.workloads)} workloads into {folder}")
    runs = run_plan(plan, folder, command=command, asked={"title": recipe.title}, engine=engine, console=console)
    code = report_outcome(runs, folder, console)
    trials = [trial(run, folder, json.loads(label)) for run, (label, _) in zip(runs, plan, strict=True)]
    finished = [each for each in trials if each.counted is not None]
    if code == INTERRUPTED or not finished:
        return code
    write_results(finished, folder / "results.json", command=command)
    notes = " ".join(filter(None, (recipe.source and f"Source: {recipe.source}.", recipe.notes)))
    page = write_report(trials, folder / "report.html", title=recipe.title, folder=folder, notes=notes, show=not quiet)
    say(console, f"Page: {page}")
    return code


def plan_of(recipe: Recipe, folder: Path) -> list[tuple[str, TrainConfig]]:
    """The runs with their labels. A seed at a time, so that a bench that is interrupted has seen every workload."""
    found = []
    for seed, workload, rate in itertools.product(recipe.seeds, recipe.workloads, recipe.rates):
        for method in dict.fromkeys(workload.methods or recipe.methods):
            target = workload.config.target_loss if (Method.parse(method).rule or "") in WITH_TARGET else None
            lr = float(f"{(_bare(workload).lr or 0.0) * rate:.6g}")
            config = replace(workload.config, method=method, seed=seed, lr=lr, target_loss=target)
            if workload.start_from is not None:
                base = replace(workload.start_from, seed=seed)
                config = replace(config, start_from=folder / "bases" / run_folder(base.resolve()))
            label = {"name": workload.name, "split": workload.split, "rate": rate}
            if method in workload.printed:
                label["printed"] = workload.printed[method]
            found.append((json.dumps(label), config.resolve()))
    return found


def plan_of_bases(recipe: Recipe) -> list[tuple[str, TrainConfig]]:
    """The runs that others start from; they keep their weights."""
    return [
        ("", replace(workload.start_from, seed=seed, save_every=workload.start_from.steps).resolve())
        for seed, workload in itertools.product(recipe.seeds, recipe.workloads)
        if workload.start_from is not None
    ]


def _bare(workload: Workload) -> TrainConfig:
    """The workload's settings, filled in, without its method's."""
    return replace(workload.config, **vars(MethodSettings())).resolve()


def cost(recipe: Recipe) -> str:
    """What a recipe trains and costs, as text."""
    lines = [recipe.title, recipe.source, recipe.notes, ""]
    total = 0.0
    for workload in recipe.workloads:
        config = _bare(workload)
        size = size_of(config.model)
        methods = workload.methods or recipe.methods
        runs = len(methods) * len(recipe.seeds) * len(recipe.rates)
        parameters = size.parameters(config.vocab_size, tied=config.tied) if size else 0
        tokens = config.steps * config.batch_size * (config.sequence_length or 1)
        flops = 6.0 * parameters * tokens * runs
        total += flops
        lines += [
            f"{workload.name}: model {config.model}, {parameters:,} parameters, vocabulary {config.vocab_size}",
            f"  {config.steps:,} steps x {config.batch_size} x {config.sequence_length or 1} = {tokens:,} predictions",
            f"  {runs} runs: {', '.join(methods)}",
            f"  {_time(flops)} at 40 % of its peak",
        ]
        lines += [f"  the paper prints {loss:.3f} for {method}" for method, loss in workload.printed.items()]
    return "\n".join([*filter(None, lines), f"All: {_time(total)}"])


def _time(flops: float) -> str:
    hours = flops / _A100 / 3600
    return f"{flops:.2g} flops, {'less than 0.01' if hours < 0.01 else f'{hours:.3g}'} hours of an A100"
