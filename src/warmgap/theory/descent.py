"""The loop that every guarantee runs: x <- (1 - weight_decay*eta) x + eta * direction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from warmgap.theory.norms import Array
from warmgap.theory.problems import Problem


class Iterate(NamedTuple):
    """What a step is computed from.

    Example:
        >>> import numpy as np
        >>> Iterate(0, np.zeros(2), gap=0.0, gradient=np.zeros(2)).gap
        0.0
    """

    step: int
    x: Array
    gap: float
    gradient: Array


@dataclass(frozen=True)
class Trajectory:
    """A run of T steps, its start included.

    Attributes:
        points: The T + 1 points, of shape (T + 1, *shape).
        gaps: f - f* at each of them.
        duals: The dual norm of the gradient at each of them.
        distances: The norm of the distance to the minimiser at each of them.
        step_sizes: The T step sizes.

    Example:
        >>> import numpy as np
        >>> from warmgap.theory import problems
        >>> run = descend(problems.quadratic("max", (2,)), np.array([1.0, 1.0]), lambda it: 0.25, steps=9)
        >>> run.steps_to(0.1)
        3.0
    """

    points: Array
    gaps: Array
    duals: Array
    distances: Array
    step_sizes: Array

    def steps_to(self, eps: float) -> float:
        """Return the first step with a gap of at most eps; infinity if there is none."""
        hits = np.flatnonzero(self.gaps <= eps)
        return float(hits[0]) if hits.size else math.inf


def descend(
    problem: Problem,
    start: Array,
    step_size: Callable[[Iterate], float],
    *,
    steps: float,
    eps: float = 0.0,
    weight_decay: float = 0.0,
    direction: Callable[[Iterate], Array] | None = None,
) -> Trajectory:
    """Run a descent until the gap is at most eps, it is no finite number any more, or the steps are used up.

    Args:
        problem: What is minimised.
        start: The first point.
        step_size: The step size eta of an iterate.
        steps: The most steps it may take.
        eps: The gap at which to stop.
        weight_decay: Decoupled weight decay.
        direction: The direction of an iterate; the LMO of the gradient in the problem's norm unless given.

    Example:
        >>> import numpy as np
        >>> from warmgap.theory import problems
        >>> problem = problems.quadratic("frobenius", (2,))
        >>> run = descend(problem, np.array([3.0, 4.0]), lambda it: 1.0, steps=9)
        >>> run.distances.round(6).tolist()[:6]
        [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    """
    points, gaps, gradients, sizes = [np.asarray(start, dtype=float)], [], [], []
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(math.ceil(steps) + 1):
            x = points[-1]
            gaps.append(problem.value(x))
            gradients.append(problem.gradient(x))
            if step >= steps or not eps < gaps[-1] < math.inf:
                break
            it = Iterate(step, x, gaps[-1], gradients[-1])
            sizes.append(step_size(it))
            move = direction(it) if direction else problem.norm.lmo(it.gradient)
            points.append((1.0 - weight_decay * sizes[-1]) * x + sizes[-1] * move)
        return Trajectory(
            points=np.array(points),
            gaps=np.array(gaps),
            duals=np.array([problem.norm.dual(g) if np.isfinite(g).all() else math.inf for g in gradients]),
            distances=np.array([problem.norm.norm(x) for x in points]),
            step_sizes=np.array(sizes),
        )
