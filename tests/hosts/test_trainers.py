from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("host", ["transformers", "lightning"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_loss_seen_is_the_exact_mean_over_the_tokens_of_all_ranks_and_a_nan_on_one_keeps_them_together(
    host: str, ranks: int, run_ranks: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    first, *others = run_ranks(ranks, tmp_path, "trainers_worker.py", host, str(tmp_path))
    assert others == [first] * (ranks - 1)
    assert len(set(first["losses"])) == len(first["expected"]) == len(first["rates"]) - 1
    assert first["losses"] == pytest.approx(first["expected"], rel=1e-6)
