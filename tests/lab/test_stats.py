import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmgap.lab.stats import compare, mean_interval, spread

LOSSES = st.lists(st.floats(0.5, 12.0), min_size=2, max_size=6)


def test_spread_is_the_sample_mean_and_deviation() -> None:
    found = spread([1.0, 2.0, 4.0])
    assert found.mean == pytest.approx(7 / 3)
    assert found.sd == pytest.approx(math.sqrt(7 / 3))
    assert found.count == 3


def test_spread_of_one_value_has_no_deviation_and_of_none_no_mean() -> None:
    assert (spread([3.0]).mean, spread([3.0]).sd) == (3.0, None)
    assert (spread([]).mean, spread([]).sd, spread([]).count) == (None, None, 0)


def test_spread_refuses_a_loss_that_is_no_number() -> None:
    with pytest.raises(ValueError, match="finite"):
        spread([1.0, math.nan])


def test_interval_matches_the_t_table() -> None:
    # t(0.975, df 1) = 12.706: two values one apart, standard error 0.5.
    low, high = mean_interval([0.0, 1.0])
    assert (high - low) / 2 == pytest.approx(12.706 * 0.5, rel=1e-4)
    assert (low + high) / 2 == pytest.approx(0.5)


def test_interval_needs_two_values_and_a_level() -> None:
    with pytest.raises(ValueError, match="two values"):
        mean_interval([1.0])
    with pytest.raises(ValueError, match="confidence"):
        mean_interval([1.0, 2.0], confidence=95)


def test_a_difference_beyond_the_noise_is_a_win_and_reversed_a_loss() -> None:
    ours = {0: 3.00, 1: 3.11, 2: 3.20}
    theirs = {0: 3.10, 1: 3.20, 2: 3.31}
    assert compare(ours, theirs).verdict == "win"
    assert compare(theirs, ours).verdict == "loss"


def test_a_difference_within_the_noise_is_a_tie() -> None:
    comparison = compare({0: 3.0, 1: 3.2, 2: 3.1}, {0: 3.1, 1: 3.1, 2: 3.1})
    assert comparison.verdict == "tie"
    assert comparison.low is not None
    assert comparison.high is not None
    assert comparison.low < 0 < comparison.high


def test_a_wide_interval_is_no_tie_where_the_difference_is_larger_than_the_deviation_between_seeds() -> None:
    comparison = compare({0: 3.20, 1: 3.42}, {0: 3.00, 1: 3.10})
    assert comparison.low is not None
    assert comparison.low < 0
    assert comparison.verdict == "none"


def test_equal_losses_tie() -> None:
    assert compare({0: 3.0, 1: 3.2}, {0: 3.0, 1: 3.2}).verdict == "tie"


def test_pairing_by_seed_sees_through_the_spread_between_seeds() -> None:
    ours = {0: 2.00, 1: 3.001, 2: 4.00}
    theirs = {0: 2.01, 1: 3.011, 2: 4.012}
    assert compare(ours, theirs).verdict == "win"


def test_one_seed_gives_a_difference_but_no_verdict() -> None:
    comparison = compare({0: 1.0}, {0: 9.0})
    assert comparison.verdict == "none"
    assert comparison.difference == -8.0
    assert "one seed" in comparison.reason


def test_only_common_seeds_count() -> None:
    assert compare({0: 1.0, 1: 1.0}, {2: 5.0, 3: 5.0}).verdict == "none"
    assert compare({0: 1.0, 1: 1.0, 2: 1.0}, {1: 5.0, 2: 5.0}).seeds == 2


def test_divergence_decides_before_the_mean_does() -> None:
    steady = {0: 3.5, 1: 3.5, 2: 3.5}
    falls = {0: 3.0, 1: 3.0, 2: None}
    assert compare(falls, steady).verdict == "loss"
    assert compare(steady, falls).verdict == "win"
    assert "diverged on 1 of 3" in compare(falls, steady).reason


def test_both_diverged_everywhere_gives_no_verdict() -> None:
    comparison = compare({0: None, 1: None}, {0: None, 1: None})
    assert comparison.verdict == "none"
    assert comparison.difference is None


@given(LOSSES, st.data())
def test_comparison_is_antisymmetric(losses: list[float], data: st.DataObject) -> None:
    others = data.draw(st.lists(st.floats(0.5, 12.0), min_size=len(losses), max_size=len(losses)))
    ours, theirs = dict(enumerate(losses)), dict(enumerate(others))
    there, back = compare(ours, theirs), compare(theirs, ours)
    mirrored = {"win": "loss", "loss": "win", "tie": "tie", "none": "none"}
    assert back.verdict == mirrored[there.verdict]
    assert there.difference is not None
    assert back.difference == pytest.approx(-there.difference)
