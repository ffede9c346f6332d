"""The share of their rate that the spectral cap leaves the groups it holds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from warmgap.rules import SpectralRule
from warmgap.schedule import Schedule
from warmgap.torch import Lion, SpectralCap
from warmgap.torch.cap_share import CapShare
from warmgap.torch.group_schedules import plan_groups
from warmgap.torch.rates import GroupRates


def share_of(ratio: float, *, capped: bool = True) -> CapShare:
    """The share of a hidden matrix's group beside an embedding's, where a step at rate 1 has that size."""
    roles = {"hidden": nn.Parameter(torch.eye(4)), "embedding": nn.Parameter(torch.ones(9, 4))}
    optimizer = Lion([{"params": [p], "role": role, "initial_lr": 1.0} for role, p in roles.items()], lr=1.0)
    cap = SpectralCap(optimizer, rho=0.1, apply=False) if capped else None
    rates = GroupRates(optimizer)
    rates.restart()
    share = CapShare(cap, rates, lambda value: value)
    share.regroup(plan_groups(optimizer, Schedule(100, SpectralRule()), {}, capped))
    if cap is not None:
        cap._ratio = cap._largest = ratio
    return share


def test_it_holds_the_hidden_matrices_alone_and_says_when_it_begins_and_ceases() -> None:
    share = share_of(0.5)
    assert share.update(1.0, [1.0, 1.0]) == ("step too large: held by the spectral cap", 1.0, 0.2, "hidden")
    assert share.applied([1.0, 1.0]) == [0.2, 1.0]
    assert share.update(0.5, [0.5, 0.5]) is None
    assert share.applied([0.5, None]) == [0.2, None]
    assert share.update(0.19, [0.19, 0.19]) is None  # not yet a tenth of room
    assert share.update(0.18, [0.18, 0.18]) == ("released by the spectral cap", 0.18, 0.18, "hidden")
    assert share.factor == 1.0


def test_what_is_left_of_the_factor_at_most_doubles() -> None:
    share = share_of(0.5)
    share.made = 0.02
    share.update(1.0, [1.0, 1.0])
    assert share.factor == 0.04


def test_it_is_1_without_a_cap() -> None:
    share = share_of(0.5, capped=False)
    assert share.update(1.0, [1.0, 1.0]) is None
    assert share.applied([1.0, None]) == [1.0, None]
    assert not share.knows_size


def test_its_state_is_that_of_the_share_and_the_cap() -> None:
    share, other = share_of(0.5), share_of(0.1)
    share.update(1.0, [1.0, 1.0])
    other.load(share.to_dict())
    assert other.to_dict()["held"] == share.to_dict()["held"] == [0.2, True, None]
    assert other.cap is not None
    assert other.cap.ratio == 0.5
    with pytest.raises(ValueError, match="from a scheduler with a spectral cap, and this one has none: give the same"):
        share_of(0.5, capped=False).load(share.to_dict())
