from __future__ import annotations

import pytest
from tests.golden.runs import RUNS, courses, differences, kept, packed, run, unpacked


@pytest.mark.parametrize("name", RUNS)
def test_every_rule_does_on_every_course_what_it_did(name: str) -> None:
    before = kept(name)
    assert before.keys() == courses(name).keys(), "python -m tests.golden --write"
    found = {course: differences(run(*RUNS[name], losses), before[course]) for course, losses in courses(name).items()}
    assert {course: lines for course, lines in found.items() if lines} == {}, "python -m tests.golden shows and keeps"


def test_a_difference_is_found() -> None:
    values = [0.01, 0.5, 0.5, 0.5, 1.0]
    assert unpacked(packed(values)) == values
    one = {"factor": packed(values), "events": ["3 all: peak reached"]}
    assert differences(one, one) == []
    assert differences(one, {**one, "factor": packed([0.01, 0.5, 0.50001, 0.5, 1.0])}) != []
    assert differences(one, {**one, "factor": packed(values[:-1])}) != []
    assert differences(one, {**one, "events": []}) == ["events: [] is now ['3 all: peak reached']"]
