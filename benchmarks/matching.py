"""How long the peak gap takes to find: `match_peak_gap` beside the published solver, and what each finds.

python benchmarks/matching.py [--quick]
"""

import argparse
import statistics
import time
import warnings

from rich.console import Console
from rich.table import Table

from warmgap import match_peak_gap
from warmgap.lab.schedules import published_peak_gap
from warmgap.matching import best_share

# The paper's settings on a 124M LLaMA: kappa, target loss, floor, peak learning rate; the first loss is about 11.
SETTINGS = {
    "Muon": (65_280.0, 3.2, 0.01, 1e-3),
    "Lion": (1.24e8, 3.5, 0.01, 1e-3),
    "normalized SGD": (85.0, 4.3, 0.2, 1e-2),
}
FIRST_LOSS = 11.0


def main() -> None:
    """Print a row an optimizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 3 if parser.parse_args().quick else 15
    table = Table(
        "setting", "peak gap", "published", "ms", "published, ms", "ratio", title=f"medians of {rounds} rounds"
    )
    for name, (kappa, target, floor, lr) in SETTINGS.items():
        initial = FIRST_LOSS - target
        times: list[tuple[float, float]] = []
        for _ in range(rounds):
            best_share.cache_clear()
            start = time.perf_counter()
            ours = match_peak_gap(initial, floor, kappa)
            middle = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the quadrature complains where it fails
                theirs = published_peak_gap(initial, floor, kappa, lr)
            times.append((middle - start, time.perf_counter() - middle))
        fast, slow = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(b / a for a, b in times)
        table.add_row(name, f"{ours:.3f}", f"{theirs:.3f}", f"{fast:.2f}", f"{slow:.0f}", f"{ratio:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
