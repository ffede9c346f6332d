"""The pictures of a report, in one colour language.

A method has the same colour in every picture. Adaptive rules have a strong colour of their own (Okabe and Ito's
palette, for colour-blind readers) and their own dashes, for print in black and white. Hand-tuned warm-ups are shades of
one blue, the darker the longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from warmgap.lab.table import Method, Run, Series, Workload, hand_tuned_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ADAPTIVE_STYLES: dict[str, tuple[str, Any]] = {
    "auto": ("#D55E00", "-"),
    "auto-late": ("#8C3B00", (0, (8, 1.5))),
    "gap": ("#009E73", (0, (6, 1.5))),
    "loss-ratio": ("#CC79A7", (0, (5, 1.5, 1, 1.5))),
    "power": ("#E69F00", (0, (3, 1))),
    "published": ("#333333", (0, (1, 1))),
}
OTHER_ADAPTIVE = ("#7A4EAB", (0, (6, 1.5, 1, 1.5, 1, 1.5)))
BLUES = ((0.60, 0.80, 0.95), (0.20, 0.47, 0.75), (0.02, 0.13, 0.30))
"""Shades of hand-tuned warm-ups: none, middling, 60 % of the run and more."""

CAP_SHARE = 3.0
"""Values further above the lowest than this many times the median's distance are drawn at the top edge, with their
number, so that one bad run does not flatten the rest."""

CROSS: dict[str, Any] = {"marker": "x", "markersize": 9, "markeredgewidth": 2.2, "zorder": 6, "clip_on": False}
NEUTRAL = "#5B84AB"

STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": "#666666",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "savefig.dpi": 160,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Matplotlib's settings for our figures, for the time of a `with` block."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        yield


def method_style(method: Method, steps: int) -> tuple[Any, Any]:
    """Colour and dashes of a method, the same in every figure.

    Args:
        method: the method.
        steps: length of its runs; the shade of a hand-tuned warm-up is its share of it.
    """
    length = hand_tuned_steps(method.rule)
    return rule_style(method.rule) if length is None else length_style(length / steps)


def rule_style(rule: str) -> tuple[Any, Any]:
    """Colour and dashes of a rule that finds the length itself."""
    return ADAPTIVE_STYLES.get(rule, OTHER_ADAPTIVE)


def length_style(share: float) -> tuple[Any, Any]:
    """Colour and dashes of a hand-tuned warm-up over this share of the run."""
    # The square root spreads the short lengths, which differ by factors rather than by steps.
    depth = min(1.0, share / 0.6) ** 0.5
    return tuple(float(np.interp(depth, (0.0, 0.5, 1.0), channel)) for channel in zip(*BLUES, strict=True)), "-"


def curves_figure(workload: Workload) -> Figure:
    """Learning rate and loss against steps, adaptive beside hand-tuned, the hand-over marked; the end enlarged."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 8.6), layout="constrained")
    rate_axes, loss_axes, end_axes = figure.subplots(3, 1, height_ratios=(1, 1.2, 1))
    draw_rates(rate_axes, workload)
    draw_losses(loss_axes, workload)
    draw_end(end_axes, workload)
    figure.suptitle(workload.title, x=0.01, ha="left", fontsize=10, color="#333333")
    figure.legend(*_key(rate_axes), loc="outside lower center", ncols=3)
    return figure


def lengths_figure(workload: Workload) -> Figure:
    """Final validation loss against the warm-up length, every seed a point, the adaptive rules as lines with a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 5.0), layout="constrained")
    axes = figure.subplots()
    draw_lengths(axes, workload)
    figure.suptitle(workload.title, x=0.01, ha="left", fontsize=10, color="#333333")
    figure.legend(*_key(axes), loc="outside lower center", ncols=2)
    return figure


def overview_figure(workloads: Sequence[Workload]) -> Figure:
    """One picture of several workloads: a column each, learning rate above, final loss against warm-up length below.

    Both rows share their horizontal axis, so the hand-over above stands over the runs it belongs to below.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(workloads), 7.2), layout="constrained")
    grid = figure.subplots(2, len(workloads), squeeze=False, height_ratios=(1, 1.35), sharex="col")
    for (above, below), workload in zip(grid.T, workloads, strict=True):
        draw_rates(above, workload)
        draw_lengths(below, workload)
        above.set(title=workload.title, xlabel="")
        above.title.set_fontsize(10)
        below.set_title("")
    keys: dict[str, Any] = {}
    for axes in grid.flat:
        handles, labels = _key(axes)
        keys |= dict(zip(labels, handles, strict=True))
    figure.legend(list(keys.values()), list(keys), loc="outside lower center", ncols=min(5, 2 * len(workloads)))
    return figure


def draw_rates(axes: Axes, workload: Workload) -> None:
    """Learning rate against steps: a line a method, the hand-over of every adaptive run marked."""
    for method in _adaptive_on_top(workload):
        colour, dashes = method_style(method, workload.steps)
        # A hand-tuned schedule is the same for every seed.
        for index, run in enumerate(method.runs if method.adaptive else method.runs[:1]):
            series = run.metrics().get("lr", ([], []))
            label = None if index else method.label
            axes.plot(*series, color=colour, linestyle=dashes, label=label, **_weight(method, index))
            _mark_handover(axes, run, series, colour)
    axes.set(ylabel="learning rate", title="Learning rate")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    _step_axis(axes, workload, "step")


def draw_losses(axes: Axes, workload: Workload) -> None:
    """Training loss against steps: a moving average, mean over seeds; a run that diverged by itself, up to a cross."""
    means = _mean_losses(workload)
    for method, mean in means:
        colour, dashes = method_style(method, workload.steps)
        axes.plot(*mean, color=colour, linestyle=dashes, label=method.label, **_weight(method, 0))
        for run in method.runs:
            _mark_handover(axes, run, mean, colour)
    axes.set(ylabel="training loss (nats per token)", title="Training loss (mean over seeds)")
    _step_axis(axes, workload, f"step (loss averaged over {_window(workload)} steps)")
    # A run on its way to infinity must not flatten the others: the axis ends above them, its cross on the edge.
    shown = [value for _, (_, values) in means for value in values]
    top = max(shown) + 0.05 * (max(shown) - min(shown)) if shown else None
    axes.set_ylim(top=top)
    for method in workload.methods:
        colour, dashes = method_style(method, workload.steps)
        for steps, values in (_smooth_loss(run, workload) for run in method.runs if run.diverged):
            if steps:
                axes.plot(steps, values, color=colour, linestyle=dashes, linewidth=1.0, zorder=2)
                axes.plot(steps[-1], values[-1] if top is None else min(values[-1], top), color=colour, **CROSS)


def draw_end(axes: Axes, workload: Workload) -> None:
    """The last quarter of the training losses, where they lie close together."""
    start = 0.75 * workload.steps
    ends = []
    for method, (steps, values) in _mean_losses(workload):
        colour, dashes = method_style(method, workload.steps)
        axes.plot(steps, values, color=colour, linestyle=dashes, **_weight(method, 0))
        ends += [value for step, value in zip(steps, values, strict=True) if step >= start]
    axes.set(title="The last quarter, enlarged", xlabel="step", ylabel="training loss (nats per token)")
    axes.set_xlim(start, workload.steps)
    if ends:
        highest = _cap(ends) or max(ends)
        margin = 0.06 * (highest - min(ends)) + 1e-9
        axes.set_ylim(min(ends) - margin, highest + margin)


def draw_lengths(axes: Axes, workload: Workload) -> None:
    """Final validation loss against warm-up length.

    Hand-tuned: a point a seed, mean and standard deviation. Adaptive: the mean as a line with a band of one standard
    deviation, and a diamond a seed where its own warm-up ended. Runs that diverged, or ended far above the others,
    stand at the top edge, and say so.
    """
    values = [loss for method in workload.methods for loss in method.losses.values() if loss is not None]
    cap = _cap(values)
    hand_tuned = [(method, hand_tuned_steps(method.rule) or 0) for method in workload.methods if not method.adaptive]
    line = [(length, method.loss.mean) for method, length in hand_tuned if method.loss.mean is not None]
    _step_axis(axes, workload, "warm-up length (steps, share of the run)")
    axes.plot([x for x, _ in line], [y for _, y in line], color=NEUTRAL, linewidth=1.2, zorder=2)
    for method, length in hand_tuned:
        colour, _ = method_style(method, workload.steps)
        if method.loss.mean is not None:
            bar = {"yerr": method.loss.sd, "ecolor": colour, "capsize": 4}
            axes.errorbar(length, method.loss.mean, **bar, color=colour, marker="o", markersize=8, zorder=4)
        _draw_seeds(axes, [(float(length), loss) for loss in method.losses.values()], colour, "o", cap)
    if hand_tuned:
        axes.errorbar(
            [], [], yerr=[], color=NEUTRAL, marker="o", markersize=8, capsize=4, label="hand-tuned: mean ± sd"
        )
        axes.plot([], [], color=NEUTRAL, linestyle="none", marker="o", markersize=5, label="hand-tuned: one run")
    for method in (method for method in workload.methods if method.adaptive):
        colour, dashes = method_style(method, workload.steps)
        mean, sd = method.loss.mean, method.loss.sd
        axes.plot([], [], color=colour, linestyle=dashes, linewidth=2.2, marker="D", markersize=5, label=method.label)
        if mean is not None and (cap is None or mean <= cap):
            axes.axhline(mean, color=colour, linestyle=dashes, linewidth=2.2, zorder=3)
            if sd is not None:
                axes.axhspan(mean - sd, mean + sd, color=colour, alpha=0.13, linewidth=0, zorder=1)
        ends = [(float(workload.steps if run.warmup_steps is None else run.warmup_steps), run) for run in method.runs]
        _draw_seeds(axes, [(x, run.final_loss) for x, run in ends if run.finished], colour, "D", cap)
    axes.set(ylabel="final validation loss (nats per token)", title="Final loss")
    if cap is not None:
        axes.set_ylim(top=cap)
    axes.margins(y=0.12)


def _step_axis(axes: Axes, workload: Workload, label: str) -> None:
    """The horizontal axis of every figure: steps, spread by their square root, since what differs differs early."""

    def root(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sign(x) * np.sqrt(np.abs(x))

    def square(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sign(x) * np.square(x)

    axes.set_xscale("function", functions=(root, square))
    axes.set_xlim(-0.0006 * workload.steps, 1.02 * workload.steps)
    lengths = {hand_tuned_steps(method.rule) or 0 for method in workload.methods}
    ticks = sorted({0, workload.steps, *(lengths if len(lengths) > 1 else {workload.steps // 10, workload.steps // 3})})
    axes.set_xticks(ticks, [f"{tick}\n{100 * tick / workload.steps:.3g} %" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(label)


def _draw_seeds(
    axes: Axes, places: Sequence[tuple[float, float | None]], colour: Any, marker: str, cap: float | None
) -> None:
    """A point a seed, beside the mean; what lies beyond the cap, or has no loss, at the top edge with its name."""
    from matplotlib.transforms import ScaledTranslation

    aside = ScaledTranslation(8 / 72 if marker == "o" else 0, 0, axes.get_figure(root=True).dpi_scale_trans)  # type: ignore[union-attr]
    style = {"color": colour, "markeredgecolor": "white", "markeredgewidth": 0.6, "zorder": 5, "linestyle": "none"}
    within = [(x, loss) for x, loss in places if loss is not None and (cap is None or loss <= cap)]
    axes.plot(
        [x for x, _ in within],
        [y for _, y in within],
        marker=marker,
        markersize=5.5,
        **style,
        transform=axes.transData + aside,
    )
    # The shifted points do not count for the limits of the axes by themselves.
    axes.update_datalim(within or [(0.0, axes.dataLim.y0)], updatex=False, updatey=bool(within))
    at_top = axes.get_xaxis_transform()
    rank = 0
    for x in dict.fromkeys(x for x, _ in places):
        fallen = sum(place == (x, None) for place in places)
        high = [loss for at, loss in places if at == x and loss is not None and cap is not None and loss > cap]
        words = []
        if fallen:
            axes.plot(x, 0.96, color=colour, transform=at_top, **CROSS)
            words.append("diverged" if fallen == 1 else f"{fallen} diverged")
        if high:
            axes.plot(x, 0.96, color=colour, marker="^", markersize=8, zorder=6, transform=at_top)
            words.append(f"{min(high):.3g}" if len(high) == 1 else f"{min(high):.3g} to {max(high):.3g}")
        if words:
            left, right = axes.get_xlim()
            side = "left" if x <= left + 0.02 * (right - left) else "right" if x > 0.9 * right else "center"
            axes.annotate(
                "\n".join(words),
                (x, 0.92 - 0.05 * rank),
                xycoords=at_top,
                fontsize=8.5,
                color="#333333",
                ha=side,
                va="top",
            )
            rank += marker == "D"


def _cap(values: Sequence[float]) -> float | None:
    """Upper end of the loss axis where the largest values would flatten the rest, else None."""
    if len(values) < 3:
        return None
    ordered = sorted(values)
    lowest, median = ordered[0], ordered[len(ordered) // 2]
    reach = CAP_SHARE * max(median - lowest, 0.002 * lowest)
    return lowest + reach if ordered[-1] > lowest + 2 * reach else None


def _adaptive_on_top(workload: Workload) -> list[Method]:
    return sorted(workload.methods, key=lambda method: method.adaptive)


def _weight(method: Method, index: int) -> dict[str, Any]:
    """Width of a method's line: the adaptive rules' first run stands out, their other seeds are thin."""
    if not method.adaptive:
        return {"linewidth": 1.6, "zorder": 2}
    return {"linewidth": 2.2, "zorder": 4} if index == 0 else {"linewidth": 1.0, "alpha": 0.6, "zorder": 3}


def _mark_handover(axes: Axes, run: Run, series: Series, colour: Any) -> None:
    """A diamond where an adaptive run ended its warm-up, on the line drawn for it, and a dotted line down."""
    if hand_tuned_steps(run.rule) is not None or run.warmup_steps is None or not series[0]:
        return
    nearest = int(np.argmin(np.abs(np.array(series[0]) - run.warmup_steps)))
    axes.axvline(run.warmup_steps, color=colour, linewidth=0.8, linestyle=":", zorder=1)
    axes.plot(
        run.warmup_steps,
        series[1][nearest],
        marker="D",
        markersize=6.5,
        color=colour,
        markeredgecolor="white",
        zorder=6,
    )


def _moving_average(series: Series, window: int) -> Series:
    """Mean of each value with the `window` - 1 before it."""
    steps, values = series
    sums = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(1, len(values) + 1)
    first = np.maximum(0, last - window)
    averages: list[float] = ((sums[last] - sums[first]) / (last - first)).tolist()
    return steps, averages


def _mean_over_runs(series: Sequence[Series]) -> Series:
    """Mean at each step over the runs that have a value there."""
    found: dict[int, list[float]] = {}
    for steps, values in series:
        for step, value in zip(steps, values, strict=True):
            found.setdefault(step, []).append(value)
    ordered = sorted(found)
    return ordered, [sum(found[step]) / len(found[step]) for step in ordered]


def _window(workload: Workload) -> int:
    """Steps in the moving average of a loss: a fiftieth of the run."""
    return max(1, workload.steps // 50)


def _smooth_loss(run: Run, workload: Workload) -> Series:
    return _moving_average(run.metrics().get("loss", ([], [])), _window(workload))


def _mean_losses(workload: Workload) -> list[tuple[Method, Series]]:
    """The smooth loss of each method, mean over the runs that did not diverge; adaptive methods last."""
    means = []
    for method in _adaptive_on_top(workload):
        runs = [run for run in method.runs if not run.diverged]
        # A run under way would make a step in the mean where it ends.
        whole = [run for run in runs if run.finished] or runs
        means.append((method, _mean_over_runs([_smooth_loss(run, workload) for run in whole])))
    return means


def _key(axes: Axes) -> tuple[list[Any], list[Any]]:
    return axes.get_legend_handles_labels()
