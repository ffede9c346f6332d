"""`warmgap theory`: every guarantee, run on problems with known constants."""

import argparse

HELP = "check every guarantee on problems with known constants, and print the table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the table is the same for everyone."""


def run(_arguments: argparse.Namespace) -> int:
    """Print a row a check as it is done; exit code 1 if one fails."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from warmgap.theory import check_all

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("guarantee", "problem", "quantity", "measured", "bound", "ratio", "holds"):
        right = heading in ("measured", "bound", "ratio")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    checks = list(check_all())
    for check in checks:
        bound = f"{check.relation} {check.bound:.5g}"
        holds = "yes" if check.holds else "NO"
        table.add_row(
            check.guarantee, check.problem, check.quantity, f"{check.measured:.5g}", bound, f"{check.ratio:.3g}", holds
        )
    console = Console()
    # A number that is cut off says nothing: rather lines that the terminal wraps.
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=300)).maximum)
    console.print(table)
    failed = sum(not check.holds for check in checks)
    print(f"{len(checks)} checks, {failed} failed.")  # noqa: T201
    return 1 if failed else 0
