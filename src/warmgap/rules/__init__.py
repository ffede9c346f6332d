"""Warm-up rules: losses in, learning-rate factor out, and an end that the rule finds itself.

One published rule a file.
"""

from collections.abc import Callable
from typing import Any, Literal

from warmgap._checks import check_count
from warmgap.rules._rule import Rule, RuleState
from warmgap.rules.gap import GapRule
from warmgap.rules.linear import LinearRule
from warmgap.rules.loss_ratio import LossRatioRule
from warmgap.rules.measured import MeasuredRule
from warmgap.rules.pace import PaceRule
from warmgap.rules.power import PowerRule

__all__ = [
    "NAMES",
    "GapRule",
    "LinearRule",
    "LossRatioRule",
    "MeasuredRule",
    "PaceRule",
    "PowerRule",
    "Rule",
    "RuleState",
    "by_name",
]

NAMES = ("auto", "gap", "loss-ratio", "power", "linear")
"""The names that `by_name` and every `rule=` argument know."""


def by_name(
    name: str,
    total_iters: int,
    *,
    floor: float = 0.01,
    target_loss: float | Literal["auto"] = "auto",
    kappa: Callable[[], float] | None = None,
    norm: Callable[[], str | None] | None = None,
) -> Rule[Any]:
    """Return the rule of that name.

    Args:
        name: `"auto"` (the best there is here), `"gap"`, `"loss-ratio"`, `"power"`, or `"linear"`, over a tenth of the
            run.
        total_iters: Optimizer steps in the whole run.
        floor: Factor of the first step, for the rules that have one.
        target_loss: The loss taken as optimal, or `"auto"`, for the rules that have one.
        kappa: Gives the constant of the optimizer's norm; asked for the gap rule only.
        norm: Gives the name of that norm, or None where it is not known; asked for `"auto"` only.

    Raises:
        ValueError: If the name is unknown, `total_iters` is no whole number >= 1, or the gap rule is asked for and
            `kappa` is not given.
    """
    check_count("total_iters", total_iters, minimum=1, hint="it is the number of optimizer steps in the whole run")
    if name == "auto":
        return PaceRule.for_norm(norm() if norm else None, floor=floor, target_loss=target_loss)
    if name == "gap":
        if kappa is None:
            raise ValueError("the gap rule needs the constant of a norm: GapRule(kappa=warmgap.kappa(norm, shapes))")
        return GapRule(kappa=kappa(), floor=floor, target_loss=target_loss)
    if name == "loss-ratio":
        return LossRatioRule(floor=floor)
    if name == "power":
        return PowerRule(floor=floor, target_loss=target_loss)
    if name == "linear":
        return LinearRule(total_iters // 10)
    raise ValueError(f"rule must be one of {', '.join(map(repr, NAMES))} or a rule of warmgap.rules, got {name!r}")
