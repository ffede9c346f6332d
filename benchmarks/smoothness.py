"""Does curvature fall with the loss gap? Several optimizers, rates and seeds, each run measured; mean and spread.

    python benchmarks/smoothness.py FOLDER [--optimizers muon lion] [--seeds 3] [--steps 400]

The runs are those of `warmgap smoothness`, which reads the folder too; what it already holds is not run again, so that
one may stop at any time and go on later. The tables, in Markdown, show the seeds that have every rate. A run is cut in
two at the step with the lowest ratio (a running median of `WINDOW` records): before that cut the ratio falls with the
loss, behind it not. The other tables say whether the gap or the step length has to do with it, over the whole run and
its two parts. A run that diverged is counted and otherwise left out.
"""

import argparse
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from warmgap.lab.config import TrainConfig
from warmgap.lab.smoothness import RECORDS_FILE, measure
from warmgap.lab.store import FILE, Store
from warmgap.smoothness import Record, diagnose_step_length, fit_gap_linear, rate_dependence, read_records

OPTIMIZERS = ("muon", "lion", "normalized-sgd")
RATES = (0.25, 1.0, 4.0)
CONFIG = TrainConfig(method="linear:15", batch_size=8, sequence_length=64, eval_every=0, save_every=0, threads=1)
EVERY = 2
WINDOW = 7
CUT = 60
PARTS = {"whole run": (0, math.inf), f"first {CUT} steps": (0, CUT), f"from step {CUT} on": (CUT, math.inf)}
FEWEST = 8
"""Records that a part needs for a straight line."""

Runs = Mapping[tuple[str, int], Mapping[float, Sequence[Record]]]
"""The records of the runs that did not diverge, by optimizer and seed, then by rate."""


def smooth(values: Sequence[float]) -> list[float]:
    """Running medians."""
    half = WINDOW // 2
    return [statistics.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation of those that are numbers; of one there is no deviation."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def part(run: Sequence[Record], name: str) -> list[Record]:
    low, high = PARTS[name]
    return [record for record in run if low <= record.step < high]


def halves(run: Sequence[Record]) -> tuple[Record, list[float]]:
    """The record with the lowest smoothed ratio, and the smoothed ratios."""
    run = [record for record in run if math.isfinite(record.ratio)]
    ratios = smooth([record.ratio for record in run])
    return run[ratios.index(min(ratios))], ratios


def status(place: Path, steps: int | None = None) -> str:
    """How a run ended, empty where there is none; a run of another length is refused."""
    if not (place.parent / FILE).exists():
        return ""
    with Store(place.parent) as store:
        run = next((run for run in store.runs() if run.folder == place.name), None)
    if run is None:
        return ""
    if steps is not None and run.config["steps"] != steps:
        raise SystemExit(
            f"{place} holds a run of {run.config['steps']} steps: give --steps {run.config['steps']}, or another folder"
        )
    return run.status


def collect(folder: Path, optimizers: Sequence[str]) -> tuple[Runs, int]:
    """The runs of a folder, and how many diverged."""
    found, diverged = {}, 0
    for optimizer in optimizers:
        for place in sorted(folder.glob(f"{optimizer}-[0-9]*")):
            ends = {rate: status(place / f"rate-{rate:g}") for rate in RATES}
            if set(ends.values()) <= {"done", "diverged"}:
                diverged += list(ends.values()).count("diverged")
                found[optimizer, int(place.name.rpartition("-")[2])] = {
                    rate: read_records(place / f"rate-{rate:g}" / RECORDS_FILE)
                    for rate, end in ends.items()
                    if end == "done"
                }
    return found, diverged


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (headings, ["---"] * len(headings), *rows)] + [""]


def turns(runs: Runs) -> list[str]:
    """From where to where the ratio falls."""
    headings = ("optimizer", "rate", "runs", "start / lowest", "lowest at gap", "at step", "end / lowest", "share")
    rows = []
    for optimizer in dict.fromkeys(name for name, _ in runs):
        for rate in RATES:
            of_rate = [found[rate] for (name, _), found in runs.items() if name == optimizer and rate in found]
            cuts = [halves(run) for run in of_rate]
            columns = (
                spread([ratios[0] / min(ratios) for _, ratios in cuts], 1),
                spread([lowest.gap for lowest, _ in cuts]),
                spread([lowest.step for lowest, _ in cuts], 0),
                spread([ratios[-1] / min(ratios) for _, ratios in cuts], 1),
                spread([diagnose_step_length(run).share for run in of_rate]),
            )
            rows.append((optimizer, f"{rate:g}", str(len(of_rate)), *columns))
    return table(headings, rows)


def verdicts(runs: Runs) -> list[str]:
    """In how many runs the ratio rises with the gap, at 95 %, and in which."""
    rows = []
    for name in PARTS:
        who: dict[str, dict[str, int]] = {"rises": {}, "unclear": {}, "falls": {}}
        for (optimizer, _), found in runs.items():
            for rate, run in found.items():
                verdict = fit_gap_linear(part(run, name), method="lstsq").trend.verdict
                which = f"{optimizer} {rate:g}"
                who[verdict][which] = who[verdict].get(which, 0) + 1
        cells = [
            f"{sum(counts.values())}" + (f" ({', '.join(f'{k}: {v}' for k, v in counts.items())})" if counts else "")
            for counts in who.values()
        ]
        rows.append((f"{name}, {sum(map(len, runs.values()))} runs", *cells))
    return table(("", "rises", "unclear", "falls"), rows)


def exponents(runs: Runs) -> list[str]:
    """The power of the step length with which the ratio goes at the same gap."""
    rows = []
    for optimizer in dict.fromkeys(name for name, _ in runs):
        seeds = [found for (name, _), found in runs.items() if name == optimizer and len(found) > 1]
        columns = [
            spread(
                [rate_dependence({rate: part(run, name) for rate, run in found.items()}).exponent for found in seeds]
            )
            for name in PARTS
        ]
        rows.append((optimizer, str(len(seeds)), *columns))
    return table(("optimizer", "seeds", *PARTS), rows)


def report(folder: Path, optimizers: Sequence[str]) -> str:
    runs, diverged = collect(folder, optimizers)
    if not runs:
        return "No seed has every rate yet."
    lines = [
        *turns(runs),
        'Share: median of the gradient\'s change over the gradient, within a step. "Rises": with the gap, as the '
        "assumption says, at 95 %.",
        "",
        *verdicts(runs),
        "At the same gap, the ratio goes with the step length to the power:",
        "",
        *exponents(runs),
    ]
    return "\n".join(lines + ([f"Runs left out because they diverged: {diverged}."] if diverged else []))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS, choices=OPTIMIZERS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    if arguments.steps < (fewest := CUT + FEWEST * EVERY):
        parser.error(f"--steps must be at least {fewest}, or there is too little behind step {CUT} to tell anything")
    for seed in range(arguments.seeds):
        for optimizer in arguments.optimizers:
            config = dataclasses.replace(CONFIG, optimizer=optimizer, seed=seed, steps=arguments.steps)
            place = arguments.folder / f"{optimizer}-{seed}"
            for rate in RATES:
                ended = status(place / f"rate-{rate:g}", arguments.steps) in ("done", "diverged")
                if not ended and not measure(config, [rate], place, every=EVERY, target_loss=0.0):
                    raise SystemExit(130)
    print(report(arguments.folder, arguments.optimizers))


if __name__ == "__main__":
    main()
