"""States of the first version, of the rules that are still here, in today's form."""

from __future__ import annotations

from typing import Any

from warmgap._state import to_plain
from warmgap.signal import _CHANGE_TO_DEVIATION, FilterState

SHARED = ("gap", "power", "loss-ratio", "measured", "linear")


def of_version_1(data: dict[str, Any], schedule: Any) -> dict[str, Any]:
    """Return what `Schedule.to_dict` would return today for a state that version 1 saved, if its rule is still here."""
    try:
        config, old, step, ended = data["config"], data["rule"], data["step"], data["handover"]
        name = config["rule"]["name"]
        if name not in SHARED:
            raise ValueError(
                f"this state was saved by the first version with its rule {name!r}, which is no more: finish that run "
                "with warmgap 0.1, or start a new schedule over the steps that remain"
            )
        saved = {("loss_filter" if key == "signal" else key): value for key, value in config["rule"].items()}
        own = schedule.rule.config()
        config = {**config, "rule": {**own, **saved}}
        if "iters" in saved and saved["iters"] == schedule.rule.length(config["total_iters"]):
            config["rule"]["iters"] = own["iters"]
        if name != own["name"]:
            return {"version": 2, "config": config, "state": None}  # refused for its settings
        if ended is None and schedule.rule.roles != "all":
            raise ValueError(
                "the first version's rules governed all weights, and this warm-up has not ended: give the rule "
                "roles='all' to go on with it"
            )
        factor = 1.0 if ended is not None else data["factor"]
        state = schedule.init()
        fields: dict[str, Any] = {"factor": factor, "done": old["done"] or ended is not None}
        if "steps" in old:
            fields |= {"steps": old["steps"], "length": saved["iters"]}
        seen, deadlock = False, state.deadlock
        if "signal" in old:
            fields["losses"] = _filter(old["signal"], schedule.rule.loss_filter.window)
            seen, deadlock = fields["losses"].filled > 0, deadlock._replace(lift=data["factor"])
        if "level" in old:
            fields["level"] = old["level"] or 0.0
        if "descent" in old:
            fields["share"] = old["share"] or 0.0
            known = old["descent"]["initial_loss"] is not None
            fields["descent"] = state.rule.descent._replace(
                distance=old["descent"]["distance"],
                initial_loss=old["descent"]["initial_loss"] if known else 0.0,
                best_loss=old["descent"]["best_loss"] if known else 0.0,
                seen=known,
            )
        start = -1 if ended is None else ended
        begins = -1 if ended is None else max(ended, state.hold_until)
        marks = {"ended": start, "decaying": begins, "anchor": max(0, begins), "total_iters": config["total_iters"]}
        rule = state.rule._replace(**fields)
        state = schedule._settled(state._replace(**marks), step, rule, factor, state.guard, deadlock, seen)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this state of version 1 is damaged or was edited: {error!r}") from error
    return {"version": 2, "config": config, "state": to_plain(state)}


def scheduler_of_version_1(data: dict[str, Any]) -> dict[str, Any]:
    """Return what `AdaptiveWarmup.state_dict` would return today for a state that version 1 saved."""
    late = data.get("late_loss")
    return {key: value for key, value in data.items() if key != "late_loss"} | {
        "version": 2,
        "late": None if late is None else [late, False],
        "own": {},
        "calibrated": True,
        "held": [1.0, False, None],
        "cap": None,
        "scales": [1.0] * len(data.get("base_lrs", ())),
        "events": [],
        "history": {"rows": []},
    }


def _filter(old: dict[str, Any], size: int) -> FilterState:
    window = tuple(old["window"])
    return FilterState(
        window=(0.0,) * (size - len(window)) + window,
        filled=len(window),
        accepted=old["accepted"] or 0.0,
        clean=old["weighted"] / old["weight"] if window else 0.0,
        weight=old["weight"],
        noise=_CHANGE_TO_DEVIATION * old["change"] / old["change_weight"] if old["change_weight"] else 0.0,
        noise_weight=old["change_weight"],
    )
