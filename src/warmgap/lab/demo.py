"""The demo: two optimizers on real text, the warm-up that ends itself beside four that a person chose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from warmgap.lab.config import TrainConfig
from warmgap.lab.report import print_table, write_report
from warmgap.lab.sweep import Grid, run_sweep, tell

if TYPE_CHECKING:
    from rich.console import Console

TITLE = "A warm-up that ends itself"

EXPLANATION = """\
A small LLaMA learns to write encyclopedia articles, byte by byte, once with Muon and once with Lion. Every run has
the same length, the same peak learning rate for its optimizer, and the same decay after the warm-up; only the warm-up
differs. Four of the warm-ups were set by hand: none, and a straight rise over 5, 10 and 40 percent of the run. The
fifth is warmgap's: it was told nothing but the length of the run, watched the training loss, and chose by itself when
the learning rate had risen far enough.

To find the best length by hand takes a run for every length tried; the adaptive warm-up takes one. So the question is
how close it comes to the best of the four, and whether the difference is more than the noise between seeds."""

GRID = Grid(
    base=TrainConfig(corpus="wiki", model="tiny", steps=300, eval_every=0, save_every=0, eval_tokens=131_072),
    optimizers=("muon", "lion"),
    rules=("auto",),
    warmups=("0", "5%", "10%", "40%"),
    seeds=(0, 1, 2),
)


def run_demo(folder: Path, console: Console, *, grid: Grid = GRID, jobs: int | None = None) -> int:
    """Train what is not trained yet, write the report, print the table.

    Args:
        folder: where runs and report go.
        console: where to print.
        grid: what to train.
        jobs: runs at a time (see `run_sweep`).

    Returns:
        Exit code: 0, 1 where a run failed, 130 where it was interrupted.

    Raises:
        UserError: as `run_sweep` and `write_report` do.
    """
    configs = grid.configs(folder)
    console.print(
        f"{len(configs)} runs: {' and '.join(grid.optimizers)} on {grid.base.corpus}, the adaptive warm-up and "
        f"{len(grid.warmups)} set by hand, {len(grid.seeds)} seeds.",
        highlight=False,
    )
    outcomes = run_sweep(configs, folder, command=grid.command(folder), asked=grid.asked(), jobs=jobs, console=console)
    code = tell(outcomes, folder, console)
    if code == 0:
        report = write_report(folder, title=TITLE, explanation=EXPLANATION)
        print_table(report.workloads, console)
        console.print(f"Report, with pictures: {report.page}", highlight=False, markup=False, soft_wrap=True)
    return code
