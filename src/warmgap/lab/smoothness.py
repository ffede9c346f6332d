"""Runs that are measured while they train, and what their records say: a table of fits, and a page."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from plotly.graph_objects import Figure
from plotly.subplots import make_subplots
from rich.console import Console

from warmgap.lab.config import TrainConfig
from warmgap.lab.engines import Here
from warmgap.lab.errors import UserError
from warmgap.lab.pictures import STRONG
from warmgap.lab.report import Section, print_table, write_page
from warmgap.lab.store import Store
from warmgap.lab.sweep import run_plan
from warmgap.smoothness import (
    Fit,
    LayerFits,
    Record,
    block_names,
    block_records,
    fit_gap_linear,
    fit_layers,
    fit_smoothness,
    layer_dependence,
    rate_dependence,
    read_records,
)

RECORDS_FILE = "smoothness.jsonl"
"""Records in the folder of a run."""

READING = (
    "The assumption behind warm-up is an inequality: dual norm of the gradient's change over the step's length, here "
    "the ratio, is at most K(gap). nnls and lstsq go through the points, with and without constants held at zero or "
    "above; envelope lies above 95 % of them. Intervals come from a block bootstrap over the trajectory. Whether the "
    "ratio rises or falls with the gap does not depend on the target loss; the constants do."
)

_DRAWN = {
    ("rho", "nnls"): ("#D55E00", "solid", "least squares, constants at 0 or above"),
    ("rho", "lstsq"): ("#CC79A7", "dash", "plain least squares"),
    ("rho", "envelope"): ("#7A4EAB", "solid", "envelope of 95 %"),
}
"""The fits that are drawn, those with rho = 2: colour, dashes, and name."""

_MOST_BLOCKS = 16


@dataclass(frozen=True)
class Trajectory:
    """The records of one run, with its name in tables and its file."""

    name: str
    path: Path
    records: Sequence[Record]

    @property
    def heading(self) -> str:
        """Its name, and how it was measured."""
        norms = "/".join(sorted({record.norm for record in self.records}))
        estimators = "/".join(sorted({record.estimator for record in self.records}))
        return f"{self.name}: {len(self.records)} records, {estimators}, norm {norms}"

    @property
    def rate(self) -> float:
        """The factor of the peak rate that the folder of its file names; 1 where it names none."""
        try:
            return float(self.path.parent.name.removeprefix("rate-"))
        except ValueError:
            return 1.0


@dataclass(frozen=True)
class Analysis:
    """Every fit of one trajectory."""

    fits: Sequence[Fit]
    notes: list[str]  # what a reader must know, such as why a fit could not be made
    layered: bool  # whether the records have blocks

    def rows(self) -> list[dict[str, str]]:
        """The fits as a table; `above` is the share of ratios above the fit, `worst` how far the worst one is."""
        return [
            {
                "bound": f"rho = {fit.rho:.3g}" if fit.assumption == "rho" else fit.assumption,
                "method": fit.method,
                "constants, 95 % interval": ", ".join(
                    f"{name} {value:.3g} [{fit.intervals[name][0]:.3g}, {fit.intervals[name][1]:.3g}]"
                    for name, value in fit.constants.items()
                ),
                "R2": f"{fit.r2:.3f}",
                "above": f"{fit.violations:.0%}",
                "worst": f"{fit.largest_violation:+.0%}",
            }
            for fit in self.fits
        ]


def measure(config: TrainConfig, rates: Sequence[float], folder: Path, command: str = "", **how: Any) -> bool:
    """Train at each multiple of the peak rate, with a probe; False where a run was interrupted.

    `how` are arguments of `SmoothnessProbe`.
    """
    base = config.resolve()
    if any(rate <= 0.0 for rate in rates) or len(set(rates)) != len(rates):
        raise UserError(f"The rates must be different factors above 0, got {', '.join(f'{rate:g}' for rate in rates)}.")
    assert base.lr is not None  # noqa: S101 - resolved
    configs = {dataclasses.replace(base, lr=base.lr * rate): f"rate-{rate:g}" for rate in rates}

    def probe(place: Path, optimizer: Any, model: Any) -> Any:
        from warmgap.torch import SmoothnessProbe

        shutil.rmtree(place, ignore_errors=True)  # one that broke off begins again
        return SmoothnessProbe(optimizer, model=model, path=place / RECORDS_FILE, **how)

    return train_measured(configs, folder, probe, command, how)


def train_measured(
    configs: Mapping[TrainConfig, str], folder: Path, probe: Any, command: str, how: Mapping[str, Any]
) -> bool:
    """Train these runs in this process with a probe, each in the folder of its name; False where one is interrupted.

    Those that are finished are left as they are. `how` are the settings of the probe, and part of a run's identity.

    Raises:
        UserError: If one fails, or a folder has a run that was measured with other settings.
    """
    if not configs:
        raise UserError("There is nothing to train: give at least one rate, or one seed.")
    runs = run_plan(
        [("", config) for config in configs], folder, command=command, asked=how, console=Console(stderr=True),
        engine=Here(resume=False, probe=probe), place=configs.__getitem__, key=json.dumps(how, sort_keys=True),
    )  # fmt: skip
    for run in runs:
        if run.status not in ("done", "diverged", "interrupted", "waiting"):
            raise UserError(f"The run {run.folder} cannot be measured: {run.message or run.status}")
    return all(run.finished for run in runs)


def read_trajectories(places: Sequence[Path]) -> list[Trajectory]:
    """The records in these files, and in files named `smoothness.jsonl` in or below these folders."""
    found: dict[Path, str] = {}
    for place in places:
        if place.is_dir():
            for path in sorted(place.rglob(RECORDS_FILE)):
                found[path] = str(path.parent.relative_to(place)) if path.parent != place else place.name
        elif place.exists():
            found[place] = place.parent.name if place.name == RECORDS_FILE else place.stem
        else:
            raise UserError(f"There is no {place}.")
    if not found:
        raise UserError(f"No {RECORDS_FILE} in or below {', '.join(map(str, places))}: measure a run first.")
    try:
        return [Trajectory(_described(path, name), path, read_records(path)) for path, name in found.items()]
    except ValueError as error:
        raise UserError(f"{str(error)[:1].upper()}{str(error)[1:]}") from error


def _described(path: Path, name: str) -> str:
    """The run's optimizer and rate, where a database beside its folder tells them."""
    try:
        with Store(path.parent.parent, create=False) as store:
            config = next(run.config for run in store.runs() if run.folder == path.parent.name)
    except (UserError, StopIteration):
        return name
    return f"{config['optimizer']}, peak rate {config['lr']:g} ({name})"


def analyse(trajectory: Trajectory, *, target_loss: float | None = None, resamples: int = 200) -> Analysis:
    """Make every fit that the records allow; one that they do not becomes a sentence."""
    records = trajectory.records
    fits: list[Fit] = []
    failed: list[str] = []
    for make in (
        partial(fit_smoothness, method="nnls"),
        partial(fit_smoothness, method="lstsq"),
        partial(fit_smoothness, method="envelope"),
        partial(fit_smoothness, rho="search"),
        partial(fit_gap_linear, method="nnls"),
        partial(fit_gap_linear, method="envelope"),
    ):
        try:
            fits.append(make(records, target_loss=target_loss, resamples=resamples))
        except ValueError as error:
            failed.append(f"Not fitted: {error}.")
    layered = bool(block_names(records))
    notes = [fits[0].trend.sentence, fits[0].diagnosis.sentence] if fits else []
    notes += [note for fit in fits for note in fit.notes] + failed
    notes += [layers_sentence(fit_layers(records, resamples=20))] if layered else []
    return Analysis(fits, list(dict.fromkeys(notes)), layered)


def layers_sentence(layers: LayerFits) -> str:
    """The layer-wise fits in a sentence."""
    slopes = [fit.constants["L1"] for fit in layers.fits.values()]
    if not slopes:
        return f"Layer-wise: none of {len(layers.skipped)} blocks could be fitted."
    shares = [fit.diagnosis.share for fit in layers.fits.values()]
    offsets = [fit.constants["L0"] for fit in layers.fits.values()]
    following = sum(not fit.diagnosis.informative for fit in layers.fits.values())
    skipped = f" Skipped: {', '.join(layers.skipped)}." if layers.skipped else ""
    return (
        f"Layer-wise (L0, L1) of {len(slopes)} blocks: L1 median {statistics.median(slopes):.3g} (from "
        f"{min(slopes):.3g} to {max(slopes):.3g}), L0 median {statistics.median(offsets):.3g}; a step changes a "
        f"block's gradient by {statistics.median(shares):.2g} of itself (median), and in {following} blocks the "
        f"estimate is not local.{skipped}"
    )


def compare_rates(trajectories: Sequence[Trajectory]) -> list[tuple[str, Sequence[Trajectory], list[str]]]:
    """Runs at several rates that lie beside each other in folders `rate-...`, and what their comparison says."""
    groups: dict[Path, list[Trajectory]] = {}
    for trajectory in trajectories:
        if trajectory.path.parent.name.startswith("rate-"):
            groups.setdefault(trajectory.path.parent.parent, []).append(trajectory)
    found: list[tuple[str, Sequence[Trajectory], list[str]]] = []
    for place, members in groups.items():
        sentences: list[str] = []
        for compare in (rate_dependence, layer_dependence) if len(members) > 1 else ():
            # Runs too short for a comparison say so in their own tables; records without blocks have no layers.
            with contextlib.suppress(ValueError):
                sentences.append(compare({run.rate: run.records for run in members}).sentence)
        if sentences:
            found.append((place.name, members, sentences))
    return found


def write_layer_constants(trajectories: Sequence[Trajectory], path: Path) -> Trajectory:
    """Write the layer constants of the run nearest to rate 1 to a file for `warmgap train --radii`; return that run."""
    from warmgap.torch.gluon_fits import write_radii

    chosen = min(trajectories, key=lambda run: abs(math.log(run.rate)))
    try:
        write_radii(path, fit_layers(chosen.records))
    except ValueError as error:
        raise UserError(f"No layer constants: {error}.") from error
    return chosen


def report(trajectories: Sequence[Trajectory], path: Path, *, target_loss: float | None = None) -> Path:
    """Print a table of fits a run, with what to think of them, and write a page with their pictures.

    `target_loss` is the loss that gaps are taken to; None takes them as recorded.
    """
    sections, compared = [], compare_rates(trajectories)
    for name, members, sentences in compared:
        section = Section(f"{name}: several rates", sentences)
        caption = (
            "If the ratio belongs to the function, the clouds lie on top of each other. If it only follows the step "
            "length, they lie apart by the factors between the rates."
        )
        section.draw(_rates_picture(members, target_loss), caption)
        sections.append(section)
    for trajectory in trajectories:
        analysis = analyse(trajectory, target_loss=target_loss)
        print_table(trajectory.heading, analysis.rows())
        print(*analysis.notes, "", sep="\n")  # noqa: T201
        section = Section(trajectory.heading, analysis.notes, tables=[analysis.rows()])
        if analysis.fits:
            caption = "A dot is a measured step, coloured by when it was made. The run goes from right to left."
            section.draw(_trajectory_picture(trajectory, analysis.fits, target_loss), caption)
        if analysis.fits and analysis.layered:
            caption = "Each block's own ratio, in its own norm; the line is an (H0, H1) envelope over 95 % of the dots."
            section.draw(_blocks_picture(trajectory.records, target_loss), caption)
        sections.append(section)
    for name, members, sentences in compared:
        print(f"{name}, {len(members)} rates.", *sentences)  # noqa: T201
    return write_page(path, "Curvature and the loss gap", [READING], sections)


def _columns(records: Sequence[Record], target_loss: float | None) -> Any:
    """Gap, ratio and step of the records that have finite ones; shape `(3, n)`."""
    rows = [
        (record.gap if target_loss is None else record.loss - target_loss, record.ratio, record.step)
        for record in records
    ]
    table = np.array(rows, dtype=float).reshape(-1, 3)
    return table[np.isfinite(table).all(axis=1) & (table[:, 0] > 0.0)].T


def _trajectory_picture(trajectory: Trajectory, fits: Sequence[Fit], target_loss: float | None) -> Figure:
    gaps, ratios, steps = _columns(trajectory.records, target_loss)
    bar = {"title": "step", "thickness": 10}
    marker = {"color": steps, "colorscale": "Viridis", "size": 5, "colorbar": bar}
    figure = Figure().add_scatter(x=gaps, y=ratios, mode="markers", marker=marker, name="measured")
    grid = np.geomspace(gaps.min(), gaps.max(), 200)
    for fit in fits:
        style = _DRAWN.get((fit.assumption, fit.method))
        if style is not None and fit.rho == 2.0:
            colour, dash, name = style
            drawn = np.asarray(fit(grid), dtype=float)
            figure.add_scatter(
                x=grid, y=np.where(drawn > 0.0, drawn, np.nan), line={"color": colour, "dash": dash}, name=name
            )
    return _scaled(figure, gaps, ratios)


def _rates_picture(members: Sequence[Trajectory], target_loss: float | None) -> Figure:
    figure = Figure()
    columns = [_columns(run.records, target_loss) for run in members]
    for at, (run, (gaps, ratios, _)) in enumerate(zip(members, columns, strict=True)):
        marker = {"color": STRONG[at % len(STRONG)], "size": 5, "opacity": 0.6, "symbol": at}
        figure.add_scatter(x=gaps, y=ratios, mode="markers", marker=marker, name=run.name)
    return _scaled(figure, *(np.concatenate([column[at] for column in columns]) for at in (0, 1)))


def _blocks_picture(records: Sequence[Record], target_loss: float | None) -> Figure:
    names = list(block_names(records))
    if len(names) > _MOST_BLOCKS:
        names = [names[round(at)] for at in np.linspace(0, len(names) - 1, _MOST_BLOCKS)]
    high, wide = -(-len(names) // 4), min(4, len(names))
    short = [name.removeprefix("model.").removesuffix(".weight").replace("layers.", "") for name in names]
    figure = make_subplots(rows=high, cols=wide, subplot_titles=short)
    for at, name in enumerate(names):
        own = block_records(records, name)
        gaps, ratios, steps = _columns(own, target_loss)
        if not len(gaps):
            continue
        where = {"row": at // wide + 1, "col": at % wide + 1}
        marker = {"color": steps, "colorscale": "Viridis", "size": 3}
        figure.add_scatter(x=gaps, y=ratios, mode="markers", marker=marker, showlegend=False, **where)
        try:
            fit = fit_gap_linear(own, method="envelope", target_loss=target_loss, resamples=20)
        except ValueError:
            continue  # too few points for a line: the dots stand alone
        grid = np.geomspace(gaps.min(), gaps.max(), 100)
        figure.add_scatter(x=grid, y=np.asarray(fit(grid)), line={"color": "#7A4EAB"}, showlegend=False, **where)
    figure.update_annotations(font_size=10)
    return figure.update_layout(height=220 * high)


def _scaled(figure: Figure, gaps: Any, ratios: Any) -> Figure:
    """Logarithmic axes where the values are above zero and span more than a factor of ten."""
    figure.update_xaxes(title="gap: loss - target loss (nats)")
    figure.update_yaxes(title="ratio")
    for values, update in ((gaps, figure.update_xaxes), (ratios, figure.update_yaxes)):
        if len(values) and values.min() > 0.0 and values.max() > 10.0 * values.min():
            update(type="log")
    return figure
