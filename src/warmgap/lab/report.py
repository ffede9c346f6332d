"""One page for runs, sweeps and benches: interactive pictures, tables, every run with its settings; works offline."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from warmgap.lab import scores
from warmgap.lab.errors import UserError
from warmgap.lab.results import Trial, label_of
from warmgap.lab.scores import Cell
from warmgap.lab.store import Store

_DRAW = """
function ink() { return getComputedStyle(document.body).getPropertyValue("--ink").trim(); }
function line() { return getComputedStyle(document.body).getPropertyValue("--line").trim(); }
function look(layout) {
  var change = {"font.color": ink(), "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"};
  Object.keys(layout).filter(k => /^[xy]axis/.test(k)).forEach(k => {
    change[k + ".gridcolor"] = line(); change[k + ".linecolor"] = line(); change[k + ".zerolinecolor"] = line(); });
  return change;
}
function draw(id, figure) {
  var node = document.getElementById(id);
  var options = {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"]};
  Plotly.newPlot(node, figure.data, figure.layout, options).then(() => Plotly.relayout(node, look(figure.layout)));
}
function redraw() {
  document.querySelectorAll(".plot").forEach(n => { if (n.layout) Plotly.relayout(n, look(n.layout)); });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => document.querySelectorAll(".plot").forEach(n => Plotly.Plots.resize(n)));
"""

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
    """A part of the page.

    Attributes:
        title: Its heading.
        text: Paragraphs.
        pictures: Id, JSON and caption of each.
        tables: Tables, each a list of rows by column.
        runs: Line, text, command and settings of each run.
    """

    title: str
    text: list[str] = field(default_factory=list)
    pictures: list[Mapping[str, str]] = field(default_factory=list)
    tables: list[Sequence[Mapping[str, Any]]] = field(default_factory=list)
    runs: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The anchor."""
        return "".join(sign if sign.isalnum() else "-" for sign in self.title.lower())

    def draw(self, figure: Any, caption: str) -> None:
        """Add a picture."""
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


def write_page(path: Path, title: str, lead: Sequence[str], sections: Sequence[Section], footer: str = "") -> Path:
    """Write a page that holds everything it shows.

    Raises:
        UserError: A place that cannot be written to.
    """
    from jinja2 import Environment, PackageLoader
    from plotly.offline import get_plotlyjs

    from warmgap import __version__

    scripts = get_plotlyjs() + _DRAW if any(section.pictures for section in sections) else ""
    page = Environment(loader=PackageLoader("warmgap.lab", "."), autoescape=True).get_template("report.html.j2")
    text = page.render(
        title=title, lead=[line for line in lead if line], sections=sections, scripts=scripts,
        footer=f"{footer} Made by warmgap {__version__}.".strip(),
    )  # fmt: skip
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"The page cannot be written to {path}: {error.strerror or error}.") from error
    return path


def write_report(trials: Sequence[Trial], path: Path, *, title: str, folder: Path, notes: str = "") -> Path:
    """Write the page of these trials.

    Beside it comes `overview.png` where there are several rates, and `options.png` where an option of a rule varies.

    Raises:
        UserError: A place that cannot be written to.
    """
    from warmgap.lab import pictures

    cells = scores.cells(trials)
    sections = _scored(cells)
    by_workload = {
        name: [cell for cell in cells if cell.workload == name] for name in dict.fromkeys(c.workload for c in cells)
    }
    flat = {name: pictures.rates_picture(own) for name, own in by_workload.items() if len(own) > 1}
    varied: list[tuple[str, Any]] = []
    for workload in dict.fromkeys(trial.workload for trial in trials):
        own = by_workload.get(workload, [])
        members = [trial for trial in trials if trial.workload == workload]
        section = Section(workload)
        if workload in flat:
            caption = (
                "Final loss against peak rate: mean over seeds, each seed a dot. What is far above the rest is cut."
            )
            section.draw(flat[workload], caption)
        for cell in own:
            for option, by_rest in pictures.option_groups(cell.methods).items():
                figure = pictures.option_picture(cell, option, by_rest)
                varied.append((f"{cell.name}, peak rate {cell.lr:.3g}", figure))
                caption = f"Final loss against the {option} of a rule, peak rate {cell.lr:.3g}; dashes: other methods."
                section.draw(figure, caption)
        shown = _typical(members)
        if any(trial.run for trial in shown):
            words = f"peak rate {shown[0].lr:.3g}, seed {shown[0].seed}. A diamond is something that the schedule did."
            section.draw(pictures.curves_picture(shown), f"Learning rate and training loss, {words}")
        section.tables.append([row for cell in own for row in _rows(cell, members, several=len(own) > 1)])
        section.runs = [_run(trial) for trial in members if trial.run is not None]
        sections.append(section)
    for name, figures in (("overview", list(flat.items())), ("options", varied)):
        if figures and len(figures) <= 4:
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures.save_png(figures, path.with_name(f"{name}.png"))
    lead = [notes, f"{len(trials)} runs of {len({trial.workload for trial in trials})} workloads. {READING}"]
    return write_page(path, title, lead, sections, footer=_commands(folder))


def _scored(cells: Sequence[Cell]) -> list[Section]:
    """Scores over workloads, of the test and of the others, where there are enough of them."""
    from warmgap.lab import pictures

    found: list[Section] = []
    usable = scores.judged(cells)
    for split in dict.fromkeys(cell.split for cell in usable):
        own = [cell for cell in usable if cell.split == split]
        if len(own) < 2:
            continue
        try:
            reference = scores.best_clock(usable)
        except ValueError:
            continue
        ranked = scores.score(own, reference=reference)
        section = Section(f"Scores over {len(own)} {split} workloads".replace("  ", " "), [] if found else [SCORES])
        section.text.append(f"The best clock schedule is {label_of(reference)}.")
        section.draw(pictures.profile_picture(ranked), "Performance profile: higher and further left is better.")
        section.draw(
            pictures.regret_picture(own, [score.method for score in ranked[:8]]), "Regret, workload by workload."
        )
        section.tables.append(_marked(scores.summary_rows(ranked)))
        found.append(section)
    flat = scores.flatness(cells)
    if flat:
        section = Section(
            "Flatness", ["Mean height above the lower envelope of all methods, in nats, over the peak rates tried."]
        )
        methods = [method for method in next(iter(flat.values())) if all(method in row for row in flat.values())]
        ordered = sorted(methods, key=lambda method: statistics.mean(row[method] for row in flat.values()))
        section.tables.append(
            _marked(
                [
                    {"method": method, "mean": f"{statistics.mean(row[method] for row in flat.values()):.4f}"}
                    | {name: f"{row[method]:.4f}" for name, row in flat.items()}
                    for method in ordered
                ]
            )
        )
        found.append(section)
    return found


def _marked(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Rows with the method's label, and a class for adaptive ones."""
    from warmgap.lab.results import is_clock

    return [
        {**row, "method": label_of(row["method"]), "_class": "" if is_clock(row["method"]) else "adaptive"}
        for row in rows
    ]


def _typical(trials: Sequence[Trial]) -> list[Trial]:
    """A run of each method, at the rate of the lowest mean loss and the first seed."""
    by_rate: dict[float, list[float]] = {}
    for trial in trials:
        if trial.loss is not None:
            by_rate.setdefault(trial.lr, []).append(trial.loss)
    rate = min(by_rate, key=lambda lr: statistics.mean(by_rate[lr]), default=trials[0].lr)
    seed = min(trial.seed for trial in trials)
    return [trial for trial in trials if trial.lr == rate and trial.seed == seed] or list(trials[:1])


def _rows(cell: Cell, trials: Sequence[Trial], *, several: bool) -> list[dict[str, str]]:
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
        difference = interval = verdict = ""
        if best is not None and at != best:
            deviation = cell.deviation if len(cell.seeds) > 1 else 0.0
            found = scores.compare(cell.losses[at], cell.losses[best], deviation)
            difference, verdict = f"{found.difference:+.4f}", found.verdict
            interval = "" if len(cell.seeds) < 2 else f"{found.low:+.4f} to {found.high:+.4f}"
        elif best is not None:
            verdict = "best clock schedule"
        row |= {"difference": difference, "95% interval": interval, "verdict": verdict}
        row["warm-up, steps"] = f"{statistics.mean(warmups):.0f}" if warmups else "-"
        if any(trial.printed is not None for trial in trials):
            printed = [trial.printed for trial in own if trial.printed is not None]
            row["printed in the paper"] = f"{printed[0]:.3f}" if printed else ""
        failures = int(cell.failures[at].sum())
        row["seeds"] = str(len(cell.seeds)) + (f", {failures} failures" if failures else "")
        rows.append(row)
    return [dict(row) for row in _marked(rows)]


def _run(trial: Trial) -> dict[str, Any]:
    run = trial.run
    assert run is not None  # noqa: S101 - the caller looked
    loss = "" if run.final_val_loss is None else f", final loss {run.final_val_loss:.4f}"
    text = [run.summary or "", run.message]
    if trial.folder is not None:
        with Store(trial.folder, create=False) as store:
            text += [event["text"] for event in store.events(run.id)]
    about = {
        "data": run.corpus_fingerprint, "parameters": run.parameters, "seconds": run.seconds, "device": run.device,
        "processes": run.processes, "code": run.code, "versions": run.versions,
    }  # fmt: skip
    return {
        "id": run.id,
        "line": f"{label_of(trial.method)}, peak rate {trial.lr:.3g}, seed {trial.seed}: {run.status}{loss}",
        "text": [line for line in text if line],
        "command": run.command,
        "settings": [*run.config.items(), *((name, value) for name, value in about.items() if value is not None)],
    }


def _commands(folder: Path) -> str:
    if not (folder / "runs.db").exists():
        return ""
    with Store(folder, create=False) as store:
        commands = [sweep["command"] for sweep in store.sweeps()]
    return f"Made by: {'; '.join(commands)}." if commands else ""


def write_replay(losses: Any, shown: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a replay: the recorded losses, the factors of each rule, and what it did.

    Raises:
        UserError: A place that cannot be written to.
    """
    from warmgap.lab import pictures

    section = Section("Replay")
    section.draw(
        pictures.replay_picture(losses, shown), "Recorded loss, and rate / peak of the weights each rule governs."
    )
    rows = [
        {"rule": name, "step": str(event.step), "what happened": str(event), "_class": ""}
        for name, found in shown.items()
        for event in found.events
    ]
    section.tables.append(rows)
    lead = "The losses of a run depend on its rates: this shows what a rule reads in them, not how a run under it goes."
    return write_page(path, "What the rules would have done", [lead], [section])


# -------------------------------------------------------------------------------------------------------- in a terminal


_WIDE = ("95% interval", "warm-up, steps", "_class")
"""Columns that do not fit a terminal."""


def print_tables(trials: Sequence[Trial]) -> None:
    """Print a table a workload and rate."""
    for cell in scores.cells(trials):
        members = [trial for trial in trials if trial.workload == cell.workload]
        print_table(f"{cell.name}, peak rate {cell.lr:.3g}", _rows(cell, members, several=False))


def print_scores(trials: Sequence[Trial]) -> None:
    """Print the scores over workloads, where there are several."""
    for section in _scored(scores.cells(trials)):
        for rows in section.tables:
            print_table(section.title, rows)


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table, those of adaptive methods bold."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    names = [name for name in (rows[0] if rows else ()) if name not in _WIDE]
    for name in names:
        table.add_column(name, no_wrap=name != names[0], overflow="fold")
    for row in rows:
        table.add_row(*(str(row[name]) for name in names), style="bold" if row.get("_class") == "adaptive" else None)
    Console().print(table)


__all__ = ["Section", "print_scores", "print_table", "print_tables", "write_page", "write_report"]
