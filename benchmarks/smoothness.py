"""Does curvature fall with the loss gap? Several optimizers, rates and seeds, each run measured; mean and spread.

    python benchmarks/smoothness.py FOLDER [--optimizers muon lion] [--seeds 3] [--steps 400]

The runs are those of `warmgap smoothness`, which reads the folder too; what it already holds is not run again, so that
one may stop at any time and go on later. The tables show the seeds that have every rate. A run is cut in two at the
step with the lowest ratio (a running median of `WINDOW` records): before that cut the ratio falls with the loss, behind
it not. The last columns say whether the gap has to do with it, over the whole run and its two parts.
"""

import argparse
import dataclasses
import json
import shutil
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from warmgap.lab.config import TrainConfig
from warmgap.lab.smoothness import RECORDS_FILE, Measurement, measure
from warmgap.smoothness import Record, diagnose_step_length, fit_gap_linear, rate_dependence, read_records

OPTIMIZERS = ("muon", "lion", "normalized-sgd")
RATES = (0.25, 1.0, 4.0)
CONFIG = TrainConfig(rule="linear:15", batch_size=8, sequence_length=64, eval_every=0, save_every=0, threads=1)
WINDOW = 7


def smooth(values: Sequence[float]) -> list[float]:
    """Running medians."""
    half = WINDOW // 2
    return [statistics.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation; of one run there is none."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def verdicts(runs: Sequence[Sequence[Record]]) -> str:
    """How often the ratio rises with the gap, falls as it rises, or neither, at 95 %."""
    found = Counter(fit_gap_linear(run, method="lstsq").trend.verdict for run in runs)
    return " ".join(f"{found[verdict]}" for verdict in ("rises", "unclear", "falls"))


def halves(run: Sequence[Record]) -> tuple[int, list[float]]:
    """Index of the lowest smoothed ratio, and the smoothed ratios."""
    ratios = smooth([record.ratio for record in run])
    return ratios.index(min(ratios)), ratios


def finished(place: Path) -> bool:
    return (place / "run.json").exists() and json.loads((place / "run.json").read_text())["status"] == "done"


def rows(console: Console, folder: Path, optimizers: Sequence[str]) -> None:
    table = Table(
        "optimizer",
        "rate",
        "runs",
        "start/lowest",
        "at gap",
        "at step",
        "end/lowest",
        "share",
        "all",
        "first 60",
        "later",
    )
    exponents = Table("optimizer", "runs", "exponent, all steps", "first 60", "later")
    for optimizer in optimizers:
        of_rate: dict[float, list[list[Record]]] = {rate: [] for rate in RATES}
        found: dict[str, list[float]] = {"all": [], "first": [], "later": []}
        for place in sorted(folder.glob(f"{optimizer}-[0-9]*")):
            if not all(finished(place / f"rate-{rate:g}") for rate in RATES):
                continue
            runs = {rate: read_records(place / f"rate-{rate:g}" / RECORDS_FILE) for rate in RATES}
            for rate, run in runs.items():
                of_rate[rate].append(run)
            for part, low, high in (("all", 0, 10**9), ("first", 0, 60), ("later", 60, 10**9)):
                some = {rate: [r for r in run if low <= r.step < high] for rate, run in runs.items()}
                found[part].append(rate_dependence(some).exponent)
        if not found["all"]:
            continue
        for rate, runs_of in of_rate.items():
            cuts = [halves(run) for run in runs_of]
            table.add_row(
                optimizer,
                f"{rate:g}",
                str(len(runs_of)),
                spread([ratios[0] / ratios[cut] for cut, ratios in cuts], 1),
                spread([run[cut].gap for run, (cut, _) in zip(runs_of, cuts, strict=True)]),
                spread([run[cut].step for run, (cut, _) in zip(runs_of, cuts, strict=True)], 0),
                spread([ratios[-1] / ratios[cut] for cut, ratios in cuts], 1),
                spread([diagnose_step_length(run).share for run in runs_of]),
                verdicts(runs_of),
                verdicts([[record for record in run if record.step < 60] for run in runs_of]),
                verdicts([[record for record in run if record.step >= 60] for run in runs_of]),
            )
        table.add_section()
        exponents.add_row(optimizer, str(len(found["all"])), *(spread(values) for values in found.values()))
    console.print(table)
    console.print("The last three columns: runs whose ratio rises with the gap, is unclear, falls as the gap rises.")
    console.print(exponents)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--optimizers", nargs="+", default=OPTIMIZERS, choices=OPTIMIZERS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    for seed in range(arguments.seeds):
        for optimizer in arguments.optimizers:
            config = dataclasses.replace(CONFIG, optimizer=optimizer, seed=seed, steps=arguments.steps)
            place = arguments.folder / f"{optimizer}-{seed}"
            for rate in RATES:
                if not finished(place / f"rate-{rate:g}"):
                    shutil.rmtree(place / f"rate-{rate:g}", ignore_errors=True)
                    if not measure(config, Measurement(every=2), [rate], place):
                        raise SystemExit(130)
    rows(Console(width=160), arguments.folder, arguments.optimizers)


if __name__ == "__main__":
    main()
