"""`warmgap demo`: a sweep of minutes that shows what the library does."""

import argparse
from pathlib import Path

HELP = "see it work: Muon and Lion on real text, the adaptive warm-up beside four set by hand (minutes on two cores)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where to write, and how many runs at a time."""
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), metavar="FOLDER", help="folder of the demo (default: demo)"
    )
    parser.add_argument("--jobs", type=int, default=None, metavar="N", help="runs at a time (default: one a core)")


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; exit code 0, 1 where a run failed, 130 where it was interrupted."""
    from rich.console import Console

    from warmgap.lab.demo import run_demo

    return run_demo(arguments.output, Console(), jobs=arguments.jobs)
