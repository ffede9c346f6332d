"""What a run learns: a text's next token with a LLaMA, or the digit in an image with a small model.

An example is a row of whole numbers, a batch a matrix of them, so that a run handles both alike.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

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

Examples = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """What a run learns."""

    fingerprint: str  # hash of the data
    predictions: int  # that an example asks for: the tokens of a sequence, or the digit of an image
    held_out: int  # number of validation examples
    model: Callable[[], nn.Module]  # makes the model, a function of the settings alone
    batch: Callable[[int], Examples]  # of step 0, 1, ..., by seed and step alone; shape (batch_size, width)
    validation: Callable[[Examples], Examples]  # of numbers below `held_out`; shape (len(numbers), width)
    # Of the model and examples: logits of shape (predictions, classes), and the classes that are right.
    predict: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]


def make_task(config: TrainConfig) -> Task:
    """What a run with these settings (resolved ones) learns."""
    return _digits(config) if config.corpus == DIGITS else _text(config)


def _text(config: TrainConfig) -> Task:
    """The next token of a text, predicted at every place of a sequence by a LLaMA."""
    assert config.sequence_length is not None  # noqa: S101 - resolved
    tokens, length = load_tokens(**config.text), config.sequence_length
    count, held_out = len(tokens.train), len(tokens.validation)
    sampler = Sampler(count, length, config.batch_size, config.seed)
    if sampler.count < config.batch_size or held_out <= length:
        raise UserError(
            f"Corpus {config.corpus!r} is too short: {count} tokens to train on and {held_out} held out, for batches "
            f"of {config.batch_size} sequences of {length}; give a longer text, or a smaller --batch-size or "
            "--sequence-length."
        )
    # Another tokenizer's vocabulary may be rounded up, for speed; never down.
    vocab_size = tokens.vocab_size if config.tokenizer == TRAINED else max(tokens.vocab_size, config.vocab_size or 0)
    shape = partial(build_model, config.model, vocab_size=vocab_size, sequence_length=length)
    return Task(
        tokens.fingerprint,
        predictions=length,
        held_out=(held_out - 1) // length,
        model=partial(shape, tied=bool(config.tied), seed=config.seed),
        batch=lambda step: tokens.train.windows(sampler.starts(step), length + 1),
        validation=lambda numbers: tokens.validation.windows(numbers * length, length + 1),
        predict=_next_tokens,
    )


def _next_tokens(model: nn.Module, examples: Tensor) -> tuple[Tensor, Tensor]:
    logits: Tensor = model(input_ids=examples[:, :-1]).logits
    return logits.flatten(0, 1), examples[:, 1:].flatten()


@functools.cache
def load_digits() -> tuple[Examples, Examples]:
    """Rows of 64 pixels and the digit, to train on and held out, in one fixed random split."""
    from sklearn import datasets

    pixels, digits = datasets.load_digits(return_X_y=True)
    rows = np.concatenate([pixels, digits[:, None]], axis=1).astype(np.int64)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]  # they come sorted by writer
    return rows[_HELD_OUT:], rows[:_HELD_OUT]


def _digits(config: TrainConfig) -> Task:
    """The digit in an image of 8 x 8 pixels."""
    rows, held_out = load_digits()
    if config.batch_size > len(rows):
        raise UserError(
            f"There are {len(rows)} images of digits, and a batch takes {config.batch_size}: give a smaller "
            "--batch-size."
        )
    # Sequences of one token, that is one image; the token more that a text's last sequence needs is no image.
    sampler = Sampler(len(rows) + 1, 1, config.batch_size, config.seed)
    return Task(
        hashlib.sha256(held_out.tobytes() + rows.tobytes()).hexdigest()[:32],
        predictions=1,
        held_out=len(held_out),
        model=partial(build_image_model, config.model, seed=config.seed),
        batch=lambda step: rows[sampler.starts(step)],
        validation=lambda numbers: held_out[numbers],
        predict=_digit,
    )


def _digit(model: nn.Module, examples: Tensor) -> tuple[Tensor, Tensor]:
    logits: Any = model(examples[:, :-1].to(torch.float32) / _BRIGHTEST)
    return logits, examples[:, -1]
