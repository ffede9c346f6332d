"""The page of the replay, run in the browser by Brython: the schedule is the package's own code."""

import itertools
import json
import math
import traceback

from browser import document, svg, timer, window

from warmgap.replay import _from_csv, _from_rows, _from_trainer
from warmgap.rules import by_name
from warmgap.schedule import Schedule

if not hasattr(itertools, "pairwise"):  # Brython 3.15 lacks it
    itertools.pairwise = lambda items: zip(items, items[1:])

COLOURS = {"auto": "#3f51b5", "loss-ratio": "#e8710a", "power": "#128a5e", "linear": "#b0308f"}
WIDTH, HEIGHT, LEFT, GAP = 640, 150, 46, 34
CHUNK = 40  # steps between two looks at the reader's clicks


class Dropped:
    """A file that was dropped, as far as `warmgap.replay` looks at one."""

    def __init__(self, name, text):
        self.name, self.text = name, text

    def read_text(self, encoding=None):
        return self.text.lstrip("\ufeff")

    def __str__(self):
        return self.name


def losses_of(name, text):
    file = Dropped(name, text)
    if name.endswith(".jsonl"):
        return _from_rows(
            file, [json.loads(line) for line in file.read_text().splitlines() if line.strip()], None, None
        )
    if name.endswith(".json"):
        return _from_trainer(file, None)
    return _from_csv(file, None)


def example():
    """A made-up course: a fall, noise, a loss that is not a number, and a rise at two thirds."""
    seed, lines = 7, []
    for step in range(400):
        seed = (seed * 16807) % 2147483647
        loss = 2.6 + 4.2 * math.exp(-step / 60) + 0.16 * (seed / 2147483647 - 0.5)
        if 270 <= step < 320:
            loss += 0.03 * (step - 270)
        lines.append("nan" if step == 120 else f"{loss:.4f}")
    return "\n".join(lines)


class Run:
    """One replay of all rules that are ticked; a newer one ends it."""

    latest = None

    def __init__(self, losses):
        Run.latest = self
        self.losses = losses.values
        asked = document["replay-total"].value.strip()
        total = int(asked) if asked else losses.total_iters or len(self.losses)
        if total < len(self.losses):
            raise ValueError(f"the run has {len(self.losses)} losses: it can't have {total} steps")
        self.total = total
        names = [name for name in COLOURS if document[f"replay-{name}"].checked]
        decay = document["replay-decay"].value
        self.todo = [(name, Schedule(total, by_name(name, total), decay)) for name in names]
        self.done = []
        document["replay-out"].attrs["data-state"] = "busy"
        self.next_rule()

    def next_rule(self):
        if not self.todo:
            document["replay-out"].attrs["data-state"] = "done"
            say(f"{len(self.losses)} losses, a run of {self.total} steps.")
            draw(self)
            return
        self.name, self.schedule = self.todo.pop(0)
        self.state, self.step, self.factors = self.schedule.init(), 0, []
        if math.isfinite(self.losses[0]):
            self.state = self.schedule.first(self.state, self.losses[0])
        self.go()

    def go(self):
        if Run.latest is not self:
            return
        try:
            for loss in self.losses[self.step : self.step + CHUNK]:
                self.factors.append(self.state.factor)
                self.state = self.schedule.step(self.state, loss)
        except ValueError as error:
            say(f"{self.name}: {error}")
            document["replay-out"].attrs["data-state"] = "done"
            return
        self.step += CHUNK
        if self.step < len(self.losses):
            say(f"{self.name}: step {self.step} of {len(self.losses)} ...")
            timer.set_timeout(self.go, 0)
            return
        self.done.append((self.name, self.factors, self.state.events))
        timer.set_timeout(self.next_rule, 0)


def say(text):
    document["replay-status"].text = text


def line(points, colour):
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return svg.polyline(points=path, style={"stroke": colour})


def draw(run):
    picture = document["replay-picture"]
    picture.clear()
    every = max(1, len(run.losses) // 1200)
    shown = [(step, run.losses[step]) for step in range(0, len(run.losses), every) if math.isfinite(run.losses[step])]
    low, high = min(loss for _, loss in shown), max(loss for _, loss in shown)
    span = high - low or 1.0

    def x(step):
        return LEFT + (WIDTH - LEFT - 4) * step / run.total

    for top, labels in ((8, (f"{high:.3g}", f"{low:.3g}", "loss")), (HEIGHT + GAP, ("1", "0", "rate / peak"))):
        picture <= svg.rect(x=LEFT, y=top, width=WIDTH - LEFT - 4, height=HEIGHT - 8, Class="axis")
        picture <= svg.text(labels[0], x=2, y=top + 12)
        picture <= svg.text(labels[1], x=2, y=top + HEIGHT - 10)
        picture <= svg.text(labels[2], x=LEFT + 6, y=top + 16)
    picture <= svg.text(f"step {run.total}", x=WIDTH - 4, y=2 * HEIGHT + GAP + 10, text_anchor="end")
    picture <= line([(x(step), 8 + (HEIGHT - 8) * (high - loss) / span) for step, loss in shown], "#888")
    rows = []
    for name, factors, events in run.done:
        points = [
            (x(step), HEIGHT + GAP + (HEIGHT - 8) * (1 - factors[step])) for step in range(0, len(factors), every)
        ]
        picture <= line(points, COLOURS[name])
        rows += [f"{name}: {event}" for event in events]
    document["replay-events"].text = "\n".join(rows)
    window.warmgap = window.JSON.parse(json.dumps({name: factors for name, factors, _ in run.done}))


def replay(event=None):
    try:
        Run(losses_of(document["replay-name"].value or "losses.csv", document["replay-text"].value))
    except Exception as error:
        say(str(error) or traceback.format_exc())
        document["replay-out"].attrs["data-state"] = "done"


def load(file):
    reader = window.FileReader.new()

    def loaded(event):
        document["replay-text"].value = reader.result
        document["replay-name"].value = file.name
        replay()

    reader.bind("load", loaded)
    reader.readAsText(file)


def dropped(event):
    event.preventDefault()
    if event.dataTransfer.files.length:
        load(event.dataTransfer.files[0])


def chosen(event):
    if event.target.files.length:
        load(event.target.files[0])


def typed(event):
    document["replay-name"].value = ""


document["replay-text"].bind("input", typed)
document["replay-file"].bind("change", chosen)
document["replay-drop"].bind("dragover", lambda event: event.preventDefault())
document["replay-drop"].bind("drop", dropped)
document["replay-go"].bind("click", replay)
document["replay-text"].value = example()
document["replay-out"].attrs["data-state"] = "ready"
replay()
