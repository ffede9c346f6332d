"""Settings of the whole test run."""

from __future__ import annotations

from hypothesis import settings

# These tests never judge speed, and a run gives the same verdict every time.
settings.register_profile("warmgap", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("warmgap")
