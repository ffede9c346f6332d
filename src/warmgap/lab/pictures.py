"""The interactive pictures of a page, by plotly, and the same as PNG files, by matplotlib.

A method has the same colour in every picture: adaptive rules strong ones (Okabe and Ito's palette, for colour-blind
readers), clock schedules shades of blue and grey with dashes.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from plotly.graph_objects import Figure
from plotly.subplots import make_subplots
from scipy.ndimage import uniform_filter1d

from warmgap.lab.errors import UserError
from warmgap.lab.methods import Method
from warmgap.lab.results import Trial, is_clock, label_of
from warmgap.lab.scores import TAUS, Cell, Score
from warmgap.lab.store import Store

STRONG = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#7A4EAB", "#333333")
BLUES = ("#9ECAE1", "#4292C6", "#08519C", "#6B7B8C", "#A3A3A3", "#5254A3", "#8CA252", "#AD494A")
DASHES = {"dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 2))}
"""Plotly's names for dashes, and matplotlib's."""

CAP = 3.0
"""A loss further above the lowest than this many times the median's distance is cut, so that it does not flatten the
rest."""

_POINTS = 400


def styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The line of each method."""
    names = list(dict.fromkeys(methods))
    rules = sorted((name for name in names if not is_clock(name)), key=lambda name: name != "auto")
    clocks, dashes = [name for name in names if is_clock(name)], list(DASHES)
    found: dict[str, dict[str, Any]] = {}
    for at, name in enumerate(rules):
        found[name] = {"color": STRONG[at % len(STRONG)], "dash": "solid", "width": 3}
    for at, name in enumerate(clocks):
        found[name] = {"color": BLUES[at % len(BLUES)], "dash": dashes[at % len(dashes)], "width": 2}
    return found


def _add_losses(figure: Figure, name: str, points: Mapping[float, Any], line: Mapping[str, Any]) -> None:
    """Mean losses as a line with marks, every seed's as a dot; `points` has the losses of the seeds at each x."""
    figure.add_scatter(
        x=list(points), y=[row.mean() for row in points.values()], mode="lines+markers", line=line, name=name,
        legendgroup=name, hovertemplate="%{x:.3g}: %{y:.4f}",
    )  # fmt: skip
    figure.add_scatter(
        x=[x for x, row in points.items() for _ in row], y=[loss for row in points.values() for loss in row],
        mode="markers", marker={"color": line["color"], "size": 4, "opacity": 0.6},
        legendgroup=name, showlegend=False, hoverinfo="skip",
    )  # fmt: skip


def rates_picture(cells: Sequence[Cell]) -> Figure:
    """Final loss against peak rate of one workload: the mean over seeds, every seed a dot."""
    figure = Figure()
    ordered = sorted(cells, key=lambda cell: cell.lr)
    for method, line in styles(method for cell in cells for method in cell.methods).items():
        points = {cell.lr: cell.of(method) for cell in ordered if method in cell.methods}
        _add_losses(figure, label_of(method), points, line)
    figure.update_xaxes(type="log", title="peak learning rate", dtick=1, minor={"ticks": "outside"})
    values = sorted(float(mean) for cell in cells for mean in cell.losses.mean(axis=1))
    low, top = values[0], values[-1]
    top = min(top, low + CAP * max(statistics.median(values) - low, 1e-9))
    margin = 0.06 * max(top - low, 1e-6)
    return figure.update_yaxes(title="final validation loss", range=[low - margin, top + margin])


def _two_panels(upper: str, lower: str) -> Figure:
    """Two pictures over the same steps."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.4, 0.6], vertical_spacing=0.06)
    figure.update_yaxes(title_text=upper, row=1, col=1)
    figure.update_yaxes(title_text=lower, row=2, col=1)
    return figure.update_xaxes(title_text="step", row=2, col=1)


def curves_picture(trials: Sequence[Trial], stores: Mapping[Path, Store]) -> Figure:
    """Factor of the learning rate, and loss, against the step: a run of each method; `stores` by their folders."""
    figure = _two_panels("rate / peak", "training loss")
    lines = styles(trial.method for trial in trials)
    for trial in trials:
        if trial.run is None or trial.folder is None:
            continue
        store = stores[trial.folder]
        metrics, events = store.metrics(trial.run.id), store.events(trial.run.id)
        losses = [loss for loss in metrics["loss"] if loss is not None]  # the last one is, of a run that diverged
        if not losses:
            continue
        stride, line = max(1, len(metrics["step"]) // _POINTS), {**lines[trial.method], "width": 2}
        common: dict[str, Any] = {"legendgroup": trial.method, "x": metrics["step"][::stride], "mode": "lines"}
        common |= {"line": line, "name": label_of(trial.method), "col": 1}
        figure.add_scatter(y=metrics["factor"][::stride], **common, row=1)
        smooth = uniform_filter1d(losses, max(1, len(losses) // 100), mode="nearest")
        figure.add_scatter(y=smooth[::stride], **common, showlegend=False, row=2)
        if events:
            figure.add_scatter(
                x=[event["step"] for event in events], y=[event["after"] for event in events], mode="markers",
                marker={"color": line["color"], "symbol": "diamond", "size": 8}, legendgroup=trial.method,
                showlegend=False, text=[event["text"] for event in events], hovertemplate="%{text}", row=1, col=1,
            )  # fmt: skip
    return figure


def replay_picture(losses: Any, shown: Mapping[str, Any]) -> Figure:
    """Recorded losses, and the factor of each rule on them."""
    figure = _two_panels("rate / peak", "loss")
    steps = list(range(0, len(losses.values), max(1, len(losses.values) // (5 * _POINTS))))
    drawn = [(name, line["color"], shown[name].factors, 1) for name, line in styles(shown).items()]
    for name, colour, values, row in (*drawn, (losses.name, BLUES[3], losses.values, 2)):
        figure.add_scatter(
            x=steps, y=[values[step] for step in steps], mode="lines", line={"color": colour}, name=name, row=row, col=1
        )
    return figure


def profile_picture(scores: Sequence[Score]) -> Figure:
    """Performance profile: the share of workloads on which a method's regret is at most tau seed deviations."""
    figure, lines = Figure(), styles(score.method for score in scores)
    for score in scores:
        line = {**lines[score.method], "width": 2, "shape": "hv"}
        figure.add_scatter(x=TAUS, y=score.profile, mode="lines", line=line, name=label_of(score.method))
    figure.update_xaxes(title="regret at most, in seed deviations")
    return figure.update_yaxes(title="share of workloads", range=[0, 1.02], tickformat=".0%")


def regret_picture(cells: Sequence[Cell], methods: Sequence[str]) -> Figure:
    """Regret of each method on each workload, in seed deviations, cut at 6."""
    figure = Figure()
    for method, line in styles(methods).items():
        own = [cell for cell in cells if method in cell.methods]
        values = [cell.regret(method) for cell in own]
        symbol = "line-ns-open" if is_clock(method) else "circle"
        figure.add_scatter(
            x=[min(value, 6.0) for value in values], y=[cell.name for cell in own], mode="markers",
            marker={"color": line["color"], "size": 9, "symbol": symbol},
            name=label_of(method), customdata=values, hovertemplate="%{y}: %{customdata:+.2f}",
        )  # fmt: skip
    figure.update_xaxes(title="regret in seed deviations (6 and more at the edge)", zeroline=True)
    return figure.update_layout(height=200 + 24 * len(cells)).update_yaxes(automargin=True)


def option_groups(methods: Sequence[str]) -> dict[str, dict[str, dict[float, str]]]:
    """The options in which three methods or more differ alone: option -> method without it -> value -> method."""
    found: dict[tuple[str, str], dict[float, str]] = {}
    for name in methods:
        with contextlib.suppress(UserError):
            method = Method.parse(name)
            for option, value in method.options:
                rest = replace(method, options=tuple(pair for pair in method.options if pair[0] != option))
                found.setdefault((option, str(rest)), {})[value] = name
    kept: dict[str, dict[str, dict[float, str]]] = {}
    for (option, rest_name), values in found.items():
        if len(values) > 2:
            kept.setdefault(option, {})[rest_name] = values
    return kept


def option_picture(cell: Cell, option: str, by_rest: Mapping[str, Mapping[float, str]]) -> Figure:
    """Final loss against the value of one option: the mean over seeds, every seed a dot, other methods as lines."""
    figure = Figure()
    for at, (rest, values) in enumerate(by_rest.items()):
        line = {"color": STRONG[at % len(STRONG)], "width": 3}
        _add_losses(figure, rest, {value: cell.of(values[value]) for value in sorted(values)}, line)
    ends = [min(map(min, by_rest.values())), max(map(max, by_rest.values()))]
    for method, line in styles(cell.methods).items():
        if is_clock(method) or method == "auto":
            level = float(cell.of(method).mean())
            line |= {"width": 2, **({} if is_clock(method) else {"color": "#333333"})}
            figure.add_scatter(x=ends, y=[level, level], mode="lines", line=line, name=label_of(method))
    wide = ends[0] > 0.0 and ends[1] > 10.0 * ends[0]
    figure.update_xaxes(title=option.replace("target", "target loss"), type="log" if wide else "linear")
    return figure.update_yaxes(title="final validation loss")


def save_png(figures: Sequence[tuple[str, Figure]], path: Path) -> Path:
    """Lines and dots of plotly figures as a PNG by matplotlib, a titled panel each."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(5.0 * len(figures), 4.4), layout="constrained", facecolor="white", dpi=160)
    panels = canvas.subplots(1, len(figures), squeeze=False)[0]
    labels: dict[str, Any] = {}
    for axes, (title, figure) in zip(panels, figures, strict=True):
        for trace in figure.data:
            style = {
                "color": trace.line.color or trace.marker.color,
                "linewidth": (trace.line.width or 2) * 0.8,
                "markersize": trace.marker.size or 4,
                "linestyle": DASHES.get(trace.line.dash, "-") if "lines" in trace.mode else "none",
                "marker": "o" if "markers" in trace.mode else None,
            }
            (drawn,) = axes.plot(trace.x, trace.y, alpha=trace.marker.opacity or 1.0, **style)
            if trace.showlegend is not False:
                labels.setdefault(trace.name, drawn)
        xaxis, yaxis = figure.layout.xaxis, figure.layout.yaxis
        axes.set_title(title, fontsize=10, wrap=True)
        axes.set(xlabel=xaxis.title.text, xscale=xaxis.type or "linear", ylim=yaxis.range)
        if xaxis.type == "log":
            ticks = sorted({x for trace in figure.data for x in trace.x})
            axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
            axes.set_xticks([], minor=True)
        axes.grid(color="#E4E4E4", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(figures[0][1].layout.yaxis.title.text)
    canvas.legend(labels.values(), labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
    canvas.savefig(path, metadata={"Software": None})
    return path
