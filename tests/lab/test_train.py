import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from warmgap.lab import train as module
from warmgap.lab.errors import UserError
from warmgap.lab.optimizers import OPTIMIZERS
from warmgap.lab.record import last_checkpoint
from warmgap.lab.train import RunRecord, TrainConfig, train
from warmgap.torch import SmoothnessProbe

SENTENCES = [
    f"Line {number} tells of {number * 7919 % 1000} apples and {number * 104729 % 997} pears.\n"
    for number in range(1500)
]


class KilledError(Exception):
    """Stands for kill -9: nothing is saved on the way out."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARMGAP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small(tmp_path: Path) -> TrainConfig:
    """Fourteen steps of half a hundred tokens: a run with a warm-up, a hand-over and a decay."""
    text = tmp_path / "text.txt"
    text.write_text("".join(SENTENCES))
    return TrainConfig(
        corpus=str(text),
        steps=14,
        batch_size=4,
        sequence_length=12,
        eval_every=5,
        eval_tokens=500,
        save_every=0,
        output=tmp_path / "run",
    )


def rows(folder: Path | None) -> list[dict[str, Any]]:
    assert folder is not None
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path | None) -> dict[str, torch.Tensor]:
    assert folder is not None
    checkpoint = last_checkpoint(folder)
    assert checkpoint is not None
    return safetensors.torch.load_file(checkpoint / "model.safetensors")


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    one_step = module._Run.one_step

    def dying(self: Any) -> Any:
        if self.step == step:
            raise KilledError
        return one_step(self)

    monkeypatch.setattr(module._Run, "one_step", dying)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    one_step = module._Run.one_step

    def interrupting(self: Any) -> Any:
        seen = one_step(self)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return seen

    monkeypatch.setattr(module._Run, "one_step", interrupting)


def assert_same_run(one: TrainConfig, other: TrainConfig) -> None:
    assert rows(one.output) == rows(other.output)
    for name, tensor in weights(one.output).items():
        assert torch.equal(tensor, weights(other.output)[name]), name


# -------------------------------------------------------------------------------------------------------------- one run


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_every_optimizer_learns(small: TrainConfig, optimizer: str) -> None:
    record = train(dataclasses.replace(small, optimizer=optimizer, output=None, steps=30, eval_every=0), progress=False)
    assert record.status == "done"
    assert record.final_val_loss is not None
    assert record.final_val_loss < math.log(257) - 0.5


def test_the_folder_of_a_run(small: TrainConfig) -> None:
    record = train(dataclasses.replace(small, save_every=5), progress=False)
    assert small.output is not None
    assert sorted(path.name for path in small.output.iterdir()) == ["checkpoint", "metrics.jsonl", "run.json"]
    assert RunRecord.load(small.output) == record
    assert record.status == "done"
    assert record.step == 14
    assert record.parameters == 132_032
    assert record.config["lr"] == small.resolve().lr
    assert "output" not in record.config
    assert record.warmup_iters is not None
    assert record.best_val_loss is not None
    assert record.seconds > 0.0
    assert record.tokens_per_second > 0.0
    assert set(record.versions) >= {"python", "torch", "warmgap"}

    metrics = rows(small.output)
    assert [row["step"] for row in metrics] == list(range(1, 15))
    assert [row["step"] for row in metrics if "val_loss" in row] == [5, 10, 14]
    assert metrics[-1]["val_loss"] == record.final_val_loss
    assert record.best_val_loss == min(row["val_loss"] for row in metrics if "val_loss" in row)
    assert metrics[0]["factor"] == 1.0  # Muon starts at the peak, on the first loss
    warmup = [row for row in metrics if row["phase"] == "warmup"]
    assert len(warmup) == record.warmup_iters
    assert metrics[record.warmup_iters]["factor"] == 1.0
    for row in metrics:
        assert row["lr"] == pytest.approx(row["factor"] * record.config["lr"], rel=1e-12)
        assert math.isfinite(row["loss"])


def test_the_record_tells_nothing_of_the_machine(
    small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = dataclasses.replace(small, corpus="text.txt", output=Path("here"))
    train(relative, progress=False)
    text = Path("here/run.json").read_text() + Path("here/metrics.jsonl").read_text()
    for private in (str(tmp_path), str(Path.home()) + "/", os.uname().nodename, sys.executable):
        assert private not in text
    assert "warmgap train --corpus text.txt" in json.loads(Path("here/run.json").read_text())["command"]


def test_a_terminal_shows_a_bar_with_loss_rate_and_phase(
    small: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    record = train(small, progress=True)
    shown = capsys.readouterr().err
    assert "14/14" in shown
    assert "decay" in shown
    assert f"val {record.final_val_loss:.4f}" in shown
    train(dataclasses.replace(small, output=None), progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("rule", "factors"),
    [("none", [1.0]), ("linear:3", [0.25, 0.5, 0.75, 1.0])],
)
def test_hand_tuned_warm_ups(small: TrainConfig, rule: str, factors: list[float]) -> None:
    record = train(dataclasses.replace(small, rule=rule), progress=False)
    assert [row["factor"] for row in rows(small.output)][: len(factors)] == factors
    assert record.warmup_iters == len(factors) - 1
    assert record.target_loss is None


def test_the_published_rule_runs_its_first_step_at_the_peak(small: TrainConfig) -> None:
    record = train(dataclasses.replace(small, rule="published", target_loss=0.5, lr=1e-4), progress=False)
    factors = [row["factor"] for row in rows(small.output)]
    assert factors[0] == 1.0
    assert factors[1] == pytest.approx(0.01)
    assert max(factors[1:]) < 0.2
    assert record.warmup_iters is None
    assert record.target_loss == 0.5


@pytest.mark.parametrize(
    ("rule", "first"), [("auto", 1.0), ("auto-late", 0.01), ("gap", 0.01), ("power", 0.01), ("loss-ratio", 0.5)]
)
def test_the_rules_by_name(small: TrainConfig, rule: str, first: float) -> None:
    record = train(dataclasses.replace(small, rule=rule), progress=False)
    assert record.status == "done"
    metrics = rows(small.output)
    assert metrics[0]["phase"] == "warmup"
    assert metrics[0]["factor"] == pytest.approx(first)


def test_a_seed_decides_the_run(small: TrainConfig, tmp_path: Path) -> None:
    configs = [dataclasses.replace(small, save_every=14, output=tmp_path / str(n), seed=n // 2) for n in range(3)]
    for config in configs:
        train(config, progress=False)
    assert_same_run(configs[0], configs[1])
    assert rows(configs[0].output)[0]["loss"] != rows(configs[2].output)[0]["loss"]


def test_a_loss_that_is_no_longer_finite_ends_the_run_and_the_record_stays(small: TrainConfig) -> None:
    record = train(dataclasses.replace(small, optimizer="lion", lr=1e30, rule="none", save_every=1), progress=False)
    assert record.status == "diverged"
    assert record.final_val_loss is None
    assert small.output is not None
    assert RunRecord.load(small.output).status == "diverged"
    metrics = rows(small.output)
    assert metrics[-1]["loss"] is None
    assert len(metrics) == record.step < 14
    resumed = train(dataclasses.replace(small, optimizer="lion", lr=1e30, rule="none", resume=True), progress=False)
    assert resumed == record


def test_bf16_trains_with_weights_in_fp32(small: TrainConfig) -> None:
    config = dataclasses.replace(small, precision="bf16", save_every=14)
    record = train(config, progress=False)
    exact = train(dataclasses.replace(small, output=None), progress=False)
    assert record.final_val_loss == pytest.approx(exact.final_val_loss, abs=0.05)
    assert record.final_val_loss != exact.final_val_loss
    assert all(tensor.dtype == torch.float32 for tensor in weights(config.output).values())


def test_accumulation_changes_neither_rates_nor_weights(small: TrainConfig, tmp_path: Path) -> None:
    # Lion's sign would turn a rounding into a step; normalized SGD is smooth.
    whole = dataclasses.replace(small, optimizer="normalized-sgd", save_every=14, output=tmp_path / "whole")
    split = dataclasses.replace(whole, accumulation=4, output=tmp_path / "split")
    train(whole, progress=False)
    train(split, progress=False)
    for one, other in zip(rows(whole.output), rows(split.output), strict=True):
        assert other["lr"] == pytest.approx(one["lr"], rel=1e-6)
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for name, tensor in weights(whole.output).items():
        torch.testing.assert_close(weights(split.output)[name], tensor, rtol=1e-3, atol=1e-4)


class Dtypes(TorchDispatchMode):
    """Remembers the types of all tensors that are made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen |= {leaf.dtype for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
        return result


def test_an_evaluation_needs_no_float64_on_the_device_and_is_the_mean_over_tokens(
    small: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EVAL_BATCH", 1000)  # 301 sequences of 12 tokens: one part of 76 and three of 75
    run = module._Run(dataclasses.replace(small, output=None, eval_tokens=301 * 12).resolve(), "")
    with Dtypes() as dtypes:
        loss = run.evaluate()
    assert torch.float32 in dtypes.seen
    assert torch.float64 not in dtypes.seen
    with torch.no_grad():
        whole = run.loss(run.network, run.task.validation(np.arange(301)))
    assert loss == pytest.approx(float(whole), rel=1e-5)


# ------------------------------------------------------------------------------------------------------- stop and go on


@pytest.mark.parametrize(
    ("optimizer", "step"),
    [
        *itertools.product(["muon", "lion"], [1, 3, 6, 7, 9, 13]),
        *itertools.product(["torch-muon", "lion-pytorch"], [3, 7]),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, step: int
) -> None:
    whole = dataclasses.replace(small, optimizer=optimizer, save_every=2, output=tmp_path / "whole")
    killed = dataclasses.replace(whole, output=tmp_path / "killed")
    train(whole, progress=False)
    with monkeypatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(KilledError):
            train(killed, progress=False)
    assert killed.output is not None
    assert RunRecord.load(killed.output).status == "running"
    record = train(dataclasses.replace(killed, resume=True), progress=False)
    assert record.status == "done"
    assert_same_run(whole, killed)


def test_the_kills_above_fall_into_warm_up_hand_over_and_decay(small: TrainConfig) -> None:
    for optimizer in ("muon", "lion"):
        record = train(dataclasses.replace(small, optimizer=optimizer, output=None), progress=False)
        assert record.warmup_iters is not None
        assert 4 <= record.warmup_iters <= 10


@pytest.mark.parametrize("step", [1, 4, 6, 7, 13])
def test_ctrl_c_leaves_a_run_that_goes_on(
    small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole = dataclasses.replace(small, save_every=14, output=tmp_path / "whole")
    stopped = dataclasses.replace(whole, output=tmp_path / "stopped")
    train(whole, progress=False)
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        record = train(stopped, progress=False)
    assert signal.getsignal(signal.SIGINT) is handler
    assert record.status == "interrupted"
    assert record.step == step
    assert stopped.output is not None
    assert RunRecord.load(stopped.output) == record
    train(dataclasses.replace(stopped, resume=True), progress=False)
    assert_same_run(whole, stopped)


def test_ctrl_c_at_the_last_step_finds_the_run_done(small: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(monkeypatch, 14)
    assert train(small, progress=False).status == "done"


def test_a_run_killed_between_its_last_checkpoint_and_its_record_knows_its_final_loss(
    small: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = RunRecord.save

    def dying(self: RunRecord, folder: Path) -> None:
        if self.step == 14:
            raise KilledError
        save(self, folder)

    config = dataclasses.replace(small, save_every=7)
    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "save", dying)
        with pytest.raises(KilledError):
            train(config, progress=False)
    record = train(dataclasses.replace(config, resume=True), progress=False)
    assert (record.status, record.step) == ("done", 14)
    assert record.final_val_loss == rows(small.output)[-1]["val_loss"]


def test_a_finished_run_is_not_run_again(small: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    record = train(small, progress=False)
    monkeypatch.setattr(module._Run, "one_step", lambda _: pytest.fail("trained again"))
    assert train(dataclasses.replace(small, resume=True), progress=False) == record
    with pytest.raises(UserError, match=r"already holds a run \(done\): give --resume to go on with it"):
        train(small, progress=False)


def test_only_the_last_checkpoint_is_kept(small: TrainConfig) -> None:
    train(dataclasses.replace(small, save_every=3), progress=False)
    assert small.output is not None
    assert [path.name for path in (small.output / "checkpoint").iterdir()] == ["step-00000014"]


# ------------------------------------------------------------------------------------------------ images, and weights


@pytest.fixture
def images(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        corpus="digits", model="mlp", lr=1e-2, steps=60, batch_size=16, eval_every=0, save_every=2,
        output=tmp_path / "run",
    )  # fmt: skip


def test_digits_are_learned_and_a_killed_run_goes_on(
    images: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(images, progress=False)
    assert whole.final_val_loss is not None
    assert whole.final_val_loss < 1.2 < math.log(10)
    assert whole.config["vocab_size"] is None
    killed = dataclasses.replace(images, output=tmp_path / "killed")
    with monkeypatch.context() as patch:
        kill_at(patch, 33)
        with pytest.raises(KilledError):
            train(killed, progress=False)
    train(dataclasses.replace(killed, resume=True), progress=False)
    assert_same_run(images, killed)


def test_more_images_than_there_are_make_no_batch(images: TrainConfig) -> None:
    with pytest.raises(UserError, match="There are 1437 images of digits to train on, and a batch takes 1438"):
        train(dataclasses.replace(images, batch_size=1438), progress=False)


def test_a_run_starts_from_the_weights_of_another_and_goes_on_when_killed(
    images: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = train(images, progress=False)
    tuned = dataclasses.replace(
        images, start_from=images.output, steps=10, rule="none", seed=3, lr=1e-4, output=tmp_path / "tuned"
    )
    record = train(tuned, progress=False)
    assert base.final_val_loss is not None
    assert rows(tuned.output)[0]["loss"] < 1.2
    assert record.final_val_loss == pytest.approx(base.final_val_loss, abs=0.05)
    killed = dataclasses.replace(tuned, output=tmp_path / "killed")
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(KilledError):
            train(killed, progress=False)
    with pytest.raises(UserError, match=r"belongs to another run \(start_from was '[0-9a-f]{16}', here None\)"):
        train(dataclasses.replace(killed, start_from=None, resume=True), progress=False)
    train(dataclasses.replace(killed, resume=True), progress=False)
    assert_same_run(tuned, killed)


def test_weights_of_another_model_are_one_sentence(images: TrainConfig, small: TrainConfig, tmp_path: Path) -> None:
    train(images, progress=False)
    text = dataclasses.replace(small, start_from=images.output, output=tmp_path / "text")
    with pytest.raises(UserError, match=r"are of another model than this run's \(they differ in 0\.bias\)"):
        train(text, progress=False)


def test_the_two_optimizers_of_torch_muon_share_one_factor(small: TrainConfig) -> None:
    run = module._Run(dataclasses.replace(small, optimizer="torch-muon", output=None).resolve(), "")
    for _ in range(10):
        run.one_step()
        first, second = run.schedulers
        assert first.factor == second.factor
        assert first.phase == second.phase
    assert [type(optimizer).__name__ for optimizer in run.optimizers] == ["Muon", "AdamW"]
    found = [parameter for each in run.optimizers for group in each.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in found} == {id(parameter) for parameter in run.network.parameters()}
    assert len(found) == len({id(parameter) for parameter in found})


def test_a_probe_measures_one_optimizer(small: TrainConfig) -> None:
    with pytest.raises(UserError, match="torch-muon is two optimizers, and a probe measures the steps of one"):
        train(
            dataclasses.replace(small, optimizer="torch-muon"),
            progress=False,
            probe=lambda optimizer, model: SmoothnessProbe(optimizer, model=model),
        )


@pytest.mark.parametrize("rule", ["auto", "gap", "loss-ratio", "power"])
def test_averaging_is_the_rules(small: TrainConfig, rule: str) -> None:
    run = module._Run(dataclasses.replace(small, rule=rule, averaging=0.25, output=None).resolve(), "")
    own = module._Run(dataclasses.replace(small, rule=rule, output=None).resolve(), "")
    assert run.schedulers[0].schedule.rule.config()["signal"]["averaging"] == 0.25
    assert own.schedulers[0].schedule.rule.config()["signal"]["averaging"] == 0.9


# ------------------------------------------------------------------------------------------------------------ bad input


def test_a_text_shorter_than_a_batch_is_refused(small: TrainConfig) -> None:
    with pytest.raises(
        UserError,
        match=r"is shorter than a batch: it gives \d+ training sequences of 512 tokens, and a batch takes 400",
    ):
        train(dataclasses.replace(small, sequence_length=512, batch_size=400), progress=False)


def test_a_text_without_room_for_validation_is_refused(small: TrainConfig) -> None:
    with pytest.raises(UserError, match=r"leaves \d+ tokens for validation, fewer than a sequence of 7000"):
        train(dataclasses.replace(small, sequence_length=7000, batch_size=1), progress=False)


def interrupted(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        train(config, progress=False)
    assert config.output is not None
    return config.output


def test_a_checkpoint_of_another_run_is_refused(small: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(small, monkeypatch)
    with pytest.raises(
        UserError, match=r"belongs to another run \(lr was 0.\d+, here 0.5, and 1 more\): give the same settings"
    ):
        train(dataclasses.replace(small, lr=0.5, seed=7, resume=True), progress=False)


def test_a_checkpoint_trained_on_another_text_is_refused(small: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(small, monkeypatch)
    Path(small.corpus).write_text("".join(SENTENCES) + "One line more.\n")
    with pytest.raises(UserError, match=r"is not the one that .* was trained on"):
        train(dataclasses.replace(small, resume=True), progress=False)


def test_a_checkpoint_of_another_version_is_refused(small: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = last_checkpoint(interrupted(small, monkeypatch))
    assert checkpoint is not None
    state = torch.load(checkpoint / "trainer.pt", weights_only=True)
    torch.save(state | {"version": 99}, checkpoint / "trainer.pt")
    with pytest.raises(UserError, match=r"another version of warmgap \(form 99, this one reads form 2\)"):
        train(dataclasses.replace(small, resume=True), progress=False)


@pytest.mark.parametrize("name", ["trainer.pt", "model.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "noise"])
def test_a_damaged_checkpoint_is_one_sentence(
    small: TrainConfig, monkeypatch: pytest.MonkeyPatch, name: str, damage: str
) -> None:
    checkpoint = last_checkpoint(interrupted(small, monkeypatch))
    assert checkpoint is not None
    path = checkpoint / name
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "noise": b"noise" * 100}[damage])
    with pytest.raises(UserError, match=r"delete that folder and resume again") as caught:
        train(dataclasses.replace(small, resume=True), progress=False)
    assert "\n" not in str(caught.value)


def test_a_target_above_the_losses_is_one_sentence(small: TrainConfig) -> None:
    with pytest.raises(UserError, match="The warm-up rule cannot go on: target_loss must lie below the losses"):
        train(dataclasses.replace(small, rule="gap", target_loss=100.0), progress=False)


# -------------------------------------------------------------------------------------------------------- two processes

WORKER = """
import json, os, sys
from pathlib import Path
from warmgap.lab import train as module

rates = []
step = module.AdaptiveWarmup.step
def recording(self, loss=None):
    step(self, loss)
    rates.append(self.get_last_lr())
module.AdaptiveWarmup.step = recording

settings = json.loads(sys.argv[1])
output = Path(settings.pop("output"))
module.train(module.TrainConfig(**settings, output=output), progress=False)
output.with_name(f"rates{os.environ['RANK']}.json").write_text(json.dumps(rates))
"""


def test_two_processes_have_one_learning_rate_and_train_the_same_model(small: TrainConfig, tmp_path: Path) -> None:
    alone = dataclasses.replace(
        small, optimizer="normalized-sgd", accumulation=2, save_every=14, output=tmp_path / "alone"
    )
    train(alone, progress=False)
    settings = dataclasses.asdict(alone) | {"output": str(tmp_path / "together" / "run"), "accumulation": 2}
    (tmp_path / "together").mkdir()
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*launch, str(worker), json.dumps(settings)],
        check=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    first, second = (json.loads((tmp_path / "together" / f"rates{rank}.json").read_text()) for rank in range(2))
    assert first == second
    together = tmp_path / "together" / "run"
    assert RunRecord.load(together).processes == 2
    for one, other in zip(rows(alone.output), rows(together), strict=True):
        assert other["lr"] == pytest.approx(one["lr"], rel=1e-6)
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
    for name, tensor in weights(alone.output).items():
        torch.testing.assert_close(weights(together)[name], tensor, rtol=1e-3, atol=1e-4)
