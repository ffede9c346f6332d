import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from warmgap.lab.cli import main
from warmgap.lab.errors import UserError
from warmgap.lab.figures import ADAPTIVE_STYLES, curves_figure, lengths_figure, method_style, overview_figure
from warmgap.lab.report import Report, print_table, write_report
from warmgap.lab.sweep import SWEEP_FILE, SWEEP_VERSION
from warmgap.lab.table import load_runs, tabulate

WriteRun = Callable[..., Path]
VOID = {"meta", "img", "link", "br", "hr", "input"}
PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Checks that tags close in order, and gathers what a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[str] = []
        self.loads: list[str] = []
        self.images: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.loads += [values[name] or "" for name in ("src", "href", "srcset", "data") if name in values]
        if tag == "img":
            assert values["alt"]
            self.images.append(values["src"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, write_run: WriteRun) -> Path:
    """Two optimizers, three rules, two seeds; Lion without warm-up diverges once, its gap rule is stuck."""
    folder = tmp_path_factory.mktemp("report") / "runs <&> more"
    for optimizer in ("muon", "lion"):
        for seed in (0, 1):
            for rule, warmup in (("none", 0), ("linear:4", 4), ("auto", 3 + seed)):
                fell = (optimizer, rule, seed) == ("lion", "none", 1)
                settings = {"optimizer": optimizer, "rule": rule, "seed": seed}
                loss = 3.0 + 0.01 * seed + 0.02 * warmup
                write_run(
                    folder / f"{optimizer}-{rule}-{seed}",
                    loss=loss,
                    warmup=warmup,
                    status="diverged" if fell else "done",
                    **settings,
                )
    write_run(folder / "stuck", optimizer="lion", rule="gap", seed=0, loss=9.0, warmup=None)
    data = {"version": SWEEP_VERSION, "sweeps": [{"command": "warmgap sweep --optimizers muon lion"}]}
    (folder / SWEEP_FILE).write_text(json.dumps(data))
    return folder


@pytest.fixture(scope="module")
def report(sweep: Path) -> Report:
    return write_report(sweep, title="Ours & theirs", explanation="First <b>\n\nSecond")


def test_the_page_is_well_formed_and_loads_nothing(report: Report) -> None:
    page = Page(report.page.read_text(encoding="utf-8"))
    assert all(source.startswith("data:image/png;base64,") for source in page.loads)
    assert not {"script", "link", "iframe"} & set(page.seen)
    assert not re.search(r"https?://|url\(|@import", report.page.read_text(encoding="utf-8"))


def test_the_page_shows_both_pictures_of_each_workload(report: Report) -> None:
    page = Page(report.page.read_text(encoding="utf-8"))
    shown = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in page.images]
    written = {path.name: path.read_bytes() for path in report.pictures}
    assert len(shown) == 4
    assert all(data.startswith(PNG) for data in written.values())
    assert set(shown) == {data for name, data in written.items() if name != "overview.png"}


def test_the_page_says_where_it_comes_from(report: Report) -> None:
    text = Page(report.page.read_text(encoding="utf-8")).text
    for expected in (
        "warmgap sweep --optimizers muon lion",
        "0123abc",
        "torch 2.13.0",
        "Ours & theirs",
        "First <b>",
        "--seed 1",
    ):
        assert expected in text


def test_the_page_drops_neither_diverged_nor_stuck_runs(report: Report) -> None:
    text = Page(report.page.read_text(encoding="utf-8")).text
    assert "1 of 2 diverged" in text
    assert "1 of 1 never left the warm-up" in text
    assert "never ended" in text


def test_the_tables_hold_what_the_page_shows(report: Report) -> None:
    folder = report.page.parent
    plain = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    assert [len(workload["methods"]) for workload in plain] == [4, 3]
    markdown = (folder / "table.md").read_text(encoding="utf-8")
    assert markdown.count("| no warm-up |") == 2
    assert "1 of 2 diverged" in markdown


def test_the_printed_table_fits_a_terminal(report: Report) -> None:
    written = io.StringIO()
    print_table(report.workloads, Console(file=written, width=80))
    text = written.getvalue()
    assert "no warm-up: 1 of 2 diverged." in text
    assert "adaptive (auto)" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_second_report_is_the_same_to_the_byte(sweep: Path, report: Report, tmp_path: Path) -> None:
    write_report(sweep, tmp_path, title="Ours & theirs", explanation="First <b>\n\nSecond")
    before = {path.name: path.read_bytes() for path in report.page.parent.iterdir()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_runs_of_different_code_are_pointed_out(tmp_path: Path, write_run: WriteRun, report: Report) -> None:
    write_run(tmp_path / "a", rule="none", commit="aaa")
    write_run(tmp_path / "b", rule="auto", commit="bbb")
    mixed = write_report(tmp_path)
    written = io.StringIO()
    print_table(mixed.workloads, Console(file=written, width=200))
    for text in (
        mixed.page.read_text(encoding="utf-8"),
        written.getvalue(),
        (tmp_path / "report/table.md").read_text(),
    ):
        assert "2 different states of the code" in text
    assert "different states" not in report.page.read_text(encoding="utf-8")


def test_one_unfinished_run_alone_makes_a_report(tmp_path: Path, write_run: WriteRun) -> None:
    report = write_report(write_run(tmp_path / "run", rule="auto", status="running", warmup=None), tmp_path / "out")
    assert "1 of 1 not finished" in Page(report.page.read_text(encoding="utf-8")).text


def test_a_run_without_metrics_makes_a_report(tmp_path: Path, write_run: WriteRun) -> None:
    folder = write_run(tmp_path / "run", rule="auto")
    (folder / "metrics.jsonl").unlink()
    assert write_report(folder).page.exists()


def test_a_report_that_cannot_be_written_is_a_clear_error(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(sweep, tmp_path / "file" / "report")


def test_the_figures_mark_the_hand_over_of_each_adaptive_run(sweep: Path) -> None:
    muon = next(workload for workload in tabulate(load_runs(sweep)) if "Muon" in workload.title)
    rate_axes, loss_axes, _ = curves_figure(muon).axes
    for axes in (rate_axes, loss_axes):
        diamonds = [line.get_xdata() for line in axes.lines if line.get_marker() == "D"]
        assert sorted(float(x[0]) for x in diamonds) == [3.0, 4.0]  # type: ignore[index,arg-type]
        assert axes.get_xlabel()
        assert axes.get_ylabel()


def test_the_lengths_figure_shows_every_run_and_the_band(sweep: Path) -> None:
    lion = next(workload for workload in tabulate(load_runs(sweep)) if "Lion" in workload.title)
    (axes,) = lengths_figure(lion).axes
    assert sum(line.get_marker() == "x" for line in axes.lines) == 1  # the run that diverged
    assert [text.get_text() for text in axes.texts] == ["diverged", "9"]  # and the stuck one, above the edge
    assert sum(line.get_marker() == "^" for line in axes.lines) == 1
    small = [len(line.get_xdata()) for line in axes.lines if line.get_marker() == "o" and line.get_markersize() == 5.5]  # type: ignore[arg-type]
    assert sorted(small) == [1, 2]
    assert len(axes.patches) == 1  # the band of `auto`; one seed of `gap` has none


def test_a_method_has_one_colour_in_every_figure(sweep: Path) -> None:
    workloads = tabulate(load_runs(sweep))
    colours = {
        method.label: method_style(method, workload.steps)[0] for workload in workloads for method in workload.methods
    }
    assert len(set(map(str, colours.values()))) == len(colours)
    assert colours["adaptive (auto)"] == ADAPTIVE_STYLES["auto"][0]
    for axes in overview_figure(workloads).axes[:2]:
        drawn = {str(line.get_label()): line.get_color() for line in axes.lines if line.get_label() in colours}
        assert drawn == {label: colours[label] for label in drawn}
        assert "adaptive (auto)" in drawn


def test_the_command_writes_the_report(tmp_path: Path, write_run: WriteRun, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", rule="auto")
    assert main(["report", str(folder), "--output", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "report.html").exists()
    assert "adaptive (auto)" in capsys.readouterr().out


def test_the_command_refuses_an_empty_folder_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("warmgap: No run found")
