from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from warmgap.lab import train as module
from warmgap.lab.checkpoints import last_checkpoint
from warmgap.lab.config import TrainConfig
from warmgap.lab.errors import LostProcessError, UserError
from warmgap.lab.optimizers import OPTIMIZERS
from warmgap.lab.store import METRICS, Result
from warmgap.lab.train import train


def column(result: Result, name: str) -> list[Any]:
    return [row[METRICS.index(name)] for row in result.metrics]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = last_checkpoint(folder)
    assert checkpoint is not None
    return safetensors.torch.load_file(checkpoint / "model.safetensors")


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException | None = None) -> None:
    one_step = module._Run.one_step

    def stopping(self: Any) -> Any:
        if self.step == step:
            if error is not None:
                raise error
            self.accelerator.set_trigger()
        return one_step(self)

    monkeypatch.setattr(module._Run, "one_step", stopping)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_every_optimizer_learns(small: TrainConfig, optimizer: str) -> None:
    result = train(replace(small, optimizer=optimizer, steps=20, eval_every=0))
    assert result.status == "done"
    assert result.record["final_val_loss"] < math.log(257) - 0.5


@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_images_are_learned(images: TrainConfig, model: str) -> None:
    result = train(replace(images, model=model, steps=60))
    assert result.record["final_val_loss"] < math.log(10) - 0.3


def test_what_a_run_leaves(small: TrainConfig, tmp_path: Path) -> None:
    seen: list[Any] = []
    result = train(replace(small, save_every=5), tmp_path, sink=seen.extend)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert result.status == "done"
    assert result.record["step"] == 14
    assert result.record["parameters"] == 132_032
    assert column(result, "step") == list(range(1, 15))
    assert [row[0] for row in result.metrics if row[-1] is not None] == [5, 10, 14]
    assert result.record["final_val_loss"] == result.metrics[-1][-1]
    assert result.record["first_loss"] == result.metrics[0][1]
    assert seen == list(result.metrics[: len(seen)])
    assert str(tmp_path) not in str(result.record)
    assert result.record["code"]
    assert result.record["verdict"] in ("too high", "fine", "unknown")


def test_the_rates_are_those_of_the_method(small: TrainConfig) -> None:
    config = replace(small, method="geometric:50%@hidden", optimizer="lion", lr=1e-3, steps=10)
    run = module._Run(config.resolve(), None, None, resume=False)
    groups = run.optimizers[0].param_groups
    assert {group["lr"] for group in groups if group["kind"] == "matrix"} == {0.25e-3}
    assert {group["lr"] for group in groups if group["kind"] != "matrix"} == {1e-3}
    factors = column(train(config), "factor")
    assert factors[:5] == pytest.approx([0.25 ** (1 - step / 5) for step in range(5)])
    assert factors[5] == 1.0
    assert column(train(replace(config, method="none/linear")), "factor") == pytest.approx(
        [1 - s / 10 for s in range(10)]
    )


def test_the_published_rule_starts_at_the_peak_and_then_follows_the_raw_loss(small: TrainConfig) -> None:
    config = replace(small, method="published", target_loss=1.0, optimizer="lion")
    result = train(config)
    factors = column(result, "factor")
    assert factors[0] == 1.0
    assert factors[1] == pytest.approx(0.01, rel=0.3)
    refused = train(replace(config, target_loss=9.0))
    assert refused.status == "refused"
    assert "give a lower --target-loss" in refused.message
    assert refused.record["first_loss"] > 5.0


@pytest.mark.parametrize("method", ["auto", "linear:40%"])
@pytest.mark.parametrize("how", ["asked", "killed"])
def test_promise_4_a_resumed_run_is_the_same_bit_for_bit(
    small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, how: str
) -> None:
    config = replace(small, method=method, save_every=4)
    whole = train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 9, KeyboardInterrupt() if how == "killed" else None)
        if how == "killed":
            with pytest.raises(KeyboardInterrupt):
                train(config, tmp_path / "part")
        else:
            assert train(config, tmp_path / "part").status == "interrupted"
    rest = train(config, tmp_path / "part", resume=True)
    assert rest.metrics == whole.metrics
    assert rest.events == whole.events
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "part")[name]), name


def test_micro_batches_change_little(small: TrainConfig) -> None:
    one, two = (column(train(replace(small, method="none", accumulation=count)), "loss") for count in (1, 2))
    assert one == pytest.approx(two, rel=1e-3)


def test_a_run_that_diverges_says_so_and_keeps_no_checkpoint_of_it(small: TrainConfig, tmp_path: Path) -> None:
    config = replace(small, optimizer="lion", lr=1e30, method="none", save_every=1)
    result = train(config, tmp_path)
    assert result.status == "diverged"
    assert result.record["final_val_loss"] is None
    assert result.metrics[-1][1] is None or math.isfinite(result.metrics[-1][1])


def test_starting_from_the_weights_of_another_run(small: TrainConfig, tmp_path: Path) -> None:
    first = replace(small, steps=20, save_every=20)
    done = train(first, tmp_path / "first")
    second = train(replace(small, start_from=tmp_path / "first", seed=1))
    assert second.record["first_loss"] < 0.5 * done.record["first_loss"]
    assert replace(small, start_from=tmp_path / "first").fingerprint() != small.fingerprint()
    with pytest.raises(UserError, match=r"weights of another model|are of another model"):
        train(replace(small, start_from=tmp_path / "first", vocab_size=300))
    with pytest.raises(UserError, match="holds no weights of a run"):
        train(replace(small, start_from=tmp_path))


def test_a_checkpoint_of_another_run_is_refused(small: TrainConfig, tmp_path: Path) -> None:
    train(replace(small, save_every=7), tmp_path)
    with pytest.raises(UserError, match=r"belongs to another run \(weight_decay was 0.1, here 0.2\)"):
        train(replace(small, weight_decay=0.2), tmp_path, resume=True)
    checkpoint = last_checkpoint(tmp_path)
    assert checkpoint is not None
    (checkpoint / "trainer.pt").write_bytes(b"no")
    with pytest.raises(UserError, match="is damaged: delete that folder"):
        train(small, tmp_path, resume=True)


def test_too_large_a_batch_is_told(small: TrainConfig, images: TrainConfig) -> None:
    for config in (replace(small, batch_size=100_000), replace(images, batch_size=2_000)):
        with pytest.raises(UserError, match="smaller --batch-size"):
            train(config)
    assert dataclasses.is_dataclass(images)


def test_which_code_ran_is_known_without_git_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> str:
        raise FileNotFoundError("git")

    monkeypatch.setattr(module, "_git", missing)
    assert module.code().startswith("sha256:")
    assert module.code() == module.code()


def test_a_process_that_is_lost_before_the_first_step_is_told_too(
    small: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: TrainConfig) -> None:
        raise RuntimeError("gloo/transport/tcp: Connection closed by peer")

    monkeypatch.setattr(module, "make_task", lost)
    with pytest.raises(LostProcessError, match="Process 0 ends because another one"):
        train(small)
