import dataclasses
import importlib.util
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.smoothness.trajectories import layered, records_of

from warmgap.lab.cli import main
from warmgap.lab.config import TrainConfig
from warmgap.lab.errors import UserError
from warmgap.lab.report import write_report
from warmgap.lab.smoothness import (
    RECORDS_FILE,
    Measurement,
    analyse,
    compare_rates,
    layers_sentence,
    measure,
    read_trajectories,
    write_page,
)
from warmgap.lab.smoothness_figures import blocks_figure, trajectory_figure
from warmgap.lab.train import train
from warmgap.smoothness import Record, append_record, fit_smoothness, read_records

PNG = b"\x89PNG\r\n"
SENTENCES = [f"Line {number} tells of {number * 7919 % 1000} apples.\n" for number in range(1500)]


def save(folder: Path, records: list[Record]) -> Path:
    for record in records:
        append_record(folder / RECORDS_FILE, record)
    return folder


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    monkeypatch.setenv("WARMGAP_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("".join(SENTENCES))
    return TrainConfig(corpus=str(text), steps=14, batch_size=4, sequence_length=12, eval_every=0, eval_tokens=200)


def curve(gap: float) -> float:
    return 4.0 + 18.0 * gap + 24.0 * gap**2


def test_a_measured_run_is_the_run_it_would_have_been(config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, accumulation=2, clip=0.1)
    assert measure(config, Measurement(every=2, target_loss=0.5), [1.0], tmp_path / "measured")
    alone = train(dataclasses.replace(config, output=tmp_path / "alone"), progress=False)
    probed = json.loads((tmp_path / "measured" / "rate-1" / "run.json").read_text())
    assert probed["final_val_loss"] == alone.final_val_loss
    records = read_records(tmp_path / "measured" / "rate-1" / RECORDS_FILE)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "alone" / "metrics.jsonl").read_text().splitlines()]
    assert [record.step for record in records] == list(range(0, 14, 2))
    for record in records:
        assert record.loss == pytest.approx(losses[record.step], rel=1e-5)
        assert record.gap == pytest.approx(record.loss - 0.5)


def test_the_command_trains_at_several_rates_and_reads_them_again(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    words = f"--corpus {config.corpus} --steps 14 --batch-size 4 --sequence-length 12 --eval-every 0 --eval-tokens 200"
    output = tmp_path / "runs"
    command = ["smoothness", "--optimizer", "lion", "--rates", "0.5", "2", "--output", str(output), *words.split()]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "lion, peak rate" in printed
    assert "Layer-wise (L0, L1) of" in printed
    assert "2 rates" in printed
    page = output / "smoothness" / "smoothness.html"
    assert str(page) in printed
    assert page.exists()
    assert main(["smoothness", str(output), "--gap-from", "0.1"]) == 0
    assert main(command) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_the_page_holds_pictures_tables_and_verdicts(tmp_path: Path) -> None:
    save(tmp_path / "rate-1", layered())
    save(tmp_path / "rate-4", records_of(curve, noise=0.1, share=1.2))
    page = write_page(read_trajectories([tmp_path]), tmp_path / "out")
    text = page.read_text()
    pictures = sorted(path.name for path in page.parent.glob("*.png"))
    assert len(pictures) == 4
    assert all(path.read_bytes().startswith(PNG) for path in page.parent.glob("*.png"))
    assert len(re.findall("<img ", text)) == 4
    assert not re.search(r"https?://", text)
    assert "only follows the step length" in text
    assert "Skipped: still" in text
    fits = json.loads((page.parent / "fits.json").read_text())
    assert fits[1]["fits"][0]["constants"]["Krho"] == pytest.approx(24.0, rel=0.5)


def test_the_numbers_of_a_fit_that_bounds_nothing_are_still_json(tmp_path: Path) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    save(tmp_path, [dataclasses.replace(r, estimator="directional") for r in records_of(lambda gap: 1.0 - gap)])
    page = write_page(read_trajectories([tmp_path]), tmp_path / "out")
    (found,) = json.loads((page.parent / "fits.json").read_text(), parse_constant=refuse)
    assert found["fits"][0]["diagnosis"]["share"] is None
    assert any(fit["largest_violation"] is None for fit in found["fits"])


def test_ratios_below_zero_are_drawn_too() -> None:
    def curvature(gap: float) -> float:
        return 8.0 * (gap - 2.0)

    records = [dataclasses.replace(record, estimator="directional") for record in records_of(curvature)]
    figure = trajectory_figure(records, [fit_smoothness(records, method="envelope", resamples=20)])
    axes = figure.axes[0]
    drawn: Any = axes.collections[0].get_offsets()
    assert len(drawn) == len(records)
    low, high = axes.get_ylim()
    assert (drawn[:, 1] >= low).all()
    assert (drawn[:, 1] <= high).all()
    assert axes.get_ylabel() == "curvature along the step"


def test_violations_are_circled_block_by_block() -> None:
    figure = blocks_figure(layered(60, noise=0.3))
    circled = figure.axes[0].collections[1]
    assert 0 < len(circled.get_offsets()) <= 4  # type: ignore[arg-type]


def test_the_report_on_a_measured_run_has_a_section_on_it(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    save(write_run(tmp_path / "rate-1"), records_of(curve))
    report = write_report(tmp_path)
    text = report.page.read_text()
    assert "Curvature and the loss gap" in text
    assert "The ratio rises with the gap" in text
    assert "smoothness-0.png" in {path.name for path in report.pictures}


def test_records_that_allow_no_fit_are_told_and_not_drawn(tmp_path: Path) -> None:
    save(tmp_path, records_of(curve)[:3])
    (trajectory,) = read_trajectories([tmp_path])
    analysis = analyse(trajectory, resamples=20)
    assert analysis.fits == []
    assert any("usable records, got 3" in sentence for sentence in analysis.failed)
    assert "got 3" in write_page([trajectory], tmp_path / "out").read_text()


def benchmark() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "smoothness.py"
    spec = importlib.util.spec_from_file_location("benchmarks_smoothness", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmarks_tables_have_mean_and_spread_over_seeds(tmp_path: Path) -> None:
    module = benchmark()

    def run(seed: int, rate: float, status: str = "done") -> None:
        place = save(
            tmp_path / f"lion-{seed}" / f"rate-{rate:g}",
            [
                dataclasses.replace(record, step=2 * index, step_length=0.01 * rate, ratio=record.ratio * rate**-0.5)
                for index, record in enumerate(records_of(curve, 60, noise=0.02, seed=seed))
            ],
        )
        (place / "run.json").write_text(json.dumps({"status": status, "config": {"steps": 120}}))

    assert module.report(tmp_path, ["lion"]) == "No seed has every rate yet."
    for seed in range(3):
        for rate in (0.25, 1.0, 4.0):
            run(seed, rate, "diverged" if (seed, rate) == (2, 4.0) else "done")
    run(3, 1.0)  # its other rates have not run yet
    text = module.report(tmp_path, ["lion", "muon"])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert [row[2] for row in rows if row[:2] in (["lion", "0.25"], ["lion", "4"])] == ["3", "2"]
    assert all("±" in cell for row in rows if row[:2] == ["lion", "1"] for cell in row[3:])
    assert ["whole run, 8 runs", "8 (lion 0.25: 3, lion 1: 3, lion 4: 2)", "0", "0"] in rows
    assert next(row for row in rows if row[:2] == ["lion", "3"])[2].startswith("-0.50 ± 0.0")
    assert "Runs left out because they diverged: 1." in text
    with pytest.raises(SystemExit, match="holds a run of 120 steps: give --steps 120"):
        module.status(tmp_path / "lion-0" / "rate-1", 400)


def test_a_file_alone_and_a_folder_without_rates(tmp_path: Path) -> None:
    save(tmp_path / "one", records_of(curve))
    (by_file,) = read_trajectories([tmp_path / "one" / RECORDS_FILE])
    (by_folder,) = read_trajectories([tmp_path])
    assert by_file.records == by_folder.records
    assert (by_file.name, by_folder.name) == ("one", "one")
    assert compare_rates([by_file, by_folder]) == []


def test_layers_that_cannot_be_fitted_are_told() -> None:
    still = [
        dataclasses.replace(record, blocks=tuple(dataclasses.replace(b, ratio=math.nan) for b in record.blocks))
        for record in layered()
    ]
    from warmgap.smoothness import fit_layers

    assert layers_sentence(fit_layers(still, resamples=20)) == "Layer-wise: none of 3 blocks could be fitted."


def test_mistakes_are_one_sentence(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no"):
        read_trajectories([tmp_path / "gone"])
    with pytest.raises(UserError, match="measure a run first"):
        read_trajectories([tmp_path])
    bad = tmp_path / "bad.jsonl"
    bad.write_text("nonsense\n")
    with pytest.raises(UserError, match=r"Line 1 of .* is not a record"):
        read_trajectories([bad])
    with pytest.raises(UserError, match="different factors above 0, got 1, 1"):
        measure(config, Measurement(), [1.0, 1.0], tmp_path / "x")
    with pytest.raises(UserError, match="cannot be measured: norm must be one of"):
        measure(config, Measurement(norm="l7"), [1.0], tmp_path / "x")
    with pytest.raises(UserError, match="cannot be measured: every must be at least 1"):
        measure(config, Measurement(every=0), [1.0], tmp_path / "y")
