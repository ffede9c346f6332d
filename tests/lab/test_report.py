from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from warmgap.lab.errors import UserError
from warmgap.lab.pictures import option_groups
from warmgap.lab.recipes import Recipe, papers, rows
from warmgap.lab.report import write_report
from warmgap.lab.results import read_results, read_runs, write_results
from warmgap.lab.store import Result, Store

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep made by hand: two methods, three rates, two seeds; one run diverged, one failed."""
    place = tmp_path_factory.mktemp("sweep")
    with Store(place) as store:
        for method in ("auto", "none"):
            for seed in (0, 1):
                for lr in (0.01, 0.03, 0.1):
                    name = f"{method}-{seed}-{lr}"
                    config = {
                        "optimizer": "lion",
                        "model": "tiny",
                        "corpus": "wiki",
                        "steps": 5,
                        "method": method,
                        "lr": lr,
                        "seed": seed,
                    }
                    store.add([(name, name, config, f"warmgap train --method {method} <script>")])
                    loss = 2.0 + (lr if method == "none" else 0.0) + 0.01 * seed
                    metrics = [[s, loss + 1 / s, lr, 1.0, "decay", None, None] for s in range(1, 6)]
                    status = "diverged" if (method, seed, lr) == ("none", 1, 0.1) else "done"
                    record = {
                        "final_val_loss": None if status == "diverged" else loss,
                        "first_loss": 5.0,
                        "summary": "All well.",
                    }
                    event = [3, 2.0, 1.0, 0.5, "loss rose", None, "step 3: loss rose: rate halved"]
                    store.finish(name, Result(status, "", record, metrics, [event] if method == "auto" else []))
        store.add([("broken", "broken", {**config, "seed": 2}, "warmgap train")])
        store.finish("broken", Result("failed", "No memory."))
        store.add_sweep("warmgap sweep --made-by-hand", {}, [(run.id, "") for run in store.runs()])
    return place


class Page(HTMLParser):
    """The tags of a page, each closed; its text; what it fetches."""

    void = ("meta", "br", "img", "link", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attributes if name in ("src", "href")]
        self.ids += [value or "" for name, value in attributes if name == "id"]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def test_the_page_holds_everything_it_shows(folder: Path, tmp_path: Path) -> None:
    path = write_report(read_runs(folder), tmp_path / "report.html", title="A <title>", folder=folder)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.fetched == []  # nothing from outside, so it works offline
    assert len(page.ids) == len(set(page.ids))
    assert "A <title>" in page.text
    assert "warmgap train --method auto <script>" in page.text  # each run with its command
    assert "step 3: loss rose: rate halved" in page.text
    assert "No memory." in page.text
    assert "Made by: warmgap sweep --made-by-hand." in page.text
    assert page.text.count("best clock schedule") >= 3
    assert "2, 1 failures" in page.text
    assert len(re.findall(r'draw\("', text)) == 4  # curves, rates, profile, regrets
    assert "prefers-color-scheme: dark" in text
    assert (tmp_path / "overview.png").stat().st_size > 10_000


def test_results_come_back_as_they_were_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = [trial for trial in read_runs(folder) if trial.counted is not None]
    write_results(trials, tmp_path / "results.json", command="warmgap bench")
    assert read_results(tmp_path / "results.json") == trials
    write_report(trials, tmp_path / "report.html", title="A title", folder=folder, show=True)
    out = capsys.readouterr().out
    assert "Lion, tiny on wiki, 5 steps" in out
    assert "Flatness" in out


def test_columns_without_a_value_are_left_out(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = [trial for trial in read_runs(folder) if trial.method == "auto" and trial.seed == 0]
    write_report(alone, tmp_path / "report.html", title="A title", folder=folder, show=True)
    table = capsys.readouterr().out
    assert "final loss" in table
    assert "verdict" not in table
    clock = [trial for trial in read_runs(folder) if trial.lr == 0.01]
    page = write_report([*alone, *clock], tmp_path / "report.html", title="A title", folder=folder)
    rows = re.findall(r"<tr.*?</tr>", page.read_text()[page.read_text().index("Lion, tiny on wiki") :])
    assert len({len(re.findall("<t[hd]>", row)) for row in rows if "95% interval" in row or "± " in row}) == 1


def test_results_of_another_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"version": 1, "runs": []}')
    with pytest.raises(UserError, match="written by another version"):
        read_results(tmp_path / "old.json")


# -------------------------------------------------------------------------------------------------------------- recipes

RECIPES = [f"{paper}/{row}" for paper in papers() for row in rows(paper)]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_sound(name: str) -> None:
    from warmgap.lab.bench import cost, plan_of

    recipe = Recipe.load(name)
    plain = [workload for workload in recipe.workloads if workload.start_from is None]
    assert plan_of(Recipe(**{**vars(recipe), "workloads": tuple(plain), "seeds": recipe.seeds[:1]}), Path())
    for workload in recipe.workloads:
        assert set(workload.printed) <= set(workload.methods or recipe.methods)
    assert "hours of an A100" in cost(recipe)
    assert recipe.title
    if not name.startswith("suites"):
        assert recipe.source.startswith("arXiv ")
        smaller = recipe.scaled("1/1000")
        assert plan_of(smaller, Path())
        assert "at 1/1000 of its size" in smaller.title


def test_the_rule_of_scaling() -> None:
    (first, _) = Recipe.load("2602.05813/lion-124m-32").workloads
    recipe = Recipe.load("2602.05813/lion-124m-32").scaled("1/100", corpus="wiki")
    (small, _) = recipe.workloads
    config = small.config
    assert (config.model, config.vocab_size, config.steps, config.batch_size, config.sequence_length) == (
        "3x160",
        2335,
        6400,
        10,
        162,
    )
    assert (config.lr, config.betas, config.floor, config.tied) == (first.config.lr, first.config.betas, 0.01, True)
    assert (config.corpus, config.tokenizer, config.precision) == ("wiki", "trained", "fp32")
    assert small.printed == {"gap@all": 3.501, "linear:25%": 3.522}
    tokens = [c.steps * c.batch_size * (c.sequence_length or 0) for c in (config, first.config)]
    assert tokens[0] == pytest.approx(tokens[1] / 100, rel=0.02)


def test_another_tokenizer_goes_with_the_whole_size() -> None:
    recipe = Recipe.load("2602.05813/lion-124m-32")
    (first, _) = recipe.scaled("1", corpus="wiki", tokenizer="gpt2-files").workloads
    assert (first.config.corpus, first.config.tokenizer, first.config.vocab_size) == ("wiki", "gpt2-files", None)
    with pytest.raises(UserError, match="leave --tokenizer out"):
        recipe.scaled("1/10", tokenizer="gpt2-files")


def test_every_row_of_the_paper_is_there() -> None:
    assert len(rows("2602.05813")) == 13


def test_settings_of_a_rule_are_drawn(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for method in ("gap,target=0", "gap,target=1", "gap,target=2", "gap,sigma=0.1,target=2", "none"):
            config = {"optimizer": "lion", "model": "tiny", "corpus": "wiki", "steps": 5, "seed": 0, "lr": 0.1}
            config["method"] = method
            store.add([(method, method, config, "warmgap train")])
            store.finish(method, Result("done", "", {"final_val_loss": float(len(method))}))
    page = write_report(read_runs(tmp_path), tmp_path / "report.html", title="A title", folder=tmp_path)
    assert "Final loss against the target of a rule" in page.read_text()
    assert (tmp_path / "options.png").stat().st_size > 10_000
    assert option_groups(["gap,target=0", "gap,target=1", "auto"]) == {}
