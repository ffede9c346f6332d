"""Command-line options from the fields of a configuration dataclass."""

import argparse
import dataclasses
import types
import typing
from collections.abc import Collection
from typing import Any, NoReturn, TypeVar

from warmgap.lab.errors import UserError

C = TypeVar("C")


def option(default: Any, text: str, *, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field that is an option: its default, its line in `--help`, and the values it may have."""
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices})


def add_options(parser: argparse.ArgumentParser, cls: type[Any], *, skip: Collection[str] = ()) -> None:
    """Add an option for each field of `cls` made by `option`, but those in `skip`."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in skip:
            continue
        flag = "--" + field.name.replace("_", "-")
        kind = _plain_type(hints[field.name])
        choices = field.metadata["choices"]
        text = field.metadata["help"] + (f": {', '.join(choices)}" if choices else "")
        if field.default is not None and kind is not bool:
            text += f" (default: {field.default})"
        settings: dict[str, Any] = {"dest": field.name, "default": field.default, "help": text.replace("%", "%%")}
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **settings)
        else:
            # The choices are checked with the rest of the configuration, so that a library user gets the same sentence.
            parser.add_argument(flag, type=kind, metavar=field.name.rpartition("_")[2].upper(), **settings)


def build(cls: type[C], arguments: argparse.Namespace, **more: Any) -> C:
    """The configuration that the parsed `arguments` describe; `more` gives fields that were no option."""
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: value for name, value in vars(arguments).items() if name in fields} | more)


def _plain_type(hint: Any) -> type[Any]:
    """`T` of the hints `T` and `T | None`."""
    if isinstance(hint, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    kind: type[Any] = hint
    return kind


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake as a `UserError` instead of leaving the program."""

    def error(self, message: str) -> NoReturn:
        """Raise the mistake as one sentence that names the command's help."""
        raise UserError(f"{message[:1].upper()}{message[1:].rstrip('.')}: see {self.prog} --help.")
