import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from warmgap.lab.config import TrainConfig
from warmgap.lab.errors import UserError
from warmgap.lab.options import Parser, add_options, build


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"model": "huge"}, "Unknown model 'huge': choose one of tiny, mini"),
        ({"optimizer": "adamm"}, "Unknown optimizer 'adamm': choose one of muon, lion"),
        ({"decay": "cos"}, "Unknown decay 'cos': choose one of cosine, linear"),
        ({"precision": "fp8"}, "Unknown precision 'fp8': choose one of fp32, bf16"),
        ({"rule": "linear"}, "Unknown rule 'linear': choose one of auto, auto-late, gap"),
        ({"rule": "linear:-3"}, "Unknown rule 'linear:-3'"),
        ({"rule": "linear:4.5"}, "Unknown rule 'linear:4.5'"),
        ({"rule": "none:4"}, "Unknown rule 'none:4'"),
        ({"rule": "linear:600"}, "A warm-up of 600 steps does not end within a run of 600 steps"),
        ({"rule": "published"}, "The published rule takes its target loss by hand: give --target-loss"),
        ({"rule": "linear:40", "target_loss": 1.0}, "has no use for a target loss"),
        ({"lr": 0.0}, "The peak learning rate must be a finite number above 0, got 0.0"),
        ({"lr": -1e-3}, "The peak learning rate must be a finite number above 0"),
        ({"lr": float("nan")}, "The peak learning rate must be a finite number above 0, got nan"),
        ({"floor": 0.0}, "The floor must lie between 0 and 1"),
        ({"floor": 1.0}, "The floor must lie between 0 and 1"),
        ({"floor": float("nan")}, "The floor must lie between 0 and 1"),
        ({"target_loss": float("inf")}, "The target loss must be a finite number"),
        ({"steps": 1}, "The steps must be a whole number of at least 2, got 1"),
        ({"steps": 2.5}, "The steps must be a whole number of at least 2, got 2.5"),
        ({"batch_size": 0}, "The batch size must be a whole number of at least 1"),
        ({"batch_size": 32, "accumulation": 5}, "must be a multiple of the accumulation, got 32 and 5"),
        ({"sequence_length": 0}, "The sequence length must be a whole number of at least 1"),
        ({"vocab_size": 256}, "The vocab size must be a whole number of at least 257"),
        ({"weight_decay": -0.1}, "The weight decay must be a finite number at least 0"),
        ({"clip": float("inf")}, "The clipping norm must be a finite number at least 0"),
        ({"seed": -1}, "The seed must be a whole number of at least 0"),
        ({"threads": 0}, "The threads must be a whole number of at least 1"),
        ({"eval_tokens": 0}, "The eval tokens must be a whole number of at least 1"),
        ({"averaging": 1.0}, "The averaging must lie in [0, 1) (0 is none at all), got 1.0"),
        ({"averaging": 0.5, "rule": "none"}, "The rule 'none' does not average the losses: leave --averaging out"),
        ({"averaging": 0.5, "rule": "published", "target_loss": 1.0}, "The rule 'published' does not average"),
        ({"corpus": "digits"}, "The model tiny does not learn from the corpus digits: the corpus digits and the model"),
        ({"model": "mlp"}, "The model mlp does not learn from the corpus wiki"),
        (
            {"corpus": "digits", "model": "mlp", "vocab_size": 300},
            "The model mlp has no vocab size: leave --vocab-size",
        ),
        ({"corpus": "digits", "model": "mlp", "tied": False}, "The model mlp has no tied: leave --tied out"),
        ({"corpus_megabytes": 0.0}, "The corpus megabytes must be a finite number above 0"),
    ],
)
def test_a_wrong_setting_is_one_sentence_that_names_it(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        TrainConfig(**settings).resolve()  # type: ignore[arg-type]
    assert sentence in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_the_defaults_are_the_models_and_the_optimizers_own() -> None:
    full = TrainConfig().resolve()
    assert (full.sequence_length, full.vocab_size, full.tied) == (64, 257, False)
    assert full.lr is not None
    big = TrainConfig(model="124m", optimizer="lion").resolve()
    assert (big.sequence_length, big.vocab_size, big.tied) == (512, 50304, True)
    assert big.lr != full.lr
    assert TrainConfig(lr=0.5, vocab_size=300).resolve().lr == 0.5


def test_the_fingerprint_is_of_what_decides_the_numbers() -> None:
    config = TrainConfig()
    assert config.fingerprint() == config.resolve().fingerprint()
    for aside in ({"output": Path("elsewhere")}, {"resume": True}, {"threads": 2}, {"save_every": 7}):
        assert dataclasses.replace(config, **aside).fingerprint() == config.fingerprint()
    changes = ({"seed": 1}, {"lr": 0.5}, {"rule": "none"}, {"steps": 601}, {"corpus": "stdlib"}, {"averaging": 0.5})
    for deciding in changes:
        assert dataclasses.replace(config, **deciding).fingerprint() != config.fingerprint()


def test_a_setting_that_is_not_given_leaves_no_trace() -> None:
    assert {"averaging", "start_from"}.isdisjoint(TrainConfig().numbers())
    assert TrainConfig(averaging=0.5).numbers()["averaging"] == 0.5


def test_a_run_that_starts_from_weights_is_known_by_the_weights_not_by_the_folder(
    tmp_path: Path, write_run: Callable[..., Path]
) -> None:
    for folder, data in (("one", b"weights"), ("same", b"weights"), ("other", b"others")):
        checkpoint = write_run(tmp_path / folder) / "checkpoint" / "step-00000040"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_bytes(data)
    one, same, other = (TrainConfig(start_from=tmp_path / folder) for folder in ("one", "same", "other"))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    assert one.fingerprint() != TrainConfig().fingerprint()
    assert str(tmp_path) not in json.dumps(one.numbers())


def test_weights_that_are_not_there_are_one_sentence(tmp_path: Path, write_run: Callable[..., Path]) -> None:
    write_run(tmp_path / "bare")
    write_run(tmp_path / "half", status="interrupted")
    early = write_run(tmp_path / "early") / "checkpoint" / "step-00000020"  # of an interruption
    early.mkdir(parents=True)
    (early / "model.safetensors").write_bytes(b"weights")
    for folder, sentence in (
        ("none", "holds no run"),
        ("early", "kept no weights: train it again with --save-every above 0"),
        ("bare", "kept no weights: train it again with --save-every above 0"),
        ("half", r"is not finished \(interrupted\): finish it before starting from it"),
    ):
        with pytest.raises(UserError, match=sentence):
            TrainConfig(start_from=tmp_path / folder).fingerprint()


@pytest.mark.parametrize(
    ("rule", "steps"), [("none", 0), ("linear:0", 0), ("linear:40", 40), ("auto", None), ("published", None)]
)
def test_the_length_of_a_warm_up_set_by_hand(rule: str, steps: int | None) -> None:
    assert TrainConfig(rule=rule).linear_steps() == steps


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        TrainConfig(corpus="a folder/with 'quotes'", lr=3e-3, rule="linear:40", output=Path("runs/a b")),
        TrainConfig(tied=True, target_loss=1.25, seed=3, threads=1, clip=0.0),
        TrainConfig(model="124m", tied=False, precision="bf16", accumulation=8),
        TrainConfig(corpus="digits", model="mlp", start_from=Path("runs/a b"), averaging=0.25),
    ],
)
def test_the_recorded_command_makes_the_same_run(config: TrainConfig) -> None:
    words = shlex.split(config.command())
    assert words[:2] == ["warmgap", "train"]
    parser = Parser()
    add_options(parser, TrainConfig)
    assert build(TrainConfig, parser.parse_args(words[2:])) == config
