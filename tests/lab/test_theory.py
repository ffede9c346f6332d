import math
from collections.abc import Iterator

import pytest

from warmgap import theory
from warmgap.lab.cli import main

GOOD = theory.Check("Theorem 9", "a problem", "steps to 0.01", 33.0, 1109.25)
BAD = theory.Check(
    "Theorem 10", "another problem with a rather long name, so that the table is wide", "f", math.inf, 2.0
)


@pytest.mark.parametrize(("checks", "code"), [([GOOD], 0), ([GOOD, BAD], 1)])
def test_the_table_and_the_exit_code(
    checks: list[theory.Check], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check_all() -> Iterator[theory.Check]:
        yield from checks

    monkeypatch.setattr(theory, "check_all", check_all)
    assert main(["theory"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{len(checks)} checks, {code} failed."
    rows = [line.split() for line in lines if "Theorem" in line]
    assert rows[0] == ["Theorem", "9", "a", "problem", "steps", "to", "0.01", "33", "<=", "1109.2", "0.0297", "yes"]
    if code:
        assert rows[1][-5:] == ["inf", "<=", "2", "inf", "NO"]
