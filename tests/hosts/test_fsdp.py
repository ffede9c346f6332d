"""Sharded parameters: the step of the whole, what it takes, and checkpoints for another number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Ranks = Callable[..., list[dict[str, Any]]]

ALL_TO_ALL = "c10d::alltoall_base_"


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_step_on_pieces_is_the_step_on_the_whole(ranks: int, run_ranks: Ranks, tmp_path: Path) -> None:
    answers = run_ranks(ranks, tmp_path, "sharded_worker.py", str(tmp_path))
    for answer in answers:
        for way, by_optimizer in answer["distances"].items():
            for optimizer, apart in by_optimizer.items():
                # Entry by entry, and what is computed of whole matrices, nothing is rounded differently.
                exact = optimizer in ("lion", "signum", "muon", "muon-lion", "muon-exact-sign") or way == "copies"
                assert apart <= (0.0 if exact else 1e-6), f"{optimizer}, {way}"
        assert answer.get("partial", 0.0) == 0.0

    matrices = [answer["matrices"] for answer in answers]
    # Two convolutions, exchanged separately as they differ in their dimensions; each orthogonalised once.
    assert sum(found["matrices"] for found in matrices) == 2
    assert all(found["waits"] == 0 for found in matrices)
    sent = sum(found["sent"][ALL_TO_ALL] for found in matrices)
    entries = matrices[0]["entries"]
    if ranks < 4:
        assert all(found["calls"] == {ALL_TO_ALL: 4} for found in matrices)
        # There and back in float32, as CPUs compute small matrices in, less what the owner has itself. A side that the
        # ranks don't divide makes a piece smaller than its share, so the bound is that of no piece at all.
        assert 8 * entries * (1 - 1 / ranks) == pytest.approx(sent, rel=0.25)
        assert sent <= 8 * entries
        # Experts spread over the ranks are whole where they are: of 25 matrices none is done twice.
        assert sum(answer["whole experts"]["matrices"] for answer in answers) == 25
    else:
        assert all(found["calls"] == {ALL_TO_ALL: 6} for found in matrices)
        # Each row of copies has the half of it to pass on, besides what goes there and back among its two ranks.
        assert 4 * entries + 4 * entries == pytest.approx(sent, rel=0.25)


@pytest.mark.parametrize("ranks", [3, 4])
def test_training_sharded_is_training_in_one_piece(ranks: int, run_ranks: Ranks, tmp_path: Path) -> None:
    answers = run_ranks(ranks, tmp_path, "fsdp_worker.py", str(tmp_path), "train")
    assert all("full_tensor" in answer.pop("refusal") for answer in answers if ranks < 4)
    ways = {
        way for answer in answers for found in answer.values() for result in found.values() for way in result["ways"]
    }
    # Of tensor parallelism, pieces of pieces.
    assert any("StridedShard" in way for way in ways) == (ranks == 4)
    for mesh in answers[0]:
        for optimizer, first in answers[0][mesh].items():
            assert first["moved"] > 1e-2
            for answer in answers:
                found = answer[mesh][optimizer]
                assert found["apart"] < 1e-12, f"{optimizer}, {mesh}"
                assert found["rates"] == first["rates"]
                assert found["rates"] == pytest.approx(found["rates of the whole"], rel=1e-12)


def flat(nested: Any) -> list[float]:
    return [value for item in nested for value in flat(item)] if isinstance(nested, list) else [nested]


def test_a_checkpoint_goes_on_with_another_number_of_ranks(run_ranks: Ranks, tmp_path: Path) -> None:
    def run(ranks: int, folder: str, start: int, stop: int) -> dict[str, Any]:
        (tmp_path / folder).mkdir(exist_ok=True)
        answers = run_ranks(ranks, tmp_path / folder, "fsdp_worker.py", str(tmp_path / folder), str(start), str(stop))
        assert all(answer == answers[0] for answer in answers)
        return answers[0]

    straight = run(1, "straight", 0, 8)
    stopped = {"by one": run(1, "by one", 0, 3), "by two": run(2, "by two", 0, 3)}
    for folder, ranks in (("by two", 1), ("by one", 2), ("by two", 3)):
        resumed = run(ranks, folder, 3, 8)
        for optimizer, whole in straight.items():
            found = resumed[optimizer]
            assert found["loaded"] == stopped[folder][optimizer]["weights"]
            assert stopped[folder][optimizer]["rates"] + found["rates"] == whole["rates"]
            assert len({rates[0] for rates in whole["rates"]}) == 8
            assert flat(found["weights"]) == pytest.approx(flat(whole["weights"]), rel=0, abs=1e-12)
