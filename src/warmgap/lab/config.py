"""The settings of a training run: what may be asked for, and the one clear sentence where it may not.

The classes below are the groups of `warmgap train --help`; `TrainConfig` is all of them together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from tyro.conf import arg

from warmgap.lab.corpus import BYTES, NAMES, TRAINED, hash_file
from warmgap.lab.errors import UserError
from warmgap.lab.methods import DECAYS, EXAMPLES, RULES, WITH_TARGET, Method
from warmgap.lab.model import DIGITS, IMAGE_MODELS, SIZES, size_of
from warmgap.lab.optimizers import OPTIMIZERS

PRECISIONS = ("fp32", "bf16")

# The comment on a field, or above it, is its help on the command line.


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """What sets the learning rate."""

    method: Annotated[
        str, arg(aliases=("--rule",), help=f"A rule ({', '.join(RULES)}) or a schedule by step count: {EXAMPLES}.")
    ] = "auto"
    target_loss: Annotated[
        float | None, arg(help=f"Loss taken as optimal, for {', '.join(WITH_TARGET)} (None: estimated).")
    ] = None
    sigma: float | None = None  # Curvature scale of the gap rule (the paper's sigma_F).
    kappa: float | None = None  # Its constant of the norm (None: from the optimizer and shapes).
    level: float | None = None  # Loss at which loss-ratio ends its warm-up (the paper's C).


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The schedule."""

    steps: int = 600  # Optimizer steps in the whole run.
    lr: float | None = None  # Peak learning rate (None: the optimizer's tuned one).
    decay: Annotated[str, arg(help=f"Decay at the end: {', '.join(DECAYS)}.")] = "cosine"
    floor: float = 0.01  # Starting / peak learning rate, for rules that have one.


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimizer."""

    optimizer: Annotated[str, arg(help=f"One of {', '.join(OPTIMIZERS)}.")] = "muon"
    # Betas of Lion and AdamW, also of Muon's AdamW half (None: usual ones).
    betas: tuple[float, float] | None = None
    momentum: float | None = None  # Momentum of the others (None: the optimizer's usual one).
    second_lr: float | None = None  # Peak rate of what Muon leaves to AdamW (None: the same as --lr).
    weight_decay: float = 0.1  # Weight decay, decoupled but for sgd.
    clip: float = 0.5  # Largest gradient norm, 0 for no clipping.
    # Layer constants for gluon, from `warmgap smoothness --write-radii`; --lr is 1 then.
    radii: Path | None = None


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is learned."""

    corpus: Annotated[str, arg(help="; ".join(f"{name}: {text}" for name, text in NAMES.items()))] = "wiki"
    model: Annotated[
        str, arg(help=f"{', '.join(SIZES)} or layers x width (6x512) learn texts, {', '.join(IMAGE_MODELS)} digits.")
    ] = "tiny"
    # trained (on the corpus), a tokenizer.json, a folder with one or with vocab.json and merges.txt, or a name on the
    # hub: gpt2.
    tokenizer: str = TRAINED
    # Tokens in the vocabulary, 257 for plain bytes (None: the model's usual number).
    vocab_size: int | None = None
    sequence_length: int | None = None  # Tokens in a sequence (None: the model's usual number).
    tied: bool | None = None  # One matrix for input and output embeddings (None: the model's).
    batch_size: int = 32  # Sequences or images a step, over all processes and micro-batches.
    accumulation: int = 1  # Micro-batches a step.
    corpus_megabytes: float = 100.0  # Megabytes of text to read of a streamed dataset.
    seed: int = 0  # Seed of the weights and of the order of the data.
    start_from: Path | None = None  # Folder of a finished run: start from its weights.


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How it is run."""

    precision: str = "fp32"  # Arithmetic of forward and backward: fp32 or bf16.
    eval_every: int = 100  # Steps between evaluations, 0 for one at the end.
    eval_tokens: int = 65_536  # Validation tokens or images an evaluation reads.
    save_every: int = 200  # Steps between checkpoints, 0 for none but at an interruption.
    threads: int | None = None  # CPU threads a process may use (None: the machine's).


GROUPS = (MethodSettings, ScheduleSettings, OptimizerSettings, DataSettings, RunSettings)

_ASIDE = ("threads", "save_every")
"""Settings that say how to run and change no number of the run."""

_OF_TEXTS = ("vocab_size", "sequence_length", "tied")


def _whole(low: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= low


def _number(fits: Callable[[float], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and math.isfinite(value) and fits(value)


_BOUNDS: dict[str, tuple[Callable[[Any], bool], tuple[str, ...]]] = {
    "a whole number from 0 to 2**63 - 1": (lambda value: _whole(0)(value) and value < 2**63, ("seed",)),
    "a whole number of at least 0": (_whole(0), ("eval_every", "save_every")),
    "a whole number of at least 1": (
        _whole(1), ("batch_size", "accumulation", "sequence_length", "eval_tokens", "threads"),
    ),
    "a whole number of at least 2": (_whole(2), ("steps",)),
    f"a whole number of at least {BYTES}": (_whole(BYTES), ("vocab_size",)),
    "a finite number": (_number(math.isfinite), ("target_loss",)),
    "a finite number at least 0": (_number(lambda value: value >= 0.0), ("weight_decay", "clip")),
    "a finite number above 0": (
        _number(lambda value: value > 0.0), ("lr", "second_lr", "sigma", "kappa", "level", "corpus_megabytes"),
    ),
    "in [0, 1)": (_number(lambda value: 0.0 <= value < 1.0), ("momentum", "betas")),
    "starting / peak learning rate, between 0 and 1": (_number(lambda value: 0.0 < value < 1.0), ("floor",)),
}  # fmt: skip
"""What a setting must be, where it is given, and which must."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunSettings, DataSettings, OptimizerSettings, ScheduleSettings, MethodSettings):
    """One training run. Fields left at None are filled in by `resolve`, which also checks all of them."""

    def resolve(self) -> TrainConfig:
        """The same settings, checked, with the model's and the optimizer's own where a field was None."""
        known = {"optimizer": (*OPTIMIZERS,), "decay": DECAYS, "precision": PRECISIONS}
        for name, choices in known.items():
            if (value := getattr(self, name)) not in choices:
                raise UserError(f"Unknown {name} {value!r}: choose one of {', '.join(choices)}.")
        size = size_of(self.model)
        if size is None and self.model not in IMAGE_MODELS:
            names = ", ".join((*SIZES, *IMAGE_MODELS))
            raise UserError(f"Unknown model {self.model!r}: choose one of {names}, or layers x width such as 6x512.")
        if (self.corpus == DIGITS) != (self.model in IMAGE_MODELS):
            raise UserError(
                f"The model {self.model} does not learn from the corpus {self.corpus}: the corpus {DIGITS} and the "
                f"models {', '.join(IMAGE_MODELS)} go together, and the other models learn from texts."
            )
        self._check_numbers()
        method = Method.parse(self.method).with_options(sigma=self.sigma, kappa=self.kappa, level=self.level)
        method.check(self.steps)
        if self.target_loss is not None and method.rule not in WITH_TARGET:
            raise UserError(f"The method {method} has no use for a target loss: leave --target-loss out.")
        if method.rule == "published" and self.target_loss is method.target is None:
            raise UserError("The published rule takes its target loss by hand: give --target-loss.")
        chosen = OPTIMIZERS[self.optimizer]
        for name in ("betas", "momentum", "second_lr", "radii"):
            if getattr(self, name) is not None and name not in chosen.settings:
                raise UserError(f"The optimizer {self.optimizer} has no {name}: leave {_flag(name)} out.")
        full: dict[str, Any] = {"method": str(method), "sigma": None, "kappa": None, "level": None}
        own = chosen.lr if self.radii is None else 1.0  # with measured radii 1 is the theory's step
        full["lr"] = own if self.lr is None else self.lr
        for name in _OF_TEXTS:
            if size is not None and getattr(self, name) is None:
                full[name] = getattr(size, name)
            elif size is None and getattr(self, name) is not None:
                raise UserError(f"The model {self.model} has no {name.replace('_', ' ')}: leave {_flag(name)} out.")
        return dataclasses.replace(self, **full)

    def _check_numbers(self) -> None:
        for bound, (fits, names) in _BOUNDS.items():
            for name in names:
                value = getattr(self, name)
                if value is not None and not all(map(fits, value if isinstance(value, tuple) else [value])):
                    raise UserError(f"{_spoken(name)} must be {bound}, got {value!r}.")
        if self.batch_size % self.accumulation:
            numbers = f"{self.batch_size} and {self.accumulation}"
            raise UserError(f"The batch size must be a multiple of the accumulation, got {numbers}.")

    def ignored(self) -> list[str]:
        """A sentence on each setting that was given and changes nothing here."""
        method = Method.parse(self.method)
        given = self.given()
        idle = {
            "floor": not method.adaptive and f"{method} starts where its shape says",
            "decay": method.decay is not None and f"{method} names its own decay",
            "corpus_megabytes": not self.corpus.startswith("hf:") and "only streamed datasets (hf:) are cut",
            "tokenizer": self.corpus == DIGITS and "images have no tokens",
            "vocab_size": self.tokenizer != TRAINED
            and size_of(self.model) is not None
            and (self.vocab_size or BYTES) <= BYTES
            and "the tokenizer has its own vocabulary",
        }
        return [f"{_flag(name)} changes nothing: {why}." for name, why in idle.items() if why and name in given]

    def numbers(self) -> dict[str, Any]:
        """The settings that decide the numbers of the run, resolved, as plain values; those that are None left out.

        Instead of a file that a run reads there is a hash of it.
        """
        full = self.resolve()
        found = {name: value for name, value in vars(full).items() if name not in _ASIDE and value is not None}
        if full.betas is not None:
            found["betas"] = list(full.betas)
        if full.start_from is not None:
            from warmgap.lab.checkpoints import final_weights

            found["start_from"] = hash_file(final_weights(full.start_from))[:16]
        if full.radii is not None:
            if not full.radii.is_file():
                raise UserError(f"There is no file {full.radii}: warmgap smoothness --write-radii makes one.")
            found["radii"] = hash_file(full.radii)[:16]
        return found

    def fingerprint(self, key: str = "") -> str:
        """A hash of every setting that decides the numbers of the run, and of `key`; 16 hexadecimal digits."""
        return hashlib.sha256((json.dumps(self.numbers(), sort_keys=True) + key).encode()).hexdigest()[:16]

    def given(self) -> dict[str, Any]:
        """The settings that differ from the defaults."""
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: value for name, value in vars(self).items() if value != usual[name]}

    def words(self) -> list[str]:
        """The settings that differ from the defaults, as words of a command line."""
        found: list[str] = []
        for name, value in self.given().items():
            found += [_flag(name), *map(str, value if isinstance(value, tuple) else [value])]
        return found

    def command(self, output: Path) -> str:
        """The command line that makes this run."""
        return shlex.join(["warmgap", "train", *self.words(), "--output", str(output)])

    @property
    def text(self) -> dict[str, Any]:
        """The text and its tokens, as arguments of `load_tokens`; the settings are resolved."""
        about = {"tokenizer": self.tokenizer, "megabytes": self.corpus_megabytes}
        return {"name": self.corpus, "vocab_size": self.vocab_size, **about}

    @property
    def name(self) -> str:
        """A short name for a folder: what is trained how, with which seed."""
        method = "".join(sign if sign.isalnum() or sign in ".-" else "-" for sign in self.method).strip("-")
        return f"{self.model}-{self.optimizer}-{method}-seed{self.seed}"


def from_plain(settings: Mapping[str, Any]) -> TrainConfig:
    """A configuration from plain values, as a recipe or a database holds them."""
    hints, given = get_type_hints(TrainConfig), dict(settings)
    if unknown := sorted(given.keys() - hints):
        raise UserError(f"There is no setting {unknown[0]!r}: the settings are {', '.join(sorted(hints))}.")
    for name, value in given.items():
        kinds = [get_origin(kind) or kind for kind in get_args(hints[name]) or [hints[name]]]
        if tuple in kinds and isinstance(value, list):
            given[name] = tuple(value)
        elif Path in kinds and isinstance(value, str):
            given[name] = Path(value)
        if not isinstance(given[name], (*kinds, int) if float in kinds else (*kinds,)):
            raise UserError(f"{_spoken(name)} must be of the kind {kinds[0].__name__}, got {value!r}.")
    return TrainConfig(**given)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _spoken(name: str) -> str:
    return {"lr": "The peak learning rate", "clip": "The clipping norm"}.get(name, "The " + name.replace("_", " "))
