"""Every public name has an example that runs, the notebooks run, a user's code type-checks."""

from __future__ import annotations

import doctest
import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.docs.test_site import PUBLIC, ROOT

import warmgap

MODULES = [name for name in PUBLIC if not name.startswith("warmgap.theory.") and name != "warmgap.torch.gluon_fits"]


def public_objects(module: str) -> dict[str, Any]:
    """The public classes and functions of a module, by their full names."""
    here = importlib.import_module(module)
    objects = {f"{module}.{name}": getattr(here, name) for name in here.__all__}
    return {name: value for name, value in objects.items() if inspect.isclass(value) or inspect.isfunction(value)}


NAMES = {name: value for module in MODULES for name, value in public_objects(module).items()}


def examples(value: Any) -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(recurse=False)
    module: ModuleType | None = inspect.getmodule(value)
    return [test for test in finder.find(value, value.__name__, module=module) if test.examples]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_public_name_has_an_example_that_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    said: list[str] = []
    assert examples(NAMES[name]), "give it an Example: with >>> lines"
    for test in examples(NAMES[name]):
        runner.run(test, out=said.append)
    assert not runner.summarize(verbose=False).failed, "".join(said)


def notebooks() -> list[Path]:
    return sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_a_notebook_runs_and_says_what_is_stored(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    ran = importlib.import_module("run_notebooks").run(path)
    stored = json.loads(path.read_text())
    kinds = [[output["output_type"] for output in cell.get("outputs", [])] for cell in stored["cells"]]
    assert kinds == [[output["output_type"] for output in cell.get("outputs", [])] for cell in ran["cells"]]
    assert any(kinds)


USER = """
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from warmgap import Event, Schedule, kappa
from warmgap.torch import AdaptiveWarmup, Muon, split_parameters


def train(model: nn.Module, batches: Iterable[Tensor], steps: int) -> tuple[Event, ...]:
    optimizer = Muon(split_parameters(model), lr=2e-3, weight_decay=0.1)
    scheduler = AdaptiveWarmup(optimizer, total_iters=steps, decay="cosine")
    for batch in batches:
        loss: Tensor = model(batch)
        loss.backward()
        scheduler.observe(loss, weight=batch.numel())
        optimizer.step()
        scheduler.step()
    phase: Literal["warmup", "stable", "decay"] = scheduler.phase
    factor: float = scheduler.factor
    print(phase, factor, scheduler.summary(), kappa("max", [(2, 3)]))
    return scheduler.events


def factors(losses: list[float]) -> list[float]:
    schedule = Schedule(len(losses))
    state = schedule.first(schedule.init(), losses[0])
    found = []
    for loss in losses:
        found.append(state.factor)
        state = schedule.step(state, loss)
    return found
"""


@pytest.mark.parametrize(("code", "wrong"), [(USER, False), (USER + "\nx: str = factors([1.0])\n", True)])
def test_a_users_code_type_checks(tmp_path: Path, code: str, wrong: bool) -> None:
    (tmp_path / "user.py").write_text(code)
    cache = ["--cache-dir", str(ROOT / ".mypy_cache" / "user")]
    command = [sys.executable, "-m", "mypy", "--strict", "--untyped-calls-exclude", "torch", *cache, "user.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ("error" in done.stdout) == wrong, done.stdout + done.stderr


def test_a_wrong_import_says_what_to_write() -> None:
    with pytest.raises(ImportError, match=r"from warmgap\.torch import AdaptiveWarmup"):
        warmgap.AdaptiveWarmup  # noqa: B018
    code = "import sys; sys.modules['torch'] = None\nimport warmgap.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'warmgap[torch]'" in done.stderr


def test_the_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert warmgap.__version__ == project
    assert cited is not None
    assert cited[1] == project


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) < 600
