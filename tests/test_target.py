from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmgap import estimate_target_loss
from warmgap.target import LOWEST_SHARE

losses = st.floats(-1e3, 1e3)


@given(initial=losses, gain=st.floats(0.0, 1e3), distance=st.floats(0.0, 1e5), total=st.floats(0.0, 1e6))
def test_it_always_lies_below_the_best_loss(initial: float, gain: float, distance: float, total: float) -> None:
    best = initial - gain
    assert estimate_target_loss(initial, best, distance, total) < best


@given(
    initial=st.floats(0.1, 100.0), share=st.floats(0.3, 1.0), distance=st.floats(0.0, 1e5), total=st.floats(0.0, 1e6)
)
def test_a_positive_loss_has_a_lowest_target(initial: float, share: float, distance: float, total: float) -> None:
    assert estimate_target_loss(initial, share * initial, distance, total) >= LOWEST_SHARE * initial


@given(scale=st.floats(1e-3, 1e3), best=st.floats(2.5, 9.9), distance=st.floats(0.1, 1e3))
def test_it_has_no_scale(scale: float, best: float, distance: float) -> None:
    one = estimate_target_loss(10.0, best, distance, 1e3)
    assert estimate_target_loss(10.0 * scale, best * scale, distance, 1e3) == pytest.approx(one * scale)


def test_a_power_law_is_followed_to_its_end() -> None:
    def loss(distance: float) -> float:
        return 8.0 * float((1.0 + distance) ** -0.15)

    assert estimate_target_loss(8.0, loss(20.0), 20.0, 500.0) == pytest.approx(loss(500.0), rel=1e-9)


def test_at_the_end_of_the_run_nothing_more_is_expected_than_the_margin() -> None:
    assert estimate_target_loss(8.0, 4.0, 500.0, 500.0) == pytest.approx(4.0 - 0.05 * 4.0)
