"""What a run learns: a text's next token with a LLaMA, or the digit in an image with a small model.

An example is a row of whole numbers, a batch a matrix of them, so that a run handles both alike.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from warmgap.lab.config import TrainConfig
from warmgap.lab.corpus import TRAINED, Sampler, load_tokens
from warmgap.lab.errors import UserError
from warmgap.lab.model import DIGITS, build_image_model, build_model

_BRIGHTEST = 16  # the pixels are whole numbers from 0 to this one
_HELD_OUT = 360


class Task(Protocol):
    """What a run learns.

    Attributes:
        fingerprint: Hash of the data.
        predictions: What an example asks to predict: the tokens of a sequence, or the digit of an image.
        held_out: Number of validation examples.
    """

    fingerprint: str
    predictions: int
    held_out: int

    def model(self) -> nn.Module:
        """The model to train, a function of the settings alone."""

    def batch(self, step: int) -> NDArray[np.int64]:
        """The examples of `step` = 0, 1, ..., by the seed and the step alone; shape `(batch_size, width)`."""

    def validation(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The validation examples of these numbers, each below `held_out`; shape `(len(numbers), width)`."""

    def predict(self, model: nn.Module, examples: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of shape `(predictions, classes)`, and the classes that are right, of shape `(predictions,)`."""


def make_task(config: TrainConfig) -> Task:
    """What a run with these settings (resolved ones) learns.

    Raises:
        UserError: Data that are not there, or fewer than a batch.
    """
    return Digits(config) if config.corpus == DIGITS else Text(config)


def prepare(config: TrainConfig) -> None:
    """Make the data that a run needs, so that the run finds them ready.

    Raises:
        UserError: As `make_task` does.
    """
    full = config.resolve()
    if full.corpus != DIGITS:
        _tokens(full)


def _tokens(config: TrainConfig) -> Any:
    size = config.vocab_size or 0
    return load_tokens(config.corpus, size, tokenizer=config.tokenizer, megabytes=config.corpus_megabytes)


class Text:
    """The next token of a text, predicted at every place of a sequence by a LLaMA."""

    def __init__(self, config: TrainConfig) -> None:
        assert config.sequence_length is not None  # noqa: S101 - resolved
        self._config = config
        self._tokens = _tokens(config)
        length, count = config.sequence_length, len(self._tokens.train)
        self._sampler = Sampler(count, length, config.batch_size, config.seed)
        if self._sampler.count < config.batch_size or len(self._tokens.validation) <= length:
            raise UserError(
                f"Corpus {config.corpus!r} is too short: {count} tokens to train on and "
                f"{len(self._tokens.validation)} held out, for batches of {config.batch_size} sequences of {length}; "
                "give a longer text, or a smaller --batch-size or --sequence-length."
            )
        self.fingerprint = self._tokens.fingerprint
        self.predictions = length
        self.held_out = (len(self._tokens.validation) - 1) // length

    def model(self) -> nn.Module:
        """A LLaMA of the size that is asked for, its vocabulary never smaller than the tokenizer's."""
        config = self._config
        size = self._tokens.vocab_size
        model: nn.Module = build_model(
            config.model,
            vocab_size=size if config.tokenizer == TRAINED else max(size, config.vocab_size or 0),
            sequence_length=self.predictions,
            tied=bool(config.tied),
            seed=config.seed,
        )
        return model

    def batch(self, step: int) -> NDArray[np.int64]:
        """Sequences of `predictions` + 1 tokens."""
        found: NDArray[np.int64] = self._tokens.train.windows(self._sampler.starts(step), self.predictions + 1)
        return found

    def validation(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sequences of `predictions` + 1 tokens, one after the other in the text."""
        found: NDArray[np.int64] = self._tokens.validation.windows(numbers * self.predictions, self.predictions + 1)
        return found

    def predict(self, model: nn.Module, examples: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of every token from those before it, and the tokens."""
        logits: Tensor = model(input_ids=examples[:, :-1]).logits
        return logits.flatten(0, 1), examples[:, 1:].flatten()


@functools.cache
def load_digits() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of 64 pixels and the digit, to train on and held out, in one fixed random split."""
    from sklearn import datasets

    pixels, digits = datasets.load_digits(return_X_y=True)
    rows = np.concatenate([pixels, digits[:, None]], axis=1).astype(np.int64)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]  # they come sorted by writer
    return rows[_HELD_OUT:], rows[:_HELD_OUT]


class Digits:
    """The digit in an image of 8 x 8 pixels."""

    predictions = 1

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._train, self._held_out = load_digits()
        # Sequences of one token, that is one image; the token more that a text's last sequence needs is no image.
        self._sampler = Sampler(len(self._train) + 1, 1, config.batch_size, config.seed)
        if config.batch_size > len(self._train):
            raise UserError(
                f"There are {len(self._train)} images of digits, and a batch takes {config.batch_size}: give a smaller "
                "--batch-size."
            )
        self.fingerprint = hashlib.sha256(self._held_out.tobytes() + self._train.tobytes()).hexdigest()[:32]
        self.held_out = len(self._held_out)

    def model(self) -> nn.Module:
        """The MLP or the convnet."""
        return build_image_model(self._config.model, seed=self._config.seed)

    def batch(self, step: int) -> NDArray[np.int64]:
        """Rows of the pixels and the digit."""
        return self._train[self._sampler.starts(step)]

    def validation(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the pixels and the digit."""
        return self._held_out[numbers]

    def predict(self, model: nn.Module, examples: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the ten digits from the pixels, and the digits."""
        logits: Any = model(examples[:, :-1].to(torch.float32) / _BRIGHTEST)
        return logits, examples[:, -1]
