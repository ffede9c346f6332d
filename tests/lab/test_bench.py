from __future__ import annotations

from pathlib import Path

import pytest

from warmgap.lab.bench import train_recipe
from warmgap.lab.engines import Here
from warmgap.lab.errors import UserError
from warmgap.lab.recipes import Recipe
from warmgap.lab.results import read_results
from warmgap.lab.store import Store

SUITE = """
title = "A suite"
methods = ["auto", "none"]
seeds = [0, 1]
rates = [1.0, 3.0, 10.0]
[base]
corpus = "digits"
model = "mlp"
optimizer = "lion"
steps = 6
batch_size = 8
eval_every = 0
save_every = 0
[[workload]]
name = "plain"
split = "development"
printed = { auto = 2.25 }
[[workload]]
name = "continued"
split = "test"
[workload.start_from]
steps = 4
method = "none"
"""


def test_a_suite_is_trained_scored_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "suite.toml").write_text(SUITE)
    recipe = Recipe.load(str(tmp_path / "suite.toml"))
    out = tmp_path / "out"
    assert train_recipe(recipe, out, command="warmgap bench", engine=Here()) == 0
    text = capsys.readouterr().out
    assert "24 of 24 runs finished" in text
    assert "Flatness" in text
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == [
        "overview.png",
        "report.html",
        "results.json",
        "runs.db",
    ]
    trials = read_results(out / "results.json")
    assert {(trial.workload, trial.rate, trial.split) for trial in trials} == {
        (name, rate, split)
        for name, split in (("plain", "development"), ("continued", "test"))
        for rate in (1.0, 3.0, 10.0)
    }
    with Store(out / "bases", create=False) as store:
        assert [run.status for run in store.runs()] == ["done", "done"]
    first = {trial.seed: trial.first_loss for trial in trials if trial.workload == "plain"}
    other = {trial.seed: trial.first_loss for trial in trials if trial.workload == "continued"}
    assert all(first[seed] != other[seed] for seed in (0, 1))
    assert {trial.printed for trial in trials if trial.workload == "plain"} == {2.25, None}
    again = recipe.chosen(split="development", methods=["none"], seeds=[0])
    assert train_recipe(again, out, command="again", engine=Here(), quiet=True) == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("title = 'x'", r"must have workloads, \[\[workload\]\], each with a name"),
        ("[[workload]]\nsteps = 3", r"must have workloads, \[\[workload\]\], each with a name"),
        ("[workload]\nname = 'x'", r"must have workloads, \[\[workload\]\], each with a name"),
        ("seeds = 3\n[[workload]]\nname = 'x'", "The seeds in .* must be a list such as .*, got 3"),
        ("methods = 'auto'\n[[workload]]\nname = 'x'", "The methods in .* must be a list such as"),
        ("[[workload]]\nname = 'x'\nlr = '1'", "The peak learning rate must be of the kind float, got '1'"),
        ("[[workload]", "is no TOML file"),
    ],
)
def test_a_suite_that_is_none_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "suite.toml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        Recipe.load(str(tmp_path / "suite.toml"))
