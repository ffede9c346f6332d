from __future__ import annotations

import pytest

from warmgap.lab.schedules import published_peak_gap

MUON, LION = 65280.0, 1.24e8


@pytest.mark.parametrize(("first_loss", "share"), [(10.80, 0.4031), (10.90, 0.577), (11.00, 0.7848)])
def test_the_published_solver_scatters_for_muon(first_loss: float, share: float) -> None:
    gap = first_loss - 3.2
    assert published_peak_gap(gap, 0.01, MUON, 1e-3) / gap == pytest.approx(share, abs=1e-4)


def test_where_the_published_warm_up_ends() -> None:
    assert 3.2 + published_peak_gap(11.0 - 3.2, 0.01, MUON, 1e-3) == pytest.approx(9.32, abs=0.005)
    assert 3.5 + published_peak_gap(11.0 - 3.5, 0.01, LION, 1e-3) == pytest.approx(3.88, abs=0.005)


def test_a_larger_rate_moves_the_published_solution_though_the_objective_has_no_rate_in_it() -> None:
    assert published_peak_gap(7.8, 0.01, MUON, 0.1) / 7.8 == pytest.approx(0.327, abs=1e-3)
