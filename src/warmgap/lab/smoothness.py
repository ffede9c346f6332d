"""Runs that are measured while they train, and what their records say: a table, pictures, a page."""

from __future__ import annotations

import dataclasses
import html
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from warmgap.lab import figures
from warmgap.lab.config import TrainConfig
from warmgap.lab.errors import UserError
from warmgap.lab.page import as_png, html_figure, html_page
from warmgap.lab.smoothness_figures import blocks_figure, rates_figure, trajectory_figure
from warmgap.smoothness import (
    Fit,
    LayerFits,
    RateDependence,
    Record,
    block_names,
    fit_gap_linear,
    fit_layers,
    fit_smoothness,
    rate_dependence,
    read_records,
)
from warmgap.smoothness.records import finite

if TYPE_CHECKING:
    from rich.console import Console

RECORDS_FILE = "smoothness.jsonl"
"""Records in the folder of a run."""

HEADINGS = ("bound", "method", "constants, 95 % interval", "R2", "above", "worst")
"""Columns of the table of fits: `above` is the share of ratios above the fit, `worst` how far the worst one is."""

READING = (
    "The assumption behind warm-up is an inequality: dual norm of the gradient's change over the step's length, here "
    "the ratio, is at most K(gap). nnls and lstsq go through the points, with and without constants held at zero or "
    "above; envelope lies above 95 % of them. Intervals come from a block bootstrap over the trajectory. Whether the "
    "ratio rises or falls with the gap does not depend on the target loss; the constants do."
)


@dataclass(frozen=True)
class Measurement:
    """How a run is measured; see `SmoothnessProbe`."""

    every: int = 1
    estimator: str = "same-batch"
    norm: str = "auto"
    target_loss: float = 0.0


@dataclass(frozen=True)
class Trajectory:
    """The records of one run.

    Attributes:
        name: What the run is called in tables.
        path: The file.
        records: Its records.
    """

    name: str
    path: Path
    records: Sequence[Record]


@dataclass(frozen=True)
class Analysis:
    """Every fit of one trajectory.

    Attributes:
        fits: The fits in the gap.
        layers: The layer-wise fits; None where the records have no blocks.
        failed: Why a fit could not be made, a sentence each.
    """

    fits: Sequence[Fit]
    layers: LayerFits | None
    failed: Sequence[str]

    @property
    def notes(self) -> list[str]:
        """What a reader must know, every sentence once."""
        first = self.fits[0] if self.fits else None
        told = [] if first is None else [first.trend.sentence, first.diagnosis.sentence]
        return list(dict.fromkeys([*told, *(note for fit in self.fits for note in fit.notes), *self.failed]))


def measure(config: TrainConfig, how: Measurement, rates: Sequence[float], folder: Path) -> bool:
    """Train at each multiple of the peak rate, with a probe; False where a run was interrupted.

    Raises:
        UserError: Settings that cannot be, or a folder with runs in it.
    """
    base = config.resolve()
    if any(rate <= 0.0 for rate in rates) or len(set(rates)) != len(rates):
        raise UserError(f"The rates must be different factors above 0, got {', '.join(f'{rate:g}' for rate in rates)}.")
    from warmgap.lab.train import train
    from warmgap.torch import SmoothnessProbe

    for rate in rates:
        place = folder / f"rate-{rate:g}"
        if (place / "run.json").exists():
            raise UserError(
                f"{place} already holds a run: read it with warmgap smoothness {folder}, or give another --output."
            )
        try:
            make = partial(
                SmoothnessProbe,
                every=how.every,
                estimator=how.estimator,  # type: ignore[arg-type]
                norm=how.norm,
                target_loss=how.target_loss,
                path=place / RECORDS_FILE,
            )
            assert base.lr is not None  # noqa: S101 - resolved
            record = train(
                dataclasses.replace(base, lr=base.lr * rate, output=place, resume=False),
                probe=lambda optimizer, model, make=make: make(optimizer, model=model),  # type: ignore[misc]
            )
        except ValueError as error:
            raise UserError(f"The run cannot be measured: {error}") from error
        if record.status == "interrupted":
            return False
    return True


def read_trajectories(places: Sequence[Path]) -> list[Trajectory]:
    """The records in these files, and in files named `smoothness.jsonl` in or below these folders.

    Raises:
        UserError: Nothing there, or something that is no file of records.
    """
    found: dict[Path, str] = {}
    for place in places:
        if place.is_dir():
            below = sorted(place.rglob(RECORDS_FILE))
            found |= {
                path: str(path.parent.relative_to(place)) if path.parent != place else place.name for path in below
            }
        elif place.exists():
            found[place] = place.parent.name if place.name == RECORDS_FILE else place.stem
        else:
            raise UserError(f"There is no {place}.")
    if not found:
        raise UserError(f"No {RECORDS_FILE} in or below {', '.join(map(str, places))}: measure a run first.")
    trajectories = []
    for path, name in found.items():
        try:
            records = read_records(path)
        except ValueError as error:
            raise UserError(f"{str(error)[:1].upper()}{str(error)[1:]}") from error
        trajectories.append(Trajectory(_described(path, name), path, records))
    return trajectories


def analyse(trajectory: Trajectory, *, target_loss: float | None = None, resamples: int = 200) -> Analysis:
    """Make every fit that the records allow; one that they do not becomes a sentence."""
    records = trajectory.records
    fits, failed = [], []
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
    layers = fit_layers(records, resamples=20) if block_names(records) else None
    return Analysis(fits, layers, list(dict.fromkeys(failed)))


def fit_row(fit: Fit) -> tuple[str, ...]:
    """A fit as the cells of the table."""
    bound = f"rho = {fit.rho:.3g}" if fit.assumption == "rho" else fit.assumption
    parts = [
        f"{name} {value:.3g} [{fit.intervals[name][0]:.3g}, {fit.intervals[name][1]:.3g}]"
        for name, value in fit.constants.items()
    ]
    return (
        bound,
        fit.method,
        ", ".join(parts),
        f"{fit.r2:.3f}",
        f"{fit.violations:.0%}",
        f"{fit.largest_violation:+.0%}",
    )


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


def compare_rates(trajectories: Sequence[Trajectory]) -> list[tuple[str, Sequence[Trajectory], RateDependence]]:
    """Runs at several rates that lie beside each other in folders `rate-...`, compared."""
    groups: dict[Path, list[Trajectory]] = {}
    for trajectory in trajectories:
        if trajectory.path.parent.name.startswith("rate-"):
            groups.setdefault(trajectory.path.parent.parent, []).append(trajectory)
    found: list[tuple[str, Sequence[Trajectory], RateDependence]] = []
    for place, members in groups.items():
        if len(members) > 1:
            try:
                dependence = rate_dependence({float(index): run.records for index, run in enumerate(members)})
            except ValueError:
                continue  # a run too short for any comparison says so in its own table
            found.append((place.name, members, dependence))
    return found


def print_fits(trajectories: Sequence[Trajectory], console: Console, *, target_loss: float | None = None) -> None:
    """Print a table of fits a run, and what to think of them."""
    from rich import box
    from rich.table import Table

    for trajectory in trajectories:
        analysis = analyse(trajectory, target_loss=target_loss)
        console.print(_heading(trajectory), style="italic", highlight=False, markup=False)
        if analysis.fits:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for heading in HEADINGS:
                table.add_column(heading, justify="left" if heading in HEADINGS[:3] else "right")
            for fit in analysis.fits:
                table.add_row(*fit_row(fit))
            console.print(table)
        told = [*analysis.notes, *([] if analysis.layers is None else [layers_sentence(analysis.layers)])]
        console.print(*told, sep="\n", highlight=False, markup=False)
        console.print()
    for name, members, dependence in compare_rates(trajectories):
        console.print(f"{name}, {len(members)} rates. {dependence.sentence}", highlight=False, markup=False)


def write_page(trajectories: Sequence[Trajectory], output: Path, *, target_loss: float | None = None) -> Path:
    """Write `smoothness.html`, the pictures as PNGs, and the fits as `fits.json`; return the page.

    In the file, as in records, a number that is not finite is null.

    Raises:
        UserError: A place that cannot be written to.
    """
    body, pictures, plain = sections(trajectories, target_loss=target_loss)
    page = html_page("Curvature and the loss gap", ["<h1>Curvature and the loss gap</h1>", *body])
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, data in pictures.items():
            (output / name).write_bytes(data)
        text = json.dumps(finite(plain), indent=2, allow_nan=False)
        (output / "fits.json").write_text(text + "\n", encoding="utf-8")
        (output / "smoothness.html").write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"The page cannot be written to {output}: {error.strerror or error}.") from error
    return output / "smoothness.html"


def sections(
    trajectories: Sequence[Trajectory], *, target_loss: float | None = None
) -> tuple[list[str], dict[str, bytes], list[dict[str, object]]]:
    """The pieces of a page on these runs, its pictures by file name, and the numbers as plain values."""
    body = [f'<p class="note">{html.escape(READING)}</p>']
    pictures: dict[str, bytes] = {}
    plain: list[dict[str, object]] = []
    with figures.house_style():
        for name, members, dependence in compare_rates(trajectories):
            file = f"smoothness-rates-{len(pictures)}.png"
            pictures[file] = as_png(rates_figure({run.name: run.records for run in members}, target_loss))
            body += [
                f"<h2>{html.escape(name)}: several rates</h2>",
                f"<p>{html.escape(dependence.sentence)}</p>",
                html_figure(
                    pictures[file],
                    f"Ratio against the gap at several learning rates, {name}",
                    "If the ratio belongs to the function, the clouds lie on top of each other. If it only follows the "
                    "step length, they lie apart by the factors between the rates.",
                ),
            ]
        for number, trajectory in enumerate(trajectories):
            analysis = analyse(trajectory, target_loss=target_loss)
            body += [f"<h2>{html.escape(_heading(trajectory))}</h2>"]
            body += [f"<p>{html.escape(note)}</p>" for note in analysis.notes]
            if analysis.fits:
                file = f"smoothness-{number}.png"
                pictures[file] = as_png(trajectory_figure(trajectory.records, analysis.fits, target_loss))
                body += [
                    html_figure(
                        pictures[file],
                        f"Ratio against the gap, {trajectory.name}",
                        "A dot is a measured step, coloured by when it was made. Circled: above the envelope. The run "
                        "goes from right to left.",
                    ),
                    _table(HEADINGS, [fit_row(fit) for fit in analysis.fits]),
                ]
            if analysis.layers is not None and analysis.fits:
                file = f"smoothness-blocks-{number}.png"
                pictures[file] = as_png(blocks_figure(trajectory.records, target_loss))
                body += [
                    f"<p>{html.escape(layers_sentence(analysis.layers))}</p>",
                    html_figure(
                        pictures[file],
                        f"Ratio against the gap block by block, {trajectory.name}",
                        "Each block's own ratio, in its own norm; the line is an (H0, H1) envelope over 95 % of "
                        "the dots. Circled: above it.",
                    ),
                ]
            plain.append(_plain(trajectory, analysis))
    return body, pictures, plain


def _heading(trajectory: Trajectory) -> str:
    records = trajectory.records
    norms = {record.norm for record in records}
    estimators = {record.estimator for record in records}
    return f"{trajectory.name}: {len(records)} records, {'/'.join(sorted(estimators))}, norm {'/'.join(sorted(norms))}"


def _described(path: Path, name: str) -> str:
    """The run's optimizer and rate, where its folder tells them."""
    try:
        config = json.loads((path.parent / "run.json").read_text(encoding="utf-8"))["config"]
        return f"{config['optimizer']}, peak rate {config['lr']:g} ({name})"
    except (OSError, ValueError, KeyError, TypeError):
        return name


def _plain(trajectory: Trajectory, analysis: Analysis) -> dict[str, object]:
    def plain(fit: Fit) -> dict[str, object]:
        return dataclasses.asdict(fit) | {"notes": fit.notes}

    layers = analysis.layers
    return {
        "run": trajectory.name,
        "notes": analysis.notes,
        "fits": [plain(fit) for fit in analysis.fits],
        "layers": {} if layers is None else {name: plain(fit) for name, fit in layers.fits.items()},
        "skipped": {} if layers is None else layers.skipped,
    }


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{html.escape(heading)}</th>" for heading in headings) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"
