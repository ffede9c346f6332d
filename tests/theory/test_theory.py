import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import warmgap.theory
from warmgap.theory import GUARANTEES

each_guarantee = pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda module: module.__name__.rpartition(".")[2])


def documented() -> list[tuple[str, ...]]:
    """Guarantee, problem and quantity of every row of the table in the docs."""
    page = (Path(__file__).parents[2] / "docs" / "theory.md").read_text()
    table = page.rpartition("```text\n")[2].partition("```")[0].splitlines()[2:-1]
    return [tuple(re.split(r" {2,}", row.strip())[:3]) for row in table]


@each_guarantee
def test_every_row_holds_and_is_the_one_in_the_docs(guarantee: ModuleType) -> None:
    checks = list(guarantee.examples())
    assert [str(check) for check in checks if not check.holds] == []
    rows = [(check.guarantee, check.problem, check.quantity) for check in checks]
    assert len(set(rows)) == len(rows)
    table = documented()
    first = table.index(rows[0])
    assert table[first : first + len(rows)] == rows


def test_the_table_begins_with_the_examples_in_order() -> None:
    found = warmgap.theory.check_all()
    first = list(GUARANTEES[0].examples())
    assert [next(found) for _ in first] == first


@each_guarantee
def test_every_guarantee_says_the_same_things_in_the_same_order(guarantee: ModuleType) -> None:
    text = inspect.getdoc(guarantee) or ""
    heads = re.findall(r"^(Assumption|Step size|Statement|Source|Proof|Problem): ", text, re.MULTILINE)
    assert heads == ["Assumption", "Step size", "Statement", "Source", "Proof", "Problem"]
    assert re.search(r"\b(FOUND|DERIVED)\b", text)
