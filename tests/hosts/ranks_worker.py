"""One rank that trains every optimizer of the contracts' table, with torchrun's environment variables for the ranks.

Usage: ranks_worker.py FOLDER, in which it writes rates and weights as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist
from tests.contracts.training import OPTIMIZERS, Work, pytorch
from tests.leaving import leave

from warmgap.rules import SpectralRule

if __name__ == "__main__":
    dist.init_process_group("gloo")
    folder = Path(sys.argv[1])
    trained = {name: pytorch(Work("troubled", name), folder) for name in OPTIMIZERS}
    trained["the default rule"] = pytorch(Work("troubled", rule=SpectralRule(), cap=5e-4), folder)
    answer = {name: {"rates": run.rates, "weights": run.weights} for name, run in trained.items()}
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(answer))
    leave()
