from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from warmgap.lab import cli
from warmgap.lab.config import TrainConfig, from_plain
from warmgap.lab.errors import UserError


def test_what_was_left_open_is_filled_in() -> None:
    full = TrainConfig(optimizer="lion").resolve()
    assert (full.lr, full.vocab_size, full.sequence_length, full.tied) == (1e-3, 257, 64, False)
    assert TrainConfig(model="6x512", method="gap", sigma=0.1).resolve().method == "gap,sigma=0.1"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"optimizer": "adam"}, "Unknown optimizer 'adam': choose one of muon"),
        ({"model": "huge"}, "Unknown model 'huge'"),
        ({"model": "mlp"}, "corpus digits and the models mlp, convnet go together"),
        ({"steps": 1}, "The steps must be a whole number of at least 2, got 1"),
        ({"seed": 2**63}, "The seed must be a whole number from 0 to 2**63 - 1"),
        ({"lr": 0.0}, "The peak learning rate must be a finite number above 0"),
        ({"lr": float("nan")}, "The peak learning rate must be a finite number above 0"),
        ({"weight_decay": -1.0}, "The weight decay must be a finite number at least 0"),
        ({"floor": 1.0}, "between 0 and 1, got 1.0"),
        ({"batch_size": 5, "accumulation": 2}, "a multiple of the accumulation, got 5 and 2"),
        ({"method": "foo"}, "Unknown method 'foo'"),
        ({"method": "linear:600"}, "does not end within a run of 600 steps"),
        ({"method": "published"}, "give --target-loss"),
        ({"method": "none", "target_loss": 1.0}, "has no use for a target loss"),
        ({"method": "none", "sigma": 1.0}, "has no use for sigma"),
        ({"optimizer": "muon", "momentum": 1.0}, "momentum must be in [0, 1), got 1.0"),
        ({"betas": (0.9, 1.0)}, "betas must be in [0, 1), got (0.9, 1.0)"),
        ({"optimizer": "lion", "momentum": 0.9}, "The optimizer lion has no momentum: leave --momentum out"),
        ({"corpus": "digits", "model": "mlp", "tied": True}, "The model mlp has no tied: leave --tied out"),
        ({"precision": "fp8"}, "Unknown precision 'fp8'"),
    ],
)
def test_a_mistake_is_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        TrainConfig(**settings).resolve()
    assert sentence in str(error.value)
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


def test_the_fingerprint_is_of_the_numbers_alone() -> None:
    base = TrainConfig()
    assert base.fingerprint() == TrainConfig(lr=2e-2, threads=3, save_every=7).fingerprint()
    assert base.fingerprint() == from_plain(base.numbers()).fingerprint()
    for change in ({"lr": 1e-2}, {"seed": 1}, {"method": "none"}, {"betas": (0.8, 0.9)}):
        assert dataclasses.replace(base, **change).fingerprint() != base.fingerprint()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"foo": 1}, "There is no setting 'foo'"),
        ({"lr": "0.1"}, "The peak learning rate must be of the kind float, got '0.1'"),
        ({"corpus": 3}, "The corpus must be of the kind str, got 3"),
        ({"betas": 0.9}, "The betas must be of the kind tuple, got 0.9"),
    ],
)
def test_plain_values_of_another_kind_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        from_plain(settings)
    assert sentence in str(error.value)


def test_the_command_of_a_run_makes_that_run() -> None:
    config = TrainConfig(method="linear:10%", betas=(0.8, 0.999), tied=True, lr=3e-3, optimizer="muon", corpus="a b")
    command = cli.parse(["train", *config.words()])
    assert command.config == config
    assert config.command(Path("runs/x")).startswith("warmgap train --method linear:10% --lr 0.003")


def test_what_changes_nothing_is_said() -> None:
    config = TrainConfig(method="linear:10%/linear", floor=0.1, decay="wsd", corpus_megabytes=3.0)
    assert config.ignored() == [
        "--floor changes nothing: linear:10%/linear starts where its shape says.",
        "--decay changes nothing: linear:10%/linear names its own decay.",
        "--corpus-megabytes changes nothing: only streamed datasets (hf:) are cut.",
    ]
    assert TrainConfig().ignored() == []
