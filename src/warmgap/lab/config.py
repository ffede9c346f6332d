"""The settings of a training run: what may be asked for, and the one clear sentence where it may not.

The classes below are the groups of `warmgap train --help`; `TrainConfig` is all of them together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from warmgap.lab.corpus import BYTES, NAMES, TRAINED
from warmgap.lab.errors import UserError
from warmgap.lab.methods import DECAYS, EXAMPLES, RULES, WITH_TARGET, Method
from warmgap.lab.model import DIGITS, IMAGE_MODELS, SIZES, size_of
from warmgap.lab.optimizers import OPTIMIZERS

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """What sets the learning rate."""

    method: Annotated[
        str, arg(aliases=("--rule",), help=f"A rule ({', '.join(RULES)}) or a schedule by step count: {EXAMPLES}.")
    ] = "auto"
    target_loss: Annotated[
        float | None, arg(help=f"Loss taken as optimal, for {', '.join(WITH_TARGET)} (None: estimated).")
    ] = None
    sigma: Annotated[float | None, arg(help="Curvature scale of the gap rule (the paper's sigma_F).")] = None
    kappa: Annotated[float | None, arg(help="Its constant of the norm (None: from the optimizer and shapes).")] = None
    level: Annotated[float | None, arg(help="Loss at which loss-ratio ends its warm-up (the paper's C).")] = None


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The schedule."""

    steps: Annotated[int, arg(help="Optimizer steps in the whole run.")] = 600
    lr: Annotated[float | None, arg(help="Peak learning rate (None: the optimizer's tuned one).")] = None
    decay: Annotated[str, arg(help=f"Decay at the end: {', '.join(DECAYS)}.")] = "cosine"
    floor: Annotated[float, arg(help="Starting / peak learning rate, for rules that have one.")] = 0.01


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The optimizer."""

    optimizer: Annotated[str, arg(help=f"One of {', '.join(OPTIMIZERS)}.")] = "muon"
    betas: Annotated[
        tuple[float, float] | None, arg(help="Betas of Lion and AdamW, also of Muon's AdamW half (None: usual ones).")
    ] = None
    momentum: Annotated[float | None, arg(help="Momentum of the others (None: the optimizer's usual one).")] = None
    second_lr: Annotated[float | None, arg(help="Peak rate of what Muon leaves to AdamW (None: the same as --lr).")] = (
        None
    )
    weight_decay: Annotated[float, arg(help="Weight decay, decoupled but for sgd.")] = 0.1
    clip: Annotated[float, arg(help="Largest gradient norm, 0 for no clipping.")] = 0.5
    radii: Annotated[
        Path | None, arg(help="Layer constants for gluon, from `warmgap smoothness --write-radii`; --lr is 1 then.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is learned."""

    corpus: Annotated[str, arg(help="; ".join(f"{name}: {text}" for name, text in NAMES.items()))] = "wiki"
    model: Annotated[
        str, arg(help=f"{', '.join(SIZES)} or layers x width (6x512) learn texts, {', '.join(IMAGE_MODELS)} digits.")
    ] = "tiny"
    tokenizer: Annotated[str, arg(help="trained (on the corpus), a tokenizer.json, or a name on the hub: gpt2.")] = (
        TRAINED
    )
    vocab_size: Annotated[
        int | None, arg(help=f"Tokens in the vocabulary, {BYTES} for plain bytes (None: the model's usual number).")
    ] = None
    sequence_length: Annotated[int | None, arg(help="Tokens in a sequence (None: the model's usual number).")] = None
    tied: Annotated[bool | None, arg(help="One matrix for input and output embeddings (None: the model's).")] = None
    batch_size: Annotated[int, arg(help="Sequences or images a step, over all processes and micro-batches.")] = 32
    accumulation: Annotated[int, arg(help="Micro-batches a step.")] = 1
    corpus_megabytes: Annotated[float, arg(help="Megabytes of text to read of a streamed dataset.")] = 100.0
    seed: Annotated[int, arg(help="Seed of the weights and of the order of the data.")] = 0
    start_from: Annotated[Path | None, arg(help="Folder of a finished run: start from its weights.")] = None


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How it is run."""

    precision: Annotated[str, arg(help="Arithmetic of forward and backward: fp32 or bf16.")] = "fp32"
    eval_every: Annotated[int, arg(help="Steps between evaluations, 0 for one at the end.")] = 100
    eval_tokens: Annotated[int, arg(help="Validation tokens or images an evaluation reads.")] = 65_536
    save_every: Annotated[int, arg(help="Steps between checkpoints, 0 for none but at an interruption.")] = 200
    threads: Annotated[int | None, arg(help="CPU threads a process may use (None: the machine's).")] = None


GROUPS = (MethodSettings, ScheduleSettings, OptimizerSettings, DataSettings, RunSettings)

_ASIDE = ("threads", "save_every")
"""Settings that say how to run and change no number of the run."""

_OF_TEXTS = ("vocab_size", "sequence_length", "tied")

_LOWEST = {
    "steps": 2, "batch_size": 1, "accumulation": 1, "sequence_length": 1, "vocab_size": BYTES, "seed": 0,
    "eval_every": 0, "eval_tokens": 1, "save_every": 0, "threads": 1,
}  # fmt: skip

_RANGES = {
    "lr": "above 0", "second_lr": "above 0", "sigma": "above 0", "kappa": "above 0", "level": "above 0",
    "corpus_megabytes": "above 0", "weight_decay": "at least 0", "clip": "at least 0", "target_loss": "",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunSettings, DataSettings, OptimizerSettings, ScheduleSettings, MethodSettings):
    """One training run. Fields left at None are filled in by `resolve`, which also checks all of them."""

    def resolve(self) -> TrainConfig:
        """The same settings, checked, with the model's and the optimizer's own where a field was None.

        Raises:
            UserError: A setting that is not allowed; the sentence says which are.
        """
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
        for name, low in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
                raise UserError(f"{_spoken(name)} must be a whole number of at least {low}, got {value!r}.")
        for name, bound in _RANGES.items():
            value = getattr(self, name)
            above = value is None or (
                math.isfinite(value) and (not bound or value > 0 or (value == 0 and "least" in bound))
            )
            if not above:
                raise UserError(f"{_spoken(name)} must be a finite number{bound and ' '}{bound}, got {value!r}.")
        if not 0.0 < self.floor < 1.0:
            raise UserError(f"The floor is starting / peak learning rate, between 0 and 1, got {self.floor!r}.")
        for name in ("momentum", "betas"):
            values = getattr(self, name)
            if values is not None and not all(
                0.0 <= value < 1.0 for value in (values if name == "betas" else [values])
            ):
                raise UserError(f"{_spoken(name)} must lie in [0, 1), got {values!r}.")
        if self.batch_size % self.accumulation:
            raise UserError(
                f"The batch size must be a multiple of the accumulation, got {self.batch_size} and {self.accumulation}."
            )

    def ignored(self) -> list[str]:
        """A sentence on each setting that was given and changes nothing here."""
        method = Method.parse(self.method)
        asked = {field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default}
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
        return [f"{_flag(name)} changes nothing: {why}." for name, why in idle.items() if why and name in asked]

    def numbers(self) -> dict[str, Any]:
        """The settings that decide the numbers of the run, resolved, as plain values; those that are None left out.

        Instead of a file that a run reads there is a hash of it.

        Raises:
            UserError: As `resolve` does, or there is no such file.
        """
        full = self.resolve()
        found = {name: value for name, value in vars(full).items() if name not in _ASIDE and value is not None}
        if full.betas is not None:
            found["betas"] = list(full.betas)
        if full.start_from is not None:
            from warmgap.lab.checkpoints import final_weights

            found["start_from"] = _hash(final_weights(full.start_from))
        if full.radii is not None:
            if not full.radii.is_file():
                raise UserError(f"There is no file {full.radii}: warmgap smoothness --write-radii makes one.")
            found["radii"] = _hash(full.radii)
        return found

    def fingerprint(self) -> str:
        """A hash of every setting that decides the numbers of the run; 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.numbers(), sort_keys=True).encode()).hexdigest()[:16]

    def words(self) -> list[str]:
        """The settings that differ from the defaults, as words of a command line."""
        found: list[str] = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                found += [_flag(field.name), *(map(str, value) if isinstance(value, tuple) else [str(value)])]
        return found

    def command(self, output: Path | None = None) -> str:
        """The command line that makes this run."""
        return shlex.join(["warmgap", "train", *self.words(), *(["--output", str(output)] if output else [])])

    @property
    def name(self) -> str:
        """A short name for a folder: what is trained how, with which seed."""
        method = "".join(sign if sign.isalnum() or sign in ".-" else "-" for sign in self.method).strip("-")
        return f"{self.model}-{self.optimizer}-{method}-seed{self.seed}"


def from_plain(settings: Mapping[str, Any]) -> TrainConfig:
    """A configuration from plain values, as a recipe or a database holds them.

    Raises:
        UserError: A setting that does not exist.
    """
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    if unknown := sorted(settings.keys() - names):
        raise UserError(f"There is no setting {unknown[0]!r}: the settings are {', '.join(sorted(names))}.")
    given = dict(settings)
    if given.get("betas") is not None:
        given["betas"] = tuple(given["betas"])
    for name in ("start_from", "radii"):
        if given.get(name) is not None:
            given[name] = Path(given[name])
    return TrainConfig(**given)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _spoken(name: str) -> str:
    return {"lr": "The peak learning rate", "clip": "The clipping norm"}.get(name, "The " + name.replace("_", " "))
