"""Handwritten digits, 8 x 8 pixels: scikit-learn's copy of a set of the UCI repository, part of its package."""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NAME = "digits"
"""The corpus by name; what is a folder of this name is written `./digits`."""

MODEL = "mlp"
"""The one model that learns it."""

PIXELS = 64
CLASSES = 10
BRIGHTEST = 16
"""The pixels are whole numbers from 0 to this one."""

_VALIDATION = 360
_SPLIT_SEED = 0


@dataclass(frozen=True)
class Images:
    """The images, each a row of its 64 pixels and its digit.

    Attributes:
        train: Those to train on; shape `(1437, 65)`.
        validation: Those held out; shape `(360, 65)`.
        fingerprint: Hash of both.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    fingerprint: str


@functools.cache
def load_images() -> Images:
    """The images in one fixed random split: they come sorted by writer."""
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    rows = np.concatenate([pixels, digits[:, None]], axis=1).astype(np.int64)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(rows))
    validation, train = rows[order[:_VALIDATION]], rows[order[_VALIDATION:]]
    digest = hashlib.sha256(validation.tobytes() + train.tobytes()).hexdigest()[:32]
    return Images(train, validation, digest)
