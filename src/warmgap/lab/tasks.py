"""What a run learns: a text's next token with a LLaMA, or the digit in an image with a small MLP.

An example is a row of whole numbers, a batch a matrix of them, so that a run handles both alike.
"""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from warmgap.lab.config import TrainConfig
from warmgap.lab.corpus import Tokens, load_tokens
from warmgap.lab.digits import BRIGHTEST, CLASSES, NAME, PIXELS, load_images
from warmgap.lab.errors import UserError
from warmgap.lab.model import build_mlp, build_model
from warmgap.lab.sampler import Sampler, cut


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
    return Digits(config) if config.corpus == NAME else Text(config)


class Text:
    """The next token of a text, predicted at every place of a sequence by a LLaMA."""

    def __init__(self, config: TrainConfig) -> None:
        assert config.vocab_size is not None  # noqa: S101 - resolved
        assert config.sequence_length is not None  # noqa: S101 - resolved
        self._config = config
        self._tokens = load_tokens(config.corpus, config.vocab_size, megabytes=config.corpus_megabytes)
        self._sampler = Sampler(len(self._tokens.train), config.sequence_length, config.batch_size, config.seed)
        _check_long_enough(self._tokens, self._sampler)
        self.fingerprint = self._tokens.fingerprint
        self.predictions = config.sequence_length
        self.held_out = (len(self._tokens.validation) - 1) // config.sequence_length

    def model(self) -> nn.Module:
        """A LLaMA of the size that is asked for."""
        model: nn.Module = build_model(
            self._config.model,
            vocab_size=self._tokens.vocab_size,
            sequence_length=self.predictions,
            tied=bool(self._config.tied),
            seed=self._config.seed,
        )
        return model

    def batch(self, step: int) -> NDArray[np.int64]:
        """Sequences of `predictions` + 1 tokens."""
        return cut(self._tokens.train, self._sampler.starts(step), self.predictions)

    def validation(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sequences of `predictions` + 1 tokens, one after the other in the text."""
        return cut(self._tokens.validation, numbers * self.predictions, self.predictions)

    def predict(self, model: nn.Module, examples: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of every token from those before it, and the tokens."""
        logits: Tensor = model(input_ids=examples[:, :-1]).logits
        return logits.flatten(0, 1), examples[:, 1:].flatten()


class Digits:
    """The digit in an image of 8 x 8 pixels, predicted by an MLP."""

    predictions = 1

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._images = load_images()
        # Sequences of one token, that is one image; the token more that a text's last sequence needs is no image.
        self._sampler = Sampler(len(self._images.train) + 1, 1, config.batch_size, config.seed)
        if config.batch_size > len(self._images.train):
            raise UserError(
                f"There are {len(self._images.train)} images of digits to train on, and a batch takes "
                f"{config.batch_size}: give a smaller --batch-size."
            )
        self.fingerprint = self._images.fingerprint
        self.held_out = len(self._images.validation)

    def model(self) -> nn.Module:
        """The MLP."""
        return build_mlp(PIXELS, CLASSES, seed=self._config.seed)

    def batch(self, step: int) -> NDArray[np.int64]:
        """Rows of the pixels and the digit."""
        return self._images.train[self._sampler.starts(step)]

    def validation(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the pixels and the digit."""
        return self._images.validation[numbers]

    def predict(self, model: nn.Module, examples: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the ten digits from the pixels, and the digits."""
        logits: Any = model(examples[:, :-1].to(torch.float32) / BRIGHTEST)
        return logits, examples[:, -1]


def _check_long_enough(tokens: Tokens, sampler: Sampler) -> None:
    if sampler.windows < sampler.batch_size:
        raise UserError(
            f"Corpus {tokens.name!r} is shorter than a batch: it gives {sampler.windows} training sequences of "
            f"{sampler.length} tokens, "
            f"and a batch takes {sampler.batch_size}; give a longer text, or a smaller --batch-size or "
            "--sequence-length."
        )
    if len(tokens.validation) <= sampler.length:
        raise UserError(
            f"Corpus {tokens.name!r} leaves {len(tokens.validation)} tokens for validation, fewer than a sequence "
            f"of {sampler.length}: "
            "give a longer text, or a smaller --sequence-length."
        )
