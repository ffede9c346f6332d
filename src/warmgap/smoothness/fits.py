"""From records to the constants of an assumption, with what is needed to judge them.

An assumption of this kind is an inequality, `ratio <= K(gap)`. Three methods:

    "nnls"       least squares with constants >= 0, as the assumption asks
    "lstsq"      plain least squares, as in the published analyser: constants may come out negative
    "envelope"   constants >= 0 under which the share `quantile` of the ratios lies (quantile regression)

and for the layer-wise assumption the published hinge, which punishes a ratio above the fit six times as hard. Each fit
carries intervals from a block bootstrap over the trajectory, since neighbouring steps are not independent.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from warmgap._checks import check_positive
from warmgap.curve import Smoothness
from warmgap.rules.measured import MeasuredRule
from warmgap.smoothness._points import At, Points, check_gaps, check_resamples, points_of, resampled
from warmgap.smoothness._solvers import Solve, cost_of, solver
from warmgap.smoothness.diagnosis import Belongs, StepLengthDiagnosis, belongs, diagnosis_of
from warmgap.smoothness.records import block_names, block_records

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from warmgap.smoothness.records import Record

    Array = NDArray[Any]

Number = TypeVar("Number")
Method = Literal["nnls", "lstsq", "envelope", "hinge"]

LEVEL = 0.95
"""Coverage that the intervals aim at."""

RHO_GRID = tuple(0.25 * index for index in range(1, 17) if index != 4)
"""Exponents that a search tries, 1 left out, since it is the linear term."""

LOWEST_RHO, HIGHEST_RHO = RHO_GRID[0], RHO_GRID[-1]

_TOLERANCE = 1e-9
"""A ratio counts as a violation where it lies above the fit by more than this share: rounding does not."""

_PER_CONSTANT = 4
"""Points that a fit needs for each of its constants."""


@dataclass(frozen=True)
class Trend:
    """Whether the ratio rises or falls with the gap.

    Attributes:
        slope: Slope of the straight line through ratio against gap, dK/dgap.
        interval: Its interval.
        verdict: `"rises"` or `"falls"` where the interval lies on one side of zero, else `"unclear"`.

    Example:
        >>> Trend(18.0, (17.0, 19.0), "rises").sentence
        'The ratio rises with the gap, as the assumption says.'
    """

    slope: float
    interval: tuple[float, float]
    verdict: Literal["rises", "falls", "unclear"]

    @property
    def sentence(self) -> str:
        """What that means, in words."""
        return {
            "rises": "The ratio rises with the gap, as the assumption says.",
            "falls": "The ratio falls as the gap rises: the opposite of the assumption.",
            "unclear": "Unclear from these records whether the ratio rises or falls with the gap.",
        }[self.verdict]


@dataclass(frozen=True)
class Fit:
    """The constants of one assumption, fitted to one trajectory.

    Attributes:
        assumption: `"rho"` for K0 + K1*gap + Krho*gap**rho, `"H0, H1"` for H0 + H1*gap, `"L0, L1"` for
            L0 + L1*dual_norm.
        method: `"nnls"`, `"lstsq"`, `"envelope"` or `"hinge"`.
        constants: The constants by name, rho among them where it was searched.
        intervals: Their intervals of 95 % coverage, by block bootstrap. A constant on the edge of what is allowed
            (zero) has an interval that begins there.
        rho: The exponent; None for the other assumptions.
        r2: Share of the ratio's variance that the fit explains; negative where it explains less than the mean does;
            NaN where the ratio does not vary.
        violations: Share of the ratios that lie above the fit.
        largest_violation: How far the worst of them lies above it, as a share of the fit.
        relative_error: Mean of the squared relative error, `((ratio - fit)/ratio)**2`.
        trend: How the ratio goes with the gap.
        diagnosis: Whether the ratios say anything but how long the steps were.
        points: Rows that were used.
        dropped: Rows that were not: not finite, or of a step that moved nothing.
        block: The block's name, empty for the whole model.
        norm: The norm of the records.

    Example:
        >>> from warmgap.smoothness import Record
        >>> gaps = [8 * 0.95**n for n in range(60)]
        >>> records = [Record(n, 2 + gap, gap, 4 + 18 * gap, 1e-3, 1.0) for n, gap in enumerate(gaps)]
        >>> fit = fit_gap_linear(records)
        >>> f"{fit(1.0):.2f}", fit.trend.verdict, fit.violations
        ('22.00', 'rises', 0.0)
        >>> f"{fit.rule(target_loss=2.0).peak_gap:.3f}"
        '0.111'
    """

    assumption: Literal["rho", "H0, H1", "L0, L1"]
    method: Method
    constants: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    rho: float | None
    r2: float
    violations: float
    largest_violation: float
    relative_error: float
    trend: Trend
    diagnosis: StepLengthDiagnosis
    points: int
    dropped: int
    block: str = ""
    norm: str = ""

    def __call__(self, x: Number) -> Number:
        """Return the fitted bound at a gap (for `"L0, L1"`: at a dual norm), of any array type."""
        value: Any = x
        names = {"rho": ("K0", "K1", "Krho"), "H0, H1": ("H0", "H1"), "L0, L1": ("L0", "L1")}[self.assumption]
        bound = self.constants[names[0]] + self.constants[names[1]] * value
        if self.rho is not None:
            bound = bound + self.constants["Krho"] * value**self.rho
        return cast("Number", bound)

    @property
    def smoothness(self) -> Smoothness:
        """The fitted bound, with its `step_size(gap)`.

        Raises:
            ValueError: If it is not one of the form K0 + K1*gap + K2*gap**2 that is positive everywhere.
        """
        return Smoothness(*self._in_the_gap)

    @property
    def _in_the_gap(self) -> tuple[float, float, float]:
        if self.assumption == "H0, H1":
            return self.constants["H0"], self.constants["H1"], 0.0
        if self.assumption == "rho" and self.rho == 2.0:
            return self.constants["K0"], self.constants["K1"], self.constants["Krho"]
        if self.assumption == "L0, L1":
            raise ValueError("layer-wise constants set the radii of Gluon, not a rate: give them to Gluon.from_fits")
        raise ValueError(
            f"a step size needs a fit in the gap with rho = 2, or one of (H0, H1), got rho = {self.rho}: call "
            "fit_smoothness(records, rho=2) or fit_gap_linear(records)"
        )

    def rule(self, target_loss: float, *, floor: float = 0.01) -> MeasuredRule:
        """Return the warm-up rule that these constants mean.

        With a quadratic term it follows `gap/K(gap)` up to its peak at `sqrt(K0/K2)`; without one, as of
        `fit_gap_linear`, the step size of gradient descent under (H0, H1), `1/(10 H0 + 20 H1 gap)`.

        Args:
            target_loss: The loss that the gaps of the records were taken to.
            floor: Factor of a first step that no loss precedes, in (0, 1).

        Raises:
            ValueError: If there is no `smoothness`, or its step size has no peak: the message says what to do.
        """
        K0, K1, K2 = self._in_the_gap
        try:
            return MeasuredRule(K0=K0, K1=K1, K2=K2, target_loss=target_loss, floor=floor)
        except ValueError as error:
            raise ValueError(f"{error}. {self._remedy}") from error

    @property
    def _remedy(self) -> str:
        if self.trend.verdict == "falls":
            return (
                "The ratio falls as the gap rises, so no warm-up follows from it: fit the first part of the run alone "
                "(records[:n]), where it may rise, or keep the default rule"
            )
        other = "fit_smoothness" if self.assumption == "H0, H1" else "fit_gap_linear"
        return f"Try {other} or method='envelope', more records, or the first part of the run alone (records[:n])"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know before believing the constants, in sentences."""
        notes = [] if self.diagnosis.informative else [self.diagnosis.sentence]
        if self.trend.verdict != "rises" and self.assumption != "L0, L1":
            notes.append(self.trend.sentence)
        if "rho" in self.constants and self.constants["Krho"] == 0.0:
            notes.append("Krho is 0, so that rho says nothing.")
        elif "rho" in self.constants and not LOWEST_RHO < self.constants["rho"] < HIGHEST_RHO:
            notes.append(
                f"rho lies at the end of what is searched, {LOWEST_RHO:g} to {HIGHEST_RHO:g}: another may fit better."
            )
        if negative := [name for name, value in self.constants.items() if value < 0.0]:
            notes.append(f"Negative, which the assumption does not allow: {', '.join(negative)}.")
        if self.dropped:
            notes.append(
                f"{self.dropped} of {self.points + self.dropped} records were left out: not finite, or nothing moved."
            )
        return tuple(notes)


def fit_smoothness(
    records: Sequence[Record],
    *,
    rho: float | Literal["search"] = 2.0,
    method: Literal["nnls", "lstsq", "envelope"] = "nnls",
    quantile: float = 0.95,
    at: At = "start",
    target_loss: float | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> Fit:
    """Fit `ratio <= K0 + K1*gap + Krho*gap**rho`.

    Args:
        records: The rows of one trajectory.
        rho: The exponent, above 0 and not 1; or `"search"`, the best of `RHO_GRID`, refined.
        method: See the module.
        quantile: Share of the ratios that an envelope covers, in (0, 1).
        at: Which loss of a step the gap is taken at: `"start"` (the point that a schedule acts on, and where the bound
            holds on a step downhill), `"end"` (the published analyser) or `"middle"` (the mean, nearest to the ratio of
            a short step).
        target_loss: The loss that gaps are taken to; that of the records unless given.
        resamples: Bootstrap resamples, 20 at least.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If an argument is out of range; there are too few usable records; all gaps are the same; or a gap is
            not above zero.

    Example:
        >>> from warmgap.smoothness import Record
        >>> gaps = [8 * 0.95**n for n in range(60)]
        >>> records = [Record(n, 2 + gap, gap, 4 + 18 * gap, 1e-3, 1.0) for n, gap in enumerate(gaps)]
        >>> fit = fit_smoothness(records)
        >>> print({name: round(value, 3) for name, value in fit.constants.items()})
        {'K0': 4.0, 'K1': 18.0, 'Krho': 0.0}

    Source: arXiv 2602.05813, Assumption 2 (in the form of a bound on the Hessian along the trajectory).
    """
    points = _gap_points(records, at, target_loss)
    solve = solver(method, quantile)
    searched = rho == "search"
    if rho != "search":
        rho = check_positive("rho", rho, "or 'search'")
        if rho == 1.0:
            raise ValueError("rho = 1 is the linear term again; use fit_gap_linear, or another rho")
        _check_powers(points, rho)
    _check_enough(points, 4 if searched else 3)

    def fitted(rows: Points) -> Array:
        import numpy as np

        if rho != "search":
            return solve(_power_basis(rows.gap, rho), rows.ratio)
        best = _search_rho(rows, solve, cost_of(method, quantile))
        return np.append(solve(_power_basis(rows.gap, best), rows.ratio), best)

    names = ("K0", "K1", "Krho", *(("rho",) if searched else ()))
    # A search costs a dozen fits or two, so that fewer resamples must do.
    return _result("rho", method, points, names, fitted, max(20, resamples // 4) if searched else resamples, seed, rho)


def fit_gap_linear(
    records: Sequence[Record],
    *,
    method: Literal["nnls", "lstsq", "envelope"] = "nnls",
    quantile: float = 0.95,
    at: At = "start",
    target_loss: float | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> Fit:
    """Fit `ratio <= H0 + H1*gap`; the arguments and errors are those of `fit_smoothness`.

    Example:
        >>> from warmgap.smoothness import Record
        >>> gaps = [8 * 0.95**n for n in range(60)]
        >>> records = [Record(n, 2 + gap, gap, 4 + 18 * gap, 1e-3, 1.0) for n, gap in enumerate(gaps)]
        >>> fit = fit_gap_linear(records)
        >>> print({name: round(value, 3) for name, value in fit.constants.items()})
        {'H0': 4.0, 'H1': 18.0}

    Source: arXiv 2510.03164, the (H0, H1) condition.
    """
    import numpy as np

    points = _gap_points(records, at, target_loss)
    _check_enough(points, 2)
    solve = solver(method, quantile)

    def fitted(rows: Points) -> Array:
        return solve(np.column_stack([np.ones(len(rows)), rows.gap]), rows.ratio)

    return _result("H0, H1", method, points, ("H0", "H1"), fitted, resamples, seed)


@dataclass(frozen=True)
class LayerFits:
    """The layer-wise fits.

    Attributes:
        fits: A fit a block, by the block's name.
        skipped: Why a block has none, by its name.

    Example:
        >>> LayerFits({}, {"embedding": "it never moved"}).skipped
        {'embedding': 'it never moved'}
    """

    fits: dict[str, Fit]
    skipped: dict[str, str]


def fit_layers(
    records: Sequence[Record],
    *,
    method: Literal["hinge", "nnls", "lstsq", "envelope"] = "hinge",
    quantile: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> LayerFits:
    """Fit `ratio <= L0 + L1*dual_norm` for every block, the dual norm being that of the block's gradient.

    A block that never moved, or whose gradient never changed its size, is named in `skipped`.

    Args:
        records: The rows of one trajectory, with blocks.
        method: `"hinge"` is the published one: the sum of r**2 + 5*max(0, r)**2, r = ratio - fit, constants >= 0.
        quantile: Share of the ratios that an envelope covers, in (0, 1).
        resamples: Bootstrap resamples, 20 at least.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If an argument is out of range, or no record has a block.

    Example:
        >>> from warmgap.smoothness import Block, Record
        >>> records = [
        ...     Record(n, 2.0, 1.0, 1.0, 0.1, 1.0, blocks=(Block("head", "gluon spectral", 2 + 3 * n, 0.1, 1 + n),))
        ...     for n in range(20)
        ... ]
        >>> fit = fit_layers(records).fits["head"]
        >>> print({name: round(value, 2) for name, value in fit.constants.items()})
        {'L0': 0.0, 'L1': 2.94}

    Source: arXiv 2505.13416 (Gluon), the layer-wise (L0, L1) assumption and its measurement.
    """
    import numpy as np

    solve = solver(method, quantile)
    check_resamples(resamples, seed)
    names = block_names(records)
    if not names:
        raise ValueError("the records have no blocks, and a layer-wise fit needs them")

    def fitted(rows: Points) -> Array:
        return solve(np.column_stack([np.ones(len(rows)), rows.dual_norm]), rows.ratio)

    fits, skipped = {}, {}
    for name in names:
        try:
            points = points_of(block_records(records, name))
            _check_enough(points, 2)
            if np.ptp(points.dual_norm) <= 1e-12 * points.dual_norm.max():
                raise ValueError("the dual norm of its gradient is the same in all records")
        except ValueError as error:
            skipped[name] = str(error)
            continue
        fit = _result("L0, L1", method, points, ("L0", "L1"), fitted, resamples, seed)
        fits[name] = replace(fit, block=name)
    return LayerFits(fits, skipped)


@dataclass(frozen=True)
class LayerDependence:
    """What becomes of the layers' L1 when the steps are made longer or shorter.

    Attributes:
        exponents: Slope of log L1 against log step length, by block: 0 where L1 belongs to the function, -1 where the
            radius 1/L1 only gives back the one that was measured with.
        exponent: Their median.
        interval: Its interval of 95 % coverage, from a block bootstrap over each run.

    Example:
        >>> LayerDependence({"head": -1.0, "body": -0.9}, -0.95, (-1.1, -0.9)).verdict
        'step length'
    """

    exponents: dict[str, float]
    exponent: float
    interval: tuple[float, float]

    @property
    def verdict(self) -> Belongs:
        """What the interval says L1 belongs to, see `warmgap.smoothness.belongs`."""
        return belongs(self.interval)

    @property
    def sentence(self) -> str:
        """What that means, in words."""
        low, high = self.interval
        seen = (
            f"L1 goes with the step length to the power {self.exponent:.2f} (median of {len(self.exponents)} layers), "
            f"between {low:.2f} and {high:.2f} at 95 %"
        )
        return {
            "step length": f"The layers' constants follow the step length: {seen}; 1/L1 gives back the radius put in.",
            "function": f"The layers' constants belong to the function: {seen}.",
            "both": f"The layers' constants depend on the function and on the step length: {seen}.",
            "unclear": f"Unclear whether the layers' constants follow the step length: {seen}; measure longer.",
        }[self.verdict]


def layer_dependence(
    runs: Mapping[float, Sequence[Record]],
    *,
    method: Literal["hinge", "nnls", "lstsq", "envelope"] = "hinge",
    quantile: float = 0.95,
    resamples: int = 40,
    seed: int = 0,
) -> LayerDependence:
    """Compare the layers' L1 of runs of one model at several learning rates: do they only follow the step length?

    Args:
        runs: The records of each run by its rate, two at least, best at a quarter, one and four times the tuned one.
        method: As for `fit_layers`.
        quantile: As for `fit_layers`.
        resamples: Bootstrap resamples, 20 at least.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If an argument is out of range, there are fewer than two runs, or no layer has an L1 above 0 and
            steps of different length in two of them.

    Example:
        >>> from warmgap.smoothness import Block, Record
        >>> runs = {
        ...     rate: [
        ...         Record(n, 2.0, 1.0, 1.0, rate, 1.0, blocks=(Block("head", "gluon", (1 + n) / rate, rate, 1 + n),))
        ...         for n in range(20)
        ...     ]
        ...     for rate in (0.25, 1.0, 4.0)
        ... }
        >>> layer_dependence(runs, resamples=20).verdict  # L1 is 1 / step length
        'step length'

    Source: arXiv 2505.13416, whose layer-wise measurement this puts to the test.
    """
    import numpy as np

    if len(runs) < 2:
        raise ValueError(f"a comparison needs the records of at least two rates, got {len(runs)}")
    check_resamples(resamples, seed)
    solve = solver(method, quantile)
    layers: dict[str, list[Points]] = {}
    for name in block_names(record for records in runs.values() for record in records):
        for records in runs.values():
            with contextlib.suppress(ValueError):  # it never moved in this run
                layers.setdefault(name, []).append(points_of(block_records(records, name)))
    exponents = _exponents(layers, solve)
    if not exponents:
        raise ValueError("no layer has an L1 above 0 at two rates whose steps differ: measure longer, or other rates")
    drawn = {
        name: [resampled(run, resamples, seed + 7919 * index) for index, run in enumerate(of_layer)]
        for name, of_layer in layers.items()
        if name in exponents
    }
    medians = []
    for index in range(resamples):
        sample = _exponents({name: [run[index] for run in of_layer] for name, of_layer in drawn.items()}, solve)
        if sample:
            medians.append(float(np.median(list(sample.values()))))
    middle = float(np.median(list(exponents.values())))
    low, high = np.quantile(medians, (0.5 * (1.0 - LEVEL), 0.5 * (1.0 + LEVEL)))
    return LayerDependence(exponents, middle, (min(float(low), middle), max(float(high), middle)))


def _exponents(layers: Mapping[str, Sequence[Points]], solve: Solve) -> dict[str, float]:
    """The slope of log L1 against log step length of every layer that has one."""
    import numpy as np

    found = {}
    for name, of_layer in layers.items():
        lengths, slopes = [], []
        for points in of_layer:
            slope = float(solve(np.column_stack([np.ones(len(points)), points.dual_norm]), points.ratio)[1])
            if slope > 0.0:
                lengths.append(math.log(float(np.median(points.step_length))))
                slopes.append(math.log(slope))
        if len(lengths) >= 2 and np.ptp(lengths) > 1e-3:
            found[name] = float(np.polyfit(lengths, slopes, 1)[0])
    return found


# ---------------------------------------------------------------------------------------------------------- the pieces


def _gap_points(records: Sequence[Record], at: At, target_loss: float | None) -> Points:
    points = points_of(records, at=at, target_loss=target_loss)
    check_gaps(points)
    return points


def _check_enough(points: Points, constants: int) -> None:
    if len(points) < _PER_CONSTANT * constants:
        raise ValueError(
            f"a fit of {constants} constants needs at least {_PER_CONSTANT * constants} usable records, got "
            f"{len(points)}; measure more steps"
        )


def _check_powers(points: Points, rho: float) -> None:
    import numpy as np

    with np.errstate(over="ignore", under="ignore"):
        powers = points.gap**rho
    if not np.isfinite(powers).all() or not powers.any():
        raise ValueError(
            f"gap**rho cannot be computed with for rho = {rho:g} and gaps from {points.gap.min():g} to "
            f"{points.gap.max():g}; give a rho nearer to 1"
        )


def _power_basis(gap: Array, rho: float) -> Array:
    import numpy as np

    return np.column_stack([np.ones_like(gap), gap, gap**rho])


def _search_rho(points: Points, solve: Solve, cost: Callable[[Array], float]) -> float:
    from scipy import optimize

    def badness(rho: float) -> float:
        basis = _power_basis(points.gap, rho)
        return cost(points.ratio - basis @ solve(basis, points.ratio))

    best = min(RHO_GRID, key=badness)
    around = (best - 0.24, best + 0.24)
    refined = float(optimize.minimize_scalar(badness, bounds=around, method="bounded", options={"xatol": 1e-3}).x)
    return refined if badness(refined) < badness(best) else best


def _result(
    assumption: Literal["rho", "H0, H1", "L0, L1"],
    method: Method,
    points: Points,
    names: Sequence[str],
    fitted: Callable[[Points], Array],
    resamples: int,
    seed: int,
    rho: float | str | None = None,
) -> Fit:
    import numpy as np

    check_resamples(resamples, seed)
    constants = fitted(points)
    slope = _slope(points)
    drawn = [(fitted(sample), _slope(sample)) for sample in resampled(points, resamples, seed)]
    tail = 0.5 * (1.0 - LEVEL)
    lows, highs = np.quantile([sample for sample, _ in drawn], (tail, 1.0 - tail), axis=0)
    low, high = (float(value) for value in np.quantile([value for _, value in drawn], (tail, 1.0 - tail)))
    values = {name: float(value) for name, value in zip(names, constants, strict=True)}
    exponent = values.get("rho", rho if isinstance(rho, float) else None)
    x = points.dual_norm if assumption == "L0, L1" else points.gap
    fit = Fit(
        assumption=assumption,
        method=method,
        constants=values,
        intervals={
            # The fit itself always lies in its interval: a resample can miss the one point that an edge hangs on.
            name: (min(float(lo), values[name]), max(float(hi), values[name]))
            for name, lo, hi in zip(names, lows, highs, strict=True)
        },
        rho=exponent,
        r2=0.0,
        violations=0.0,
        largest_violation=0.0,
        relative_error=0.0,
        trend=Trend(slope, (low, high), "rises" if low > 0.0 else "falls" if high < 0.0 else "unclear"),
        diagnosis=diagnosis_of(points),
        points=len(points),
        dropped=points.dropped,
        norm=points.norm,
    )
    bound = fit(x)
    residual = points.ratio - bound
    spread = float(((points.ratio - points.ratio.mean()) ** 2).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.where(bound > 0.0, residual / bound, np.where(residual > 0.0, math.inf, 0.0))
    above = residual > _TOLERANCE * np.abs(points.ratio)
    constant = spread <= (1e-12 * float(np.abs(points.ratio).max())) ** 2 * len(points)
    nonzero = points.ratio > 0.0
    return replace(
        fit,
        r2=math.nan if constant else 1.0 - float(residual @ residual) / spread,
        violations=float(above.mean()),
        largest_violation=float(excess[above].max()) if above.any() else 0.0,
        relative_error=float(((residual[nonzero] / points.ratio[nonzero]) ** 2).mean()) if nonzero.any() else math.nan,
    )


def _slope(points: Points) -> float:
    centred = points.gap - points.gap.mean()
    spread = float(centred @ centred)
    return float(centred @ points.ratio) / spread if spread > 0.0 else 0.0
