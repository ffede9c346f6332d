"""A river in a valley: steep walls high up, a slow river below; one fixed step size against the power rule."""

import math

import numpy as np

from warmgap.theory import Constants, Problem, descend
from warmgap.theory.norms import frobenius


def valley(wall, river=0.1):
    """f(x, y) = cosh(x) - 1 + river y^2/2, of curvature 1 + gap at most: K0 = 1, Krho = 1, rho = 1."""
    problem = Problem(
        "river valley",
        frobenius,
        lambda w: float(2.0 * np.sinh(w[0] / 2.0) ** 2 + river * w[1] ** 2 / 2.0),
        lambda w: np.array([np.sinh(w[0]), river * w[1]]),
        Constants(1.0, 0.0, 1.0, 1.0),
        lambda gap: math.acosh(1.0 + gap) + math.sqrt(2.0 * gap / river),
    )
    return problem, np.array([wall, 3.0])


def steps(problem, start, step_size, eps=1e-3):
    path = descend(problem, start, step_size, steps=100_000, eps=eps, direction=lambda it: -it.gradient)
    return path.steps_to(eps)


for wall in (2.0, 4.0, 6.0, 8.0):
    problem, start = valley(wall)
    limit = 2.0 * wall / math.sinh(wall)  # a larger fixed step size diverges from here
    fixed = steps(problem, start, lambda _, limit=limit: 0.99 * limit)
    ruled = steps(problem, start, lambda it: 0.5 / max(1.0, it.gap))
    print(f"gap {problem.value(start):7.1f} at the start: fixed {fixed:6.0f} steps, power rule {ruled:4.0f}")
