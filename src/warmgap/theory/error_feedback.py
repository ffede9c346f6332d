"""EF-Muon: what Muon's normalisation drops is kept and added again, and convergence is back.

Assumption: f is convex with subgradients of l2 norm at most G; d is the rank of the update at most (here: two
entries).

Step size: gamma fixed, `P = gamma M + E` with `M = beta M + (1 - beta) G`; the step is `-(||P||_nuc/rank P) polar(P)`,
the new E is P less the step. On a diagonal matrix: `(||P||_1/number of entries that are not 0) sign(P)`.

Statement: With `q = sqrt(1 - 1/d)` and `gamma = 1/sqrt(T)`,

    min_{t<T} f(x_t) - f* <= [||x_0 - x*||^2/2 + G^2/2 + G^2 (beta/(1 - beta) + q/(1 - q))] / sqrt(T);

at every step `z = x - E - gamma beta/(1 - beta) M` moves by `-gamma G`, which only the feedback makes true, and
`||E|| <= gamma G q/(1 - q)`, on this problem 2.4 times what is seen.

Source: arXiv 2605.08980 (the method FOUND, its rate's constants NOT FOUND); statement and proof DERIVED, after the
argument of arXiv 1901.09847.

Proof: z follows the subgradient method. The step contracts,
`||E+||^2 <= ||P||^2 - ||P||_nuc^2/rank P <= q^2 ||P||^2`, so that `||E|| <= gamma G q/(1 - q)`, and
`f(x) - f* <= <G, z - x*> + ||G|| ||x - z||`. Sum.

Problem: Muon's counterexample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from warmgap._checks import check_count
from warmgap.theory import problems
from warmgap.theory.check import Check, excess, loosen
from warmgap.theory.descent import Iterate, Trajectory, descend
from warmgap.theory.nonconvergence import START, frozen_weight
from warmgap.theory.norms import Array

__all__ = ["check", "examples", "run"]


def run(
    steps: int, gamma: Callable[[int], float], beta: float = 0.9, c: float | None = None, *, feedback: bool = True
) -> tuple[Trajectory, Array, Array]:
    """Run EF-Muon on the counterexample.

    Args:
        steps: The number of steps.
        gamma: The step size of a step, counted from 0.
        beta: The momentum.
        c: The weight of the sum; `frozen_weight(beta)` unless given.
        feedback: Whether to keep what the normalisation drops; without it the method is Muon.

    Returns:
        The trajectory, and E and M at each of its points.

    Raises:
        ValueError: If steps is not a whole number of at least 1, or beta does not lie in [0, 1).
    """
    problem = problems.absolute(frozen_weight(beta) if c is None else c)
    errors, momenta = [np.zeros(2)], [np.zeros(2)]

    def direction(it: Iterate) -> Array:
        momenta.append(beta * momenta[-1] + (1.0 - beta) * it.gradient)
        kept = gamma(it.step) * momenta[-1] + errors[-1]
        move = problem.norm.dual(kept) / max(1, int(np.count_nonzero(kept))) * problem.norm.lmo(kept)
        errors.append(kept + move if feedback else errors[-1])
        return np.asarray(move)

    path = descend(problem, START, lambda _: 1.0, steps=check_count("steps", steps, minimum=1), direction=direction)
    return path, np.array(errors), np.array(momenta)


def check(steps: int, beta: float = 0.9, *, feedback: bool = True, notch: float = 1.0) -> Check:
    """Run EF-Muon with the fixed gamma `1/sqrt(steps)`; measured: the least f.

    Args:
        steps: The number of steps.
        beta: The momentum.
        feedback: Whether to keep what the normalisation drops; without, the statement fails.
        notch: How many times smaller E is claimed to be; above 1 it is not proved.

    Raises:
        ValueError: If steps is not a whole number of at least 1, or beta does not lie in [0, 1).
    """
    gamma = 1.0 / math.sqrt(check_count("steps", steps, minimum=1))
    path, errors, momenta = run(steps, lambda _: gamma, beta, feedback=feedback)
    square = 2.0 * (1.0 + frozen_weight(beta) ** 2)
    q = math.sqrt(0.5)
    late = beta / (1.0 - beta) + q / (1.0 - q)
    follower = path.points - errors - gamma * beta / (1.0 - beta) * momenta
    gradients = (momenta[1:] - beta * momenta[:-1]) / (1.0 - beta)
    apart = np.linalg.norm(np.diff(follower, axis=0) + gamma * gradients, axis=1)
    lengths = np.linalg.norm(errors, axis=1)
    return Check(
        "EF-Muon" if feedback else "EF-Muon, no feedback",
        f"absolute, c {frozen_weight(beta):.3g}",
        f"least f in {steps} steps",
        float(path.gaps[:-1].min()),
        gamma * (float(START @ START) / 2.0 + square / 2.0 + square * late),
        excess=max(
            excess(lengths, np.full_like(lengths, gamma * math.sqrt(square) * q / (1.0 - q) / notch)),
            excess(apart, np.zeros_like(apart)),
        ),
    )


def examples() -> Iterator[Check]:
    """Check it over 1500 and over 5000 steps, and without momentum."""
    yield loosen(lambda notch: check(1500, notch=notch))
    yield loosen(lambda notch: check(5000, notch=notch))
    yield loosen(lambda notch: check(200, 0.0, notch=notch))
