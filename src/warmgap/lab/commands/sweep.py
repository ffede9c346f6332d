"""`warmgap sweep`: rules and warm-up lengths x optimizers x seeds."""

import argparse
from pathlib import Path

from warmgap.lab.config import TrainConfig
from warmgap.lab.options import add_options, build

HELP = "train a grid of runs: optimizers x rules and warm-up lengths x seeds; finished runs are skipped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the grid's options, and those of a single run that the grid does not set."""
    parser.add_argument(
        "--optimizers",
        nargs="+",
        default=["muon"],
        metavar="NAME[:LR]",
        help="optimizers, each with its own peak rate if wanted (default: muon)",
    )
    parser.add_argument("--rules", nargs="*", default=["auto"], metavar="RULE", help="warm-up rules (default: auto)")
    parser.add_argument(
        "--warmups",
        nargs="*",
        default=["0", "5%", "10%", "40%"],
        metavar="LENGTH",
        help="hand-tuned warm-ups, in steps or percent of the run (default: 0 5%% 10%% 40%%)",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="seeds (default: 0 1 2)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=None,
        metavar="N",
        help="runs at a time (default: one a core, or one where there is a GPU)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/sweep"),
        metavar="FOLDER",
        help="folder of the sweep (default: runs/sweep)",
    )
    add_options(parser, TrainConfig, skip=("optimizer", "rule", "seed", "output", "resume"))


def run(arguments: argparse.Namespace) -> int:
    """Run the sweep; exit code 0 where every run finished, 1 where one failed, 130 where it was interrupted."""
    from rich.console import Console

    from warmgap.lab.sweep import Grid, run_sweep, tell

    folder, console = arguments.output, Console()
    base = build(TrainConfig, arguments, output=None)
    grid = Grid(base, arguments.optimizers, arguments.rules, arguments.warmups, arguments.seeds)
    outcomes = run_sweep(
        grid.configs(folder),
        folder,
        command=grid.command(folder),
        asked=grid.asked(),
        jobs=arguments.jobs,
        console=console,
    )
    code = tell(outcomes, folder, console)
    if code == 0:
        console.print(f"Table and pictures: warmgap report {folder}", highlight=False, markup=False, soft_wrap=True)
    return code
