"""Frozen states that turn into plain Python values and back, so that any checkpoint format can carry them."""

from __future__ import annotations

import dataclasses
from typing import Any, Self, get_type_hints


@dataclasses.dataclass(frozen=True)
class State:
    """Base of every state: a frozen dataclass of plain values, tuples and dicts of those, and other states."""

    def to_dict(self) -> dict[str, Any]:
        """Return the state as plain Python values (dict, list, str, int, float, bool, None)."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Return the state that `to_dict` described.

        Raises:
            ValueError: If a field is missing, unknown, or not of its type.
        """
        hints = get_type_hints(cls)
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(data, dict) or data.keys() != names:
            got = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"this is not a {cls.__name__}: it needs the fields {sorted(names)}, got {got}")
        return cls(**{name: _typed(f"{cls.__name__}.{name}", data[name], hints[name]) for name in names})


def _plain(value: Any) -> Any:
    if isinstance(value, State):
        return value.to_dict()
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _typed(name: str, value: Any, hint: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, State):
        return hint.from_dict(value)
    text = str(hint)
    wanted: tuple[type, ...]
    if hint is Any:
        return value
    if hint is float:
        wanted = (float, int)
    elif isinstance(hint, type):
        wanted = (hint,)
    elif text.startswith("tuple["):
        wanted = (list, tuple)
    elif text.startswith("dict["):
        wanted = (dict,)
    else:  # an optional number
        wanted = (float, int, type(None))
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise ValueError(
            f"{name} must be {getattr(hint, '__name__', text)}, got {value!r}: this state is damaged or was edited"
        )
    return tuple(value) if isinstance(value, (list, tuple)) else value
