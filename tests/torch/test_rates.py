"""The rates of an optimizer's groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from warmgap.torch.rates import GroupRates


def rates_of(*lrs: Any) -> GroupRates:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": lr, "initial_lr": lr} for lr in lrs]
    rates = GroupRates(SGD(groups, lr=1.0))
    rates.restart()
    return rates


def test_what_others_multiply_is_carried_on_and_a_group_left_alone_has_no_part_in_it() -> None:
    rates = rates_of(1.0, 0.5, 0.2)
    rates.write([0.4, 0.2, None])
    groups = rates.optimizer.param_groups
    assert rates.carry() is None
    groups[0]["lr"], groups[1]["lr"], groups[2]["lr"] = 0.2, 0.05, 9.0
    assert rates.carry() == (1.0, 0.25)
    assert rates.scales == [0.5, 0.25, 1.0]
    rates.write([0.8, 0.4, None])
    assert [group["lr"] for group in groups] == [0.4, 0.1, 9.0]
    groups[0]["lr"] = 0.1
    rates.accept()
    assert rates.carry() is None  # it was taken as it is


def test_a_tensor_is_written_in_place_and_kept_as_a_copy() -> None:
    rates = rates_of(torch.tensor(1.0))
    tensor = rates.optimizer.param_groups[0]["lr"]
    rates.write([0.5])
    assert rates.optimizer.param_groups[0]["lr"] is tensor
    assert isinstance(rates.last[0], Tensor)
    tensor.fill_(0.25)
    assert rates.last == [0.5]
    assert rates.carry() == (1.0, 0.5)


class OnDevice(Tensor):
    """A rate that lies on a device: nobody may read it."""

    device = torch.device("cuda")

    def __float__(self) -> float:
        raise AssertionError("this would wait for the device")

    item = __float__


def test_a_rate_on_a_device_is_known_where_it_was_set_here() -> None:
    rates = rates_of(1.0)
    group = rates.optimizer.param_groups[0]
    rates.write([0.5])
    group["lr"] = torch.tensor(0.5).as_subclass(OnDevice)
    assert rates.on_host(group) == 0.5
    assert rates.carry() is None


def test_peaks_and_scales_are_its_state() -> None:
    rates, other = rates_of(1.0, 0.5), rates_of(3.0, 4.0)
    rates.scales = [0.5, 2.0]
    assert other.read(rates.to_dict()) == ([1.0, 0.5], [0.5, 2.0])
    with pytest.raises(ValueError, match="2 parameter groups, and this one has 1: build the optimizer as it was"):
        rates_of(1.0).read(rates.to_dict())
    with pytest.raises(ValueError, match="scales must be finite, got nan; this state is damaged or was edited"):
        other.read({**rates.to_dict(), "scales": [1.0, float("nan")]})
