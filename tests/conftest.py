"""Settings of the whole test run, and what tests of several parts use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import settings

# These tests never judge speed, and a run gives the same verdict every time.
settings.register_profile("warmgap", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("warmgap")


@pytest.fixture
def python_calls() -> Callable[[Callable[[], Any]], int]:
    """How many Python functions a function calls, itself included."""

    def counted(function: Callable[[], Any]) -> int:
        calls = 0

        def count(_: FrameType, event: str, __: Any) -> None:
            nonlocal calls
            calls += event == "call"

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            function()
        finally:
            sys.setprofile(before)
        return calls

    return counted
