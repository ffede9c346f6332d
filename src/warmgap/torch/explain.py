"""What an `AdaptiveWarmup` says about itself: sentences, a verdict on the peak, and a picture."""

from __future__ import annotations

import base64
import html
import io
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warmgap.torch.scheduler import AdaptiveWarmup

_ROWS = 512  # of a history: then every second one goes
_FEW = 50  # steps at the peak before which there is no verdict on it
_SHOWN = 8  # events in a summary
_FAR = 1.0 / 3.0  # held below this share on average, the peak is far above what the cap lets through
_HALVED = "rate halved"


@dataclass
class History:
    """What a run did, thinned so that it stays small however long the run is.

    Attributes:
        rows: Step, loss (None where it was not finite), factor of the hidden matrices, factor of the others.
        stride: Every so many steps one row.
        last_loss: The last finite loss.
        peak_steps: Steps made before the decay.
        held: Sum, over these steps, of the share of the scheduled rate that the spectral cap let through.
        room: The least of the cap's limits divided by the scheduled rate, over these steps.
    """

    rows: list[tuple[int, float | None, float, float]] = field(default_factory=list)
    stride: int = 1
    last_loss: float | None = None
    peak_steps: int = 0
    held: float = 0.0
    room: float = math.inf

    def add(self, step: int, loss: float | None, factor: float, base: float) -> None:
        """Take in a step that ran at these factors."""
        finite = loss if loss is not None and math.isfinite(loss) else None
        if finite is not None:
            self.last_loss = finite
        if step % self.stride == 0:
            self.rows.append((step, finite, factor, base))
            if len(self.rows) > _ROWS:
                self.stride *= 2
                self.rows = [row for row in self.rows if row[0] % self.stride == 0]

    def at_peak(self, held: float, room: float) -> None:
        """Take in what the cap did in a step before the decay."""
        self.peak_steps += 1
        self.held += held
        self.room = min(self.room, room)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> History:
        """Return the history that `to_dict` described.

        Raises:
            ValueError: If it is none.
        """
        try:
            return cls(**{**data, "rows": [tuple(row) for row in data["rows"]]})
        except (TypeError, KeyError) as error:
            raise ValueError(f"this is not the history of an AdaptiveWarmup: {data!r:.80}") from error


def sentences(scheduler: AdaptiveWarmup) -> str:
    """Return what the rate did and why, and a verdict on the peak."""
    state = scheduler._state
    rates = ", ".join(f"{row.name} {row.lr:.3g}" for row in scheduler.roles)
    lines = [
        f"Step {state.step} of {state.total_iters}, phase {state.phase}; next learning rate: {rates}.",
    ]
    if state.phase != "decay" and state.decay_start is not None:
        lines.append(f"The decay begins at step {state.decay_start}.")
    if scheduler.gap is not None:
        lines.append(f"The rule follows the gap {scheduler.gap:.4g} to the target loss {scheduler.target_loss:.4g}.")
    events = scheduler.events
    if len(events) > _SHOWN:
        lines.append(f"{len(events)} events, of which the last:")
    lines += [str(event) for event in events[-_SHOWN:]]
    return "\n".join([*lines, verdict(scheduler)])


def verdict(scheduler: AdaptiveWarmup) -> str:
    """Return whether the peak looks too high, as far as the losses and the size of the steps show it.

    Nothing in a single run shows that another peak would have ended lower; the verdict says only what was seen.
    """
    history = scheduler._history
    halvings = sum(_HALVED in event.reason for event in scheduler.events)
    peak = max(row.peak for row in scheduler.roles)
    if halvings:
        times = "once" if halvings == 1 else f"{halvings} times"
        lowest = min(event.after for event in scheduler.events if _HALVED in event.reason)
        return (
            f"Peak {peak:.3g}: too high at least for a while. The guard halved the rate {times}, down to "
            f"{lowest:.2g} of the peak; peaks near {lowest * peak:.2g} look right here."
        )
    if history.peak_steps < _FEW:
        return f"Peak {peak:.3g}: no verdict before {_FEW} steps at it."
    share = history.held / history.peak_steps
    if scheduler.cap is None:
        return (
            f"Peak {peak:.3g}: no sign that it is too high. Whether a higher one would do better the losses don't show."
        )
    hidden = _held_peak(scheduler)
    if share < _FAR:
        return (
            f"Peak {peak:.3g}: high for the hidden matrices, whose steps the spectral cap held at {share:.2g} of it on "
            f"average. {share * hidden:.2g} would do for them; embedding and head ran at theirs."
        )
    if history.room < 1.0:
        return (
            f"Peak {peak:.3g}: fine. The spectral cap held the hidden matrices at times, down to {history.room:.2g} of "
            f"it ({share:.2f} on average), and the loss gave no cause to halve it."
        )
    room = "" if math.isinf(history.room) else f" (the largest had {1.0 / history.room:.2g} of the size it allows)"
    return (
        f"Peak {peak:.3g}: no sign that it is too high, and none that it is too low: no step came near the spectral "
        f"cap{room}. Whether a higher one would do better the losses don't show."
    )


def picture(scheduler: AdaptiveWarmup) -> Any:
    """Return a `matplotlib.figure.Figure` of learning-rate factor and loss, with the events.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "plot() needs matplotlib (pip install matplotlib); summary() says the same in words"
        ) from None
    rows = scheduler._history.rows
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    losses, factors = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    seen = [(step, loss) for step, loss, _, _ in rows if loss is not None]
    losses.plot([step for step, _ in seen], [loss for _, loss in seen], color="0.4", linewidth=0.8)
    losses.set_ylabel("loss")
    steps = [row[0] for row in rows]
    if any(row[2] != row[3] for row in rows):
        factors.plot(steps, [row[2] for row in rows], label="hidden matrices")
        factors.plot(steps, [row[3] for row in rows], label="others", linestyle="--")
        factors.legend(fontsize="small", frameon=False)
    else:
        factors.plot(steps, [row[2] for row in rows])
    factors.set(ylabel="rate / peak", xlabel="optimizer step", ylim=(0.0, 1.05), xlim=(0, scheduler.total_iters))
    for event in scheduler.events:
        for axes in (losses, factors):
            axes.axvline(event.step, color="tab:red", linewidth=0.6, alpha=0.5)
    last = -math.inf
    for event in scheduler.events:
        if event.step - last > 0.02 * scheduler.total_iters:  # no name over another
            losses.annotate(
                event.reason,
                (event.step, 0.98),
                xycoords=losses.get_xaxis_transform(),
                rotation=90,
                fontsize=6,
                ha="right",
                va="top",
            )
            last = event.step
    return figure


def picture_html(scheduler: AdaptiveWarmup) -> str:
    """Return the picture, where matplotlib is installed, and the summary, as HTML."""
    words = "<br>".join(html.escape(line) for line in scheduler.summary().splitlines())
    try:
        figure = picture(scheduler)
    except ModuleNotFoundError as error:
        return f"<p>{words}</p><p>{html.escape(str(error))}</p>"
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    image = base64.b64encode(png.getvalue()).decode()
    return f'<img alt="learning rate and loss" src="data:image/png;base64,{image}"><p>{words}</p>'


def _held_peak(scheduler: AdaptiveWarmup) -> float:
    """The peak of the matrices under the cap."""
    return float(scheduler.base_lrs[scheduler._capped[0]]) if scheduler._capped else math.nan
