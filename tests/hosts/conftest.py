from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Ranks = Callable[..., list[dict[str, Any]]]


def start_ranks(ranks: int, script: str, *arguments: str) -> list[subprocess.Popen[str]]:
    """Start a script of this folder as several ranks, with torchrun's environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
    }
    return [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / script), *arguments],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


@pytest.fixture(scope="session")
def run_ranks() -> Ranks:
    """Runs a script as several ranks; returns the JSON that each wrote into the folder."""

    def run(ranks: int, folder: Path, script: str, *arguments: str) -> list[dict[str, Any]]:
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(process) for process in start_ranks(ranks, script, *arguments)]
            for process in processes:
                stack.callback(process.kill)  # where one failed the others would wait for it
            for process in processes:
                _, errors = process.communicate(timeout=200)
                assert process.returncode == 0, errors
        return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(ranks)]

    return run
