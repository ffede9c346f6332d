import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from warmgap.lab.cli import main
from warmgap.lab.config import TrainConfig
from warmgap.lab.demo import GRID, run_demo
from warmgap.lab.table import load_runs, tabulate

SMALL = TrainConfig(batch_size=2, sequence_length=16, steps=20, eval_every=0, eval_tokens=64, save_every=0)


def test_a_demo_of_seconds_goes_from_text_to_report_and_is_not_trained_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARMGAP_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{number} times {number} is {number * number}" for number in range(2_000)))
    grid = replace(GRID, base=replace(SMALL, corpus=str(text)), seeds=(0, 1), warmups=("40%",))
    folder, written = tmp_path / "demo", io.StringIO()
    assert run_demo(folder, Console(file=written, width=80), grid=grid, jobs=2) == 0
    said = written.getvalue()
    page = (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "A warm-up that ends itself" in page
    assert page.count("data:image/png;base64,") == 4
    for expected in (
        "8 of 8 runs finished",
        "Muon, peak rate",
        "Lion, peak rate",
        "linear, 40 %",
        "adaptive (auto)",
        "report.html",
    ):
        assert expected in said
    workloads = tabulate(load_runs(folder))
    assert [len(method.runs) for workload in workloads for method in workload.methods] == [2] * 4
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/run.json")}
    again = io.StringIO()
    assert run_demo(folder, Console(file=again, width=80), grid=grid, jobs=2) == 0
    assert "8 of 8 runs are finished already" in again.getvalue()
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/run.json")} == before


def test_the_demo_compares_four_hand_tuned_warm_ups_on_two_optimizers_with_seeds_enough_for_a_verdict(
    tmp_path: Path,
) -> None:
    configs = GRID.configs(tmp_path)
    assert {config.optimizer for config in configs} == {"muon", "lion"}
    assert len({config.rule for config in configs} - {"auto"}) == 4
    assert len({config.seed for config in configs}) >= 2
    assert all(config.corpus == "wiki" for config in configs)


def test_the_command_tells_what_went_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["demo", "--output", str(tmp_path / "file" / "demo")]) == 2
    assert "cannot write" in capsys.readouterr().err
