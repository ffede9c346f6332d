import dataclasses
import io
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from warmgap.lab import bench_figures
from warmgap.lab.bench import (
    LENGTHS,
    METHODS,
    MINI,
    SUITE,
    Results,
    Row,
    Workload,
    _counts,
    _trained_at,
    changed,
    choose,
    describe,
    share_of,
    train_bench,
)
from warmgap.lab.bench_report import Judged, judge, markdown, parts, verdicts, write_bench_report
from warmgap.lab.cli import main
from warmgap.lab.config import TrainConfig
from warmgap.lab.errors import UserError
from warmgap.lab.figures import house_style
from warmgap.lab.record import RunRecord
from warmgap.lab.sweep import Outcome
from warmgap.lab.table import load_runs

PNG = b"\x89PNG\r\n\x1a\n"
IMAGES = TrainConfig(corpus="digits", model="mlp", steps=10, batch_size=16, eval_every=0, save_every=0)
COUNTS = Counter(workload.split for workload in SUITE)
FIRST_LOSS = 5.5
NOISE = 0.01
REGRETS = {"auto": 0.5, "gap": 4.0, "loss-ratio": 2.0, "power": 3.0, "published": 60.0}
"""Planted, in deviations of NOISE."""


def row(workload: str, method: str, seed: int, loss: float | None, setting: str = "") -> Row:
    status = "diverged" if loss is None else "done"
    return Row(workload, setting, method, seed, status, loss, FIRST_LOSS, 10, 4.0, "f00d")


def planted() -> Results:
    """The whole suite; the best length is 5 % everywhere, and each rule's regret is as in REGRETS."""
    draw = random.Random(0)  # noqa: S311 - numbers to test with
    rows = []
    for workload in SUITE:
        for seed in range(3):
            common = 2.0 + draw.gauss(0.0, NOISE)
            for length in LENGTHS:
                away = 0.0 if length == "linear:5%" else 0.1 + (share_of(length) or 0.0)
                rows.append(row(workload.name, length, seed, common + away))
            rows += [row(workload.name, rule, seed, common + NOISE * regret) for rule, regret in REGRETS.items()]
    curves = [
        {
            "workload": workload.name,
            "setting": "",
            "method": "auto",
            "seed": 0,
            "steps": [1, 2, 9],
            "factors": [0, 1, 0],
        }
        for workload in SUITE
    ]
    return Results("warmgap bench", "0123abc", {"python": "3"}, [describe(each) for each in SUITE], rows, curves)


@pytest.fixture(scope="module")
def judged() -> list[Judged]:
    return judge(planted())[0]


# ----------------------------------------------------------------------------------------------------------- the suite


def test_the_suite_has_names_of_its_own_and_two_splits() -> None:
    assert len({workload.name for workload in SUITE}) == len({workload.slug for workload in SUITE}) == len(SUITE)
    assert min(COUNTS[split] for split in ("development", "test")) >= 8
    assert len(choose(SUITE, "test")) == COUNTS["test"]
    assert [workload.name for workload in choose(SUITE, "all", ["lion-wiki", "digits-muon"])] == [
        "lion-wiki",
        "digits-muon",
    ]


@pytest.mark.parametrize("workload", [*SUITE, *MINI], ids=lambda workload: workload.slug)
def test_every_method_is_a_run_of_its_own_on_every_workload(workload: Workload) -> None:
    methods = METHODS if workload in SUITE else ("none", "linear:10%", "linear:40%", "auto")
    runs = [workload.run(method, seed).resolve() for method in methods for seed in (0, 1)]
    assert len({run.fingerprint() for run in runs}) == len(runs)
    assert all(run.target_loss == (workload.target_loss if run.rule == "published" else None) for run in runs)
    assert {run.linear_steps() for run in runs} - {None} == {
        round(share * workload.config.steps) for method in methods if (share := share_of(method)) is not None
    }


@pytest.mark.parametrize("method", ["linear:30", "linear:", "linear:x%"])
def test_a_length_in_steps_is_refused(method: str) -> None:
    with pytest.raises(UserError, match=r"names a length by its share of the run, such as linear:10%"):
        share_of(method)


def test_a_changed_setting_has_the_lengths_again_only_where_it_changes_them() -> None:
    plan = changed(SUITE[0], 1.9, ("none", "linear:10%"))
    assert len({workload.slug for workload, _ in plan}) == len(plan) == 10
    plain = {
        method: SUITE[0].run(method, 0).resolve().fingerprint() for method in ("none", "linear:10%", "auto", "gap")
    }
    for workload, methods in plan:
        own = {method: workload.run(method, 0).resolve().fingerprint() for method in plain}
        assert all(own[method] != plain[method] for method in methods), workload.setting
        assert ("none" in methods) == workload.setting.startswith(("steps", "rate"))


# ----------------------------------------------------------------------------------------------------------- judgement


def test_planted_regrets_are_found_on_every_workload(judged: list[Judged]) -> None:
    assert [workload.name for workload in judged] == [workload.name for workload in SUITE]
    for workload in judged:
        assert workload.best == "linear:5%"
        for rule, regret in REGRETS.items():
            assert workload.in_sample[rule].mean == pytest.approx(NOISE * regret)
            assert workload.cross_validated[rule].mean == pytest.approx(NOISE * regret)
        assert workload.regret("auto") == pytest.approx(0.5 * NOISE / workload.deviation)


def test_a_part_sums_its_workloads_up(judged: list[Judged]) -> None:
    test, development = parts(judged)
    assert (test.title, len(test.workloads)) == ("Test workloads", COUNTS["test"])
    assert (development.title, len(development.workloads)) == ("Development workloads", COUNTS["development"])
    order = sorted(test.summaries, key=lambda method: test.summaries[method].mean.mean)
    assert order[:4] == ["linear:5%", "auto", "loss-ratio", "power"]
    assert test.pairs["power"].significant
    assert test.pairs["power"].difference.mean < 0


def test_a_run_that_diverged_counts_with_its_first_loss_and_one_that_is_stuck_is_counted() -> None:
    rows = [row("lion-wiki", "none", seed, 2.0 + 0.01 * seed) for seed in range(3)]
    rows += [row("lion-wiki", "auto", seed, loss) for seed, loss in enumerate([2.0, None, 4.5])]
    rows += [row("lion-wiki", "linear:5%", seed, None) for seed in range(3)]
    results = dataclasses.replace(planted(), rows=rows)
    (only,), left_out = judge(results)
    assert only.losses["auto"] == {0: 2.0, 1: FIRST_LOSS, 2: 4.5}
    assert (only.diverged["auto"], only.stuck["auto"]) == (1, 1)
    assert (only.diverged["linear:5%"], only.stuck["linear:5%"]) == (3, 0)
    assert only.best == "none"
    assert only.deviation == pytest.approx(0.01)  # of `none` alone
    assert len(left_out) == len(SUITE) - 1
    part = verdicts("all", [only])
    assert part.count("diverged", "auto") == (1, 3)
    assert part.pairs == {}


def test_a_setting_that_leaves_the_lengths_alone_is_judged_by_the_lengths_of_its_workload() -> None:
    results = planted()
    changed = dataclasses.replace(SUITE[0], setting="floor 0.1")
    rows = [row(SUITE[0].name, "auto", seed, 3.0, "floor 0.1") for seed in range(3)]
    more = dataclasses.replace(results, rows=[*results.rows, *rows], workloads=[*results.workloads, describe(changed)])
    *_, part = parts(judge(more)[0])
    assert part.title == "Changed settings"
    assert part.pairs == {}
    assert [workload.name for workload in part.workloads] == [f"{SUITE[0].name} floor 0.1"]
    assert part.workloads[0].best == "linear:5%"
    assert part.workloads[0].cross_validated["auto"].mean == pytest.approx(1.0, abs=0.05)


def test_a_setting_that_changes_the_lengths_is_not_judged_by_those_of_its_workload() -> None:
    results = planted()
    longer = describe(
        dataclasses.replace(SUITE[0], setting="steps x4", config=dataclasses.replace(SUITE[0].config, steps=800))
    )
    rows = [row(SUITE[0].name, "auto", seed, 3.0, "steps x4") for seed in range(3)]
    more = dataclasses.replace(results, rows=[*results.rows, *rows], workloads=[*results.workloads, longer])
    judged, left_out = judge(more)
    assert len(judged) == len(SUITE)
    assert left_out == [f"{SUITE[0].name} steps x4 is left out: it needs a hand-tuned length with two seeds or more."]


def test_a_method_without_all_seeds_is_left_out_of_its_workload() -> None:
    results = planted()
    rows = [each for each in results.rows if (each.method, each.seed) != ("gap", 2)]
    judged, left_out = judge(dataclasses.replace(results, rows=rows))
    workload = judged[0]
    assert left_out[0] == f"{SUITE[0].name} has no regret of gap rule: not every seed has a run."
    assert "gap" not in workload.losses
    assert "auto" in workload.losses


def test_pictures_table_and_terminal_say_the_same(tmp_path: Path) -> None:
    written = io.StringIO()
    write_bench_report(planted(), tmp_path, Console(file=written, width=140))
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == [
        "profile-development.png",
        "profile-test.png",
        "rates.png",
        "regret-development.png",
        "regret-test.png",
    ]
    assert all((tmp_path / name).read_bytes().startswith(PNG) for name in pictures)
    table, said = (tmp_path / "table.md").read_text(), written.getvalue()
    for expected in ("adaptive (auto)", "linear, 5 %", "lion-wiki-x1/3", f"0 of {3 * COUNTS['test']}", "better"):
        assert expected in table
        assert expected in said
    assert "0123abc" in table
    assert "took 8 runs for every one of a rule" in said


@pytest.mark.parametrize("methods", [("none", "linear:5%"), ("none", "linear:5%", "auto")])
def test_a_bench_of_few_methods_has_its_pictures(methods: tuple[str, ...], tmp_path: Path) -> None:
    results = planted()
    rows = [each for each in results.rows if each.method in methods]
    curves = results.curves[:1]  # of a development workload: none of the first part's
    write_bench_report(
        dataclasses.replace(results, rows=rows, curves=curves), tmp_path, Console(file=io.StringIO(), width=140)
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        "profile-development.png", "profile-test.png", "regret-development.png", "regret-test.png", "table.md",
    }  # fmt: skip


def test_the_regret_picture_has_a_dot_a_workload_and_rule(judged: list[Judged]) -> None:
    part = parts(judged)[0]
    with house_style():
        axes = bench_figures.regret_figure(part).axes[0]
    dots = {line.get_label(): line for line in axes.lines if len(line.get_xdata()) == COUNTS["test"]}  # type: ignore[arg-type]
    assert set(dots) == {
        "adaptive (auto)", "gap rule", "gap rule as published", "loss ratio", "power rule", "linear, 10 %",
    }  # fmt: skip
    shown = [label.get_text() for label in axes.get_yticklabels()]
    xs = dict(zip(shown, dots["power rule"].get_xdata(), strict=True))  # type: ignore[arg-type]
    assert xs == {workload.name: pytest.approx(workload.regret("power")) for workload in part.workloads}


# ------------------------------------------------------------------------------------------------------------- results


def test_results_come_back_as_they_were_saved(tmp_path: Path) -> None:
    results = planted()
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results
    text = (tmp_path / "results.json").read_text()
    assert sum("fingerprint" in line for line in text.splitlines()) == len(results.rows)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "There is no .*: give the results.json of a bench"),
        ("{", "holds no results of a bench"),
        ('{"version": 1}', "holds no results of a bench"),
        ('{"version": 9}', r"another version of warmgap \(form 9, this one reads form 1\)"),
    ],
)
def test_a_file_that_is_no_results_is_one_sentence(tmp_path: Path, text: str | None, sentence: str) -> None:
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        Results.load(path)


def test_too_few_seeds_are_one_sentence(tmp_path: Path) -> None:
    results = planted()
    one_seed = dataclasses.replace(results, rows=[each for each in results.rows if each.seed == 0])
    with pytest.raises(UserError, match="two seeds or more: there is no regret to tell yet"):
        write_bench_report(one_seed, tmp_path, Console(file=io.StringIO()))


# ------------------------------------------------------------------------------------------------------------ training


def test_the_mini_suite_from_the_command_line_trains_once_and_reports_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WARMGAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    words = ["bench", "--suite", "mini", "--rules", "none", "auto", "--jobs", "2", "--output", "out"]
    assert main(words) == 0
    results = Results.load(Path("out/results.json"))
    assert len(results.rows) == 2 * 2 * 2
    assert {each.status for each in results.rows} == {"done"}
    assert [curve["workload"] for curve in results.curves] == ["digits-lion", "muon-wiki"]
    assert results.command == "warmgap bench --suite mini --split all --rules none auto --output out"
    assert str(tmp_path) not in Path("out/results.json").read_text()
    table = Path("out/table.md").read_text()
    assert table == markdown(results, *judge(results))
    runs = {run.record.config["seed"]: run for run in load_runs(Path("out/digits-lion"))}
    assert set(runs) == {0, 1}

    before = {path: path.stat().st_mtime_ns for path in Path("out").glob("*/*/run.json")}
    assert len(before) == 8
    capsys.readouterr()
    assert main(words) == 0
    assert "8 of 8 runs are finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("out").glob("*/*/run.json")} == before

    assert main(["bench", "--report", "out/results.json", "--output", "elsewhere"]) == 0
    assert Path("elsewhere/table.md").read_text() == table


@pytest.mark.parametrize(
    ("status", "message", "counts"),
    [
        ("done", "", True),
        ("diverged", "", True),
        ("interrupted", "", False),
        ("failed", "The warm-up rule cannot go on: target_loss must lie below the losses", True),
        ("failed", "its process ended with exit code -9 (out of memory, or killed?)", False),
        ("failed", "OSError: [Errno 28] No space left on device", False),
    ],
)
def test_a_failure_of_the_machine_says_nothing_about_a_warm_up(status: Any, message: str, counts: bool) -> None:
    assert _counts(Outcome(IMAGES, status, message)) == counts


@pytest.mark.parametrize(
    ("commits", "expected"),
    [
        (["a1", "a1"], "a1"),
        (["b2", "a1", "a1"], "a1, b2"),
        ([None, None], None),
        ([None, "a1", "a1"], "a1, no checkout"),
    ],
)
def test_the_results_name_the_commits_that_trained_the_runs(
    commits: list[str | None], expected: str | None, tmp_path: Path, write_run: Callable[..., Path]
) -> None:
    outcomes = [
        Outcome(
            dataclasses.replace(IMAGES, output=write_run(tmp_path / str(index), commit=commit)), "done", skipped=True
        )
        for index, commit in enumerate(commits)
    ]
    said = io.StringIO()
    assert _trained_at(outcomes, Console(file=said, width=200)) == expected
    assert ("of 2 commits of warmgap" in said.getvalue()) == (len(set(commits)) > 1)


def test_a_run_to_start_from_comes_first_and_a_rule_that_cannot_go_on_counts_as_diverged(tmp_path: Path) -> None:
    base = dataclasses.replace(IMAGES, steps=20, rule="none", lr=2e-2)
    workload = Workload("tuned", "test", dataclasses.replace(IMAGES, lr=1e-3), 100.0, base)
    console = Console(file=io.StringIO())
    code = train_bench(
        [(workload, ("none", "linear:10%", "linear:12%", "published"))],
        (0, 1),
        tmp_path,
        command="warmgap bench",
        jobs=1,
        console=console,
    )
    assert code == 1
    (before,) = load_runs(tmp_path / "base")
    results = Results.load(tmp_path / "results.json")
    done = ("none", "linear:10%", "linear:12%")
    assert {(each.method, each.status) for each in results.rows} == {
        *((method, "done") for method in done),
        ("published", "failed"),
    }
    step, too = ([each.fingerprint for each in results.rows if each.method == method] for method in done[1:])
    assert step == too  # one step of ten each
    for run in load_runs(tmp_path / "tuned"):
        assert len(run.config["start_from"]) == 16
        assert before.final_loss is not None
    firsts = [each.first_loss for each in results.rows if each.method == "none"]
    assert all(first is not None and first < 2.2 for first in firsts)
    (only,), _ = judge(results)
    assert only.diverged["published"] == 2
    assert only.losses["published"] == dict(enumerate(firsts))
    assert json.loads((tmp_path / "results.json").read_text())["workloads"][0]["start_from"] == base.command()
    assert RunRecord.load(before.folder).status == "done"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--suite", "huge"], "Unknown suite 'huge': choose one of full, mini"),
        (["--split", "training"], "Unknown split 'training': choose one of development, test, all"),
        (["--workloads", "adam-wiki"], "Unknown workload 'adam-wiki': choose from muon-wiki"),
        (["--rules", "linear:30"], "names a length by its share of the run"),
        (["--rules", "adaptive"], "Unknown rule 'adaptive'"),
        (["--report", "nothing.json"], "There is no nothing.json"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "--output", "out", *words]) == 2
    assert not Path("out").exists()
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
