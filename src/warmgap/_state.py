"""States, which are named tuples, as plain Python values and back, so that any checkpoint format can carry them."""

from __future__ import annotations

from typing import Any, TypeVar, get_args, get_origin, get_type_hints

S = TypeVar("S")


def to_plain(value: Any) -> Any:
    """Return a state as plain Python values: a named tuple as a dict, a tuple as a list.

    Named tuples in a tuple are lists of their values: `torch.distributed.checkpoint` takes a dict in a list apart, and
    could then not load a state with fewer of them.
    """
    if hasattr(value, "_fields"):
        return {name: to_plain(getattr(value, name)) for name in value._fields}
    if not isinstance(value, tuple):
        return value
    return [list(item) if hasattr(item, "_fields") else to_plain(item) for item in value]


def from_plain(kind: type[S], data: Any) -> S:
    """Return the state of that type which `to_plain` described.

    Raises:
        ValueError: If a field is missing, unknown, or not of its type.
    """
    fields: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
    if not isinstance(data, dict) or data.keys() != set(fields):
        got = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"this is not a {kind.__name__}: it needs the fields {sorted(fields)}, got {got}")
    hints = get_type_hints(kind)
    return kind(**{name: _typed(f"{kind.__name__}.{name}", data[name], hints[name]) for name in fields})


def _typed(name: str, value: Any, hint: Any) -> Any:
    if hint is Any:
        return value
    if hasattr(hint, "_fields"):
        return from_plain(hint, value)
    if get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        kind = get_args(hint)[0]
        if hasattr(kind, "_fields"):
            value = [dict(zip(kind._fields, x, strict=False)) if isinstance(x, list) else x for x in value]
        return tuple(_typed(name, item, kind) for item in value)
    wanted = get_args(hint) or (hint,)
    fits = isinstance(value, wanted) or (float in wanted and type(value) is int)
    if not fits or (isinstance(value, bool) and bool not in wanted):
        raise ValueError(
            f"{name} must be {getattr(hint, '__name__', hint)}, got {value!r}: this state is damaged or was edited"
        )
    return value
