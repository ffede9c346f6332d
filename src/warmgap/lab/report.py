"""One page for runs, sweeps and benches: interactive pictures, tables, every run with its settings; works offline."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from plotly.offline import get_plotlyjs
from rich import box
from rich.console import Console
from rich.table import Table

from warmgap import __version__
from warmgap.lab import pictures, scores
from warmgap.lab.results import Trial, is_clock, label_of
from warmgap.lab.scores import Cell
from warmgap.lab.store import FILE, Store

READING = (
    "Differences are to the best clock schedule of the same workload and rate, seed by seed, in nats; the interval is "
    "Student's, of 95 %. better, worse: the interval is on one side of zero. tie: it holds zero, and the difference is "
    "below a seed deviation. cannot tell: the seeds do not allow either."
)
SCORES = (
    "Regret: final loss minus that of the workload's best clock schedule, which is chosen on the other seeds. In "
    "deviations: divided by what a change of the seed alone does to the loss. Within 1: share of workloads with a "
    "regret of one deviation at most. Failures: runs that diverged, or whose rule could not go on; they count with "
    "their first loss. Against the best clock schedule, the single one that is best over all development workloads: "
    "mean difference in deviations, and the larger p-value of a paired t test and Wilcoxon's."
)


@dataclass
class Section:
    """A part of the page."""

    title: str
    text: list[str] = field(default_factory=list)  # paragraphs
    pictures: list[Mapping[str, str]] = field(default_factory=list)  # id, JSON and caption of each
    tables: list[Sequence[Mapping[str, Any]]] = field(default_factory=list)  # each a list of rows by column
    runs: list[Mapping[str, Any]] = field(default_factory=list)  # line, text, command and settings of each
    files: list[tuple[str, str, Any]] = field(default_factory=list)  # of a PNG beside the page: name, title and picture

    @property
    def id(self) -> str:
        """The anchor."""
        return "".join(sign if sign.isalnum() else "-" for sign in self.title.lower())

    def draw(self, figure: Any, caption: str) -> Any:
        """Add a picture, and return it."""
        figure.update_layout(
            template="none",
            margin={"l": 60, "r": 15, "t": 20, "b": 50},
            font={"size": 13},
            legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            modebar={"bgcolor": "rgba(0,0,0,0)", "orientation": "v"},
            hovermode="closest",
        )
        number = len(self.pictures)
        self.pictures.append({"id": f"{self.id}-{number}", "json": figure.to_json(), "caption": caption})
        return figure


def write_page(path: Path, title: str, lead: Sequence[str], sections: Sequence[Section], footer: str = "") -> Path:
    """Write a page that holds everything it shows; an OSError where it cannot be written."""
    page = Environment(loader=PackageLoader("warmgap.lab", "."), autoescape=True).get_template("report.html.j2")
    plotly = get_plotlyjs() if any(section.pictures for section in sections) else ""
    footer = f"{footer} Made by warmgap {__version__}.".strip()
    text = page.render(
        title=title, lead=filter(None, lead), sections=sections, plotly=plotly, footer=footer, filled=_filled
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_report(
    trials: Sequence[Trial], path: Path, *, title: str, folder: Path, notes: str = "", show: bool = False
) -> Path:
    """Write the page of these trials, and `show` its tables in the terminal.

    Beside it comes `overview.png` where there are several rates, and `options.png` where an option of a rule varies.
    """
    cells = scores.cells(trials)
    sections = _scored(cells)
    with contextlib.ExitStack() as stack:
        folders = {trial.folder for trial in trials if trial.folder is not None}
        stores = {place: stack.enter_context(Store(place, create=False)) for place in folders}
        for workload in dict.fromkeys(trial.workload for trial in trials):
            own = [cell for cell in cells if cell.workload == workload]
            members = [trial for trial in trials if trial.workload == workload]
            sections.append(_workload(workload, own, members, stores))
    footer = ""
    if (folder / FILE).exists():
        with Store(folder, create=False) as store:
            footer = "; ".join(sweep["command"] for sweep in store.sweeps())
    lead = [notes, f"{len(trials)} runs of {len({trial.workload for trial in trials})} workloads. {READING}"]
    page = write_page(path, title, lead, sections, footer=footer and f"Made by: {footer}.")
    for name in ("overview", "options"):
        panels = [(title, drawn) for section in sections for own, title, drawn in section.files if own == name]
        if 0 < len(panels) <= 4:
            pictures.save_png(panels, path.with_name(f"{name}.png"))
    for section in sections if show else ():
        for rows in section.tables:
            print_table(section.title, rows)
    return page


def _workload(name: str, cells: Sequence[Cell], trials: Sequence[Trial], stores: Mapping[Path, Store]) -> Section:
    """A workload with its pictures, its table and its runs."""
    section = Section(name)
    if len(cells) > 1:
        caption = "Final loss against peak rate: mean over seeds, each seed a dot. What is far above the rest is cut."
        section.files.append(("overview", name, section.draw(pictures.rates_picture(cells), caption)))
    for cell in cells:
        for option, by_rest in pictures.option_groups(cell.methods).items():
            caption = f"Final loss against the {option} of a rule, peak rate {cell.lr:.3g}; dashes: other methods."
            figure = section.draw(pictures.option_picture(cell, option, by_rest), caption)
            section.files.append(("options", f"{cell.name}, peak rate {cell.lr:.3g}", figure))
    rate = min(cells, key=lambda cell: float(cell.losses.mean())).lr if cells else trials[0].lr
    seed = min(trial.seed for trial in trials if trial.lr == rate)
    shown = [trial for trial in trials if trial.run and (trial.lr, trial.seed) == (rate, seed)]
    if shown:
        words = f"peak rate {rate:.3g}, seed {seed}. A diamond is something that the schedule did."
        section.draw(pictures.curves_picture(shown, stores), f"Learning rate and training loss, {words}")
    section.tables.append([row for cell in cells for row in _rows(cell, trials, several=len(cells) > 1)])
    section.runs = [_run(trial, stores) for trial in trials if trial.run is not None]
    return section


def _scored(cells: Sequence[Cell]) -> list[Section]:
    """Scores over workloads, of the test and of the others, where there are enough of them."""
    found: list[Section] = []
    usable = scores.judged(cells)
    reference = scores.best_clock(usable)
    for split in dict.fromkeys(cell.split for cell in usable):
        own = [cell for cell in usable if cell.split == split]
        if len(own) < 2 or reference is None:
            continue
        ranked = scores.score(own, reference=reference)
        section = Section(f"Scores over {len(own)} {split} workloads".replace("  ", " "), [] if found else [SCORES])
        section.text.append(f"The best clock schedule is {label_of(reference)}.")
        section.draw(pictures.profile_picture(ranked), "Performance profile: higher and further left is better.")
        shown = [score.method for score in ranked[:8]]
        section.draw(pictures.regret_picture(own, shown), "Regret, workload by workload.")
        section.tables.append(_marked(scores.summary_rows(ranked)))
        found.append(section)
    if flat := scores.flatness(cells):
        rows = []
        for method in next(iter(flat.values())):
            if all(method in heights for heights in flat.values()):
                heights = {name: heights[method] for name, heights in flat.items()}
                means = {"mean": statistics.mean(heights.values())} | heights
                rows.append({"method": method} | {name: f"{height:.4f}" for name, height in means.items()})
        text = "Mean height above the lower envelope of all methods, in nats, over the peak rates tried."
        found.append(Section("Flatness", [text], tables=[_marked(sorted(rows, key=lambda row: float(row["mean"])))]))
    return found


def _marked(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Rows with the method's label, and a class for adaptive ones."""
    return [
        {**row, "method": label_of(row["method"]), "_class": "" if is_clock(row["method"]) else "adaptive"}
        for row in rows
    ]


def _filled(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns that are not empty all the way down."""
    return [name for name in (rows[0] if rows else ()) if name != "_class" and any(row[name] != "" for row in rows)]


def _rows(cell: Cell, trials: Sequence[Trial], *, several: bool) -> list[Mapping[str, str]]:
    """The table of one workload at one rate, the lowest loss first."""
    means = cell.losses.mean(axis=1)
    best = min(cell.clocks, key=lambda row: means[row], default=None)
    rows = []
    for at in np.argsort(means):
        method = cell.methods[at]
        own = [trial for trial in trials if trial.method == method and trial.lr == cell.lr]
        warmups = [trial.warmup_iters for trial in own if trial.warmup_iters is not None]
        spread = f" ± {cell.losses[at].std(ddof=1):.4f}" if len(cell.seeds) > 1 else ""
        row = {"peak rate": f"{cell.lr:.3g}"} if several else {}
        row |= {"method": method, "final loss": f"{means[at]:.4f}{spread}"}
        difference = interval = ""
        verdict = "" if best is None else "best clock schedule"
        if best is not None and at != best:
            deviation = cell.deviation if len(cell.seeds) > 1 else 0.0
            mean, (low, high), verdict = scores.compare(cell.losses[at], cell.losses[best], deviation)
            difference, interval = f"{mean:+.4f}", "" if len(cell.seeds) < 2 else f"{low:+.4f} to {high:+.4f}"
        row |= {"difference": difference, "95% interval": interval, "verdict": verdict}
        row["warm-up, steps"] = f"{statistics.mean(warmups):.0f}" if warmups else "-"
        if any(trial.printed is not None for trial in trials):
            row["in the paper"] = next((f"{trial.printed:.3f}" for trial in own if trial.printed), "")
        failures = int(cell.failures[at].sum())
        row["seeds"] = str(len(cell.seeds)) + (f", {failures} failures" if failures else "")
        rows.append(row)
    return _marked(rows)


def _run(trial: Trial, stores: Mapping[Path, Store]) -> dict[str, Any]:
    run = trial.run
    assert run is not None  # noqa: S101 - the caller looked
    loss = "" if run.final_val_loss is None else f", final loss {run.final_val_loss:.4f}"
    events = [] if trial.folder is None else stores[trial.folder].events(run.id)
    text = [run.summary or "", run.message, *(event["text"] for event in events)]
    names = ("verdict", "corpus_fingerprint", "parameters", "seconds", "device", "processes", "code", "versions")
    about = {name.replace("_", " "): value for name in names if (value := getattr(run, name)) is not None}
    return {
        "id": run.id,
        "line": f"{label_of(trial.method)}, peak rate {trial.lr:.3g}, seed {trial.seed}: {run.status}{loss}",
        "text": [line for line in text if line],
        "command": run.command,
        "settings": [*run.config.items(), *about.items()],
    }


def write_replay(losses: Any, shown: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a replay: the recorded losses, the factors of each rule, and what it did."""
    section = Section("Replay")
    caption = "Recorded loss, and rate / peak of the weights each rule governs."
    section.draw(pictures.replay_picture(losses, shown), caption)
    section.tables.append(
        [
            {"rule": name, "step": event.step, "what happened": event}
            for name, found in shown.items()
            for event in found.events
        ]
    )
    lead = "The losses of a run depend on its rates: this shows what a rule reads in them, not how a run under it goes."
    return write_page(path, "What the rules would have done", [lead], [section])


_WIDE = ("95% interval", "warm-up, steps")
"""Columns that do not fit a terminal."""


def print_table(title: str, rows: Sequence[Mapping[str, Any]], *, whole: bool = False) -> None:
    """Print rows as a table, those of adaptive methods bold; only columns of words wrap, with `whole` none."""
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = [name for name in _filled(rows) if name not in _WIDE]
    for name in names:
        table.add_column(name, no_wrap=whole or max(len(str(row[name])) for row in rows) < 16, overflow="fold")
    for row in rows:
        table.add_row(*(str(row[name]) for name in names), style="bold" if row.get("_class") == "adaptive" else None)
    if whole:
        wide = console.measure(table, options=console.options.update(max_width=300)).maximum
        console.width = max(console.width, wide)
    if title:
        console.print(title, highlight=False, markup=False, soft_wrap=True)
    console.print(table)
