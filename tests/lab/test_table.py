import json
from collections.abc import Callable
from pathlib import Path

import pytest

from warmgap.lab.errors import UserError
from warmgap.lab.table import HEADINGS, Method, Workload, as_plain, as_rows, hand_tuned_steps, load_runs, tabulate

WriteRun = Callable[..., Path]


def only(folder: Path) -> Workload:
    (workload,) = tabulate(load_runs(folder))
    return workload


def method(workload: Workload, rule: str) -> Method:
    (found,) = [method for method in workload.methods if method.rule == rule]
    return found


def test_runs_are_sorted_into_workloads_methods_and_seeds(tmp_path: Path, write_run: WriteRun) -> None:
    for optimizer in ("muon", "lion"):
        for rule in ("auto", "none", "linear:4"):
            for seed in (1, 0):
                write_run(tmp_path / f"{optimizer}-{rule}-{seed}", optimizer=optimizer, rule=rule, seed=seed)
    workloads = tabulate(load_runs(tmp_path))
    assert len(workloads) == 2
    assert len({workload.slug for workload in workloads}) == 2
    for workload in workloads:
        assert [found.rule for found in workload.methods] == ["none", "linear:4", "auto"]
        assert [found.label for found in workload.methods] == ["no warm-up", "linear, 10 %", "adaptive (auto)"]
        assert all([run.seed for run in found.runs] == [0, 1] for found in workload.methods)


def test_settings_that_change_no_number_do_not_split_a_workload(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "a", rule="none", threads=1, save_every=5)
    write_run(tmp_path / "b", rule="auto", threads=2)
    assert len(only(tmp_path).methods) == 2


def test_workloads_that_differ_in_an_unusual_setting_say_so(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "a", batch_size=8)
    write_run(tmp_path / "b", batch_size=16)
    assert [workload.title.split(", ")[-1] for workload in tabulate(load_runs(tmp_path))] == [
        "batch size 8",
        "batch size 16",
    ]


def test_one_rule_with_two_settings_is_two_methods(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "a", rule="auto", floor=0.1)
    write_run(tmp_path / "b", rule="auto", floor=0.01)
    assert {found.label for found in only(tmp_path).methods} == {
        "adaptive (auto), floor 0.1",
        "adaptive (auto), floor 0.01",
    }


def test_the_same_run_twice_is_refused(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    with pytest.raises(UserError, match="twice"):
        tabulate(load_runs(tmp_path))


def test_adaptive_is_compared_with_the_best_hand_tuned(tmp_path: Path, write_run: WriteRun) -> None:
    losses = {"none": (3.2, 3.3, 3.1), "linear:4": (3.0, 3.1, 2.9), "auto": (2.9, 3.0, 2.81)}
    for rule, found in losses.items():
        for seed, loss in enumerate(found):
            write_run(tmp_path / f"{rule}-{seed}", rule=rule, seed=seed, loss=loss, warmup=7)
    workload = only(tmp_path)
    assert workload.best is method(workload, "linear:4")
    comparison = method(workload, "auto").comparison
    assert comparison is not None
    assert comparison.verdict == "win"
    assert comparison.difference == pytest.approx(-0.29 / 3)
    row = dict(zip(HEADINGS, as_rows(workload)[-1], strict=True))
    assert (row["verdict"], row["steps"], row["seeds"]) == ("win", "7 ± 0", "3")


def test_one_seed_shows_the_difference_and_gives_no_verdict(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "a", rule="none", loss=3.0)
    write_run(tmp_path / "b", rule="auto", loss=2.0, warmup=3)
    row = dict(zip(HEADINGS, as_rows(only(tmp_path))[-1], strict=True))
    assert (row["difference"], row["verdict"], row["95% interval"]) == ("-1.0000", "no verdict", "")


def test_a_hand_tuned_rule_that_diverged_is_not_the_best_and_stays_in_the_table(
    tmp_path: Path, write_run: WriteRun
) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"none-{seed}", rule="none", seed=seed, loss=2.0, status="diverged" if seed else "done")
        write_run(tmp_path / f"linear-{seed}", rule="linear:4", seed=seed, loss=3.0)
    workload = only(tmp_path)
    assert workload.best is method(workload, "linear:4")
    assert method(workload, "none").notes == ["1 of 2 diverged"]
    assert method(workload, "none").loss.count == 1


def test_an_adaptive_rule_that_never_handed_over_is_named(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "a", rule="gap", loss=5.0, warmup=None)
    found = method(only(tmp_path), "gap")
    assert found.notes == ["1 of 1 never left the warm-up"]
    assert found.loss.mean == 5.0
    assert found.warmup.mean is None


def test_unfinished_runs_are_named_and_counted_out(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "a", rule="auto", seed=0, loss=3.0)
    write_run(tmp_path / "b", rule="auto", seed=1, status="interrupted")
    found = method(only(tmp_path), "auto")
    assert found.notes == ["1 of 2 not finished"]
    assert found.losses == {0: 3.0}


def test_a_hand_tuned_rule_with_fewer_finished_seeds_is_not_the_best(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "a", rule="none", seed=0, loss=2.0)
    for seed in (0, 1):
        write_run(tmp_path / f"b{seed}", rule="linear:4", seed=seed, loss=3.0)
    workload = only(tmp_path)
    assert workload.best is method(workload, "linear:4")


def test_without_a_hand_tuned_run_there_is_nothing_to_compare_with(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "a", rule="auto")
    assert only(tmp_path).best is None
    assert method(only(tmp_path), "auto").comparison is None


def test_the_plain_table_is_json_and_holds_every_run(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "a", rule="none", status="diverged")
    write_run(tmp_path / "b", rule="auto", loss=3.5, warmup=2)
    (plain,) = json.loads(json.dumps(as_plain([only(tmp_path)])))
    runs = {run["folder"]: run for found in plain["methods"] for run in found["runs"]}
    assert runs["a"]["status"] == "diverged"
    assert runs["a"]["final_val_loss"] is None
    assert runs["b"]["final_val_loss"] == 3.5


def test_metrics_leave_out_what_is_no_number_and_keep_the_last_of_a_step(tmp_path: Path, write_run: WriteRun) -> None:
    folder = write_run(tmp_path / "a")
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": None, "gap": 1.5}, {"step": 1, "loss": 4.0, "phase": "decay"}]
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert load_runs(folder)[0].metrics() == {"loss": ([1], [4.0]), "gap": ([2], [1.5])}


def test_a_torn_last_row_is_forgiven_only_in_a_run_that_is_not_finished(tmp_path: Path, write_run: WriteRun) -> None:
    for status in ("running", "done"):
        folder = write_run(tmp_path / status, status=status)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 41, "lo')
    assert len(load_runs(tmp_path / "running")[0].metrics()["loss"][0]) == 20
    with pytest.raises(UserError, match="line 41"):
        load_runs(tmp_path / "done")[0].metrics()


def test_a_folder_without_runs_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        load_runs(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no run\.json"):
        load_runs(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[1, 2]", "not json", '{"status": "done", "config": {}}'])
def test_a_foreign_record_is_a_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json"):
        load_runs(tmp_path)


def test_the_length_of_a_hand_tuned_rule() -> None:
    assert [hand_tuned_steps(rule) for rule in ("none", "linear:0", "linear:12", "auto", "gap")] == [
        0,
        0,
        12,
        None,
        None,
    ]
    with pytest.raises(UserError, match="linear:STEPS"):
        hand_tuned_steps("linear:some")
