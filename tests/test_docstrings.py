"""The examples in the docstrings of the schedule and its rules run as they stand."""

from __future__ import annotations

import doctest
import importlib

import pytest

EXAMPLES = ("schedule", *(f"rules.{name}" for name in ("gap", "power", "loss_ratio", "measured", "linear", "spectral")))


@pytest.mark.parametrize("name", ["rules", *EXAMPLES])
def test_examples(name: str) -> None:
    tried = doctest.testmod(importlib.import_module(f"warmgap.{name}"))
    assert tried.failed == 0
    assert tried.attempted > 0
