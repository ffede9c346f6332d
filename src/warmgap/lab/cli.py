"""The command `warmgap`: each subcommand is a dataclass whose fields are its flags."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import itertools
import os
import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

try:
    import tyro
except ModuleNotFoundError:
    raise SystemExit("The command needs more packages: pip install 'warmgap[lab]'.") from None
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand
from tyro.constructors import PrimitiveConstructorSpec

from warmgap import __version__
from warmgap.lab.config import (
    GROUPS,
    DataSettings,
    MethodSettings,
    OptimizerSettings,
    RunSettings,
    ScheduleSettings,
    TrainConfig,
)
from warmgap.lab.errors import UserError
from warmgap.lab.methods import EXAMPLES

# Everything heavy is imported inside functions: help, and mistakes, come at once.

USER_ERROR, DIVERGED, INTERRUPTED = 2, 1, 130

Factor = Annotated[
    float,
    PrimitiveConstructorSpec[float](
        nargs=1,
        metavar="FACTOR",
        instance_from_str=lambda words: float(Fraction(words[0])),
        is_instance=lambda value: isinstance(value, float),
        str_from_instance=lambda value: [f"{value:g}"],
    ),
]
"""A number, or a fraction such as 1/4."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Where and how many at a time."""

    on: Annotated[Literal["local", "ray"], arg(help="Processes of this machine, or tasks on a Ray cluster.")] = "local"
    jobs: Annotated[int | None, arg(help="Runs at a time (None: one a core or GPU; on Ray, what fits).")] = None
    processes: Annotated[int, arg(help="GPUs a run, or processes on CPUs, started by torchrun.")] = 1

    def engine(self) -> Any:
        """The engine that is asked for.

        Raises:
            UserError: A number below 1.
        """
        from warmgap.lab.engines import Local, OnRay

        for name in ("jobs", "processes"):
            value = getattr(self, name)
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
        groups = [value for value in vars(self).values() if isinstance(value, GROUPS)]
        return TrainConfig(
            **{field.name: getattr(group, field.name) for group in groups for field in dataclasses.fields(group)}
        )


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

    output: Annotated[Path | None, arg(help="Folder of the run (None: runs/MODEL-OPTIMIZER-METHOD-SEED).")] = None
    resume: Annotated[bool, arg(help="Go on from the folder's last checkpoint.")] = False

    def run(self) -> int:
        """Train; 0, 1 where the run diverged, 130 where it was interrupted and can be resumed."""
        config = self.config
        config.resolve()
        folder = self.output or Path("runs") / config.name
        first = os.environ.get("RANK", "0") == "0"  # one process of several speaks and writes
        if first:
            _warn_ignored(config)
            _err(
                f"{config.optimizer} on {config.corpus}, model {config.model}, method {config.method}, "
                f"{config.steps} steps"
            )
        from warmgap.lab.store import Store

        identity = config.fingerprint()
        if not first:
            return self._worker(config, folder, identity)
        with Store(folder) as store:
            known = {run.id: run for run in store.runs()}
            store.add([(identity, ".", config.numbers(), config.command(folder))])
            run = store.run(identity)
            if identity in known and not self.resume:
                raise UserError(f"{folder} already holds this run ({run.status}): give --resume, or another --output.")
            if run.finished:
                return _report_end(run, folder)
            if not store.claim(identity):
                raise UserError(f"{folder} is being trained by another process: wait for it, or give another --output.")
            from warmgap.lab.store import Result
            from warmgap.lab.train import train

            try:
                result = train(
                    config, folder, resume=self.resume, progress=True, sink=lambda rows: store.write(identity, rows)
                )
            except UserError as error:
                store.finish(identity, Result("failed", str(error)))
                raise
            store.finish(identity, result)
            return _report_end(store.run(identity), folder)

    def _worker(self, config: TrainConfig, folder: Path, identity: str) -> int:
        from warmgap.lab.store import FILE, Store
        from warmgap.lab.train import train

        if self.resume and (folder / FILE).exists():
            with Store(folder, create=False) as store:
                if any(run.id == identity and run.finished for run in store.runs()):
                    return 0
        train(config, folder, resume=self.resume)
        return 0


@dataclass(frozen=True, kw_only=True)
class Sweep(_Settings):
    """Train a grid of runs: optimizers x rates x methods x seeds; finished runs are skipped.

    Example: warmgap sweep --optimizers muon lion:1e-3 --methods auto none linear:10% --rates 1/3 1 3 --seeds 0 1

    How much a setting of a rule matters: warmgap sweep --methods gap none --target-loss 1 2 3 --sigma 1e-4 1e-3
    """

    optimizers: Annotated[tuple[str, ...], arg(help="Names, or name:lr to give each its peak rate.")] = ("muon",)
    methods: Annotated[tuple[str, ...], arg(aliases=("--rules",), help=f"Methods: {EXAMPLES}.")] = (
        "auto",
        "none",
        "linear:10%",
    )
    seeds: Annotated[tuple[int, ...], arg(help="Seeds.")] = (0,)
    rates: Annotated[tuple[Factor, ...], arg(help="Factors of the peak rate, such as 1/3 1 3.")] = (1.0,)
    target_loss: Annotated[tuple[float, ...], arg(help="Target losses, for each method that takes one.")] = ()
    sigma: Annotated[tuple[float, ...], arg(help="Curvature scales of the gap rule (the paper's sigma_F).")] = ()
    kappa: Annotated[tuple[float, ...], arg(help="Constants of the norm, for the gap rule.")] = ()
    level: Annotated[tuple[float, ...], arg(help="Losses at which loss-ratio ends its warm-up (the paper's C).")] = ()
    output: Annotated[Path, arg(help="Folder of the sweep.")] = Path("runs/sweep")
    where: EngineSettings = EngineSettings()

    def run(self) -> int:
        """Sweep; 0 where every run finished, 1 where one failed, 130 where it was interrupted."""
        from rich.console import Console

        from warmgap.lab.methods import varied
        from warmgap.lab.sweep import Grid, report_outcome, run_plan

        base = self.config
        options = {"target": self.target_loss, "sigma": self.sigma, "kappa": self.kappa, "level": self.level}
        grid = Grid(base, self.optimizers, varied(self.methods, options), self.seeds, self.rates)
        plan, console = grid.plan(), Console()
        _warn_ignored(base)
        _err(f"{len(plan)} runs into {self.output}")
        asked = {name: list(getattr(grid, name)) for name in ("optimizers", "methods", "seeds", "rates")}
        runs = run_plan(
            plan,
            self.output,
            command=grid.command(self.output),
            asked=asked,
            engine=self.where.engine(),
            console=console,
        )
        code = report_outcome(runs, self.output, console)
        if code == 0:
            _out(f"Next: warmgap report {self.output}")
        return code


@dataclass(frozen=True)
class Report:
    """Write the page of a folder of runs: interactive pictures, tables, every run. Works offline.

    Example: warmgap report runs/sweep
    """

    folder: Annotated[Positional[Path], arg(help="Folder of a run, a sweep or a bench, or of several.")]
    output: Annotated[Path | None, arg(help="Where to write (None: FOLDER/report.html).")] = None
    title: Annotated[str, arg(help="Heading of the page.")] = "Learning-rate schedules compared"

    def run(self) -> int:
        """Write the page and print its table."""
        from warmgap.lab.report import print_tables, write_report
        from warmgap.lab.results import read_runs

        trials = read_runs(self.folder)
        page = write_report(trials, self.output or self.folder / "report.html", title=self.title, folder=self.folder)
        print_tables(trials)
        _out(f"Page: {page}")
        return 0


@dataclass(frozen=True)
class Runs:
    """List the runs of a folder, export them, or take over those of an older version.

    Example: warmgap runs runs/sweep --export runs.csv
    """

    folder: Annotated[Positional[Path], arg(help="Folder with a runs.db.")]
    export: Annotated[
        str | None, arg(help="A .json, .csv or .parquet file, or tensorboard, wandb, mlflow (where installed).")
    ] = None
    adopt: Annotated[Path | None, arg(help="Take over runs of warmgap 0.1 (run.json) from below this folder.")] = None

    def run(self) -> int:
        """List, export or import."""
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

    output: Annotated[Path, arg(help="Folder of the demo.")] = Path("demo")
    where: EngineSettings = EngineSettings()

    def run(self) -> int:
        """Run the suite `demo` and write its page and its picture."""
        return _bench("demo", self.output, self.where, title="Final loss against peak rate")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Train a suite of workloads with every method, and score the methods: regret, profile, worst case, flatness.

    Example: warmgap bench --suite mini
    """

    suite: Annotated[str, arg(help="A name in recipes/suites (mini, demo, full), or a .toml file.")] = "full"
    split: Annotated[str | None, arg(help="development or test (None: all).")] = None
    workloads: Annotated[tuple[str, ...], arg(help="These workloads only.")] = ()
    methods: Annotated[tuple[str, ...], arg(aliases=("--rules",), help="These methods only.")] = ()
    seeds: Annotated[tuple[int, ...], arg(help="Other seeds than the suite's.")] = ()
    rates: Annotated[tuple[Factor, ...], arg(help="Other factors of the peak rate than the suite's.")] = ()
    report: Annotated[Path | None, arg(help="Train nothing: score the results in this file.")] = None
    output: Annotated[Path, arg(help="Folder of runs, results and page.")] = Path("runs/bench")
    where: EngineSettings = EngineSettings()

    def run(self) -> int:
        """Train and score; 0, 1 where a run failed, 130 where it was interrupted."""
        if self.report is not None:
            from warmgap.lab.report import print_scores, write_report
            from warmgap.lab.results import read_results

            trials = read_results(self.report)
            print_scores(trials)
            _out(
                f"Page: {write_report(trials, self.output / 'report.html', title=self.report.stem, folder=self.output)}"
            )
            return 0
        chosen = {
            name: getattr(self, name)
            for name in ("split", "workloads", "methods", "seeds", "rates")
            if getattr(self, name)
        }
        return _bench(self.suite, self.output, self.where, title=f"Bench: {Path(self.suite).stem}", **chosen)


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Train a row of a paper's table, at its size or smaller, beside the figures that the paper prints.

    Example: warmgap paper 2602.05813 --row lion-124m-32 --scale 1/1000 --plan
    """

    paper: Annotated[Positional[str], arg(help="A folder of recipes: 2602.05813 or 2510.03164.")]
    row: Annotated[str | None, arg(help="A row (None: list the rows).")] = None
    scale: Annotated[str, arg(help="Size of the model and of its training, such as 1/100.")] = "1"
    plan: Annotated[bool, arg(help="Print what it would train and cost, and train nothing.")] = False
    tokens: Annotated[tuple[str, ...], arg(help="Training lengths of the row (default: all), such as 1B.")] = ()
    methods: Annotated[tuple[str, ...], arg(help="These methods only.")] = ()
    seeds: Annotated[tuple[int, ...], arg(help="Other seeds than the paper's.")] = ()
    corpus: Annotated[str | None, arg(help="Another text than the paper's.")] = None
    output: Annotated[Path | None, arg(help="Folder (None: runs/PAPER-ROW-SCALE).")] = None
    where: EngineSettings = EngineSettings()

    def run(self) -> int:
        """List, plan or train."""
        from warmgap.lab import bench
        from warmgap.lab.recipes import Recipe, rows

        if self.row is None:
            for name in rows(self.paper):
                _out(f"{name:<24} {Recipe.load(f'{self.paper}/{name}').title}")
            return 0
        recipe = Recipe.load(f"{self.paper}/{self.row}").chosen(
            workloads=self.tokens, methods=self.methods, seeds=self.seeds
        )
        recipe = recipe.scaled(self.scale, corpus=self.corpus)
        if self.plan:
            _out(bench.cost(recipe))
            return 0
        folder = self.output or Path("runs") / f"{self.paper}-{self.row}-{self.scale.replace('/', '_')}"
        command = shlex.join(
            ["warmgap", "paper", self.paper, *_words(self, "row", "scale", "tokens", "methods", "seeds", "corpus")]
        )
        return bench.train_recipe(recipe, folder, command=command, engine=self.where.engine(), title=recipe.title)


@dataclass(frozen=True, kw_only=True)
class Smoothness(_Settings, _Method):
    """Measure curvature along a run, fit the assumptions behind warm-up to it, and say whether they hold.

    Example: warmgap smoothness --optimizer gluon --steps 200 --rates 1/4 1 4 --write-radii radii.json
    """

    records: Annotated[
        Positional[tuple[Path, ...]], arg(help="Records, or folders of them, to read instead of training.")
    ] = ()
    every: Annotated[int, arg(help="Measure every N-th step.")] = 1
    estimator: Annotated[str, arg(help="same-batch, consecutive, directional or eigenvalue.")] = "same-batch"
    norm: Annotated[str, arg(help="auto (the optimizer's), spectral, max, frobenius, euclidean or gluon.")] = "auto"
    rates: Annotated[
        tuple[Factor, ...], arg(help="Train once at each of these multiples of the peak rate, such as 1/4 1 4.")
    ] = (1.0,)
    gap_from: Annotated[float | None, arg(help="Loss that gaps are taken to (None: as recorded; 0 in a new run).")] = (
        None
    )
    write_radii: Annotated[
        Path | None, arg(help="Write the layer constants of the run nearest to rate 1 here, for train --radii.")
    ] = None
    output: Annotated[Path | None, arg(help="Folder (None: runs/smoothness-OPTIMIZER; for records, beside them).")] = (
        None
    )

    def run(self) -> int:
        """Measure or read, print the fits, write the page; 130 where a run was interrupted."""
        from warmgap.lab.smoothness import (
            Findings,
            Measurement,
            measure,
            print_fits,
            read_trajectories,
            write_layer_constants,
            write_page,
        )

        config, folder = self.config, self.output
        if self.records:
            folder = folder or (self.records[0] if self.records[0].is_dir() else self.records[0].parent)
            trajectories = read_trajectories(self.records)
        else:
            folder = folder or Path("runs") / f"smoothness-{config.optimizer}"
            _err(f"Measuring {len(self.rates)} runs of {config.optimizer} into {folder}")
            norm = "gluon" if self.write_radii is not None and self.norm == "auto" else self.norm
            how = Measurement(self.every, self.estimator, norm, self.gap_from or 0.0)
            if not measure(config, how, self.rates, folder):
                _out(f"Interrupted. What was measured so far can be read: warmgap smoothness {folder}")
                return INTERRUPTED
            trajectories = read_trajectories([folder])
        findings = Findings.of(trajectories, target_loss=self.gap_from)
        print_fits(findings)
        if self.write_radii is not None:
            _out(f"Layer constants of {write_layer_constants(trajectories, self.write_radii).name}: {self.write_radii}")
            _out(f"Next: warmgap train --optimizer gluon --radii {self.write_radii}")
        _out(f"Page: {write_page(findings, folder / 'smoothness.html')}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Unified(_Settings, _Method):
    """Check along runs of several seeds whether gradients point away from where the run ends (arXiv 2502.12329).

    Example: warmgap unified --optimizer sgd --corpus digits --model mlp --seeds 0 1 2 --steps 450 --every 15
    """

    every: Annotated[int, arg(help="Take a point before every N-th step; each takes as much memory as the model.")] = 20
    seeds: Annotated[tuple[int, ...], arg(help="Seeds.")] = (0, 1, 2)
    c1: Annotated[float, arg(help="The constant of the loss gap.")] = 0.1
    c1_gradient: Annotated[float, arg(help="The constant of the squared gradient.")] = 0.01
    output: Annotated[Path | None, arg(help="Folder (None: runs/unified-OPTIMIZER).")] = None
    method: MethodSettings = MethodSettings(method="none")

    def run(self) -> int:
        """Train, print the table, write points and pictures; 130 where a run was interrupted."""
        from warmgap.lab.report import print_table

        config = self.config
        config.resolve()
        folder = self.output or Path("runs") / f"unified-{config.optimizer}"
        _err(f"Checking {len(self.seeds)} runs of {config.optimizer} into {folder}")
        from warmgap.lab.unified import check_runs, save_pictures, unified_rows

        checks = check_runs(config, self.seeds, self.every, folder)
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

    losses: Annotated[
        Positional[Path], arg(help="A folder with runs.db, trainer_state.json, a .csv or .jsonl, or an event file.")
    ]
    rules: Annotated[tuple[str, ...], arg(help="Rules by name, with settings: loss-ratio,level=4 (none: some).")] = ()
    run_: Annotated[str | None, arg(name="run", help="Id or folder of the run, where there are several.")] = None
    column: Annotated[str | None, arg(help="Name of the losses in the file (None: found).")] = None
    total_iters: Annotated[int | None, arg(help="Optimizer steps in the whole run (None: as recorded).")] = None
    decay: Annotated[str, arg(help="Decay of all of them.")] = "cosine"
    output: Annotated[Path, arg(help="The page.")] = Path("replay.html")

    def run(self) -> int:
        """Replay, print what happened, write the page."""
        from warmgap.lab.methods import Method
        from warmgap.lab.report import write_replay
        from warmgap.lab.results import recorded_losses
        from warmgap.replay import RULES, read_losses, replay

        try:
            losses = recorded_losses(self.losses, self.run_) or read_losses(self.losses, self.column)
            rules = {name: Method.parse(name) for name in self.rules or RULES if name != "linear"}
            if clocks := [name for name, method in rules.items() if not method.adaptive]:
                raise UserError(f"A replay shows rules, and {clocks[0]} is a schedule by step count: leave it out.")
            shown = replay(losses, [method.rule_name for method in rules.values()], self.total_iters, decay=self.decay)
        except (ValueError, FileNotFoundError) as error:
            raise UserError(f"{error}.") from error
        for name, found in shown.items():
            length = "no warm-up ended" if found.warmup_iters is None else f"warm-up of {found.warmup_iters} steps"
            _out(f"{name}: {length}")
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
        """Print a row a check; exit code 1 if one fails."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        from warmgap.theory import check_all
        from warmgap.theory.check import COLUMNS

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in COLUMNS:
            right = heading in ("measured", "bound", "ratio", "looseness")
            table.add_column(heading, justify="right" if right else "left", no_wrap=True)
        checks = list(check_all())
        for check in checks:
            table.add_row(*check.cells)
        console = Console()
        # A number that is cut off says nothing: rather lines that the terminal wraps.
        console.width = max(
            console.width, console.measure(table, options=console.options.update(max_width=300)).maximum
        )
        console.print(table)
        failed = sum(not check.holds for check in checks)
        _out(f"{len(checks)} checks, {failed} failed.")
        return 1 if failed else 0


COMMANDS: dict[str, type[Any]] = {
    "train": Train,
    "sweep": Sweep,
    "report": Report,
    "runs": Runs,
    "demo": Demo,
    "bench": Bench,
    "paper": Paper,
    "smoothness": Smoothness,
    "unified": Unified,
    "theory": Theory,
    "replay": Replay,
}


def parse(arguments: Sequence[str]) -> Any:
    """The command that the arguments ask for: a dataclass with a `run`.

    Raises:
        UserError: They ask for none.
        SystemExit: They ask for help.
    """
    union: Any = None
    for name, command in COMMANDS.items():
        kind: Any = Annotated[command, subcommand(name)]
        union = kind if union is None else union | kind
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                union,
                args=list(arguments),
                prog="warmgap",
                description="The learning-rate schedule that needs no tuning: train, compare, and see.",
                config=(OmitArgPrefixes, OmitSubcommandPrefixes),
            )
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise UserError(_sentence(errors.getvalue(), arguments)) from None


def _sentence(box: str, arguments: Sequence[str]) -> str:
    """What the parser's box says, in one sentence."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()
    lines = [line.strip(" │|") for line in plain if not re.search("[-─]{3}", line)]
    text = re.split(
        " For full helptext| Argument helptext| in warmgap ",
        " ".join(itertools.dropwhile(lambda line: ":" not in line, lines)),
    )[0]
    text = re.sub(r" Perhaps you meant: (--\S+).*", r"; perhaps you meant \1", text)
    text = text.replace(" Available subcommands: ", "; there are ")
    known = [word for word in arguments[:1] if word in COMMANDS]
    return f"{text.strip().rstrip('.')}: see {' '.join(['warmgap', *known])} --help."


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
        code: int = parse(words or ["--help"]).run()
        return code
    except UserError as error:
        return _fail(str(error), debug=debug)
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        return _fail(f"This command needs the package {package}: pip install 'warmgap[lab]'.", debug=debug)
    except KeyboardInterrupt:
        _err("Interrupted.")
        return INTERRUPTED
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            sentence = f"The disk is full{where}: make room and run again with --resume; the last checkpoint is whole."
            return _fail(sentence, debug=debug)
        return _fail(f"{error.strerror or error}{where}.", debug=debug)


def _bench(suite: str, folder: Path, where: EngineSettings, *, title: str, **chosen: Any) -> int:
    from warmgap.lab import bench
    from warmgap.lab.recipes import Recipe

    recipe = Recipe.load(suite if suite.endswith(".toml") else f"suites/{suite}").chosen(**chosen)
    more = itertools.chain.from_iterable(_flag(name, value) for name, value in chosen.items())
    command = shlex.join(["warmgap", "bench", "--suite", suite, *more, "--output", str(folder)])
    return bench.train_recipe(recipe, folder, command=command, engine=where.engine(), title=title)


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
    warmup = "no warm-up ended" if run.warmup_iters is None else f"warm-up of {run.warmup_iters} steps"
    _out(f"Validation loss {run.final_val_loss:.4f}, {warmup}, {run.seconds:.0f} s.")
    if run.summary:
        _out(run.summary)
    _out(f"Next: warmgap report {folder}")
    return 0


def _words(command: Any, *names: str) -> list[str]:
    """The flags of these names that were given, as words of a command line."""
    given = {field.name: getattr(command, field.name) for field in dataclasses.fields(command)}
    usual = {field.name: field.default for field in dataclasses.fields(command)}
    return [word for name in names if given[name] != usual[name] for word in _flag(name, given[name])]


def _flag(name: str, value: Any) -> list[str]:
    values = value if isinstance(value, tuple | list) else [value]
    return [f"--{name.replace('_', '-')}", *map(str, values)]


def _warn_ignored(config: TrainConfig) -> None:
    for sentence in config.ignored():
        _err(sentence)


def _out(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _err(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def _fail(sentence: str, *, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    _err(f"warmgap: {sentence}")
    return USER_ERROR
