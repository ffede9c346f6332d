from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from warmgap.lab import scores
from warmgap.lab.results import Trial

Losses = Mapping[str, list[float | None]]


def trials(workload: str, losses: Losses, *, split: str = "test", rate: float = 1.0) -> list[Trial]:
    return [
        Trial(workload, method, seed, 0.01 * rate, rate, "done" if loss is not None else "diverged", loss, 5.0, split)
        for method, values in losses.items()
        for seed, loss in enumerate(values)
    ]


GOOD: Losses = {"auto": [1.0, 1.1, 1.2], "none": [1.1, 1.2, 1.31], "linear:10%": [1.2, 1.3, 1.4]}
BAD: Losses = {"auto": [2.2, 2.3, 2.4], "none": [2.1, 2.2, 2.3], "linear:10%": [1.9, 2.0, 2.1]}


def test_regret_by_hand() -> None:
    (cell,) = scores.cells(trials("w", GOOD))
    assert (cell.methods, cell.seeds) == (("auto", "none", "linear:10%"), (0, 1, 2))
    assert cell.regrets() == pytest.approx([-0.31 / 3, 0.0, 0.29 / 3])
    assert cell.deviation == pytest.approx(np.sqrt((np.var([1.1, 1.2, 1.31], ddof=1) + 0.01) / 2))
    # The oracle is chosen on the other seeds: what is best on two of them is judged on the third.
    (other,) = scores.cells(trials("w", {"none": [1.0, 2.0], "linear:10%": [2.0, 1.0]}))
    assert other.regrets() == pytest.approx([-0.5, -0.5])


def test_a_run_that_fell_counts_with_its_first_loss_and_not_in_the_deviation() -> None:
    (cell,) = scores.cells(trials("w", {**GOOD, "hold:40%": [None, 1.0, 1.1]}))
    assert cell.losses[3, 0] == 5.0
    (without,) = scores.cells(trials("w", GOOD))
    assert cell.deviation == without.deviation
    found = {each.method: each for each in scores.score([cell], reference="none")}
    assert found["hold:40%"].failures == 1


def test_a_method_without_every_seed_is_left_out() -> None:
    (cell,) = scores.cells([*trials("w", GOOD), *trials("w", {"gap": [1.0]})])
    assert "gap" not in cell.methods


def test_scores_over_workloads() -> None:
    found = scores.cells([*trials("a", GOOD, split="development"), *trials("b", BAD), *trials("c", GOOD)])
    assert scores.best_clock(found) == "none"  # by the development workload alone
    ranked = scores.score(found[1:], reference="none")
    assert [each.cells for each in ranked] == [2, 2, 2]
    auto = next(each for each in ranked if each.method == "auto")
    assert auto.worst[0] == "b"
    assert auto.worst[1] == pytest.approx(3.0)
    assert auto.within == 0.5
    assert auto.profile[0] == 0.5
    assert auto.profile[-1] == 1.0
    assert auto.verdict == "cannot tell"
    reference = next(each for each in ranked if each.method == "none")
    assert (reference.against, reference.verdict) == (None, "")


def test_better_beyond_chance() -> None:
    rng = np.random.default_rng(0)
    many = [
        trial
        for name in map(str, range(12))
        for trial in trials(
            name, {"auto": [1.0, 1.1], "none": list(1.3 + 0.05 * rng.random(2)), "linear:10%": [1.5, 1.6]}
        )
    ]
    auto = scores.score(scores.cells(many), reference="none")[0]
    assert (auto.method, auto.verdict) == ("auto", "better")
    assert auto.p is not None
    assert auto.p < 0.01


def test_flatness_is_the_height_above_the_lower_envelope() -> None:
    by_rate = {0.1: (2.0, 2.0), 1.0: (1.0, 1.0), 10.0: (1.1, 3.1)}
    found = scores.cells(
        [t for rate, (auto, none) in by_rate.items() for t in trials("w", {"auto": [auto], "none": [none]}, rate=rate)]
    )
    assert [cell.name for cell in found] == ["w, rate x 0.1", "w", "w, rate x 10"]
    assert scores.flatness(found) == {"w": {"auto": 0.0, "none": pytest.approx(0.5)}}
    assert scores.flatness(found[:2]) == {}


@pytest.mark.parametrize(
    ("first", "verdict"),
    [
        ([0.9, 1.0, 1.1], "better"),
        ([1.1, 1.2, 1.3], "worse"),
        ([1.01, 1.1, 1.19], "tie"),
        ([0.5, 1.4, 1.6], "cannot tell"),
        ([1.0], "cannot tell"),
    ],
)
def test_verdicts(first: list[float], verdict: str) -> None:
    second = [1.0, 1.1, 1.2][: len(first)]
    assert scores.compare(np.array(first), np.array(second), 0.05)[2] == verdict
