"""`warmgap train` in several processes, one of which is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from warmgap.lab.record import last_checkpoint

STEPS = 40
MAIN = "import sys; from warmgap.lab.cli import main; sys.exit(main())"
TRAIN = (
    "train --corpus text.txt --optimizer lion --lr 0.003 --rule gap --batch-size 4 --sequence-length 16 "
    f"--eval-tokens 64 --eval-every 20 --save-every 1 --threads 1 --steps {STEPS} --output"
)


def rates(folder: Path) -> list[float]:
    return [json.loads(line)["lr"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_others_say_that_one_is_lost_and_one_process_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WARMGAP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("".join(f"The {n} of {n * n % 97} saw the river.\n" for n in range(2000)))
    script = tmp_path / "worker.py"
    script.write_text(f"import os\nopen(f\"pid-{{os.environ['RANK']}}\", 'w').write(str(os.getpid()))\n{MAIN}")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    run = subprocess.Popen(
        [*launch, *TRAIN.split(), "run"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    deadline = time.monotonic() + 150
    while (last := last_checkpoint(Path("run"))) is None or last.name < "step-00000003":
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(int(Path("pid-1").read_text()), signal.SIGKILL)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 1
    sentence = "^warmgap: Process 0 ends because another one of this run has ended or does not answer: .* --resume"
    assert re.search(sentence, errors, re.MULTILINE)
    assert "Traceback" not in errors.partition("warmgap: Process 0 ends")[0]
    done = len(rates(Path("run")))
    assert 3 <= done < STEPS

    for words in (["run", "--resume"], ["whole"]):
        alone = [sys.executable, "-c", MAIN, *TRAIN.split(), *words]
        subprocess.run(alone, check=True, timeout=150, capture_output=True)
    assert rates(Path("run")) == pytest.approx(rates(Path("whole")), rel=1e-5)
