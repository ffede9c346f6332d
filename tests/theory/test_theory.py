import inspect
import re
from pathlib import Path

import pytest

import warmgap.theory
from warmgap.theory import GUARANTEES, Check

CHECKS = [check for guarantee in GUARANTEES for check in guarantee.examples()]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.guarantee}: {check.problem}, {check.quantity}")
def test_every_row_of_the_table_holds(check: Check) -> None:
    assert check.holds


def test_rows_are_told_apart_by_their_names() -> None:
    rows = [(check.guarantee, check.problem, check.quantity) for check in CHECKS]
    assert len(set(rows)) == len(rows)


def test_the_table_is_the_examples_of_all_in_order() -> None:
    found = warmgap.theory.check_all()
    assert [next(found) for _ in range(3)] == CHECKS[:3]


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_guarantee_says_the_same_things_in_the_same_order(guarantee: object) -> None:
    text = inspect.getdoc(guarantee) or ""
    heads = re.findall(r"^(Assumption|Step size|Statement|Source|Proof|Problem): ", text, re.MULTILINE)
    assert heads == ["Assumption", "Step size", "Statement", "Source", "Proof", "Problem"]
    assert re.search(r"\b(FOUND|DERIVED)\b", text)


def test_the_table_in_the_docs_is_this_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "theory.md").read_text()
    table = page.rpartition("```text\n")[2].partition("```")[0].splitlines()[2:-1]
    rows = [re.split(r" {2,}", row.strip()) for row in table]
    assert [tuple(row[:3]) for row in rows] == [(check.guarantee, check.problem, check.quantity) for check in CHECKS]
    assert [float(row[3]) for row in rows] == [pytest.approx(check.measured, rel=0.02) for check in CHECKS]
    assert {row[-1] for row in rows} == {"yes"}
