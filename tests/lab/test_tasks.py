from pathlib import Path

import numpy as np
import pytest
import torch

from warmgap.lab.config import TrainConfig
from warmgap.lab.tasks import Digits, Task, Text, make_task


@pytest.fixture(params=["text", "digits"])
def task(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setenv("WARMGAP_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{number} times {number} is {number * number}.\n" for number in range(3000)))
    if request.param == "text":
        return make_task(TrainConfig(corpus=str(text), batch_size=4, sequence_length=16).resolve())
    return make_task(TrainConfig(corpus="digits", model="mlp", batch_size=4).resolve())


def test_a_batch_is_a_function_of_the_step(task: Task) -> None:
    batch = task.batch(3)
    assert len(batch) == 4
    assert np.array_equal(batch, task.batch(3))
    assert not np.array_equal(batch, task.batch(4))
    assert task.validation(np.array([0, task.held_out - 1])).shape == (2, batch.shape[1])


def test_an_untrained_model_guesses(task: Task) -> None:
    model = task.model()
    logits, classes = task.predict(model, torch.from_numpy(task.batch(0)))
    assert logits.shape[0] == classes.shape[0] == 4 * task.predictions
    loss = torch.nn.functional.cross_entropy(logits, classes).item()
    assert loss == pytest.approx(np.log(logits.shape[1]), rel=0.05)


def test_an_epoch_of_digits_shows_every_image_once() -> None:
    task = make_task(TrainConfig(corpus="digits", model="mlp", batch_size=479).resolve())
    epoch = np.concatenate([task.batch(step) for step in range(3)])
    assert isinstance(task, Digits)
    train = task._images.train
    assert sorted(map(bytes, epoch)) == sorted(map(bytes, train))


def test_the_corpus_decides(task: Task) -> None:
    assert isinstance(task, Text) == (task.predictions == 16)
