import math

import numpy as np
import pytest

from warmgap.theory import descend, problems


def test_a_run_and_what_is_kept_of_it() -> None:
    problem = problems.quadratic("max", (2,))
    path = descend(problem, np.array([1.0, -2.0]), lambda it: 0.5 / (it.step + 1), steps=2, weight_decay=0.1)
    first = 0.95 * np.array([1.0, -2.0]) + 0.5 * np.array([-1.0, 1.0])
    second = 0.975 * first + 0.25 * np.array([-1.0, 1.0])
    assert path.points == pytest.approx(np.array([[1.0, -2.0], first, second]))
    assert path.gaps == pytest.approx([2.5, problem.value(first), problem.value(second)])
    assert path.duals == pytest.approx([3.0, np.abs(first).sum(), np.abs(second).sum()])
    assert path.distances == pytest.approx([2.0, np.abs(first).max(), np.abs(second).max()])
    assert path.step_sizes == pytest.approx([0.5, 0.25])


def test_it_stops_at_eps_or_when_the_steps_are_used_up() -> None:
    problem = problems.quadratic("frobenius", (1,))
    path = descend(problem, np.array([1.0]), lambda _: 0.25, steps=10, eps=0.1)
    assert path.steps_to(0.1) == 3.0 == len(path.step_sizes)
    path = descend(problem, np.array([1.0]), lambda _: 0.25, steps=2, eps=0.1)
    assert len(path.step_sizes) == 2
    assert path.steps_to(0.1) == math.inf


def test_a_run_out_of_the_domain_ends_with_an_infinite_gap() -> None:
    path = descend(problems.barrier("frobenius", (1,)), np.array([0.5]), lambda _: 9.0, steps=10)
    assert path.gaps[-1] == math.inf
    assert len(path.step_sizes) == 1
    path = descend(problems.cosh("max", (1,)), np.array([1.0]), lambda _: 1e4, steps=10)
    assert path.gaps[-1] == math.inf
