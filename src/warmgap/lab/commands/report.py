"""`warmgap report`: the table and the pictures of a folder of runs."""

import argparse
from pathlib import Path

HELP = "write the report on a folder of runs: an HTML page, pictures, the table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the folder to read and the one to write."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of a sweep, or of several, or of one run")
    parser.add_argument(
        "--output", type=Path, default=None, metavar="FOLDER", help="where to write (default: FOLDER/report)"
    )
    parser.add_argument("--title", default="Warm-up report", help="heading of the page")


def run(arguments: argparse.Namespace) -> int:
    """Write the report and print its table."""
    from rich.console import Console

    from warmgap.lab.report import print_table, write_report

    report = write_report(arguments.folder, arguments.output, title=arguments.title)
    console = Console()
    print_table(report.workloads, console)
    console.print(f"Report: {report.page}", highlight=False, markup=False, soft_wrap=True)
    return 0
