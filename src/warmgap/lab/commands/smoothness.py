"""`warmgap smoothness`: does curvature fall with the loss gap, on this model, with this optimizer?"""

import argparse
from pathlib import Path

from warmgap.lab.config import TrainConfig
from warmgap.lab.options import add_options, build

HELP = "measure the curvature along a run, fit the assumptions behind warm-up to it, and say whether they hold"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to read or how to measure, and the settings of the run."""
    parser.add_argument(
        "records",
        nargs="*",
        type=Path,
        metavar="RECORDS",
        help="files of records, or folders with some below, to read instead of training",
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="measure every N-th step (default: 1)")
    parser.add_argument(
        "--estimator",
        default="same-batch",
        metavar="NAME",
        help="same-batch, consecutive, directional or eigenvalue (default: same-batch)",
    )
    parser.add_argument(
        "--norm",
        default="auto",
        metavar="NORM",
        help="auto, spectral, max, frobenius, euclidean or gluon (default: auto, the optimizer's)",
    )
    parser.add_argument(
        "--rates",
        nargs="+",
        type=float,
        default=[1.0],
        metavar="FACTOR",
        help="train once at each of these multiples of the peak rate, and compare (default: 1)",
    )
    parser.add_argument(
        "--gap-from",
        type=float,
        default=None,
        metavar="LOSS",
        help="loss that gaps are taken to (default: what the records say; 0 in a new run)",
    )
    add_options(parser, TrainConfig, skip=("output", "resume"))
    parser.add_argument(
        "--output",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="folder of the runs and the page (default: runs/smoothness-OPTIMIZER; for records: beside them)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure or read, print the table, write the page; 130 where a run was interrupted."""
    from rich.console import Console

    from warmgap.lab.smoothness import Measurement, measure, print_fits, read_trajectories, write_page

    console = Console()
    folder: Path | None = arguments.output
    if arguments.records:
        trajectories = read_trajectories(arguments.records)
        first = arguments.records[0]
        folder = folder or (first if first.is_dir() else first.parent)
    else:
        folder = folder or Path("runs") / f"smoothness-{arguments.optimizer}"
        config = build(TrainConfig, arguments, output=None)
        how = Measurement(arguments.every, arguments.estimator, arguments.norm, arguments.gap_from or 0.0)
        if not measure(config, how, arguments.rates, folder):
            console.print("Interrupted. What was measured so far can be read: warmgap smoothness", folder)
            return 130
        trajectories = read_trajectories([folder])
    print_fits(trajectories, console, target_loss=arguments.gap_from)
    page = write_page(trajectories, folder / "smoothness", target_loss=arguments.gap_from)
    console.print(f"Page: {page}", highlight=False, markup=False, soft_wrap=True)
    return 0
