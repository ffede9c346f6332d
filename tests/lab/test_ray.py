"""A sweep on a Ray cluster of two nodes of which one is killed: every run ends once, as it does without a cluster.

The nodes are real: a Ray cluster on this machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from warmgap.lab.config import TrainConfig
from warmgap.lab.engines import Engine, Job, OnRay, Tell
from warmgap.lab.interruption import Interruption
from warmgap.lab.store import Store
from warmgap.lab.sweep import grid, run_plan
from warmgap.lab.train import train

BASE = TrainConfig(corpus="digits", model="mlp", steps=400, batch_size=8, eval_every=0, save_every=20)
PLAN = grid(BASE, ("lion",), ("auto", "none"), seeds=(0, 1))


class Recorded:
    """An engine whose work is seen; `kill` is called once, when the second node has begun a run."""

    def __init__(self, engine: Engine, kill: object = None) -> None:
        self.engine, self.kill, self.seen = engine, kill, Counter[tuple[str, str]]()

    def train(self, jobs: Iterator[Job], stop: Interruption, tell: Tell) -> None:
        def told(kind: str, job: Job, content: Any) -> None:
            self.seen[kind, job.id] += 1
            if kind == "rows" and callable(self.kill) and content[-1][0] > 20:
                self.kill()
                self.kill = None
            tell(kind, job, content)

        self.engine.train(jobs, stop, told)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(240)
def test_a_node_that_dies_costs_no_run(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    engine = Recorded(OnRay(address=cluster.address), kill=lambda: cluster.remove_node(second, allow_graceful=False))
    try:
        runs = run_plan(PLAN, tmp_path / "ray", command="ray", engine=engine)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert engine.kill is None, "no node was killed"
    assert [run.status for run in runs] == ["done"] * 4, [run.message for run in runs]
    assert all(engine.seen["end", run.id] == 1 for run in runs)
    with Store(tmp_path / "ray", create=False) as store:
        assert all(store.metrics(run.id)["step"] == list(range(1, 401)) for run in runs)
    here = [train(replace(config, threads=1)).record["final_val_loss"] for _, config in PLAN]
    assert [run.final_val_loss for run in runs] == here
