from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from warmgap.lab.config import TrainConfig
from warmgap.lab.errors import UserError
from warmgap.lab.smoothness import (
    analyse,
    compare_rates,
    measure,
    read_trajectories,
    report,
    write_layer_constants,
)
from warmgap.lab.store import Store
from warmgap.lab.train import train


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_runs_are_measured_fitted_and_shown(
    images: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(images, steps=40, method="none")
    assert measure(config, [0.5, 1.0], tmp_path)
    with Store(tmp_path, create=False) as store:
        measured = store.runs()
    assert [run.status for run in measured] == ["done", "done"]
    # The probe changes no number of the run.
    assert measured[1].final_val_loss == train(config).record["final_val_loss"]

    trajectories = read_trajectories([tmp_path])
    assert [t.name for t in trajectories] == ["lion, peak rate 0.0005 (rate-0.5)", "lion, peak rate 0.001 (rate-1)"]
    assert all(len(t.records) == 40 for t in trajectories)
    assert {row["method"] for row in analyse(trajectories[0], resamples=20).rows()} >= {"nnls", "envelope"}
    ((_, members, sentences),) = compare_rates(trajectories)
    assert len(members) == 2
    assert "at the same gap" in sentences[0]
    assert "layers" in sentences[1]
    radii = tmp_path / "radii.json"
    with pytest.raises(UserError, match="No layer constants: Gluon's radii need constants in its own norms"):
        write_layer_constants(trajectories, radii)

    page = report(trajectories[:1], tmp_path / "smoothness.html").read_text()
    assert page.count('draw("') == 2
    assert "H0, H1" in capsys.readouterr().out
    assert measure(config, [1.0], tmp_path)  # it is there
    with pytest.raises(UserError, match="belongs to a run with other settings"):
        measure(config, [1.0], tmp_path, every=2)


def test_two_optimizers_cannot_be_measured(images: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="torch-muon is two optimizers"):
        measure(replace(images, optimizer="torch-muon"), [1.0], tmp_path)
    with pytest.raises(UserError, match="different factors above 0"):
        measure(images, [1.0, 1.0], tmp_path)
    with pytest.raises(UserError, match=r"No smoothness.jsonl in or below"):
        read_trajectories([tmp_path])
