from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from warmgap import ResponseCurve, Smoothness

gaps = st.floats(1e-3, 1e3)
shares = st.floats(1e-3, 0.99)
floors = st.floats(1e-4, 0.9)


@given(initial_gap=gaps, share=shares, floor=floors)
def test_it_is_the_floor_at_the_start_and_exactly_one_at_the_peak(
    initial_gap: float, share: float, floor: float
) -> None:
    curve = ResponseCurve(initial_gap, share * initial_gap, floor)
    assert curve(initial_gap) == pytest.approx(floor, rel=1e-12)
    assert curve(curve.peak_gap) == 1.0


@given(initial_gap=gaps, share=shares, floor=floors, at=st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=20))
def test_it_rises_while_the_gap_falls_to_the_peak_then_falls(
    initial_gap: float, share: float, floor: float, at: list[float]
) -> None:
    curve = ResponseCurve(initial_gap, share * initial_gap, floor)
    factors = [curve(z * initial_gap) for z in sorted(at, reverse=True)]
    assert all(0.0 < factor <= 1.0 for factor in factors)
    above = [curve(z * initial_gap) for z in sorted(at, reverse=True) if z >= share]
    below = [curve(z * initial_gap) for z in sorted(at, reverse=True) if z <= share]
    assert all(b >= a * (1 - 1e-12) for a, b in itertools.pairwise(above))
    assert all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(below))


@given(initial_gap=gaps, share=st.floats(0.01, 0.9), floor=floors, lr=st.floats(1e-5, 10.0), z=st.floats(0.01, 1.0))
def test_it_is_the_papers_formula_with_its_constants(
    initial_gap: float, share: float, floor: float, lr: float, z: float
) -> None:
    curve = ResponseCurve(initial_gap, share * initial_gap, floor)
    smoothness = curve.smoothness(lr)
    gap = z * initial_gap
    # the published form cancels: compare it in units of its largest term
    terms = abs(smoothness.K1 * gap) + smoothness.K0 + smoothness.K2 * gap**2
    assert gap / (lr * curve(gap)) == pytest.approx(smoothness(gap), abs=1e-11 * terms)
    assert smoothness.peak_gap == pytest.approx(curve.peak_gap, rel=1e-9)


def test_the_constants_of_a_common_calibration() -> None:
    smoothness = ResponseCurve(7.8, 2.55, 0.01).smoothness(1e-3)
    # arXiv 2602.05813, appendix D.2: K2 = D0 (div-1) / (lr (D0-D')^2), K0 = K2 D'^2, K1 = 1/lr - 2 K2 D'
    k2 = 7.8 * 99 / (1e-3 * (7.8 - 2.55) ** 2)
    assert (k2, k2 * 2.55**2, 1e3 - 2 * k2 * 2.55) == pytest.approx((smoothness.K2, smoothness.K0, smoothness.K1))
    assert smoothness.K1 < 0 < smoothness(0.5)
    assert smoothness.peak_lr == pytest.approx(1e-3)


@given(initial_gap=gaps, share=st.floats(0.01, 0.9), floor=st.floats(1e-3, 0.5))
def test_curve_and_constants_give_each_other_back(initial_gap: float, share: float, floor: float) -> None:
    curve = ResponseCurve(initial_gap, share * initial_gap, floor)
    smoothness = curve.smoothness(1.0)
    assume(smoothness.K1 + 2 * math.sqrt(smoothness.K0 * smoothness.K2) > 1e-3)
    back = smoothness.curve(initial_gap)
    assert (back.peak_gap, back.floor) == pytest.approx((curve.peak_gap, curve.floor), rel=1e-6)


def test_it_takes_arrays_of_every_kind() -> None:
    curve = ResponseCurve(8.0, 2.0, 0.01)
    gaps = [8.0, 4.0, 2.0, 0.5]
    expected = [curve(gap) for gap in gaps]
    array = curve(np.array(gaps))
    tensor = curve(torch.tensor(gaps, dtype=torch.float64))
    assert array.tolist() == expected
    assert tensor.tolist() == expected
    smoothness = curve.smoothness(0.1)
    np.testing.assert_allclose(smoothness.step_size(np.array(gaps)), 0.1 * array)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0, 0.1), "initial_gap must be above 0, got 0.0"),
        ((2.0, 0.0, 0.1), "peak_gap must be above 0"),
        ((2.0, 2.0, 0.1), "peak_gap must be below initial_gap"),
        ((2.0, 1.0, 1.0), "floor must lie strictly between 0 and 1"),
        ((2.0, 1.0, 0.0), "floor must lie strictly between 0 and 1"),
        ((math.nan, 1.0, 0.1), "initial_gap must be finite"),
        (("2", 1.0, 0.1), "initial_gap must be a number"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[float, float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResponseCurve(*arguments)


def test_a_bound_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive for every gap"):
        Smoothness(1.0, -3.0, 1.0)
    with pytest.raises(ValueError, match="K0 must not be negative"):
        Smoothness(-1.0, 3.0, 1.0)
    with pytest.raises(ValueError, match="both must be above 0"):
        Smoothness(1.0, 1.0, 0.0).curve(2.0)
    with pytest.raises(ValueError, match="peak_lr must be above 0"):
        ResponseCurve(2.0, 1.0, 0.1).smoothness(0.0)
