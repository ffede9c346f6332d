"""What a schedule does with each parameter group: its role, its peak, and a schedule of its own where it has one."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from warmgap._checks import check_count, check_finite, warn
from warmgap.rules import LinearRule, SpectralRule
from warmgap.rules.spectral import LARGEST_ENTRY
from warmgap.schedule import Schedule, ScheduleState
from warmgap.torch.optimizers.muon import SECOND_RULES, Muon
from warmgap.torch.roles import assign_roles, guess_roles, roles_from_names
from warmgap.torch.spectral_cap import separate_rates
from warmgap.torch.split import layouts_of, role_of


@dataclass(frozen=True)
class GroupPlan:
    """How the rate of one parameter group is set."""

    role: str | None  # one of `ROLES`; None where no group of the optimizer is hidden, so that all are treated alike
    label: str  # what tables call it
    scheduled: bool  # false where the group asks to be left alone
    own: Schedule | None  # its own schedule, in place of the optimizer's; None for most
    limit: float  # the highest peak it is given: beside Muon's capped matrices, which bear higher rates than others


def find_roles(
    optimizer: Optimizer,
    model: nn.Module | None,
    roles: Sequence[str] | Mapping[int | str, str] | None,
    guess: bool = False,
) -> bool:
    """Give the parameter groups their roles where they have none: as asked, by the model, or by names that torch keeps.

    With `guess` also by shapes. Returns whether any group is known to be hidden, or there is nothing to tell apart.
    """
    groups = optimizer.param_groups
    if roles is not None:
        named = _by_index(optimizer, roles) if isinstance(roles, Mapping) else dict(enumerate(roles))
        if not isinstance(roles, Mapping) and len(named) != len(groups):
            raise ValueError(f"roles must have one role for each of the {len(groups)} groups, got {len(named)}")
        for index, role in named.items():
            groups[index]["role"] = role
    elif model is not None:
        assign_roles(optimizer, model)
    elif any("role" in group or "initial_lr" in group for group in groups):
        pass  # another scheduler's groups, with an `initial_lr`, can't be split any more
    elif not assign_roles(optimizer) and guess:
        guess_roles(optimizer)
    matrices = sum(p.ndim >= 2 for group in optimizer.param_groups for p in group["params"])
    return matrices < 3 or any(group.get("role") == "hidden" for group in optimizer.param_groups)


def give_rest_roles(optimizer: Optimizer, model: nn.Module | None) -> None:
    """Give groups without a role one, where others have theirs, as those that were added late.

    A group with hidden matrices is hidden as a whole. It is not split: hosts save and load it as they added it.
    """
    roles_now = [role_of(group) for group in optimizer.param_groups]
    if None not in roles_now or "hidden" not in roles_now:
        return
    if model is not None:
        known: Mapping[Tensor, str] = {p: said["role"] for p, said in layouts_of(model).items()}
    else:
        known = roles_from_names(optimizer) or {}
    for index, group in enumerate(optimizer.param_groups):
        if roles_now[index] is not None or group.get("schedule", "inherit") in (None, "constant"):
            continue
        roles = {known.get(p, "hidden" if p.ndim >= 2 else "other") for p in group["params"]}
        group["role"] = next((role for role in ("hidden", "embedding", "head") if role in roles), "other")
        if group["role"] == "hidden" and (len(roles) > 1 or not all(p in known for p in group["params"])):
            warn(
                f"parameter group {index} has no role, where others have theirs, and all of it is held back like the "
                "hidden matrices, which alone need it: put the groups of split_parameters(module) in its place, or "
                "give it the key 'role'"
            )


def plan_groups(
    optimizer: Optimizer, schedule: Schedule, asked: Mapping[int | str, Any], capped: bool
) -> list[GroupPlan]:
    """Return the plan of each parameter group.

    What is asked, by a group's index, `"name"` or role, goes before its own key `"schedule"`; `capped` is whether a
    spectral cap holds hidden matrices.
    """
    by_index = _by_index(optimizer, asked)
    given = [role_of(group) for group in optimizer.param_groups]
    limited = capped and isinstance(optimizer, Muon)
    plans = []
    for index, group in enumerate(optimizer.param_groups):
        own = by_index.get(index, group.get("schedule", "inherit"))
        scheduled = own is not None and own != "constant"
        role = given[index] if "hidden" in given else None
        plans.append(
            GroupPlan(
                role=role,
                label=str(group.get("name") or role or given[index] or f"group {index}"),
                scheduled=scheduled,
                own=own_schedule(f"groups[{index}]", own, schedule) if scheduled and own != "inherit" else None,
                limit=LARGEST_ENTRY if limited and scheduled and group["rule"] in SECOND_RULES else math.inf,
            )
        )
    return plans


def own_schedule(where: str, asked: Any, schedule: Schedule) -> Schedule:
    """Return the schedule that the group `where` asks for: what the mapping does not say is as the optimizer's."""
    if not isinstance(asked, Mapping) or not asked or not set(asked) <= {"warmup", "decay", "decay_start"}:
        raise ValueError(
            f"the schedule of {where} must be a mapping with 'warmup', 'decay' or 'decay_start', or 'constant' or None "
            f"to leave its rate alone, got {asked!r}"
        )
    total, decay = schedule.total_iters, asked.get("decay", schedule.decay)
    start = None if "decay_start" not in asked else _share(f"decay_start of {where}", asked["decay_start"])
    if "warmup" not in asked:
        hold = start if start is not None else getattr(schedule.rule, "hold", None)
        return Schedule(total, SpectralRule() if hold is None else SpectralRule(hold=hold), decay)
    warmup = asked["warmup"]
    if isinstance(warmup, float):
        warmup = _share(f"warmup of {where}", warmup) or 0
    else:
        check_count(f"warmup of {where}", warmup, minimum=0, hint="give whole steps, or a share of the run as a float")
    if start is None:
        return Schedule(total, LinearRule(warmup), decay)
    rule = _HeldLinear(warmup, start)
    if start * total < rule.length(total):
        raise ValueError(
            f"the decay of {where} starts at step {start * total:.0f}, within its warm-up of {rule.length(total)} "
            "steps; let it start later"
        )
    return Schedule(total, rule, decay)


@dataclass(frozen=True)
class _HeldLinear(LinearRule):
    """A straight warm-up, and no decay before the share `hold` of the run."""

    hold: float = 0.0


class GroupSchedules:
    """The schedules of an optimizer's groups: `schedule` for most, and those that some have of their own."""

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule,
        asked: Mapping[int | str, Any] | None,
        model: nn.Module | None,
        *,
        capped: bool,
    ) -> None:
        self.schedule, self.state = schedule, schedule.init()
        self.plans: list[GroupPlan] = []
        self.own: dict[int, ScheduleState] = {}  # the states of own schedules, by the group's index
        self._asked = dict(asked or {})
        self._model = None if model is None else weakref.ref(model)
        self._capped = capped
        self.plan(optimizer)

    def plan(self, optimizer: Optimizer) -> None:
        """Plan the groups; the own schedules of those that were added are where they would be by now."""
        separate_rates(optimizer)
        if self._capped or self.schedule.rule.roles == "hidden":
            give_rest_roles(optimizer, None if self._model is None else self._model())
        self.plans = plan_groups(optimizer, self.schedule, self._asked, self._capped)
        self.own = {
            index: self.own.get(index) or _without_losses(plan.own, self.state.total_iters, self.state.step)
            for index, plan in enumerate(self.plans)
            if plan.own is not None
        }

    @property
    def needs_loss(self) -> bool:
        """Whether any of the schedules follows the loss."""
        return self.schedule.rule.needs_loss or any(self.of(index)[0].rule.needs_loss for index in self.own)

    def of(self, index: int) -> tuple[Schedule, ScheduleState]:
        """Return schedule and state of a group."""
        return self.plans[index].own or self.schedule, self.own.get(index, self.state)

    def rates(self, peaks: Sequence[float | Tensor]) -> list[float | None]:
        """Return the rate of each group, given their peaks; None for one that is left alone."""
        rates: list[float | None] = []
        for index, plan in enumerate(self.plans):
            factor = self.schedule.factor_of(self.state, plan.role) if plan.own is None else self.own[index].factor
            rates.append(min(float(peaks[index]), plan.limit) * factor if plan.scheduled else None)
        return rates

    def limited(self, peaks: Sequence[float | Tensor]) -> float:
        """Return the least share of its peak that the limit of its plan leaves a group."""
        plans = zip(self.plans, peaks, strict=True)
        return min((min(1.0, plan.limit / float(peak)) for plan, peak in plans if peak > 0.0), default=1.0)

    def change(self, change: Callable[[Schedule, ScheduleState], ScheduleState]) -> None:
        """Change the state of every schedule."""
        state = change(self.schedule, self.state)
        self.own = {index: change(self.of(index)[0], own) for index, own in self.own.items()}
        self.state = state

    def start(self, loss: float | None, known: bool) -> None:
        """Make the states before the first step from what is known then: its loss, or (`known`) its size."""
        self.change(lambda schedule, state: _first(schedule, state, loss, known))

    def go_on_at(self, steps: int) -> None:
        """Go on where the schedules are after so many steps without a loss."""
        self.change(lambda schedule, state: _without_losses(schedule, state.total_iters, steps))

    def to_dict(self) -> dict[str, Any]:
        """Return the states as plain Python values."""
        own = {str(index): self.of(index)[0].to_dict(state) for index, state in self.own.items()}
        return {"schedule": self.schedule.to_dict(self.state), "own": own}

    def read(
        self, optimizer: Optimizer, saved: dict[str, Any]
    ) -> tuple[list[GroupPlan], ScheduleState, dict[int, ScheduleState]]:
        """Return plans, state and own states of what `to_dict` described; refuse those of other groups or schedules."""
        plans = plan_groups(optimizer, self.schedule, self._asked, self._capped)
        own = {index: plan.own for index, plan in enumerate(plans) if plan.own is not None}
        if {*map(str, own)} != saved["own"].keys():
            raise ValueError(
                f"this state has schedules of their own for the groups {sorted(saved['own'])}, and this scheduler for "
                f"{sorted(map(str, own))}: give the same groups=, or start afresh"
            )
        states = {index: schedule.from_dict(saved["own"][str(index)]) for index, schedule in own.items()}
        return plans, self.schedule.from_dict(saved["schedule"]), states

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_model": None}


def _first(schedule: Schedule, before: ScheduleState, loss: float | None, known: bool) -> ScheduleState:
    """Return the state before the first step from what is known then, with the length and decay that were asked for."""
    state, rule = schedule.init(), schedule.rule
    if before.phase == "decay" and isinstance(rule, SpectralRule) and rule.hold != 0.0:
        state = schedule.decay_now(state, before.total_iters)
    elif before.total_iters != state.total_iters:
        state = schedule.extend(state, before.total_iters)
    if loss is not None:
        return schedule.first(state, loss)
    return schedule.first(state) if known and isinstance(rule, SpectralRule) else state


def _without_losses(schedule: Schedule, total_iters: int, steps: int) -> ScheduleState:
    """Return the state of a schedule that has made so many of the steps of a run without a loss."""
    state = _first(schedule, schedule.init()._replace(total_iters=total_iters), None, known=True)
    for _ in range(steps):
        state = schedule.step(state, None)
    return state


def _by_index(optimizer: Optimizer, groups: Mapping[int | str, Any]) -> dict[int, Any]:
    by_index: dict[int, Any] = {}
    given = optimizer.param_groups
    for key, asked in groups.items():
        if isinstance(key, int) and -len(given) <= key < len(given):
            matching = [key % len(given)]
        else:
            names = [index for index, group in enumerate(given) if group.get("name") == key]
            matching = names or [index for index, group in enumerate(given) if group.get("role") == key]
        if not matching:
            raise ValueError(
                f"no parameter group has the index, name or role {key!r}; there are {len(given)}, with the names "
                f"{[group.get('name') for group in given]} and the roles {[group.get('role') for group in given]}"
            )
        by_index.update(dict.fromkeys(matching, asked))
    return by_index


def _share(name: str, value: Any) -> float:
    share = check_finite(name, value)
    if not 0.0 <= share < 1.0:
        raise ValueError(f"{name} must lie in [0, 1), got {value!r}; it is a share of the run")
    return share
