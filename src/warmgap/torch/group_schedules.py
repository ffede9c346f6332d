"""What a schedule does with each parameter group: its role, its peak, and a schedule of its own where it has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from warmgap import decay as decays
from warmgap._checks import check_count, check_finite, warn
from warmgap.rules import LinearRule, SpectralRule
from warmgap.schedule import Schedule
from warmgap.torch.roles import assign_roles, guess_roles, roles_from_names
from warmgap.torch.split import aligned, layouts_of, role_of

Decay = str | Callable[[float], float]


@dataclass(frozen=True)
class GroupPlan:
    """How the rate of one parameter group is set.

    Attributes:
        role: One of `ROLES`; None where no group of the optimizer is hidden, so that all are treated alike.
        label: What tables call it.
        scheduled: False where the group asks to be left alone.
        own: Its own schedule, in place of the optimizer's; None for most.
    """

    role: str | None
    label: str
    scheduled: bool
    own: Schedule | None


def find_roles(
    optimizer: Optimizer,
    model: nn.Module | None,
    roles: Sequence[str] | Mapping[int | str, str] | None,
    guess: bool = False,
) -> bool:
    """Give the parameter groups their roles where they have none.

    Args:
        optimizer: Its groups may have roles already; they are split where they hold parameters of several.
        model: The model, or None to go by the names that torch keeps of named parameters.
        roles: The roles by group, or None.
        guess: Whether to go by shapes where nothing else says them.

    Returns:
        Whether any group is known to be hidden, or there is nothing to tell apart.

    Raises:
        ValueError: If a role is none of `ROLES`, or there is not one for each group.
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
    elif not any("role" in group or "initial_lr" in group for group in groups):
        # another scheduler's groups, with an `initial_lr`, can't be split any more
        _ = assign_roles(optimizer) or (guess and guess_roles(optimizer))
    matrices = sum(p.ndim >= 2 for group in optimizer.param_groups for p in group["params"])
    return matrices < 3 or any(group.get("role") == "hidden" for group in optimizer.param_groups)


def give_rest_roles(optimizer: Optimizer, model: nn.Module | None) -> None:
    """Give groups without a role one, where others have theirs, as those that were added late.

    A group with hidden matrices is hidden as a whole. It is not split: hosts save and load it as they added it.

    Args:
        optimizer: The optimizer.
        model: The model, or None to go by the names that torch keeps of named parameters.

    Warns:
        UserWarning: If a group is hidden that may hold other weights too.
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


def plan_groups(optimizer: Optimizer, schedule: Schedule, groups: Mapping[int | str, Any] | None) -> list[GroupPlan]:
    """Return the plan of each parameter group.

    Args:
        optimizer: Its groups say their role by the key `"role"`, and may have a schedule of their own by the key
            `"schedule"`.
        schedule: The optimizer's schedule.
        groups: Own schedules by a group's index, its `"name"` or its role; they go before those in the groups.

    Raises:
        ValueError: If a role or an own schedule is none, or no group has such an index, name or role.
    """
    asked = _by_index(optimizer, groups or {})
    given = [role_of(group) for group in optimizer.param_groups]
    has_roles = "hidden" in given
    plans = []
    for index, group in enumerate(optimizer.param_groups):
        where = f"groups[{index}]"
        own = asked.get(index, group.get("schedule", "inherit"))
        scheduled = own is not None and own != "constant"
        role = given[index] if has_roles else None
        label = str(group.get("name") or role or given[index] or f"group {index}")
        plans.append(
            GroupPlan(
                role=role,
                label=label,
                scheduled=scheduled,
                own=own_schedule(where, own, schedule) if scheduled and own != "inherit" else None,
            )
        )
    return plans


def own_schedule(where: str, asked: Any, schedule: Schedule) -> Schedule:
    """Return the schedule that a group asks for in place of the optimizer's.

    Args:
        where: What messages call the group.
        asked: A mapping with any of `"warmup"` (a straight warm-up: whole steps, or a share of the run), `"decay"` (a
            name of `warmgap.decay.NAMES` or a callable) and `"decay_start"` (a share of the run).
        schedule: The optimizer's schedule, whose length and decay are taken where the mapping does not say.

    Raises:
        ValueError: If it is no such mapping, or a value lies outside its range.
    """
    if not isinstance(asked, Mapping) or not asked or not set(asked) <= {"warmup", "decay", "decay_start"}:
        raise ValueError(
            f"the schedule of {where} must be a mapping with 'warmup', 'decay' or 'decay_start', or 'constant' or None "
            f"to leave its rate alone, got {asked!r}"
        )
    total = schedule.total_iters
    decay: Decay = asked.get("decay", schedule.decay)
    start = None if "decay_start" not in asked else _share(f"decay_start of {where}", asked["decay_start"])
    if "warmup" not in asked:
        hold = start if start is not None else getattr(schedule.rule, "hold", None)
        return Schedule(total, SpectralRule() if hold is None else SpectralRule(hold=hold), decay)
    warmup = asked["warmup"]
    if isinstance(warmup, float):
        warmup = round(_share(f"warmup of {where}", warmup) * total)
    check_count(f"warmup of {where}", warmup, minimum=0, hint="give whole steps, or a share of the run as a float")
    if start is not None:
        begins = (start * total - warmup) / max(1, total - warmup)
        if begins < 0.0:
            raise ValueError(
                f"the decay of {where} starts at step {start * total:.0f}, within its warm-up of {warmup} steps; let "
                "it start later"
            )
        decay = partial(_delayed, decays.by_name(decay) if isinstance(decay, str) else decay, begins)
    return Schedule(total, LinearRule(warmup), decay)


def peak_of(group: dict[str, Any], key: str = "initial_lr") -> float:
    """Return the peak rate of a group: its `initial_lr`, times its `lr_scale` where it has one.

    `lr_scale` is the convention of timm and others for layer-wise rates: the schedule's rate is multiplied by it.
    """
    return float(group[key]) * check_finite("lr_scale of a group", group.get("lr_scale", 1.0))


@dataclass(frozen=True)
class RoleRow:
    """One line of the table of roles.

    Attributes:
        name: Its role, or its name where it has none or a schedule of its own.
        groups: The indices of its parameter groups.
        peak: Peak learning rate of its first group.
        factor: Learning rate / peak of the next step.
        lr: Learning rate of its first group.
        decay: What it decays by, and from which step on.
        phase: `"warmup"`, `"stable"`, `"decay"`, or `"unscheduled"`.
        held: Whether the spectral cap holds it back.
    """

    name: str
    groups: tuple[int, ...]
    peak: float
    factor: float
    lr: float
    decay: str
    phase: str
    held: bool


class RoleTable(Sequence[RoleRow]):
    """The rows of `AdaptiveWarmup.roles`; prints as a table, `table["head"]` is a row."""

    def __init__(self, rows: Sequence[RoleRow]) -> None:
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Any) -> Any:
        """Return the row of that name or index, or the rows of a slice."""
        if isinstance(key, str):
            named = {row.name: row for row in self._rows}
            if key not in named:
                raise KeyError(f"{key!r} is none of {list(named)}")
            return named[key]
        return self._rows[key]

    def __repr__(self) -> str:
        lines = [("role", "groups", "peak", "factor", "lr", "decay", "phase")]
        for row in self._rows:
            phase = f"{row.phase}, held" if row.held else row.phase
            groups = ",".join(map(str, row.groups))
            lines.append((row.name, groups, f"{row.peak:.3g}", f"{row.factor:.3g}", f"{row.lr:.3g}", row.decay, phase))
        return aligned(lines)


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


def _delayed(decay: Callable[[float], float], start: float, progress: float) -> float:
    return 1.0 if progress <= start else decay((progress - start) / (1.0 - start))
