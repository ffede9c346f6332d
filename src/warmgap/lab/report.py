"""The report on a folder of runs: a self-contained HTML page, the pictures as PNGs, the table as JSON and Markdown."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from warmgap.lab import figures
from warmgap.lab.errors import UserError
from warmgap.lab.page import as_png, html_figure, html_page
from warmgap.lab.smoothness import RECORDS_FILE, read_trajectories, sections
from warmgap.lab.stats import CONFIDENCE
from warmgap.lab.sweep import SWEEP_FILE, load_sweeps
from warmgap.lab.table import HEADINGS, Method, Run, Workload, as_plain, as_rows, format_spread, load_runs, tabulate

if TYPE_CHECKING:
    from rich.console import Console

_TERMINAL = ("warm-up", "steps", "final loss", "difference", "verdict")
"""The columns that fit a terminal; the sentences below it say the rest."""

CRITERION = (
    "Verdict: the adaptive rule's final loss minus that of the best hand-tuned warm-up, seed by seed (same weights and "
    f"batches), with Student's {CONFIDENCE:.0%} interval. Below zero: win. Above zero: loss. Zero inside: "
    "tie where the difference is no larger than the deviation between seeds, else no verdict: more seeds are needed. A "
    "rule that diverges on more seeds than the other loses. The best hand-tuned warm-up is picked by its mean on these "
    "same seeds, which flatters the hand-tuned side."
)


@dataclass(frozen=True)
class Report:
    """What was written, and what it says.

    Attributes:
        page: the HTML page.
        pictures: the PNG files.
        workloads: the table's contents.
    """

    page: Path
    pictures: Sequence[Path]
    workloads: Sequence[Workload]


def write_report(
    folder: Path, output: Path | None = None, *, title: str = "Warm-up report", explanation: str = ""
) -> Report:
    """Read every run in or below a folder and write `report.html`, the PNGs, `table.json` and `table.md`.

    Args:
        folder: the folder of a sweep, or of several, or of one run.
        output: where to write; `folder/report` unless given.
        title: heading of the page.
        explanation: a paragraph of plain text under the heading.

    Raises:
        UserError: no runs there, a record that is not one of ours, or a place that cannot be written to.
    """
    runs = load_runs(folder)
    workloads = tabulate(runs)
    output = output or folder / "report"
    pictures: dict[str, bytes] = {}
    with figures.house_style():
        if len(workloads) <= 4:
            pictures["overview.png"] = as_png(figures.overview_figure(workloads))
        for workload in workloads:
            pictures[f"curves-{workload.slug}.png"] = as_png(figures.curves_figure(workload))
            pictures[f"lengths-{workload.slug}.png"] = as_png(figures.lengths_figure(workload))
    measured: list[str] = []
    if any(folder.rglob(RECORDS_FILE)):
        pieces, drawn, _ = sections(read_trajectories([folder]))
        measured = ["<h2>Curvature and the loss gap</h2>", *pieces]
        pictures |= drawn
    page = _page(title, explanation, folder, runs, workloads, pictures, measured)
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, data in pictures.items():
            (output / name).write_bytes(data)
        (output / "table.json").write_text(json.dumps(as_plain(workloads), indent=2) + "\n", encoding="utf-8")
        (output / "table.md").write_text(_markdown(workloads), encoding="utf-8")
        (output / "report.html").write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The report cannot be written to {output}: {error.strerror or error}; make room, or give another --output."
        ) from error
    return Report(output / "report.html", [output / name for name in pictures], workloads)


def print_table(workloads: Sequence[Workload], console: Console) -> None:
    """Print the table of every workload, and the sentence that sums it up."""
    from rich import box
    from rich.table import Table

    for workload in workloads:
        shown = Table(
            title=workload.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
        )
        columns = [index for index, heading in enumerate(HEADINGS) if heading in _TERMINAL]
        for index in columns:
            right = HEADINGS[index] in ("steps", "difference")
            shown.add_column(HEADINGS[index], justify="right" if right else "left", no_wrap=True)
        for method, row in zip(workload.methods, as_rows(workload), strict=True):
            shown.add_row(*(row[index] for index in columns), style="bold" if method.adaptive else "")
        console.print(shown)
        remarks = [
            f"{method.label}: {'; '.join(method.notes)}."
            for method in workload.methods
            if method.notes and not method.adaptive
        ]
        console.print(*sentences(workload), *remarks, sep="\n", highlight=False, markup=False)
        console.print()
    for caution in cautions(workloads):
        console.print(caution, style="bold", highlight=False, markup=False)


def sentences(workload: Workload) -> list[str]:
    """The result of a workload in plain words, a sentence an adaptive rule."""
    return [_sentence(method, workload) for method in workload.methods if method.adaptive]


def cautions(workloads: Sequence[Workload]) -> list[str]:
    """What a reader must know before comparing: runs that were not made by one and the same code."""
    records = [run.record for workload in workloads for method in workload.methods for run in method.runs]
    states = {(record.commit, json.dumps(record.versions, sort_keys=True)) for record in records}
    if len(states) == 1:
        return []
    return [f"The runs were made by {len(states)} different states of the code: their differences may be the code's."]


def _sentence(method: Method, workload: Workload) -> str:
    lengths = [run.warmup_steps for run in method.runs if run.finished and run.warmup_steps is not None]
    label = method.label[0].upper() + method.label[1:]
    if lengths:
        range_ = f"{min(lengths)}" if min(lengths) == max(lengths) else f"{min(lengths)} to {max(lengths)}"
        parts = [f"{label}: warm-up ended after {range_} of {workload.steps} steps"]
    else:
        parts = [f"{label}: warm-up never ended"]
    if method.loss.mean is not None:
        parts.append(f"final loss {format_spread(method.loss)}")
    if workload.best is not None:
        best = workload.best
        parts.append(f"best hand-tuned {format_spread(best.loss)} ({best.label})")
    if method.comparison is not None:
        verdict = {"none": "no verdict yet", "win": "a win", "tie": "a tie", "loss": "a loss"}[
            method.comparison.verdict
        ]
        parts.append(f"{verdict} ({method.comparison.reason})")
    return "; ".join([*parts, *method.notes]) + "."


def _markdown(workloads: Sequence[Workload]) -> str:
    parts = []
    for workload in workloads:
        rows = [HEADINGS, ("---",) * len(HEADINGS), *as_rows(workload)]
        parts += [
            f"### {workload.title}",
            "",
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            *sentences(workload),
            "",
        ]
    return "\n".join([*parts, *cautions(workloads), CRITERION, ""])


def _page(
    title: str,
    explanation: str,
    folder: Path,
    runs: Sequence[Run],
    workloads: Sequence[Workload],
    pictures: dict[str, bytes],
    measured: Sequence[str],
) -> str:
    body = [f"<h1>{html.escape(title)}</h1>"]
    if explanation:
        body += [f"<p>{html.escape(paragraph)}</p>" for paragraph in explanation.strip().split("\n\n")]
    body += [f"<p>{html.escape(sentence)}</p>" for workload in workloads for sentence in _with_title(workload)]
    body += [f"<p><strong>{html.escape(caution)}</strong></p>" for caution in cautions(workloads)]
    for workload in workloads:
        body += [
            f"<h2>{html.escape(workload.title)}</h2>",
            html_figure(
                pictures[f"curves-{workload.slug}.png"],
                f"Learning rate and training loss against steps, {workload.title}",
                "Blue: warm-ups whose length a person chose, the darker the longer. Other colours: rules that end the "
                "warm-up themselves; a diamond and a dotted line mark the hand-over of each run to the decay.",
            ),
            html_figure(
                pictures[f"lengths-{workload.slug}.png"],
                f"Final validation loss against warm-up length, {workload.title}",
                "Small dots: one run each; large dots: their mean with one standard deviation. Horizontal line and "
                "band: mean and standard deviation of an adaptive rule, drawn across because it was given no length; "
                "diamonds: its runs, at the length each found. Lower is better.",
            ),
            _html_table(workload),
        ]
    body += [
        "<h2>How to read the verdict</h2>",
        f'<p class="note">{html.escape(CRITERION)}</p>',
        "<h2>Every run</h2>",
        _runs_table(runs, folder),
        *measured,
        "<h2>How this was made</h2>",
        *_provenance(folder, runs),
    ]
    return html_page(title, body)


def _with_title(workload: Workload) -> list[str]:
    return [f"{workload.title}. {sentence}" for sentence in sentences(workload)]


def _html_table(workload: Workload) -> str:
    lines = ["<tr>" + "".join(f"<th>{html.escape(heading)}</th>" for heading in HEADINGS) + "</tr>"]
    for method, row in zip(workload.methods, as_rows(workload), strict=True):
        kind = "adaptive" if method.adaptive else "best" if method.best else "hand-tuned"
        cells = [
            f'<td class="{html.escape(cell)}">{html.escape(cell)}</td>'
            if heading == "verdict" and cell in ("win", "tie", "loss")
            else f"<td>{html.escape(cell)}</td>"
            for heading, cell in zip(HEADINGS, row, strict=True)
        ]
        lines.append(f'<tr class="{kind}">{"".join(cells)}</tr>')
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def _runs_table(runs: Sequence[Run], folder: Path) -> str:
    headings = ("run", "rule", "seed", "status", "warm-up steps", "final validation loss", "tokens a second", "seconds")
    lines = ["<tr>" + "".join(f"<th>{heading}</th>" for heading in headings) + "</tr>"]
    for run in runs:
        cells = (
            str(run.folder.relative_to(folder)),
            run.rule,
            str(run.seed),
            run.record.status,
            "never ended" if run.stuck else "-" if run.warmup_steps is None else str(run.warmup_steps),
            "-" if run.final_loss is None else f"{run.final_loss:.4f}",
            f"{run.record.tokens_per_second:,.0f}",
            f"{run.record.seconds:,.0f}",
        )
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"


def _provenance(folder: Path, runs: Sequence[Run]) -> list[str]:
    commands = [sweep["command"] for path in sorted(folder.rglob(SWEEP_FILE)) for sweep in load_sweeps(path.parent)]
    own = sorted({run.record.command for run in runs})
    versions = sorted({f"{name} {version}" for run in runs for name, version in run.record.versions.items()})
    commits = sorted({run.record.commit or "not a checkout" for run in runs})
    parts = [f"<pre>{html.escape(chr(10).join(commands))}</pre>"] if commands else []
    listed = html.escape("\n".join(own))
    return [
        *parts,
        f"<details><summary>The command of each run</summary><pre>{listed}</pre></details>",
        f'<p class="note">Versions: {html.escape(", ".join(versions))}. Commit: {html.escape(", ".join(commits))}.</p>',
    ]
