"""The settings of a training run: what may be asked for, and the one clear sentence where it may not."""

import dataclasses
import hashlib
import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmgap.decay import NAMES as DECAYS
from warmgap.lab.corpus import BYTES
from warmgap.lab.digits import MODEL as MLP
from warmgap.lab.digits import NAME as DIGITS
from warmgap.lab.errors import UserError
from warmgap.lab.model import SIZES
from warmgap.lab.optimizers import OPTIMIZERS
from warmgap.lab.options import option
from warmgap.lab.record import final_weights

LATE = "auto-late"
"""The default, shown each loss after the optimizer's step: its first step is made at the floor."""

RULES = ("auto", LATE, "gap", "loss-ratio", "power", "linear:STEPS", "none", "published")
"""The warm-up rules by name; `linear:40` is a linear warm-up of 40 steps, `none` starts at the peak."""

PRECISIONS = ("fp32", "bf16")

_ASIDE = ("output", "resume", "threads", "save_every")
"""Settings that say where and how to run and change no number of the run."""

_OPTIONAL = ("start_from", "averaging")
"""Settings that a run has only where they are given."""

_AVERAGES = ("auto", LATE, "gap", "loss-ratio", "power")
"""The rules that average the losses."""

_OF_TEXTS = ("vocab_size", "sequence_length", "tied")
"""Settings that only a language model has."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    The fields left at None are filled in by `resolve`, which also checks all of them.
    """

    corpus: str = option("wiki", "wiki, stdlib, a text file or folder, hf:owner/name[:config], or digits")
    model: str = option("tiny", "size of the language model, or mlp for digits", choices=(*SIZES, MLP))
    start_from: Path | None = option(None, "folder of a finished run: start from its weights")  # noqa: RUF009
    optimizer: str = option("muon", "optimizer", choices=tuple(OPTIMIZERS))
    lr: float | None = option(None, "peak learning rate (default: the optimizer's tuned one)")
    steps: int = option(600, "optimizer steps in the whole run")
    rule: str = option("auto", f"warm-up rule: {', '.join(RULES)}")
    target_loss: float | None = option(None, "loss taken as optimal (default: estimated while training)")
    floor: float = option(0.01, "learning rate at the start / peak learning rate, in (0, 1)")
    averaging: float | None = option(None, "share of the loss average kept at each step (default: the rule's)")
    decay: str = option("cosine", "decay after warm-up", choices=tuple(DECAYS))
    batch_size: int = option(32, "sequences or images in an optimizer step, over all processes and micro-batches")
    accumulation: int = option(1, "micro-batches in an optimizer step")
    sequence_length: int | None = option(None, "tokens in a sequence (default: the model's)")
    vocab_size: int | None = option(None, f"tokens in the vocabulary, {BYTES} for plain bytes (default: the model's)")
    corpus_megabytes: float = option(100.0, "megabytes of text to read of a streamed dataset")
    tied: bool | None = option(None, "one matrix for input and output embeddings (default: the model's)")
    weight_decay: float = option(0.1, "decoupled weight decay")
    clip: float = option(0.5, "largest gradient norm, 0 for no clipping")
    precision: str = option("fp32", "arithmetic of forward and backward", choices=PRECISIONS)
    seed: int = option(0, "seed of the weights and of the order of the data")
    eval_every: int = option(100, "steps between evaluations, 0 for one at the end")
    eval_tokens: int = option(65_536, "validation tokens or images an evaluation reads")
    save_every: int = option(200, "steps between checkpoints, 0 for none but at an interruption")
    threads: int | None = option(None, "CPU threads a process may use (default: the machine's)")
    output: Path | None = option(None, "folder of the run (default: runs/MODEL-OPTIMIZER-RULE-SEED)")  # noqa: RUF009
    resume: bool = option(default=False, text="go on from the folder's last checkpoint")

    def resolve(self) -> "TrainConfig":
        """The same settings, checked, with the model's and the optimizer's own where a field was None.

        Raises:
            UserError: A setting that is not allowed; the sentence says which are.
        """
        for field in dataclasses.fields(self):
            choices = field.metadata["choices"]
            value = getattr(self, field.name)
            if choices and value not in choices:
                raise UserError(
                    f"Unknown {field.name.replace('_', ' ')} {value!r}: choose one of {', '.join(choices)}."
                )
        if (self.corpus == DIGITS) != (self.model == MLP):
            raise UserError(
                f"The model {self.model} does not learn from the corpus {self.corpus}: the corpus {DIGITS} and the "
                f"model {MLP} go together, and the other models learn from texts."
            )
        full = dataclasses.replace(self, lr=OPTIMIZERS[self.optimizer].lr if self.lr is None else self.lr)
        if self.model == MLP:
            for name in _OF_TEXTS:
                if getattr(self, name) is not None:
                    raise UserError(f"The model {MLP} has no {_spoken(name)[4:]}: leave {_flag(name)} out.")
        else:
            size = SIZES[self.model]
            usual = {name: getattr(size, name) for name in _OF_TEXTS if getattr(self, name) is None}
            full = dataclasses.replace(full, **usual)
        full._check_numbers()
        full._check_rule()
        return full

    def fingerprint(self) -> str:
        """A hash of every setting that decides the numbers of the run; 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.numbers(), sort_keys=True).encode()).hexdigest()[:16]

    def numbers(self) -> dict[str, Any]:
        """The settings that decide the numbers of the run, resolved, as plain values.

        Instead of the folder to start from there is a hash of its weights.

        Raises:
            UserError: As `resolve` does, or there are no weights to start from.
        """
        full = self.resolve()
        found = {
            field.name: value
            for field in dataclasses.fields(full)
            if field.name not in _ASIDE
            and ((value := getattr(full, field.name)) is not None or field.name not in _OPTIONAL)
        }
        if full.start_from is not None:
            found["start_from"] = hashlib.sha256(final_weights(full.start_from).read_bytes()).hexdigest()[:16]
        return found

    def command(self) -> str:
        """The command line that makes this run."""
        words = ["warmgap", "train"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default and field.name != "resume":
                flag = _flag(field.name)
                words += [flag if value else "--no-" + flag[2:]] if isinstance(value, bool) else [flag, str(value)]
        return shlex.join(words)

    def linear_steps(self) -> int | None:
        """Length of a warm-up set by hand, in steps; None where the rule is another one."""
        if self.rule == "none":
            return 0
        kind, separator, steps = self.rule.partition(":")
        if kind != "linear" or not separator or not steps.isascii() or not steps.isdigit():
            return None
        return int(steps)

    def _check_numbers(self) -> None:
        for name, low in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
                raise UserError(f"{_spoken(name)} must be a whole number of at least {low}, got {value!r}.")
        for name in ("lr", "corpus_megabytes"):
            self._check_float(name, above=0.0)
        for name in ("weight_decay", "clip"):
            self._check_float(name, at_least=0.0)
        if not 0.0 < self.floor < 1.0:
            raise UserError(
                f"The floor must lie between 0 and 1 (it is starting / peak learning rate), got {self.floor!r}."
            )
        if self.target_loss is not None and not math.isfinite(self.target_loss):
            raise UserError(f"The target loss must be a finite number, got {self.target_loss!r}.")
        if self.averaging is not None and not 0.0 <= self.averaging < 1.0:
            raise UserError(f"The averaging must lie in [0, 1) (0 is none at all), got {self.averaging!r}.")
        if self.batch_size % self.accumulation:
            raise UserError(
                f"The batch size must be a multiple of the accumulation, got {self.batch_size} and {self.accumulation}."
            )

    def _check_float(self, name: str, *, above: float = -math.inf, at_least: float = -math.inf) -> None:
        value = getattr(self, name)
        if not (math.isfinite(value) and value > above and value >= at_least):
            bound = "above 0" if above == 0.0 else "at least 0"
            raise UserError(f"{_spoken(name)} must be a finite number {bound}, got {value!r}.")

    def _check_rule(self) -> None:
        steps = self.linear_steps()
        if steps is None and self.rule not in (*_AVERAGES, "published"):
            raise UserError(f"Unknown rule {self.rule!r}: choose one of {', '.join(RULES)} (such as linear:40).")
        if steps is not None and steps >= self.steps:
            raise UserError(f"A warm-up of {steps} steps does not end within a run of {self.steps} steps: shorten it.")
        if self.rule == "published" and self.target_loss is None:
            raise UserError("The published rule takes its target loss by hand: give --target-loss.")
        if self.target_loss is not None and (steps is not None or self.rule == "loss-ratio"):
            raise UserError(f"The rule {self.rule!r} has no use for a target loss: leave --target-loss out.")
        if self.averaging is not None and self.rule not in _AVERAGES:
            raise UserError(f"The rule {self.rule!r} does not average the losses: leave --averaging out.")


_LOWEST = {
    "steps": 2,
    "batch_size": 1,
    "accumulation": 1,
    "sequence_length": 1,
    "vocab_size": BYTES,
    "seed": 0,
    "eval_every": 0,
    "eval_tokens": 1,
    "save_every": 0,
    "threads": 1,
}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _spoken(name: str) -> str:
    return {"lr": "The peak learning rate", "clip": "The clipping norm"}.get(name, "The " + name.replace("_", " "))
