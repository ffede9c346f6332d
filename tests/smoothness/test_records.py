import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmgap.smoothness import Block, Record, append_record, block_names, block_records, read_records

RECORD = Record(
    3, 2.5, 1.5, 7.0, 0.1, 4.0, 2.4, "same-batch", "spectral", (Block("w", "spectral", 7.0, 0.1, 4.0),), {"hvp": 6.5}
)


@settings(max_examples=20)
@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 10**9), st.text())
def test_a_record_survives_its_line(number: float, step: int, name: str) -> None:
    record = Record(
        step, number, number, number, number, number, number, name, name, (Block(name, name, 1.0, 2.0, 3.0),)
    )
    assert Record.from_json(record.to_json()) == record
    assert "\n" not in record.to_json()


def test_what_is_not_finite_is_null_and_comes_back_as_nan() -> None:
    line = Record(0, math.inf, math.nan, math.nan, 0.0, 1.0, others={"a": math.nan}).to_json()
    assert json.loads(line)["loss"] is None
    back = Record.from_json(line)
    assert math.isnan(back.loss)
    assert math.isnan(back.others["a"])


def test_records_are_appended_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "records.jsonl"
    for count in range(1, 4):
        append_record(path, RECORD)
        assert read_records(path) == [RECORD] * count


@pytest.mark.parametrize("whole", [0, 1, 3])
def test_a_file_cut_off_anywhere_is_read_and_appended_to(tmp_path: Path, whole: int) -> None:
    path = tmp_path / "records.jsonl"
    line = RECORD.to_json().encode() + b"\n"
    for cut in (0, 1, 2, len(line) // 2, len(line) - 2, len(line) - 1):
        path.write_bytes(line * whole + line[:cut])
        assert read_records(path) == [RECORD] * whole
        append_record(path, RECORD)
        assert read_records(path) == [RECORD] * (whole + 1)


def test_steps_that_were_measured_again_count_once(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    rows = [(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0), (1, 2.5), (1, 2.6), (2, 3.5)]
    for step, loss in rows:
        append_record(path, dataclasses.replace(RECORD, step=step, loss=loss))
    assert [(record.step, record.loss) for record in read_records(path)] == [(0, 1.0), (1, 2.5), (1, 2.6), (2, 3.5)]


def test_a_half_line_longer_than_a_look_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(RECORD.to_json().encode() + b"\n" + b"x" * 200_000)
    append_record(path, RECORD)
    assert read_records(path) == [RECORD, RECORD]


@pytest.mark.parametrize(
    "line",
    ["{", "3", "[]", '{"step": 1}', RECORD.to_json().replace('"step": 3', '"step": "3"'), '{"bogus": 1}'],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(f"{RECORD.to_json()}\n{line}\n{RECORD.to_json()}\n")
    with pytest.raises(ValueError, match=r"line 2 of .* is not a record"):
        read_records(path)


def test_a_block_as_a_trajectory_of_its_own() -> None:
    assert block_names([RECORD, RECORD]) == ["w"]
    (own,) = block_records([RECORD], "w")
    assert (own.ratio, own.loss, own.norm, own.blocks) == (7.0, 2.5, "spectral", ())
    with pytest.raises(ValueError, match="no record has a block 'v'; there are w"):
        block_records([RECORD], "v")
