"""What an `AdaptiveWarmup` says about itself: sentences, a verdict on the peak, and a picture."""

from __future__ import annotations

import base64
import html
import io
import logging
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from warmgap.schedule import MOST_EVENTS, Event, ScheduleState
from warmgap.torch.split import aligned

if TYPE_CHECKING:
    from warmgap.torch.scheduler import AdaptiveWarmup

_ROWS = 512  # of a history: then every second one goes
_FEW = 50  # steps at the peak before which there is no verdict on it
_SHOWN = 8  # events in a summary
_LEAST, _MOST = 0.05, 0.3  # share of a step under the cap between which runs ended near the best of all peaks
_FIRST, _LAST = 3, 16  # losses at the start and the end of a history, of which noise rarely puts all of one above all
_HALVED = "rate halved"
_NO_SIGN = "Whether a higher one would do better the losses don't show."

_OUTSIDE = "rate changed from outside, carried on"
_LOG = logging.getLogger("warmgap.torch.scheduler")

Verdict = Literal["too high", "fine", "unknown"]


@dataclass
class History:
    """What a run did, thinned so that it stays small however long the run is."""

    # step, loss (None where it was not finite), factor of the hidden matrices (of the largest direction in their
    # steps, under the cap), factor of the others
    rows: list[tuple[int, float | None, float, float]] = field(default_factory=list)
    stride: int = 1  # every so many steps one row
    last_loss: float | None = None  # the last finite loss
    peak_steps: int = 0  # steps made before the decay
    held: float = 0.0  # sum, over these steps, of the share of the steps' spectral norm that the cap let through
    # the least, over these steps, of the rate at which nothing would be cut divided by the scheduled rate
    room: float = math.inf
    # what the scheduler did to the rate beside its schedule, oldest first, at most `MOST_EVENTS`
    events: list[Event] = field(default_factory=list)
    outside: int = 0  # steps in a row whose rate something else changed

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

    @property
    def share(self) -> float:
        """The share of a step's spectral norm that the cap let through before the decay, on average."""
        return self.held / max(1, self.peak_steps)

    def note(self, step: int, reason: str, before: float, after: float, role: str | None = None) -> None:
        """Take in, and log, something that the scheduler did to the rate."""
        self.events = [*self.events, Event(step, self.last_loss, before, after, reason, role)][-MOST_EVENTS:]
        _LOG.info("%s", self.events[-1])

    def note_outside(self, step: int, before: float, after: float) -> None:
        """Take in that something else changed the rate; where it does so at every step, that is one event."""
        last = self.events[-1] if self.events else None
        if last is None or last.reason != _OUTSIDE or last.step < step - 1:
            self.outside = 0
            self.note(step, _OUTSIDE, before, after)
        else:
            self.outside += last.step < step
            self.events[-1] = last._replace(step=step, after=after)

    def log(self, before: ScheduleState, now: ScheduleState) -> None:
        """Log what the schedule has done; what it did at its start is final with the first step."""
        if now.events is not before.events or before.step == 0:
            known = before.events if before.step > 0 else ()
            for event in now.events:
                if event not in known:
                    _LOG.info("%s", event)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**asdict(self), "events": [list(event) for event in self.events]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> History:
        """Return the history that `to_dict` described."""
        try:
            rows, events = [tuple(row) for row in data["rows"]], [Event(*event) for event in data["events"]]
            return cls(**{**data, "rows": rows, "events": events})
        except (TypeError, KeyError) as error:
            raise ValueError(f"this is not the history of an AdaptiveWarmup: {data!r:.80}") from error


@dataclass(frozen=True)
class RoleRow:
    """One line of the table of roles."""

    name: str  # its role, or its name where it has none or a schedule of its own
    groups: tuple[int, ...]  # the indices of its parameter groups
    peak: float  # peak learning rate of its first group
    factor: float  # learning rate / peak of the next step
    lr: float  # learning rate of its first group
    decay: str  # what it decays by, and from which step on
    phase: str  # `"warmup"`, `"stable"`, `"decay"`, or `"unscheduled"`
    held: bool  # whether the spectral cap holds it back


class RoleTable(tuple[RoleRow, ...]):
    """The rows of `AdaptiveWarmup.roles`; prints as a table, `table["head"]` is a row."""

    def __getitem__(self, key: Any) -> Any:
        """Return the row of that name or index, or the rows of a slice."""
        if not isinstance(key, str):
            return super().__getitem__(key)
        named = {row.name: row for row in self}
        if key not in named:
            raise KeyError(f"{key!r} is none of {list(named)}")
        return named[key]

    def __repr__(self) -> str:
        lines = [("role", "groups", "peak", "factor", "lr", "decay", "phase")]
        for row in self:
            phase = f"{row.phase}, held" if row.held else row.phase
            groups = ",".join(map(str, row.groups))
            lines.append((row.name, groups, f"{row.peak:.3g}", f"{row.factor:.3g}", f"{row.lr:.3g}", row.decay, phase))
        return aligned(lines)


def role_table(scheduler: AdaptiveWarmup) -> RoleTable:
    """Return the table of peak, factor, decay and phase of each role."""
    members: dict[str, list[int]] = {}
    for index, plan in enumerate(scheduler._groups.plans):
        members.setdefault(plan.label if plan.own is None else f"{plan.label} (own)", []).append(index)
    return RoleTable([_row(scheduler, name, indices) for name, indices in members.items()])


def _row(scheduler: AdaptiveWarmup, name: str, indices: list[int]) -> RoleRow:
    first = indices[0]
    scheduled, peak = scheduler._groups.plans[first].scheduled, scheduler.base_lrs[first]
    lr, (schedule, state) = scheduler._rates.last[first], scheduler._groups.of(first)
    decay = schedule.decay if isinstance(schedule.decay, str) else getattr(schedule.decay, "__name__", "own")
    begins = "" if state.decay_start is None else f" from {state.decay_start}"
    return RoleRow(
        name=name,
        groups=tuple(indices),
        peak=float(peak),
        factor=float(lr) / float(peak) if peak else 0.0,
        lr=float(lr),
        decay=f"{decay}{begins}" if scheduled else "none",
        phase=state.phase if scheduled else "unscheduled",
        held=first in scheduler._share.groups and scheduler._share.active,
    )


def sentences(scheduler: AdaptiveWarmup) -> str:
    """Return what the rate did and why, and a verdict on the peak."""
    state = scheduler._groups.state
    rates = ", ".join(f"{row.name} {row.lr:.3g}" for row in scheduler.roles)
    lines = [f"Step {state.step} of {state.total_iters}, phase {state.phase}; next learning rate: {rates}."]
    if state.phase != "decay" and state.decay_start is not None:
        lines.append(f"The decay begins at step {state.decay_start}.")
    if scheduler.gap is not None:
        lines.append(f"The rule follows the gap {scheduler.gap:.4g} to the target loss {scheduler.target_loss:.4g}.")
    lines += _course(scheduler)
    events = scheduler.events
    if len(events) > _SHOWN:
        lines.append(f"{len(events)} events, of which the last:")
    lines += [str(event) for event in events[-_SHOWN:]]
    peak = max(row.peak for row in scheduler.roles)
    verdict, why = judged(scheduler)
    return "\n".join([*lines, f"Peak {peak:.3g}: {verdict}. {why}"])


def _course(scheduler: AdaptiveWarmup) -> list[str]:
    """Return a sentence with the factor of what is held at the start, at the peak and now, where it differs."""
    rows = scheduler._history.rows
    if all(row[2] == row[3] for row in rows):
        return []
    cap = scheduler.cap
    what = "the hidden matrices" if cap is None else f"the largest directions of {cap.scope}"
    first, middle = rows[0], rows[len(rows) // 2]
    if scheduler.phase == "decay":  # the last row before it says more
        begins = scheduler._groups.state.decay_start or 0
        middle = next((row for row in reversed(rows) if row[0] < begins), middle)
    state, largest = scheduler._groups.state, scheduler._share.largest(scheduler._groups.state.factor)
    course = f"{first[2]:.2g} at step {first[0]}, {middle[2]:.2g} at step {middle[0]}, {largest:.2g} now"
    if cap is None or cap.scope != "all weights":
        limited = scheduler._groups.limited(scheduler.base_lrs)
        others = [limited * factor for factor in (first[3], middle[3], state.base)]
        course += "; of the others " + ", ".join(f"{factor:.2g}" for factor in others)
    return [f"Rate / peak of {what}: {course}."]


def judged(scheduler: AdaptiveWarmup) -> tuple[Verdict, str]:
    """Return whether the peak looks too high, as far as the losses and the size of the steps show it, and why.

    A single run can't show that another peak would have ended lower; the sentence says only what was seen.
    """
    history = scheduler._history
    alarms = [event for event in scheduler.events if _HALVED in event.reason]
    steps, share = history.peak_steps, history.share
    if scheduler._groups.state.guard.off:
        return "unknown", "The loss rose at any rate, so it says nothing about the peak."
    if len(alarms) > 1:
        return "too high", (
            f"The guard halved the rate {len(alarms)} times, as the loss rose or was not finite, down to "
            f"{min(event.after for event in alarms):.2g} of the peak. Harder data can do that too; a run at a lower "
            "peak would tell."
        )
    losses = [loss for _, loss, _, _ in history.rows if loss is not None]
    if steps >= _FEW and min(losses[-_LAST:], default=0.0) > max(losses[:_FIRST], default=0.0):
        return "too high" if alarms else "unknown", (
            f"The loss stands at {losses[-1]:.4g}, above the {losses[0]:.4g} of the first step: nothing was learned. A "
            "run at a lower peak would tell whether it is the rate, the loss or the data."
        )
    if alarms:
        return "unknown", (
            f"The guard halved the rate once, at step {alarms[0].step}: the peak or harder data; once can't tell."
        )
    if steps < _FEW:
        return "unknown", f"There is no verdict before {_FEW} steps at the peak; this run had {steps}."
    if scheduler.cap is None:
        return "unknown", f"There is no sign that it is too high. {_NO_SIGN}"
    if history.room >= 1.0:
        room = "" if math.isinf(history.room) else f" (the largest had {1.0 / history.room:.2g} of the size it allows)"
        return "unknown", f"No step came near the spectral cap{room}. {_NO_SIGN}"
    what, peak = scheduler.cap.scope, float(scheduler.base_lrs[scheduler._share.groups[0]])
    held = (
        f"The spectral cap cut the steps of {what} to {share:.2g} of their spectral norm on average, as a peak near "
        f"{share * peak:.2g} would have"
    )
    if share < _LEAST:
        others = f" All others ran at {peak:.2g}; whether that is too high for them the losses don't show."
        others = "" if what == "all weights" else others
        return "unknown", f"{held}, and the loss gave no cause to halve the rate.{others}"
    if share > _MOST:
        return "unknown", f"{held}. {_NO_SIGN}"
    return "fine", f"{held}, and the loss gave no cause to halve the rate."


def picture(scheduler: AdaptiveWarmup) -> Any:
    """Return a `matplotlib.figure.Figure` of learning-rate factor and loss, with the events."""
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
    scope = "the hidden matrices" if scheduler.cap is None else scheduler.cap.scope
    held = scope if scheduler.cap is None else f"largest directions of {scope}"
    if scope != "all weights" and any(row[2] != row[3] for row in rows):
        factors.plot(steps, [row[2] for row in rows], label=held)
        factors.plot(steps, [row[3] for row in rows], label="others", linestyle="--")
        factors.legend(fontsize="small", frameon=False)
    else:
        factors.plot(steps, [row[2] for row in rows])
    factors.set(ylabel="rate / peak", xlabel="optimizer step", ylim=(0.0, 1.05), xlim=(0, scheduler.total_iters))
    named, style = -math.inf, {"rotation": 90, "fontsize": 6, "ha": "right", "va": "top"}
    for event in scheduler.events:
        for axes in (losses, factors):
            axes.axvline(event.step, color="tab:red", linewidth=0.6, alpha=0.5)
        if event.step - named > 0.02 * scheduler.total_iters:  # no name over another
            losses.text(event.step, 0.98, event.reason, transform=losses.get_xaxis_transform(), **style)
            named = event.step
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
