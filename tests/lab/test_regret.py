import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from warmgap.lab.regret import (
    best_length,
    compare_regrets,
    cross_validated_regret,
    halved_regrets,
    in_sample_regret,
    is_stuck,
    profile,
    seed_deviation,
    summarize,
)

LENGTHS = ("none", "linear:10%", "linear:40%")
SEEDS = (0, 1, 2)


def losses_of(values: dict[str, list[float]]) -> dict[str, dict[int, float]]:
    return {method: dict(enumerate(losses)) for method, losses in values.items()}


LOSSES = st.fixed_dictionaries(
    {method: st.lists(st.floats(0.5, 9.0), min_size=3, max_size=3) for method in (*LENGTHS, "auto")}
).map(losses_of)
REGRETS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(-50.0, 500.0), min_size=2, max_size=9)


@given(LOSSES)
def test_no_length_beats_the_best_one_in_sample(losses: dict[str, dict[int, float]]) -> None:
    regrets = {length: in_sample_regret(losses, LENGTHS, length).mean for length in LENGTHS}
    assert all(regret >= -1e-12 for regret in regrets.values())
    assert regrets[best_length(losses, LENGTHS)] == pytest.approx(0.0, abs=1e-12)


@given(LOSSES)
def test_a_length_that_is_chosen_on_other_seeds_is_no_better_than_one_chosen_on_these(
    losses: dict[str, dict[int, float]],
) -> None:
    honest = cross_validated_regret(losses, LENGTHS, "auto").mean
    assert honest <= in_sample_regret(losses, LENGTHS, "auto").mean + 1e-12


@given(LOSSES, st.floats(-3.0, 3.0), st.floats(-3.0, 3.0))
def test_a_planted_regret_is_found(losses: dict[str, dict[int, float]], regret: float, shift: float) -> None:
    # What a seed does to all methods alike changes nothing.
    best = {method: {seed: 9.0 + losses[method][seed] for seed in SEEDS} for method in LENGTHS[1:]}
    best["none"] = {seed: losses["auto"][seed] + shift * seed for seed in SEEDS}
    assume(shift * 2 + 9 < 9.5 and shift * 2 > -9)
    assume(
        all(best_length(best, LENGTHS, without=left_out) == "none" for left_out in ([], *([seed] for seed in SEEDS)))
    )
    best["auto"] = {seed: loss + regret for seed, loss in best["none"].items()}
    for found in (in_sample_regret(best, LENGTHS, "auto"), cross_validated_regret(best, LENGTHS, "auto")):
        assert found.mean == pytest.approx(regret, abs=1e-9)
        assert found.high - found.low == pytest.approx(0.0, abs=1e-9)


def test_cross_validation_scores_each_seed_by_the_best_length_of_the_others() -> None:
    losses = losses_of({"none": [1.0, 2.0, 6.0], "linear:10%": [3.0, 2.5, 2.0], "auto": [1.5, 1.5, 1.5]})
    lengths = ("none", "linear:10%")
    # without seed 0: linear (2.25); without seed 1: linear (2.5); without seed 2: none (1.5)
    assert cross_validated_regret(losses, lengths, "auto").mean == pytest.approx(
        (1.5 - 3.0 + 1.5 - 2.5 + 1.5 - 6.0) / 3
    )
    assert in_sample_regret(losses, lengths, "auto").mean == pytest.approx(1.5 - 2.5)


def test_tuning_by_hand_is_judged_on_the_seeds_it_was_not_tuned_on() -> None:
    losses = losses_of({"none": [1.0, 2.0, 5.0, 5.0], "linear:10%": [2.0, 1.5, 3.0, 6.0], "auto": [1.0, 1.0, 1.0, 1.0]})
    lengths = ("none", "linear:10%")
    # halves {0,1}, {0,2}, {0,3}, {1,2}, {1,3}, {2,3}: best there 3.0, 5.0, 6.0, 4.5, 7.0, 9.0 in sum
    best = [3.0, 5.0, 6.0, 4.5, 7.0, 9.0]
    tuned_elsewhere = [3.5, 6.0, 8.0, 7.0, 7.5, 10.0]
    assert halved_regrets(losses, lengths, "auto") == pytest.approx([1.0 - each / 2 for each in best])
    assert halved_regrets(losses, lengths, None) == pytest.approx(
        [(a - b) / 2 for a, b in zip(tuned_elsewhere, best, strict=True)]
    )
    with pytest.raises(ValueError, match="got 1 seeds"):
        halved_regrets({"none": {0: 1.0}}, ["none"], None)


@given(LOSSES)
def test_no_length_tuned_elsewhere_beats_the_one_tuned_here(losses: dict[str, dict[int, float]]) -> None:
    assert min(halved_regrets(losses, LENGTHS, None)) >= -1e-12


def test_the_interval_is_students_of_the_paired_differences() -> None:
    losses = losses_of({"none": [1.0, 2.0], "auto": [1.5, 3.5]})
    found = in_sample_regret(losses, ("none",), "auto")
    assert found.mean == pytest.approx(1.0)
    assert (found.high - found.low) / 2 == pytest.approx(12.706 * 0.5, rel=1e-4)  # t(0.975, 1 degree)


def test_the_seed_deviation_pools_the_variances() -> None:
    losses = losses_of({"none": [1.0, 3.0], "linear:10%": [5.0, 5.0], "auto": [0.0, 100.0]})
    assert seed_deviation(losses, ("none",)) == pytest.approx(math.sqrt(2))
    assert seed_deviation(losses, ("none", "linear:10%")) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("lengths", "seeds", "message"),
    [((), [1.0, 2.0], "needs a hand-tuned length"), (("none",), [1.0], "two or more seeds")],
)
def test_a_seed_deviation_needs_lengths_and_seeds(lengths: tuple[str, ...], seeds: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seed_deviation(losses_of({"none": seeds}), lengths)


def test_regret_needs_two_seeds() -> None:
    one = losses_of({"none": [1.0], "auto": [1.0]})
    with pytest.raises(ValueError, match="two values"):
        in_sample_regret(one, ("none",), "auto")
    with pytest.raises(ValueError, match="needs a hand-tuned length with a loss"):
        cross_validated_regret(one, ("none",), "auto")


@given(st.floats(1.0, 10.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_stuck_is_less_than_half_of_the_best_descent(first: float, best_share: float, share: float) -> None:
    assume(abs(share - 0.5 * best_share) > 1e-6)
    assert is_stuck(first, first * (1 - share), first * (1 - best_share)) == (share < 0.5 * best_share)


@given(REGRETS)
def test_a_summary_says_what_the_numbers_say(regrets: dict[str, float]) -> None:
    found, values = summarize(regrets), np.array(list(regrets.values()))
    assert found.mean.mean == pytest.approx(values.mean(), abs=1e-9)
    assert found.mean.low <= found.mean.mean + 1e-9
    assert found.bootstrap[0] <= values.mean() + 1e-9
    assert found.bootstrap[1] >= values.mean() - 1e-9
    assert found.within == (values <= 1).mean()
    assert regrets[found.worst] == found.worst_regret == values.max()


def test_a_single_workload_has_no_interval_and_none_no_summary() -> None:
    assert math.isinf(summarize({"a": 2.0}).mean.high)
    with pytest.raises(ValueError, match="at least one"):
        summarize({})
    with pytest.raises(ValueError, match="finite"):
        summarize({"a": math.nan})


@given(REGRETS)
def test_a_profile_rises_to_one(regrets: dict[str, float]) -> None:
    found = profile(regrets, [*np.linspace(-50, 500, 40)])
    assert found == sorted(found)
    assert found[-1] == 1.0
    assert profile(regrets, [min(regrets.values()) - 1.0]) == [0.0]


@given(REGRETS, st.floats(0.5, 20.0))
def test_a_lasting_difference_over_many_workloads_is_beyond_chance_and_none_is_not(
    regrets: dict[str, float], difference: float
) -> None:
    many = {f"{name}{index}": regret for name, regret in regrets.items() for index in range(6)}
    jitter = np.random.default_rng(0).uniform(0.9, 1.1, len(many))
    worse = {name: regret + difference * by for (name, regret), by in zip(many.items(), jitter, strict=True)}
    found = compare_regrets(many, worse)
    assert found.significant
    assert found.difference.mean == pytest.approx(-difference, rel=0.1)
    assert found.better == sum(difference * by > 1 for by in jitter)
    same = compare_regrets(many, many)
    assert (same.t_p, same.wilcoxon_p, same.better, same.worse) == (1.0, 1.0, 0, 0)


def test_a_comparison_needs_the_same_workloads() -> None:
    with pytest.raises(ValueError, match="same workloads"):
        compare_regrets({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0})
