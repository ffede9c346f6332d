"""What a probe saw along a trajectory: one row a measured step, kept as JSON lines.

A file of records may be cut off anywhere by a crash: what was written before the cut is read, and appending goes on
from there, also from an earlier step.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Block:
    """One parameter block of a measured step.

    Attributes:
        name: The parameter's name.
        norm: The norm of the block, such as `"spectral"`.
        ratio: Dual norm of the gradient's change / norm of the block's step; NaN where the block did not move.
        step_length: Norm of the block's step.
        dual_norm: Dual norm of the block's gradient at the start of the step.

    Example:
        >>> Block("head.weight", "spectral", ratio=2.0, step_length=0.1, dual_norm=3.0).ratio
        2.0
    """

    name: str
    norm: str
    ratio: float
    step_length: float
    dual_norm: float


@dataclass(frozen=True)
class Record:
    """One measured optimizer step, from x to y.

    Attributes:
        step: Optimizer steps made before it.
        loss: Loss at x, on the step's own batch.
        gap: `loss` minus the target loss of the probe.
        ratio: The curvature estimate `||grad f(x) - grad f(y)||_* / ||x - y||`; NaN where nothing moved.
        step_length: `||x - y||`.
        dual_norm: `||grad f(x)||_*`.
        loss_after: Loss at y, on the same batch.
        estimator: How `ratio` was measured.
        norm: The norms of the blocks, such as `"spectral"`, several joined by `+`.
        blocks: The same numbers block by block.
        others: Further curvature estimates of the same step, by name.

    Example:
        >>> record = Record(step=0, loss=2.5, gap=0.5, ratio=4.0, step_length=1e-3, dual_norm=1.0)
        >>> Record.from_json(record.to_json()).ratio
        4.0
    """

    step: int
    loss: float
    gap: float
    ratio: float
    step_length: float
    dual_norm: float
    loss_after: float = math.nan
    estimator: str = "same-batch"
    norm: str = ""
    blocks: tuple[Block, ...] = ()
    others: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the record as one line of JSON; a number that is not finite becomes null."""
        return json.dumps(finite(dataclasses.asdict(self)), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """Return the record that `to_json` wrote; null becomes NaN.

        Raises:
            ValueError: If the line is not JSON, or not a record.
        """
        data = json.loads(line)
        if not isinstance(data, dict):
            raise ValueError(f"a record is a JSON object, got {type(data).__name__}")
        data["blocks"] = tuple(_build(Block, block) for block in data.get("blocks", ()))
        data["others"] = {name: _number(name, value) for name, value in data.get("others", {}).items()}
        record: Record = _build(cls, data)
        return record


def append_record(path: str | os.PathLike[str], record: Record) -> None:
    """Append a record to a file of records, which is made where it is missing; a half line at its end is dropped.

    Raises:
        OSError: If the file cannot be written.

    Example:
        >>> append_record("records.jsonl", Record(0, loss=2.5, gap=0.5, ratio=4.0, step_length=1e-3, dual_norm=1.0))
        >>> len(read_records("records.jsonl"))
        1
    """
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a+b") as file:
        end = _end_of_whole_lines(file)
        if end < file.seek(0, os.SEEK_END):
            file.truncate(end)
        file.write(record.to_json().encode() + b"\n")


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """Return the records of a file, in its order.

    A last line that was cut off is left out. Where the steps go back, because a run was resumed from a checkpoint
    before its last record, what it measured again takes the place of what it had measured from that step on.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If another line is not a record; the message says which.

    Example:
        >>> append_record("run.jsonl", Record(0, loss=2.5, gap=0.5, ratio=4.0, step_length=1e-3, dual_norm=1.0))
        >>> read_records("run.jsonl")[0].ratio
        4.0
    """
    place = Path(path)
    lines = place.read_bytes().split(b"\n")[:-1]  # what follows the last end of line is empty, or cut off
    found: list[Record] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = Record.from_json(line.decode())
        except ValueError as error:
            raise ValueError(
                f"line {number} of {place} is not a record ({error}); is this a file written by a SmoothnessProbe?"
            ) from error
        if found and record.step < found[-1].step:
            while found and record.step <= found[-1].step:
                found.pop()
        found.append(record)
    return found


def block_names(records: Iterable[Record]) -> list[str]:
    """Return the names of the blocks, in the order in which they first appear.

    Example:
        >>> blocks = (Block("head", "max", 2.0, 0.1, 3.0), Block("body", "max", 1.0, 0.1, 5.0))
        >>> block_names([Record(0, 2.5, 0.5, 4.0, 1e-3, 1.0, blocks=blocks)])
        ['head', 'body']
    """
    return list(dict.fromkeys(block.name for record in records for block in record.blocks))


def block_records(records: Iterable[Record], name: str) -> list[Record]:
    """Return the records of one block: ratio, step length and dual norm are the block's own.

    Raises:
        ValueError: If no record has a block of that name.

    Example:
        >>> blocks = (Block("head", "max", 2.0, 0.1, 3.0), Block("body", "max", 1.0, 0.1, 5.0))
        >>> block_records([Record(0, 2.5, 0.5, 4.0, 1e-3, 1.0, blocks=blocks)], "body")[0].ratio
        1.0
    """
    records = list(records)
    found = [
        dataclasses.replace(
            record,
            ratio=block.ratio,
            step_length=block.step_length,
            dual_norm=block.dual_norm,
            norm=block.norm,
            blocks=(),
            others={},
        )
        for record in records
        for block in record.blocks
        if block.name == name
    ]
    if not found:
        raise ValueError(f"no record has a block {name!r}; there are {', '.join(block_names(records)) or 'none'}")
    return found


def _end_of_whole_lines(file: Any) -> int:
    """Offset behind the last end of line; looked for from the end, since files grow long."""
    position = file.seek(0, os.SEEK_END)
    while position > 0:
        start = max(0, position - 65_536)
        file.seek(start)
        index = file.read(position - start).rfind(b"\n")
        if index >= 0:
            return int(start + index + 1)
        position = start
    return 0


def finite(value: Any) -> Any:
    """Return the same mapping, list or number with None for every number that is not finite, as JSON can hold it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [finite(item) for item in value]
    return value


def _build(cls: Any, data: Any) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"a {cls.__name__.lower()} is a JSON object, got {data!r}")
    fields = {item.name: item for item in dataclasses.fields(cls)}
    needed = {name for name, item in fields.items() if item.default is dataclasses.MISSING}
    needed -= {"others"}
    if data.keys() - fields.keys() or needed - data.keys():
        raise ValueError(f"a {cls.__name__.lower()} has the fields {', '.join(fields)}, got {', '.join(data)}")
    return cls(
        **{
            name: _number(name, value) if fields[name].type == "float" else _checked(name, value, fields[name].type)
            for name, value in data.items()
        }
    )


def _number(name: str, value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return float(value)


def _checked(name: str, value: Any, hint: Any) -> Any:
    wanted = {"int": int, "str": str}.get(hint)
    if wanted is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
        raise ValueError(f"{name} must be {hint}, got {value!r}")
    return value
