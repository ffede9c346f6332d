"""Warm-up rules: losses in, learning-rate factor out, and an end that the rule finds itself.

One rule a file. A new one is a module in this folder with a `Rule` that has a name: `by_name` knows it from then on.
"""

import ast
import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, Literal

from warmgap._checks import check_count, check_finite, warn
from warmgap.rules._rule import RULES, LossDriven, Rule, RuleState
from warmgap.rules.gap import GapRule
from warmgap.rules.guard import DivergenceGuard
from warmgap.rules.linear import LinearRule
from warmgap.rules.loss_ratio import LossRatioRule
from warmgap.rules.measured import MeasuredRule
from warmgap.rules.power import PowerRule
from warmgap.rules.spectral import SpectralRule, default_rho, noise_edge

__all__ = [
    "NAMES",
    "DivergenceGuard",
    "GapRule",
    "LinearRule",
    "LossDriven",
    "LossRatioRule",
    "MeasuredRule",
    "PowerRule",
    "Rule",
    "RuleState",
    "SpectralRule",
    "by_name",
    "default_rho",
    "noise_edge",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

DEFAULT = "spectral"

NAMES = ("auto", *sorted(RULES.keys() - {"measured"}))
"""The names that `by_name` and every `rule=` argument know; `"auto"` is the best there is here, `"spectral"`."""


def by_name(
    name: str | Rule[Any],
    total_iters: int,
    *,
    floor: float | None = None,
    target_loss: float | Literal["auto"] = "auto",
    kappa: Callable[[], float] | None = None,
    **settings: Any,
) -> Rule[Any]:
    """Return the rule that a `rule=` argument means.

    Args:
        name: One of `NAMES`, perhaps with settings: `"loss-ratio(level=4.0)"`, `"gap(sigma=1e-3, max_warmup=None)"`.
            `"auto"` is the best there is here; `"linear"` goes over a tenth of the run, if it has no `iters`. Or a
            rule, of which a copy with these settings is returned.
        total_iters: Optimizer steps in the whole run.
        floor: Factor of the first step, for the rules by name that have one; None for theirs.
        target_loss: The loss taken as optimal, or `"auto"`, for the rules by name that have one.
        kappa: Gives the constant of the optimizer's norm; asked for rules by name that use it, where it is not set.
        settings: Settings of the rule, which those in the name go before.

    Raises:
        ValueError: If the name or a setting is unknown, a setting is missing or outside its range, `total_iters` is no
            whole number >= 1, or the gap rule is asked for and there is no `kappa`.

    Warns:
        UserWarning: If a `target_loss` is given to a rule that uses none, or beside a rule object.

    Example:
        >>> by_name("linear", 200)
        LinearRule(iters=0.1)
        >>> by_name("loss-ratio(level=4.0)", 200).level
        4.0
        >>> by_name(GapRule(kappa=9.0), 200, max_warmup=0.1).max_warmup
        0.1
    """
    check_count("total_iters", total_iters, minimum=1, hint="it is the number of optimizer steps in the whole run")
    if target_loss != "auto":
        check_finite("target_loss", target_loss, "give the loss taken as optimal, or 'auto'")
    if isinstance(name, Rule):
        if target_loss != "auto":
            warn(
                f"target_loss={target_loss!r} has no effect beside a rule object, which has its own: give the rule by "
                "name, or the target loss to the rule"
            )
        if not settings:
            return name
        _fields(type(name), settings)
        return dataclasses.replace(name, **settings)  # type: ignore[type-var]
    if not isinstance(name, str):
        raise ValueError(f"rule must be a rule of warmgap.rules or its name, got {name!r}")
    name, own = _split(name)
    settings |= own
    cls = RULES.get(DEFAULT if name == "auto" else name)
    if cls is None:
        raise ValueError(f"rule must be one of {', '.join(map(repr, NAMES))} or a rule of warmgap.rules, got {name!r}")
    fields = _fields(cls, settings)
    if floor is not None and "floor" in fields:
        settings.setdefault("floor", floor)
    if "target_loss" in fields:
        settings.setdefault("target_loss", target_loss)
    elif target_loss != "auto":
        warn(f"target_loss={target_loss!r} has no effect: the rule {name!r} uses no target loss")
    if "norm" in cls.uses and "kappa" not in settings:
        if kappa is None:
            raise ValueError(
                f"the {name} rule needs the constant of a norm: {cls.__name__}(kappa=warmgap.kappa(norm, shapes))"
            )
        settings["kappa"] = kappa()
    needed = [key for key, field in fields.items() if field.default is field.default_factory is dataclasses.MISSING]
    if missing := [key for key in needed if key not in settings]:
        raise ValueError(f"the rule {name!r} needs {', '.join(missing)}: '{name}({missing[0]}=...)'")
    return cls(**settings)


def _fields(cls: type[Rule[Any]], settings: dict[str, Any]) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a rule, which must have all of these settings."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(settings.keys() - fields.keys()):
        names = ", ".join(sorted(fields))
        raise ValueError(f"the rule {cls.name!r} has no {', '.join(unknown)}; its settings are {names}")
    return fields


def _split(name: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the settings of `name(setting=value, ...)`."""
    head, bracket, rest = name.partition("(")
    if not bracket:
        return name, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("only settings by name")
        return head, {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"rule must be a name, or one with settings such as 'loss-ratio(level=4.0)', got {name!r}"
        ) from error


def __getattr__(name: str) -> Any:
    if name == "PaceRule":
        raise ImportError(  # an AttributeError's words are lost in `from warmgap.rules import PaceRule`
            "PaceRule is gone: the default is warmgap.rules.SpectralRule now, which holds the peak and leaves slow "
            "starts to the spectral cap; a clock schedule like PaceRule's is LinearRule"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
