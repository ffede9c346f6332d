"""Argument checks and warnings shared by the package: what was wrong, what came, and what to do."""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings
from collections.abc import Sequence
from typing import Any

_PACKAGES = ("warmgap", "torch", "contextlib")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's code that led here: the first outside this package and torch's wrappers."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _PACKAGES:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def not_installed(error: ModuleNotFoundError, module: str, extra: str, *packages: str) -> ModuleNotFoundError:
    """Return what to raise where a framework is missing: what to install, or `error` where it is not one of these."""
    if error.name not in packages:
        return error
    return ModuleNotFoundError(
        f"{module} needs {' and '.join(packages)}, and {error.name} is not installed: pip install 'warmgap[{extra}]'",
        name=error.name,
    )


def plain_fields(item: Any) -> None:
    """Turn the NumPy scalars among a frozen dataclass's fields into Python numbers, so that its state is plain."""
    for field in dataclasses.fields(item):
        value: Any = getattr(item, field.name, None)  # None: set later
        if type(value).__module__ == "numpy" and hasattr(value, "item"):
            object.__setattr__(item, field.name, value.item())


def check_positive(name: str, value: float, hint: str = "") -> float:
    """Return `value` as a float, or raise ValueError unless it is a finite number above zero."""
    number = check_finite(name, value, hint)
    if number <= 0.0:
        raise ValueError(f"{name} must be above 0, got {value!r}{_tail(hint)}")
    return number


def check_fraction(name: str, value: float, hint: str = "") -> float:
    """Return `value` as a float, or raise ValueError unless 0 < value < 1."""
    number = check_finite(name, value, hint)
    if not 0.0 < number < 1.0:
        raise ValueError(f"{name} must lie strictly between 0 and 1, got {value!r}{_tail(hint)}")
    return number


def check_finite(name: str, value: float, hint: str = "") -> float:
    """Return `value` as a float, or raise ValueError unless it is a finite number."""
    if isinstance(value, (bool, str)):
        raise ValueError(f"{name} must be a number, got {value!r}{_tail(hint)}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r}{_tail(hint)}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}{_tail(hint)}")
    return number


def check_at_least_zero(name: str, value: float, hint: str = "") -> float:
    """Return `value` as a float, or raise ValueError unless it is a finite number of at least 0."""
    number = check_finite(name, value, hint)
    if number < 0.0:
        raise ValueError(f"{name} must be at least 0, got {value!r}{_tail(hint)}")
    return number


def check_count(name: str, value: int, *, minimum: int, hint: str = "") -> int:
    """Return `value`, or raise ValueError unless it is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name} must be a whole number, got {value!r}{_tail(hint)}")
    number = value.__index__()
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}{_tail(hint)}")
    return number


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of these."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_flag(name: str, value: object) -> None:
    """Raise ValueError unless `value` is a bool: any other has a truth too, but perhaps not the one meant."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def _tail(hint: str) -> str:
    return f"; {hint}" if hint else ""
