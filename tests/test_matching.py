from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid

from warmgap import ResponseCurve, match_peak_gap
from warmgap.matching import best_share, mismatch

# peak gap / initial gap by 1/floor and sigma*kappa*initial_gap**2, from an independent exact quadrature
TABLE = {
    100: {
        0.1: 0.285, 1: 0.266, 5.2: 0.195, 10: 0.152, 50: 0.095, 100: 0.084, 1e3: 0.062, 1.3e3: 0.301,
        2.5e3: 0.320, 4e3: 0.326,        1e4: 0.332, 1e5: 0.341, 1e6: 0.280, 7.5e6: 0.098, 1e8: 0.021,
    },
    10: {1: 0.307, 10: 0.255, 100: 0.191, 1e3: 0.174, 4e3: 0.177, 1e5: 0.135, 1e6: 0.096, 7.5e6: 0.070},
    5: {1: 0.338, 10: 0.312, 100: 0.279, 1e3: 0.274, 4e3: 0.259, 7.5e6: 0.081},
    2: {1: 0.509, 1e3: 0.448, 7.5e6: 0.104},
}  # fmt: skip


def reference_mismatch(share: float, floor: float, sharpness: float, nodes: int = 200_001) -> float:
    """The objective as it is written, by the trapezoid rule on each side of the peak."""
    width = 12.0 / np.sqrt(sharpness)
    total = 0.0
    for low, high in ((max(0.0, share - width), share), (share, min(1.0, share + width))):
        z = np.linspace(low, high, nodes)
        with np.errstate(divide="ignore", invalid="ignore"):
            curve = 1.0 / (1.0 + (1.0 / floor - 1.0) / z * ((z - share) / (1.0 - share)) ** 2)
        curve[z == 0.0] = 0.0
        falling = 1.0 + (floor - 1.0) * (z - share) / (1.0 - share)
        target = np.where(z < share, 0.5 * (1.0 - np.cos(np.pi * z / share)), falling)
        total += float(trapezoid(np.exp(-((z - share) ** 2) * sharpness / 2.0) * (curve - target) ** 2, z))
    return total


@given(
    share=st.floats(0.002, 0.95),
    floor=st.sampled_from([0.5, 0.1, 0.01, 0.001, 1e-4]),
    sharpness=st.sampled_from([1e-3, 1.0, 1e2, 1e4, 1e6, 1e8]),
)
@settings(max_examples=60)
def test_the_quadrature_is_the_objective(share: float, floor: float, sharpness: float) -> None:
    fast = float(mismatch(np.array([share]), floor, sharpness)[0])
    assert fast == pytest.approx(reference_mismatch(share, floor, sharpness), rel=1e-6)


@pytest.mark.parametrize(
    ("inverse_floor", "sharpness", "share"), [(d, s, p) for d, row in TABLE.items() for s, p in row.items()]
)
def test_the_known_minimisers(inverse_floor: int, sharpness: float, share: float) -> None:
    assert best_share(1.0 / inverse_floor, sharpness)[0] == pytest.approx(share, abs=6e-4)


@given(floor=st.floats(1e-3, 0.45), log_sharpness=st.floats(-3.0, 9.0))
@settings(max_examples=40)
def test_no_peak_gap_anywhere_does_better(floor: float, log_sharpness: float) -> None:
    sharpness = 10.0**log_sharpness
    share, _ = best_share(floor, sharpness)
    best = mismatch(np.array([share]), floor, sharpness)[0]
    everywhere = mismatch(
        np.concatenate([np.geomspace(1e-5, 0.01, 300), np.linspace(0.01, 0.99, 2000)]), floor, sharpness
    )
    assert best <= everywhere.min() * (1 + 1e-9)
    near = mismatch(share + np.array([-1e-6, 1e-6]) * 3, floor, sharpness)
    assert (near >= best * (1 - 1e-12)).all()


@given(scale=st.floats(0.01, 100.0))
def test_it_has_no_scale(scale: float) -> None:
    one = match_peak_gap(7.8, 0.01, 65280)
    other = match_peak_gap(7.8 * scale, 0.01, 65280 / scale**2)
    assert other == pytest.approx(one * scale, rel=1e-5)


def test_the_papers_settings() -> None:
    # arXiv 2602.05813, a 124M LLaMA: Muon and Lion from a loss of 11 to a target of 3.2
    assert match_peak_gap(11 - 3.2, 0.01, 65280) == pytest.approx(2.55, abs=0.01)
    assert match_peak_gap(11 - 3.2, 0.01, 1.24e8) == pytest.approx(0.763, abs=0.001)
    # The losses at which warm-up ends: 5.74 for Muon, 4.28 for Lion to its own target of 3.5.
    assert 3.2 + match_peak_gap(11 - 3.2, 0.01, 65280) == pytest.approx(5.744, abs=0.001)
    assert 3.5 + match_peak_gap(11 - 3.5, 0.01, 1.24e8) == pytest.approx(4.278, abs=0.001)


def test_the_two_minima_and_where_the_answer_jumps_from_one_to_the_other() -> None:
    assert mismatch(np.array([0.060, 0.315]), 0.01, 1900.0) == pytest.approx([4.42e-3, 3.52e-3], rel=2e-3)
    below, above = best_share(0.01, 1038.0), best_share(0.01, 1038.1)
    assert below == pytest.approx((0.0619, 0.2865), abs=1e-4)
    assert above == pytest.approx((0.2865, 0.0619), abs=1e-4)


def test_the_linear_constant_is_negative_but_for_tiny_peak_gaps() -> None:
    # K1 >= 0 exactly where 2 (1/floor - 1) p <= (1 - p)^2, at p of about floor/2.
    for floor in (0.2, 0.1, 0.01):
        for share in (0.001, 0.004, 0.0051, 0.02, 0.06, 0.0502, 0.11, 0.326):
            K1 = ResponseCurve(1.0, share, floor).smoothness(1e-3).K1
            assert (K1 >= 0.0) == (2.0 * (1.0 / floor - 1.0) * share <= (1.0 - share) ** 2)
    for inverse_floor, row in TABLE.items():
        if inverse_floor == 100:
            assert all(ResponseCurve(1.0, share, 0.01).smoothness(1.0).K1 < 0.0 for share in row.values())


def test_two_nearly_equal_answers_are_told() -> None:
    # at sharpness 1.2e3 the minima near 0.06 and 0.30 are close
    with pytest.warns(UserWarning, match=r"two nearly equal answers here, 0\.296 and 0\.0612"):
        assert match_peak_gap(1.0, 0.01, 1.2e6) == pytest.approx(0.29639, abs=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        match_peak_gap(1.0, 0.01, 1.0)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((-1.0, 0.01, 10.0), "initial_gap"),
        ((1.0, 1.5, 10.0), "floor"),
        ((1.0, 0.1, 0.0), "kappa"),
        ((1.0, 0.1, 1.0, -1.0), "sigma"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[float, ...], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must"):
        match_peak_gap(*arguments)
