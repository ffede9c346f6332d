"""What the pages on the theory show and no test has the time for: two pictures, and Theorem 3's steps for small eps.

    python benchmarks/theory.py [--output docs/images] [--eps 0.4 0.2 0.1]

Steps to eps on a quadratic in l2 of five variables, ||x_0|| = 1.6, D = 2, noise of size 1/2, one seed.
"""

import argparse
import math
import runpy
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from warmgap.theory import Trajectory, descend, problems, stochastic, two_phases

EXAMPLES = Path(__file__).parents[1] / "examples"
BLUE, GREY, ORANGE = "#1F4E79", "#666666", "#D55E00"


def river_valley(wall: float) -> tuple[Trajectory, Trajectory]:
    """Run the largest fixed step size and the power rule on the example of the page."""
    problem, start = runpy.run_path(str(EXAMPLES / "river_valley.py"))["valley"](wall)
    limit = 2.0 * wall / math.sinh(wall)
    fixed = descend(problem, start, lambda _: 0.99 * limit, steps=9999, eps=1e-3, direction=lambda it: -it.gradient)
    ruled = descend(
        problem, start, lambda it: 0.5 / max(1.0, it.gap), steps=9999, eps=1e-3, direction=lambda it: -it.gradient
    )
    return fixed, ruled


def river_figure() -> Figure:
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for path, colour, name in zip(river_valley(6.0), (BLUE, ORANGE), ("largest fixed step", "power rule"), strict=True):
        left.loglog(np.arange(1, len(path.gaps) + 1), path.gaps, color=colour, label=name)
        right.loglog(np.arange(1, len(path.step_sizes) + 1), path.step_sizes, color=colour)
    left.set(xlabel="step", ylabel="gap")
    right.set(xlabel="step", ylabel="step size")
    left.legend(frameon=False)
    return figure


def phases_figure() -> Figure:
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    path, seen = two_phases.run(1.0, 1.0, 0.05)
    left.plot(2.0 * path.points.prod(axis=1), seen, color=BLUE)
    left.axvline(1.0, color=ORANGE, linestyle="--")
    left.set(xlabel="2 u v x / y", ylabel="curvature", title="curvature against what is learned")
    bound = two_phases.network(1.0, 1.0).constants.along(path.gaps)
    right.plot(path.gaps, seen, color=BLUE, label="curvature")
    right.plot(path.gaps, bound, color=GREY, linestyle=":", label="H0 + H1 gap")
    right.set(xlabel="gap", title="against the gap")
    right.legend(frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=Path("runs/theory"))
    parser.add_argument("--eps", type=float, nargs="*", default=[0.4, 0.2, 0.1])
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    river_figure().savefig(arguments.output / "river-valley.png", dpi=110)
    phases_figure().savefig(arguments.output / "two-phases.png", dpi=110)
    problem, start = problems.quadratic("frobenius", (5,)), np.random.default_rng(0).standard_normal(5)
    start *= 1.6 / np.linalg.norm(start)
    print("| eps | steps | bound |\n|---|---|---|")
    for eps in arguments.eps:
        found = stochastic.check(problem, start, eps, 0.5, distance=2.0, seeds=1)
        print(f"| {eps:g} | {found.measured:.0f} | {found.bound:.0f} |", flush=True)


if __name__ == "__main__":
    main()
