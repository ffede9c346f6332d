"""The rows of a paper that were run small, beside what it prints: a table, and final loss against warm-up length.

    warmgap paper 2602.05813 --row ROW --scale 1/1000 --corpus stdlib --tokens 1B --output runs/ROW
    python benchmarks/paper.py runs/*/results.json --output docs/images/paper-small.png

`benchmarks/results/paper-*.json` are those of the page.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go

from warmgap.lab.methods import Method
from warmgap.lab.pictures import save_png, styles
from warmgap.lab.results import Trial, label_of, read_results

ROWS = {"muon-124m-256": "Muon", "lion-124m-256": "Lion", "nsgd-124m-256": "normalized SGD"}


def name_of(path: Path) -> str:
    return next(title for row, title in ROWS.items() if row in str(path))


def table(rows: Sequence[tuple[str, Sequence[Trial]]]) -> str:
    lines = ["| | method | ours, small | the paper's, 124M |", "|---|---|---|---|"]
    for title, trials in rows:
        for trial in sorted(trials, key=lambda trial: trial.counted or 0.0):
            printed = "" if trial.printed is None else f"{trial.printed:.3f}"
            lines.append(f"| {title} | {label_of(trial.method)} | {trial.counted:.3f} | {printed} |")
    return "\n".join(lines)


def figure(trials: Sequence[Trial]) -> go.Figure:
    """Final loss against the share of the run that is warm-up; rules as horizontal lines."""
    drawn = go.Figure()
    clocks = sorted((Method.parse(trial.method).warmup.value, trial.loss) for trial in trials if trial.clock)
    line = {"color": "#08519C", "width": 2}
    drawn.add_scatter(
        x=[share for share, _ in clocks], y=[loss for _, loss in clocks], mode="lines+markers", line=line,
        name="linear warm-up",
    )  # fmt: skip
    rules = [trial for trial in trials if not trial.clock and trial.method != "published"]
    for trial in rules:
        line = styles([each.method for each in rules])[trial.method]
        drawn.add_scatter(x=[0.0, 0.5], y=[trial.loss] * 2, mode="lines", line=line, name=label_of(trial.method))
    return drawn.update_xaxes(title="warm-up, share of the run").update_yaxes(title="final validation loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, default=Path("paper.png"))
    arguments = parser.parse_args()
    rows = [(name_of(path), read_results(path)) for path in arguments.results]
    print(table(rows))
    save_png([(title, figure(trials)) for title, trials in rows], arguments.output)


if __name__ == "__main__":
    main()
