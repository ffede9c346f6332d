"""Which tokens a training step sees: a function of the seed and the step alone, so that a resumed run sees the same."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sampler:
    """Windows of the training tokens, in a new random order each epoch, and with a new random offset.

    Attributes:
        tokens: Number of training tokens.
        length: Tokens a sequence predicts; a window holds one more.
        batch_size: Sequences a step.
        seed: Seed of the order.
    """

    tokens: int
    length: int
    batch_size: int
    seed: int

    @property
    def windows(self) -> int:
        """Number of windows in an epoch."""
        return max(0, (self.tokens - self.length) // self.length)

    def starts(self, step: int) -> NDArray[np.int64]:
        """Where the sequences of `step` = 0, 1, ... begin; shape `(batch_size,)`."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, within = np.divmod(positions, self.windows)
        return np.array([_order(self, int(epoch))[index] for epoch, index in zip(epochs, within, strict=True)])


@functools.lru_cache(maxsize=2)
def _order(sampler: Sampler, epoch: int) -> NDArray[np.int64]:
    random = np.random.default_rng([sampler.seed, epoch])
    offset = random.integers(sampler.length)
    order: NDArray[np.int64] = offset + sampler.length * random.permutation(sampler.windows)
    return order


def cut(tokens: NDArray[np.unsignedinteger[Any]], starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """The windows of `length + 1` tokens that begin at `starts`; shape `(len(starts), length + 1)`."""
    windows: NDArray[np.int64] = tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)
    return windows
