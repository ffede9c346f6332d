"""The commands and the examples run, and the numbers that are shown are those that were written."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results"


def command() -> Any:
    spec = importlib.util.spec_from_file_location("benchmarks_compression", ROOT / "benchmarks" / "compression.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(experiment: str) -> Any:
    return json.loads((RESULTS / f"compression-{experiment}.json").read_text())


def test_logistic_regression_by_its_command(tmp_path: Path) -> None:
    command().main(["logistic", "--folder", str(tmp_path), "--pictures", str(tmp_path)])
    found = json.loads((tmp_path / "compression-logistic.json").read_text())
    kept = result("logistic")
    for name, run in found["runs"].items():
        assert run["last"] == pytest.approx(kept["runs"][name]["last"], rel=1e-6)
    ours, plain = (run["last"] for run in found["runs"].values())
    assert ours < 0.03 < 9.0 < plain
    assert (tmp_path / "compression-logistic.png").stat().st_size < 80_000


def test_the_numbers_of_the_polynomial() -> None:
    runs = result("polynomial")["runs"]
    assert [run["steps"] for name, run in runs.items() if "c1" in name] == [1083, 4337, 8675]
    assert [run["steps"] for name, run in runs.items() if "||" not in name] == [11743, 15396, 16493]


def test_the_numbers_of_ef_muon() -> None:
    module = command()
    kept = {name: run["f"] for name, run in result("muon")["runs"].items()}
    assert [round(f, 6) for f in kept["Muon, 1/(t + 1)"].values()] == [0.053298, 0.052832, 0.052652]
    assert [f"{f:.2g}" for f in kept["EF-Muon, 1/sqrt(t + 1)"].values()] == ["0.0039", "0.0031", "0.00088"]
    start, c = module.np.array([1.0 + module.math.log(2.0), 1.0 - module.math.log(2.0)]), 0.1 / 3.8
    for name, rate, beta, fed in (("Muon", None, 0.0, False), ("EF-Muon", None, 0.0, True)):
        values = module.counterexample(start, c, rate, beta, kept=fed, steps=1501)
        assert values[1500] == pytest.approx(kept[f"{name}, Polyak's step"]["1500"], rel=1e-6)


def test_the_page_shows_what_was_measured() -> None:
    page = (ROOT / "docs" / "compression.md").read_text()
    for method, run in result("resnet")["methods"].items():
        name = f"`{method.partition(',')[0]}`{method[method.index(',') :]}" if "||" in method else method
        row = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {run['rate']:g}" in row
        assert f"| {100 * run['accuracy'][-1]:.1f} % | {run['bits'][-1] / 1e6:.3g} |" in row
        assert run["accuracy"][-1] > 0.9
    assert "9.6 to 0.025" in page
    assert result("logistic")["runs"]["||EF21||, 1/sqrt(K + 1)"]["squares"][0][1] == pytest.approx(9.6, abs=0.05)


@pytest.mark.parametrize(
    "module",
    [
        *(f"compression.{name}" for name in ("compressors", "feedback", "normalized", "simulated")),
        "optimizers.ef_muon",
    ],
)
def test_the_examples_of_the_docstrings(module: str) -> None:
    found = doctest.testmod(importlib.import_module(f"warmgap.torch.{module}"))
    assert (found.failed, found.attempted > 0) == (0, True)
