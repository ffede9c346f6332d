"""What every rule does on every course: made anew here, and kept in a file for each rule."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from pathlib import Path
from typing import Any

from tests.golden.courses import COURSES, LONG, Course

from warmgap import LossFilter, Schedule
from warmgap.decay import Decay, constant
from warmgap.rules import GapRule, LinearRule, LossRatioRule, MeasuredRule, PowerRule, Rule, SpectralRule

FOLDER = Path(__file__).parent

RUNS: dict[
    str, tuple[Rule[Any], str | Decay, bool]
] = {  # rule, decay, whether the first loss is known before the first step
    "auto": (SpectralRule(), "cosine", True),
    "auto, first loss not known": (SpectralRule(hold=0.2, floor=0.03), "wsd", False),
    "gap": (GapRule(kappa=65280, target_loss=-9.0), "linear", True),
    "gap, target estimated": (GapRule(kappa=300.0, roles="all"), "cosine", False),
    "gap, as published": (
        GapRule(
            kappa=65280,
            target_loss=3.0,
            roles="all",
            max_warmup=None,
            deadlock_exit=False,
            loss_filter=LossFilter(averaging=0.0),
        ),
        "cosine",
        False,
    ),
    "power": (PowerRule(), "inverse-sqrt", False),
    "power, constants known": (PowerRule(K0=9.0, K_rho=0.05, rho=1.5, target_loss=-9.0), "cosine", True),
    "loss-ratio": (LossRatioRule(max_warmup=0.6), "cosine", True),
    "loss-ratio, level known": (LossRatioRule(level=4.0, floor=0.05), constant(), False),
    "measured": (MeasuredRule(K0=9.0, K1=-1.0, K2=1.0, target_loss=-9.0), "cosine", True),
    "measured, H0 and H1": (MeasuredRule(K0=40.0, K1=1.0, K2=0.0, target_loss=-9.0), "cosine", False),
    "linear": (LinearRule(17), "cosine", False),
}

Run = dict[str, Any]


def run(rule: Rule[Any], decay: str | Decay, known: bool, losses: Course) -> Run:
    """What the schedule does on the losses: factors, phases and events; or why it refuses them."""
    total = len(losses)
    schedule = Schedule(total, rule, constant() if total == LONG else decay)
    state = schedule.init()
    factors, bases, phases = [], [], []
    try:
        if known and math.isfinite(losses[0]):
            state = schedule.first(state, losses[0])
        for loss in losses:
            if state.phase != "decay" or state.step % 8 == 0:  # a decay is smooth
                factors.append(state.factor)
                bases.append(state.base)
            phases.append(state.phase)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                state = schedule.step(state, loss)
    except ValueError as error:
        return {"refused": str(error)}
    events = [f"{event.step} {event.role or 'all'}: {event.reason}" for event in state.events]
    return {
        "factor": packed(factors),
        "base": "" if bases == factors else packed(bases),
        "phase": " ".join(f"{name}*{len(list(group))}" for name, group in itertools.groupby(phases)),
        "events": events,
    }


def packed(values: list[float]) -> str:
    """The numbers, those that come again and again once."""
    groups = [(text, len(list(group))) for text, group in itertools.groupby(f"{value:.6g}" for value in values)]
    return " ".join(text if times == 1 else f"{text}*{times}" for text, times in groups)


def unpacked(text: str) -> list[float]:
    """The numbers of `packed`."""
    pairs = (part.partition("*") for part in text.split())
    return [float(value) for value, _, times in pairs for _ in range(int(times or 1))]


def courses(name: str) -> dict[str, Course]:
    """The courses of a run: all, but for a rule that looks at none."""
    return COURSES if RUNS[name][0].needs_loss else {"falls": COURSES["falls"], "long: stays": COURSES["long: stays"]}


def made(name: str) -> dict[str, Run]:
    """What the rule of that run does on every course."""
    return {course: run(*RUNS[name], losses) for course, losses in courses(name).items()}


def kept(name: str) -> dict[str, Run]:
    """What the file of that run says."""
    path = _path(name)
    return json.loads(path.read_text()) if path.exists() else {}


def keep(name: str, runs: dict[str, Run]) -> None:
    """Write the file of that run."""
    _path(name).write_text(json.dumps(runs, indent=1) + "\n")


def differences(now: Run, before: Run) -> list[str]:
    """In what two runs differ, in a line for each thing."""
    found = []
    for key in sorted(now.keys() | before.keys()):
        new, old = now.get(key, ""), before.get(key, "")
        if key in ("factor", "base"):
            a, b = unpacked(new), unpacked(old)
            wrong = [t for t, (x, y) in enumerate(zip(a, b, strict=False)) if abs(x - y) > 3e-6 * abs(y)]
            if wrong or len(a) != len(b):
                t = wrong[0] if wrong else min(len(a), len(b))
                found.append(f"{key}: {len(wrong)} differ, from step {t} on: {b[t : t + 4]} are now {a[t : t + 4]}")
        elif new != old:
            found.append(f"{key}: {old!r} is now {new!r}")
    return found


def _path(name: str) -> Path:
    return FOLDER / (name.replace(", ", "--").replace(" ", "-") + ".json")
