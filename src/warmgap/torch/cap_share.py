"""The scheduler's part in the spectral cap: the share of their rate that the held groups keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from warmgap.torch.group_schedules import GroupPlan
from warmgap.torch.rates import GroupRates
from warmgap.torch.spectral_cap import SpectralCap

_CAPPED = 0.95  # an event says so where the cap takes away more than a twentieth
_RELEASED = 1.1  # and where it leaves a tenth of room again


class CapShare:
    """The share of their scheduled rate that the spectral cap leaves the groups that it holds."""

    def __init__(self, cap: SpectralCap | None, rates: GroupRates, agree: Callable[[Tensor], Tensor]) -> None:
        self.cap = cap  # None for none: the share stays 1
        self.groups: list[int] = []  # indices of those that it holds and that are scheduled
        self.factor = 1.0  # the share, in (0, 1]
        self.room = math.inf  # the rate at which the cap would cut nothing, over the scheduled one of the next step
        self.active = False  # whether the cap holds them back, as the events say
        self.made: float | None = None  # what was left of the schedule's factor in the last step
        self._rates = rates
        self._measuring = False  # whether the cap was shown the beginning of a step
        if cap is not None:
            cap.agree = agree
            cap.serve(self)

    def regroup(self, plans: Sequence[GroupPlan]) -> None:
        """Find the groups to hold among those that are scheduled."""
        held = set() if self.cap is None else {id(group) for group in self.cap.groups}
        groups = zip(self._rates.optimizer.param_groups, plans, strict=True)
        self.groups = [index for index, (group, plan) in enumerate(groups) if id(group) in held and plan.scheduled]

    @property
    def knows_size(self) -> bool:
        """Whether the size of a step at a given rate is known."""
        return self.cap is not None and self.cap.ratio is not None

    def before(self, *, closure: bool) -> None:
        """Have the step measured that is about to be made; with a closure its gradients are yet to be computed."""
        if self.cap is not None:
            self.cap.before(closure=closure)
            self._measuring = True

    def after(self) -> None:
        """Have the step cut that was just made."""
        if self.cap is None or not self._measuring:
            return
        self._measuring, unknown = False, self.cap.ratio is None
        self.cap.after()
        if unknown and self.groups:  # the first step, measured only now, was cut down to the cap
            self.factor *= self.cap.factor_at(self._rates.on_host(self.cap.base))

    def update(self, factor: float, rates: Sequence[float | None]) -> tuple[str, float, float, str | None] | None:
        """Find the share for the next step, given the scheduled factor of the held groups and the rates of all.

        Returns reason, factor before and after, and role of an event where the cap begins or ceases to hold.
        """
        if self.cap is None or not self.groups:
            return None
        base, self.factor = self.cap.base, 1.0
        first = next(index for index in self.groups if self._rates.optimizer.param_groups[index] is base)
        rate = max((rates[first] or 0.0) * self._rates.scales[first], 1e-300)
        self.room, self.factor = self.cap.room / rate, min(1.0, self.cap.limit / rate)
        if self.made is not None:  # what is left of the factor at most doubles, too
            self.factor = min(self.factor, 2.0 * self.made / factor)
        if self.room < _CAPPED and not self.active:
            reason, after = "step too large: held by the spectral cap", self.largest(factor)
        elif self.active and self.factor == 1.0 and self.room > _RELEASED:
            reason, after = "released by the spectral cap", factor
        else:
            return None
        self.active = not self.active
        return reason, factor, after, None if self.cap.scope == "all weights" else "hidden"

    def largest(self, factor: float) -> float:
        """Return a scheduled factor times the share of the steps' spectral norm that passes the cap."""
        return factor * min(1.0, self.factor, self.room)

    def applied(self, rates: list[float | None]) -> list[float | None]:
        """Return the rates of all groups, those of the held ones times their share."""
        if not self.groups:
            return rates
        held = list(rates)
        for index in self.groups:
            if (rate := rates[index]) is not None:
                held[index] = rate * self.factor
        return held

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain Python values, with that of the cap."""
        cap = None if self.cap is None else self.cap.state_dict()
        return {"held": [self.factor, self.active, self.made], "cap": cap}

    def load(self, saved: dict[str, Any]) -> None:
        """Take up the state that `to_dict` described; where one has no cap, or the cap refuses it, nothing changes."""
        if (saved["cap"] is None) != (self.cap is None):
            raise ValueError(
                f"this state comes from a scheduler with{'out' if saved['cap'] is None else ''} a spectral cap, and "
                f"this one has {'none' if self.cap is None else 'one'}: give the same cap="
            )
        if self.cap is not None:
            self.cap.load_state_dict(saved["cap"])
        self.factor, self.active, self.made = saved["held"]

    # What a cap asks of those who set the rates

    def _rate_of(self, group: dict[str, Any]) -> float:
        return self._rates.on_host(group)

    def _held(self) -> list[dict[str, Any]]:
        return [self._rates.optimizer.param_groups[index] for index in self.groups]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.cap is not None:
            self.cap.serve(self)  # a copied cap has lost it
