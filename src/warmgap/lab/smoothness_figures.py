"""The pictures of measured curvature: ratio against gap, coloured by step, with fits and envelope."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from warmgap.smoothness import Fit, Record, block_names, block_records, fit_gap_linear

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

COLOURS = "viridis"
RATE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#333333")
RATE_MARKS = ("o", "^", "s", "D", "v", "P")

FIT_STYLES: dict[tuple[str, str], tuple[str, Any, str]] = {
    ("rho", "nnls"): ("#D55E00", "-", "least squares, constants at 0 or above"),
    ("rho", "lstsq"): ("#CC79A7", (0, (4, 1.5)), "plain least squares"),
    ("rho", "envelope"): ("#222222", "-", "envelope of 95 %"),
}
"""The fits that are drawn, those with rho = 2: colour, dashes, and what the key calls them."""

MOST_BLOCKS = 16
"""Blocks in one picture; of more, as many as that are picked at even distances."""


def trajectory_figure(records: Sequence[Record], fits: Sequence[Fit], target_loss: float | None = None) -> Figure:
    """Ratio against gap of one run, the fits with rho = 2, and the points above the envelope circled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 5.2), layout="constrained")
    axes = figure.subplots()
    dots = _dots(axes, records, target_loss, size=16)
    gaps, ratios, _ = _columns(records, target_loss)
    grid = np.geomspace(gaps.min(), gaps.max(), 200)
    for fit in fits:
        style = FIT_STYLES.get((fit.assumption, fit.method))
        if style is None or fit.rho != 2.0:
            continue
        colour, dashes, label = style
        drawn = np.asarray(fit(grid), dtype=float)
        if ratios.min() > 0.0:  # the axis may be logarithmic
            drawn = np.where(drawn > 0.0, drawn, math.nan)
        axes.plot(grid, drawn, color=colour, linestyle=dashes, linewidth=1.8, label=label)
        if fit.method == "envelope":
            _circled(axes, gaps, ratios, fit, size=46)
    _scales(axes, gaps, ratios)
    axes.set(xlabel="gap: loss - target loss (nats)", ylabel=_measured(records), title="Ratio against gap")
    figure.colorbar(dots, ax=axes, label="optimizer step", pad=0.01)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def blocks_figure(records: Sequence[Record], target_loss: float | None = None) -> Figure:
    """The same block by block, small, each with an (H0, H1) envelope and the points above it circled."""
    from matplotlib.figure import Figure

    names = _some(block_names(records))
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.0 * columns, 2.3 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    dots = None
    for axes, name in zip(grid.flat, names, strict=False):
        own = block_records(records, name)
        gaps, ratios, _ = _columns(own, target_loss)
        axes.set_title(_short(name), fontsize=8.5)
        axes.tick_params(labelsize=8)
        if not len(gaps):
            axes.text(0.5, 0.5, "never moved", transform=axes.transAxes, ha="center", color="#666666")
            continue
        dots = _dots(axes, own, target_loss, size=7)
        try:
            fit = fit_gap_linear(own, method="envelope", target_loss=target_loss, resamples=20)
        except ValueError:
            pass  # too few points for a line: the dots stand alone
        else:
            line = np.geomspace(gaps.min(), gaps.max(), 100)
            axes.plot(line, np.asarray(fit(line)), color="#222222", linewidth=1.3)
            _circled(axes, gaps, ratios, fit, size=24)
        _scales(axes, gaps, ratios)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel("gap: loss - target loss (nats)", fontsize=10)
    figure.supylabel(_measured(records), fontsize=10)
    if dots is not None:
        figure.colorbar(dots, ax=grid, label="optimizer step", pad=0.01, aspect=40)
    return figure


def rates_figure(runs: Mapping[str, Sequence[Record]], target_loss: float | None = None) -> Figure:
    """Ratio against gap of several runs, a colour and a mark each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 5.0), layout="constrained")
    axes = figure.subplots()
    everything = []
    for index, (name, records) in enumerate(runs.items()):
        gaps, ratios, _ = _columns(records, target_loss)
        everything.append((gaps, ratios))
        colour, mark = RATE_COLOURS[index % len(RATE_COLOURS)], RATE_MARKS[index % len(RATE_MARKS)]
        axes.scatter(gaps, ratios, s=13, color=colour, marker=mark, alpha=0.55, linewidths=0, label=name)
    _scales(axes, *(np.concatenate(column) for column in zip(*everything, strict=True)))
    everyone = [record for records in runs.values() for record in records]
    axes.set(xlabel="gap: loss - target loss (nats)", ylabel=_measured(everyone), title="Ratio against gap")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=1, markerscale=2)
    return figure


def _dots(axes: Axes, records: Sequence[Record], target_loss: float | None, *, size: float) -> PathCollection:
    gaps, ratios, steps = _columns(records, target_loss)
    return axes.scatter(gaps, ratios, c=steps, cmap=COLOURS, s=size, linewidths=0, alpha=0.85)


def _circled(axes: Axes, gaps: Any, ratios: Any, fit: Fit, *, size: float) -> None:
    """Mark the points above a fit."""
    above = ratios > np.asarray(fit(gaps)) * (1.0 + 1e-9)
    axes.scatter(
        gaps[above],
        ratios[above],
        s=size,
        facecolors="none",
        edgecolors="#D00000",
        linewidths=1.0,
        label=f"above the envelope: {above.sum()} of {len(above)}",
    )


def _measured(records: Sequence[Record]) -> str:
    """What the vertical axis shows."""
    names = {"directional": "curvature along the step", "eigenvalue": "largest eigenvalue of the Hessian"}
    return " / ".join(dict.fromkeys(names.get(record.estimator, "gradient change / step length") for record in records))


def _columns(records: Sequence[Record], target_loss: float | None) -> tuple[Any, Any, Any]:
    rows = [
        (record.gap if target_loss is None else record.loss - target_loss, record.ratio, record.step)
        for record in records
    ]
    table = np.array(rows, dtype=float).reshape(-1, 3)
    table = table[np.isfinite(table).all(axis=1) & (table[:, 0] > 0.0)]
    return table[:, 0], table[:, 1], table[:, 2]


def _scales(axes: Axes, gaps: Any, ratios: Any) -> None:
    """A logarithmic vertical axis where the ratios are above zero and span more than a factor of ten."""
    if not len(ratios):
        axes.set_ylim(0.0, 1.0)
    elif ratios.min() < 0.0:
        axes.axhline(0.0, color="#999999", linewidth=0.8)
        margin = 0.1 * (max(0.0, ratios.max()) - ratios.min())
        axes.set_ylim(ratios.min() - margin, max(0.0, ratios.max()) + margin)
    elif ratios.min() > 0.0 and ratios.max() > 10.0 * ratios.min():
        axes.set_yscale("log")
        for formatting in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatting(_plain_number)
        axes.set_ylim(0.7 * ratios.min(), 1.4 * ratios.max())
    else:
        axes.set_ylim(0.0, 1.1 * ratios.max() or 1.0)
    if len(gaps) and gaps.max() > 10.0 * gaps.min():
        axes.set_xscale("log")


def _plain_number(value: float, _: float) -> str:
    """A tick's label: powers of ten and their double and fivefold, written out."""
    return f"{value:g}" if f"{value:.1e}"[0] in "125" else ""


def _some(names: Sequence[str]) -> list[str]:
    if len(names) <= MOST_BLOCKS:
        return list(names)
    return [names[round(index)] for index in np.linspace(0, len(names) - 1, MOST_BLOCKS)]


def _short(name: str) -> str:
    return name.removeprefix("model.").removesuffix(".weight").replace("layers.", "")
