"""What the pages say is supported is what the tests cover, in the versions of `constraints.txt`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from tests.contracts.training import OPTIMIZERS, SEVERAL

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "supported.md").read_text()
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading of the page, without its head."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def test_the_optimizers_of_the_page_are_those_of_the_contracts() -> None:
    assert [row[0] for row in rows("Optimizers in hosts")] == list(OPTIMIZERS)
    assert [row[0] for row in rows("Optimizers in hosts") if row[2].startswith("no")] == list(SEVERAL)


def test_the_versions_of_the_page_are_those_that_are_installed_and_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    ranges = {one.partition(">=")[0]: ">=" + one.partition(">=")[2] for one in asked if "[" not in one}
    named = {}
    for package, tested, oldest in rows("Versions"):
        assert PINS[package] == tested
        assert ranges.get(package, ranges.get(package.replace("_", "-"))) == oldest
        named[package] = tested
    assert {"torch", "transformers", "accelerate", "lightning", "optax", "jax"} <= named.keys()


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "hosts").glob("*.md")), ids=lambda page: page.stem)
def test_the_versions_that_a_hosts_page_was_tested_with_are_those_installed(page: Path) -> None:
    sentences = re.findall(r"^Tested with ([^\n]*)$", page.read_text(), re.MULTILINE)
    versions = [pair for sentence in sentences for pair in re.findall(r"(\w+) (\d+(?:\.\d+)+)", sentence)]
    assert versions or page.stem not in ("accelerate", "lightning", "optax", "pytorch", "transformers")
    for package, version in versions:
        assert f"{PINS[package]}.".startswith(f"{version}.")
