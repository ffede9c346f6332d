"""The command `warmgap`: each subcommand is a dataclass whose fields are its flags."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sqlite3
import sys
import traceback
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from warmgap import __version__
from warmgap.lab.errors import INTERRUPTED, UserError, explained, missing

try:
    import tyro
except ModuleNotFoundError:
    raise SystemExit(missing("tyro")) from None
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from warmgap.lab.config import (
    GROUPS,
    DataSettings,
    MethodSettings,
    OptimizerSettings,
    RunSettings,
    ScheduleSettings,
    TrainConfig,
)
from warmgap.lab.methods import EXAMPLES

# Everything heavy is imported inside functions: help, and mistakes, come at once.
# The comment on a field, or above it, is its help.

USER_ERROR, DIVERGED = 2, 1
TYPED = ContextVar("TYPED", default="warmgap")
"""The command line as it was typed, which databases and pages name."""


def _fraction(word: str) -> float:
    try:
        return float(Fraction(word))
    except ZeroDivisionError:
        raise ValueError(f"Invalid literal for Fraction: {word!r}") from None


Factor = Annotated[
    float,
    PrimitiveConstructorSpec[float](
        nargs=1,
        metavar="FACTOR",
        instance_from_str=lambda words: _fraction(words[0]),
        is_instance=lambda value: isinstance(value, float),
        str_from_instance=lambda value: [f"{value:g}"],
    ),
]
"""A number, or a fraction such as 1/4."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Where and how many at a time."""

    on: Literal["local", "ray"] = "local"  # Processes of this machine, or tasks on a Ray cluster.
    jobs: int | None = None  # Runs at a time (None: one a core or GPU; on Ray, what fits).
    processes: int = 1  # GPUs a run, or processes on CPUs, started by torchrun.

    @property
    def engine(self) -> Any:
        """The engine that is asked for."""
        from warmgap.lab.engines import Local, OnRay

        for name, value in (("jobs", self.jobs), ("processes", self.processes)):
            if value is not None and value < 1:
                raise UserError(f"The number of {name} must be at least 1, got {value}.")
        return (OnRay if self.on == "ray" else Local)(self.jobs, self.processes)


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """The settings that a run has whatever sets its rate."""

    schedule: ScheduleSettings = ScheduleSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    data: DataSettings = DataSettings()
    run_: Annotated[RunSettings, arg(name="run")] = RunSettings()

    @property
    def config(self) -> TrainConfig:
        """All of them, the method's where the command has them, as the configuration of a run."""
        groups = [vars(value) for value in vars(self).values() if isinstance(value, GROUPS)]
        return TrainConfig(**{name: value for group in groups for name, value in group.items()})


@dataclass(frozen=True, kw_only=True)
class _Method:
    """The method of a command that has one."""

    method: MethodSettings = MethodSettings()


@dataclass(frozen=True, kw_only=True)
class Train(_Settings, _Method):
    """Train one model.

    Example: warmgap train --optimizer lion --method linear:10% --steps 400

    Several processes: torchrun --nproc-per-node 2 --no-python warmgap train ...
    """

    output: Path | None = None  # Folder of the run (None: runs/MODEL-OPTIMIZER-METHOD-SEED).
    resume: bool = False  # Go on from the folder's last checkpoint.

    def run(self) -> int:
        config = self.config
        folder = self.output or Path("runs") / config.name
        if os.environ.get("RANK", "0") != "0":
            return self._follow(config, folder)
        what = f"{config.optimizer} on {config.corpus}, model {config.model}, method {config.method}"
        identity = config.fingerprint()
        _err(*config.ignored(), f"{what}, {config.steps} steps")
        from rich.console import Console

        from warmgap.lab.engines import Here
        from warmgap.lab.store import Store
        from warmgap.lab.sweep import run_plan

        with Store(folder) as store:
            known = store.runs(identity)
        if known and not self.resume:
            raise UserError(f"{folder} already holds this run ({known[0].status}): give --resume, or another --output.")
        (run,) = run_plan(
            [("", config)],
            folder,
            command=TYPED.get(),
            engine=Here(),
            console=Console(stderr=True),
            place=lambda _: ".",
        )
        if run.status == "running":
            raise UserError(f"{folder} is being trained by another process: wait for it, or give another --output.")
        return _report_end(run, folder)

    def _follow(self, config: TrainConfig, folder: Path) -> int:
        """Train as one of several processes, of which the first speaks and writes."""
        from warmgap.lab.store import FILE, Store
        from warmgap.lab.train import train

        if self.resume and (folder / FILE).exists():
            with Store(folder, create=False) as store:
                if any(run.finished for run in store.runs(config.fingerprint())):
                    return 0
        train(config, folder, resume=self.resume)
        return 0


@dataclass(frozen=True, kw_only=True)
class Sweep(_Settings):
    """Train a grid of runs: optimizers x rates x methods x seeds; finished runs are skipped.

    Example: warmgap sweep --optimizers muon lion:1e-3 --methods auto none linear:10% --rates 1/3 1 3 --seeds 0 1

    How much a setting of a rule matters: warmgap sweep --methods gap none --target-loss 1 2 3 --sigma 1e-4 1e-3
    """

    optimizers: tuple[str, ...] = ("muon",)  # Names, or name:lr to give each its peak rate.
    methods: Annotated[tuple[str, ...], arg(aliases=("--rules",), help=f"Methods: {EXAMPLES}.")] = (
        "auto",
        "none",
        "linear:10%",
    )
    seeds: tuple[int, ...] = (0,)  # Seeds.
    rates: tuple[Factor, ...] = (1.0,)  # Factors of the peak rate, such as 1/3 1 3.
    target_loss: tuple[float, ...] = ()  # Target losses, for each method that takes one.
    sigma: tuple[float, ...] = ()  # Curvature scales of the gap rule (the paper's sigma_F).
    kappa: tuple[float, ...] = ()  # Constants of the norm, for the gap rule.
    level: tuple[float, ...] = ()  # Losses at which loss-ratio ends its warm-up (the paper's C).
    output: Path = Path("runs/sweep")  # Folder of the sweep.
    where: EngineSettings = EngineSettings()

    def run(self) -> int:
        from rich.console import Console

        from warmgap.lab.methods import varied
        from warmgap.lab.sweep import grid, report_outcome, run_plan

        options = {"target": self.target_loss, "sigma": self.sigma, "kappa": self.kappa, "level": self.level}
        lists: dict[str, Any] = {name: getattr(self, name) for name in ("optimizers", "methods", "seeds", "rates")}
        lists["methods"] = varied(self.methods, options)
        base, console = self.config, Console()
        plan = grid(base, **lists)
        _err(*base.ignored(), f"{len(plan)} runs into {self.output}")
        runs = run_plan(plan, self.output, command=TYPED.get(), asked=lists, engine=self.where.engine, console=console)
        code = report_outcome(runs, self.output, console)
        if code == 0:
            _out(f"Next: warmgap report {self.output}")
        return code


@dataclass(frozen=True)
class Report:
    """Write the page of a folder of runs: interactive pictures, tables, every run. Works offline.

    Example: warmgap report runs/sweep
    """

    what: Positional[Path]  # Folder of a run, a sweep or a bench, or of several; or the results.json of a bench.
    output: Path | None = None  # Where to write (None: report.html in the folder).
    title: str = "Learning-rate schedules compared"  # Heading of the page.

    def run(self) -> int:
        from warmgap.lab.report import write_report
        from warmgap.lab.results import read_results, read_runs

        known = self.what.suffix == ".json"
        trials, folder = (read_results if known else read_runs)(self.what), self.what.parent if known else self.what
        place = self.output or folder / "report.html"
        page = write_report(trials, place, title=self.title, folder=folder, show=True)
        if left := sum(trial.counted is None for trial in trials):
            _out(f"{left} of {len(trials)} runs have no result, and are in no table.")
        _out(f"Page: {page}")
        return 0


@dataclass(frozen=True)
class Runs:
    """List the runs of a folder, export them, or take over those of an older version.

    Example: warmgap runs runs/sweep --export runs.csv
    """

    folder: Positional[Path]  # Folder with a runs.db.
    # A .json, .csv or .parquet file, or a tracker that is installed, such as tensorboard, wandb, mlflow.
    export: str | None = None
    adopt: Path | None = None  # Take over runs of warmgap 0.1 (run.json) from below this folder.

    def run(self) -> int:
        from warmgap.lab.store import Store

        with Store(self.folder, create=self.adopt is not None) as store:
            if self.adopt is not None:
                _out(f"{store.adopt(self.adopt)} runs taken over.")
            if self.export is not None:
                _out(f"Exported: {store.export(self.export)}")
                return 0
            for run in store.runs():
                loss = "-" if run.final_val_loss is None else f"{run.final_val_loss:.4f}"
                _out(f"{run.id}  {run.status:<11} step {run.step:<7} loss {loss:<8} {run.folder}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Demo:
    """See it in three minutes: final loss against peak rate, of the default and of schedules by step count.

    Example: warmgap demo
    """

    output: Path = Path("demo")  # Folder of the demo.
    where: EngineSettings = EngineSettings()

    def run(self) -> int:
        return Bench(suite="demo", output=self.output, where=self.where).run()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Train a suite of workloads with every method, and score the methods: regret, profile, worst case, flatness.

    Example: warmgap bench --suite mini
    """

    suite: str = "full"  # A name in recipes/suites (mini, demo, full), or a .toml file.
    split: str | None = None  # development or test (None: all).
    workloads: tuple[str, ...] = ()  # These workloads only.
    methods: Annotated[tuple[str, ...], arg(aliases=("--rules",))] = ()  # These methods only.
    seeds: tuple[int, ...] = ()  # Other seeds than the suite's.
    rates: tuple[Factor, ...] = ()  # Other factors of the peak rate than the suite's.
    report: Path | None = None  # Train nothing: score the results in this file.
    output: Path = Path("runs/bench")  # Folder of runs, results and page.
    where: EngineSettings = EngineSettings()

    def run(self) -> int:
        if self.report is not None:
            return Report(self.report, self.output / "report.html", self.report.stem).run()
        from warmgap.lab import bench
        from warmgap.lab.recipes import Recipe

        recipe = Recipe.load(self.suite if self.suite.endswith(".toml") else f"suites/{self.suite}")
        lists: dict[str, Any] = {name: getattr(self, name) for name in ("workloads", "methods", "seeds", "rates")}
        recipe = recipe.chosen(split=self.split, **lists)
        return bench.train_recipe(recipe, self.output, command=TYPED.get(), engine=self.where.engine)


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Train a row of a paper's table, at its size or smaller, beside the figures that the paper prints.

    Example: warmgap paper 2602.05813 --row lion-124m-32 --scale 1/1000 --plan
    """

    paper: Positional[str]  # A folder of recipes: 2602.05813 or 2510.03164.
    row: str | None = None  # A row (None: list the rows).
    scale: str = "1"  # Size of the model and of its training, such as 1/100.
    plan: bool = False  # Print what it would train and cost, and train nothing.
    tokens: tuple[str, ...] = ()  # Training lengths of the row (default: all), such as 1B.
    methods: tuple[str, ...] = ()  # These methods only.
    seeds: tuple[int, ...] = ()  # Other seeds than the paper's.
    corpus: str | None = None  # Another text than the paper's.
    tokenizer: str | None = None  # Another tokenizer, at the paper's size, such as a folder with GPT-2's files.
    output: Path | None = None  # Folder (None: runs/PAPER-ROW-SCALE).
    where: EngineSettings = EngineSettings()

    def run(self) -> int:
        from warmgap.lab import bench
        from warmgap.lab.recipes import Recipe, rows

        if self.row is None:
            for name in rows(self.paper):
                _out(f"{name:<24} {Recipe.load(f'{self.paper}/{name}').title}")
            return 0
        recipe = Recipe.load(f"{self.paper}/{self.row}")
        recipe = recipe.chosen(workloads=self.tokens, methods=self.methods, seeds=self.seeds)
        recipe = recipe.scaled(self.scale, corpus=self.corpus, tokenizer=self.tokenizer)
        if self.plan:
            _out(bench.cost(recipe))
            return 0
        folder = self.output or Path("runs") / f"{self.paper}-{self.row}-{self.scale.replace('/', '_')}"
        return bench.train_recipe(recipe, folder, command=TYPED.get(), engine=self.where.engine)


@dataclass(frozen=True, kw_only=True)
class Smoothness(_Settings, _Method):
    """Measure curvature along a run, fit the assumptions behind warm-up to it, and say whether they hold.

    Example: warmgap smoothness --optimizer gluon --steps 200 --rates 1/4 1 4 --write-radii radii.json
    """

    records: Positional[tuple[Path, ...]] = ()  # Records, or folders of them, to read instead of training.
    every: int = 1  # Measure every N-th step.
    estimator: str = "same-batch"  # same-batch, consecutive, directional or eigenvalue.
    norm: str = "auto"  # auto (the optimizer's), spectral, max, frobenius, euclidean or gluon.
    rates: tuple[Factor, ...] = (1.0,)  # Train once at each of these multiples of the peak rate, such as 1/4 1 4.
    gap_from: float | None = None  # Loss that gaps are taken to (None: as recorded; 0 in a new run).
    # Write the layer constants of the run nearest to rate 1 here, for train --radii.
    write_radii: Path | None = None
    output: Path | None = None  # Folder (None: runs/smoothness-OPTIMIZER; for records, beside them).

    def run(self) -> int:
        from warmgap.lab import smoothness

        config, folder = self.config, self.output
        if self.records:
            folder = folder or (self.records[0] if self.records[0].is_dir() else self.records[0].parent)
        else:
            folder = folder or Path("runs") / f"smoothness-{config.optimizer}"
            _err(f"Measuring {len(self.rates)} runs of {config.optimizer} into {folder}")
            norm = "gluon" if self.write_radii is not None and self.norm == "auto" else self.norm
            how = {"every": self.every, "estimator": self.estimator, "norm": norm, "target_loss": self.gap_from or 0.0}
            if not smoothness.measure(config, self.rates, folder, TYPED.get(), **how):
                _out(f"Interrupted. What was measured so far can be read: warmgap smoothness {folder}")
                return INTERRUPTED
        trajectories = smoothness.read_trajectories(self.records or [folder])
        page = smoothness.report(trajectories, folder / "smoothness.html", target_loss=self.gap_from)
        if self.write_radii is not None:
            chosen = smoothness.write_layer_constants(trajectories, self.write_radii)
            _out(f"Layer constants of {chosen.name}: {self.write_radii}")
            _out(f"Next: warmgap train --optimizer gluon --radii {self.write_radii}")
        _out(f"Page: {page}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Unified(_Settings, _Method):
    """Check along runs of several seeds whether gradients point away from where the run ends (arXiv 2502.12329).

    Example: warmgap unified --optimizer sgd --corpus digits --model mlp --seeds 0 1 2 --steps 450 --every 15
    """

    every: int = 20  # Take a point before every N-th step; each takes as much memory as the model.
    seeds: tuple[int, ...] = (0, 1, 2)  # Seeds.
    c1: float = 0.1  # The constant of the loss gap.
    c1_gradient: float = 0.01  # The constant of the squared gradient.
    output: Path | None = None  # Folder (None: runs/unified-OPTIMIZER).
    method: MethodSettings = MethodSettings(method="none")

    def run(self) -> int:
        config = self.config
        config.resolve()
        folder = self.output or Path("runs") / f"unified-{config.optimizer}"
        _err(f"Checking {len(self.seeds)} runs of {config.optimizer} into {folder}")
        from warmgap.lab.report import print_table
        from warmgap.lab.unified import check_runs, save_pictures, unified_rows

        checks = check_runs(config, self.seeds, self.every, folder, TYPED.get())
        if checks is None:
            return INTERRUPTED
        c1 = {"gap": self.c1, "gradient": self.c1_gradient}
        print_table(f"<grad f(x), x - x*> >= c1 P - c2, {len(self.seeds)} seeds", unified_rows(checks, c1))
        _out(f"Pictures: {', '.join(map(str, save_pictures(checks, c1, folder)))}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Show what rules would have done to the learning rate on losses that a run has recorded.

    Example: warmgap replay losses.csv --rules auto loss-ratio
    """

    losses: Positional[Path]  # A folder with runs.db, trainer_state.json, a .csv or .jsonl, or an event file.
    rules: tuple[str, ...] = ()  # Rules by name, with settings: loss-ratio,level=4 (none: all but linear).
    run_: Annotated[str | None, arg(name="run")] = None  # Id or folder of the run, where there are several.
    column: str | None = None  # Name of the losses in the file (None: the one that looks like a training loss).
    total_iters: int | None = None  # Optimizer steps in the whole run (None: as recorded).
    decay: str = "cosine"  # Decay of all of them.
    output: Path = Path("replay.html")  # The page.

    def run(self) -> int:
        from warmgap.lab.methods import Method
        from warmgap.lab.report import write_replay
        from warmgap.replay import RULES, read_losses, replay

        try:
            losses = read_losses(self.losses, self.column, self.run_)
            shown = {}
            for method in map(Method.parse, self.rules or [name for name in RULES if name != "linear"]):
                if not method.adaptive:
                    raise UserError(f"A replay shows rules, and {method} is a schedule by step count: leave it out.")
                if method.rule == "gap" and "kappa" not in dict(method.options):
                    raise UserError("The gap rule needs the constant of the optimizer's norm: write gap,kappa=NUMBER.")
                target: Any = "auto" if method.target is None else method.target
                how = {"decay": self.decay, "target_loss": target}
                (shown[str(method)],) = replay(losses, [method.rule_name], self.total_iters, **how).values()
        except (ValueError, FileNotFoundError) as error:
            raise UserError(f"{error}.") from error
        for name, found in shown.items():
            _out(f"{name}: {_warmup(found)}")
            for event in found.events:
                _out(f"  {event}")
        _out(f"Page: {write_replay(losses, shown, self.output)}")
        return 0


@dataclass(frozen=True)
class Theory:
    """Check every guarantee on problems with known constants, and print the table.

    Example: warmgap theory
    """

    def run(self) -> int:
        from warmgap.lab.report import print_table
        from warmgap.theory import check_all
        from warmgap.theory.check import COLUMNS

        checks = list(check_all())
        # A number that is cut off says nothing: rather lines that the terminal wraps.
        print_table("", [dict(zip(COLUMNS, check.cells, strict=True)) for check in checks], whole=True)
        failed = sum(not check.holds for check in checks)
        _out(f"{len(checks)} checks, {failed} failed.")
        return 1 if failed else 0


_KINDS = (Demo, Train, Sweep, Report, Runs, Replay, Bench, Paper, Smoothness, Unified, Theory)
COMMANDS: dict[str, type[Any]] = {kind.__name__.lower(): kind for kind in _KINDS}


def parse(arguments: Sequence[str]) -> Any:
    """The command that the arguments ask for: a dataclass whose `run` returns the exit code.

    Raises:
        UserError: They ask for none.
        SystemExit: They ask for help.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.extras.subcommand_cli_from_dict(
                {**COMMANDS},
                args=list(arguments),
                prog="warmgap",
                description="The learning-rate schedule without a warm-up to tune: train, compare, and see.",
                config=(OmitArgPrefixes, OmitSubcommandPrefixes),
            )
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise UserError(_sentence(errors.getvalue(), arguments)) from None


def _sentence(box: str, arguments: Sequence[str]) -> str:
    """What the parser's box says, in one sentence."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:]  # after the title
    text = " ".join(line.strip(" │|") for line in plain if not re.search("[-─]{3}", line))
    text = re.split(" For full helptext| Argument helptext| Got errors:| in warmgap ", text)[0]
    text = re.sub(r" Perhaps you meant: (--\S+).*", r"; perhaps you meant \1", text)
    text = re.sub(r"Missing from warmgap \w+: \S+ (.*?)\.? \(required\)", r"What is missing: \1", text)
    text = text.replace(" Available subcommands: ", "; there are ").strip().rstrip(".")
    known = [word for word in arguments[:1] if word in COMMANDS]
    return f"{text[:1].upper()}{text[1:]}: see {' '.join(['warmgap', *known])} --help."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    A mistake of the user is one sentence on the standard error stream and exit code 2; `--debug` shows the traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words[:1] == ["--version"]:
        _out(f"warmgap {__version__}")
        return 0
    try:
        TYPED.set(shlex.join(["warmgap", *words]))
        code: int = parse(words or ["--help"]).run()
        return code
    except KeyboardInterrupt:
        _err("Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, ModuleNotFoundError, OSError, sqlite3.Error) as error:
        if debug:
            traceback.print_exc()
        _err(f"warmgap: {explained(error)}")
        return USER_ERROR


def _report_end(run: Any, folder: Path) -> int:
    """Say how a run ended."""
    if run.status == "interrupted":
        _out(f"Interrupted after step {run.step}: run the same command with --resume to go on.")
        return INTERRUPTED
    if run.status == "diverged":
        _out(f"Diverged at step {run.step}: the loss is no longer finite. The run is in {folder}.")
        return DIVERGED
    if run.status != "done":
        raise UserError(run.message)
    _out(f"Validation loss {run.final_val_loss:.4f}, {_warmup(run)}, {run.seconds:.0f} s.")
    if run.summary:
        _out(run.summary)
    _out(f"Next: warmgap report {folder}")
    return 0


def _warmup(run: Any) -> str:
    return "no warm-up ended" if run.warmup_iters is None else f"warm-up of {run.warmup_iters} steps"


def _out(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _err(*lines: str) -> None:
    print(*lines, sep="\n", file=sys.stderr, flush=True)  # noqa: T201
