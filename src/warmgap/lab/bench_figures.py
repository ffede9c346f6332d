"""The pictures of a bench, in the colours of all reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from warmgap.lab.bench import Results, share_of
from warmgap.lab.bench_report import OURS, Judged, Verdicts, method_name
from warmgap.lab.figures import length_style, rule_style
from warmgap.lab.regret import profile
from warmgap.rules import LinearRule
from warmgap.schedule import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

USUAL = "linear:10%"
"""The length that is drawn beside the rules: what is taken where nobody tunes."""

_SPREAD = 0.62  # of a row's height, over which its methods are spread


def regret_figure(part: Verdicts) -> Figure:
    """Regret in seed deviations: a row a workload, a dot a rule, with its interval over seeds."""
    from matplotlib.figure import Figure

    methods = _shown(part)
    order = sorted(part.workloads, key=lambda workload: workload.regret(methods[-1]), reverse=True)
    figure = Figure(figsize=(7.4, 1.9 + 0.46 * len(order)), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(-1, 1, color="#EFEFEF", linewidth=0, zorder=0)
    axes.axvline(0, color="#666666", linewidth=1.0, zorder=1)
    offsets = np.linspace(_SPREAD / 2, -_SPREAD / 2, len(methods)) if len(methods) > 1 else [0.0]
    for method, offset in zip(methods, offsets, strict=True):
        colour, _ = _style(method)
        for row, workload in enumerate(order):
            found = workload.cross_validated[method]
            low, high = (end / workload.deviation for end in (found.low, found.high))
            axes.plot((low, high), (row + offset,) * 2, color=colour, linewidth=1.0, alpha=0.45, zorder=2)
        axes.plot(
            [workload.regret(method) for workload in order],
            np.arange(len(order)) + offset,
            **_dot(method),
            label=method_name(method),
        )
    values = [workload.regret(method) for workload in order for method in methods]
    _deviation_axis(axes, min(-3.0, 1.4 * min(values)), max(3.0, 1.4 * max(values)))
    axes.set_yticks(range(len(order)), [workload.name for workload in order])
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.set(
        xlabel="cross-validated regret (seed deviations; left is better, grey: within one)",
        title=f"{part.title}: regret against the hand-tuned length",
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def profile_figure(part: Verdicts) -> Figure:
    """Performance profile: the share of workloads on which a method's regret is at most tau seed deviations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 4.6), layout="constrained")
    axes = figure.subplots()
    top = 1.2 * max(3.0, *(summary.worst_regret for summary in part.summaries.values()))
    taus = np.concatenate([np.linspace(0, 1, 200), np.geomspace(1, top, 400)])
    for method in _shown(part):
        colour, dashes = _style(method)
        regrets = {workload.name: workload.regret(method) for workload in part.workloads}
        width = 2.6 if method == OURS else 1.7
        axes.plot(
            taus, profile(regrets, taus.tolist()), color=colour, linestyle=dashes, linewidth=width,
            label=method_name(method), drawstyle="steps-post",
        )  # fmt: skip
    _deviation_axis(axes, 0.0, top)
    axes.axvline(1, color="#666666", linewidth=0.8, linestyle=":")
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set(
        xlabel="tau (seed deviations)",
        ylabel="workloads with regret ≤ tau",
        title=f"{part.title} ({len(part.workloads)}): how often, how close to the best length",
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def rates_figure(results: Results, workloads: Sequence[Judged]) -> Figure:
    """The factor against steps, the rule beside the best length: where its regret is lowest, least, and highest.

    One of the workloads at least must be `with_rates`.
    """
    from matplotlib.figure import Figure

    curves = _curves(results)
    known = with_rates(results, workloads)
    middle = min(known[1:-1] or known, key=lambda workload: abs(workload.regret(OURS)))
    chosen = dict.fromkeys([known[0].name, middle.name, known[-1].name])
    by_name = {workload.name: workload for workload in known}
    figure = Figure(figsize=(4.2 * len(chosen), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        workload = by_name[name]
        axes.plot(*_by_hand(workload), color=_style(workload.best)[0], linewidth=1.8, label="best length by hand")
        axes.plot(
            curves[name]["steps"], curves[name]["factors"], color=_style(OURS)[0], linewidth=2.2,
            label=method_name(OURS),
        )  # fmt: skip
        axes.set_xscale("function", functions=(_root, np.square))
        steps = int(workload.settings["steps"])
        ticks = [0, steps // 20, steps // 5, steps // 2, steps]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set(xlim=(0, steps), ylim=(0, 1.05), xlabel=f"step (by hand: {method_name(workload.best)})")
        axes.set_title(f"{name}: {workload.regret(OURS):+.1f} deviations", fontsize=10)
    figure.axes[0].set_ylabel("learning rate / peak")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def with_rates(results: Results, workloads: Sequence[Judged]) -> list[Judged]:
    """The workloads of which `rates_figure` can draw the rule's factor, the lowest regret first."""
    curves = _curves(results)
    known = (workload for workload in workloads if workload.name in curves and OURS in workload.losses)
    return sorted(known, key=lambda workload: workload.regret(OURS))


def _curves(results: Results) -> dict[str, Mapping[str, Any]]:
    return {" ".join(filter(None, (curve["workload"], curve["setting"]))): curve for curve in results.curves}


def _by_hand(workload: Judged) -> tuple[list[int], list[float]]:
    """The factor against steps of the best length, which follows from the length."""
    steps = int(workload.settings["steps"])
    schedule = Schedule(steps, LinearRule(round((share_of(workload.best) or 0.0) * steps)), workload.settings["decay"])
    state = schedule.init()
    factors = []
    for _ in range(steps):
        factors.append(state.factor)
        state, _ = schedule.step(state)
    return list(range(1, steps + 1)), factors


def _shown(part: Verdicts) -> list[str]:
    """The rules, `auto` last and so on top, and the usual length before them; all lengths where there is neither."""
    methods = [method for method in part.summaries if share_of(method) is None or method == USUAL]
    methods = methods or list(part.summaries)
    return sorted(methods, key=lambda method: (method == OURS, method != USUAL))


def _dot(method: str) -> dict[str, Any]:
    colour, _ = _style(method)
    ours = method == OURS
    return {
        "color": colour,
        "linestyle": "none",
        "marker": "D" if ours else "o",
        "markersize": 7.5 if ours else 5.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
        "zorder": 5 if ours else 4,
    }


def _deviation_axis(axes: Axes, low: float, high: float) -> None:
    """An axis that is linear within a deviation and logarithmic beyond: regrets differ by powers of ten."""
    axes.set_xscale("symlog", linthresh=1.0, linscale=0.7)
    axes.set_xlim(low, high)
    ticks = [tick for tick in (-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100, 300, 1000) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _style(method: str) -> tuple[Any, Any]:
    share = share_of(method)
    return rule_style(method) if share is None else length_style(share)


def _root(values: Any) -> Any:
    return np.sqrt(np.maximum(values, 0))
