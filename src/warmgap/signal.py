"""From raw losses to a clean loss that a rule may act on.

The published method feeds the raw loss of one rank's last micro-batch: one lucky batch below the peak gap ends the
warm-up for good. Here a Hampel filter takes out what is far from its neighbours, and a bias-corrected exponential
average takes out the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from warmgap._checks import check_count, check_finite, check_positive, plain_fields
from warmgap._ops import Floats, Ops

_MAD_TO_DEVIATION = 1.4826  # median absolute deviation -> standard deviation, for a normal distribution
_CHANGE_TO_DEVIATION = math.sqrt(math.pi) / 2.0  # mean |difference of two independent draws| -> standard deviation


class FilterState(NamedTuple):
    """State of a `LossFilter`."""

    window: tuple[float, ...]  # the last losses, the newest at the end; those before the first `filled` came are 0
    filled: int = 0  # how many of the window are losses
    accepted: float = 0.0  # the last loss that passed the Hampel filter, or what took its place; 0 before the first
    clean: float = 0.0  # the average of the accepted losses; 0 before the first
    weight: float = 0.0  # sum of the weights in that average, in [0, 1); 0 before the first loss
    # the standard deviation of a single loss, from successive differences; 0 until there were two losses
    noise: float = 0.0
    noise_weight: float = 0.0  # sum of the weights in that average


@dataclass(frozen=True)
class LossFilter:
    """A Hampel filter, then an exponential average with bias correction.

    A loss further than `threshold` standard deviations from the median of the last `window` losses (itself included;
    the deviation is taken from the median absolute deviation) is replaced by that median: isolated spikes, and bursts
    shorter than half the window, never get through, while a lasting change of level does. (A spike that comes first, or
    with too few losses before it, can't be told from the level itself.)

    Attributes:
        averaging: Share of the average that is kept at each step, in [0, 1): 0.9 averages over about ten steps, 0 not
            at all.
        window: Number of losses the filter looks at, at least 3.
        threshold: Standard deviations beyond which a loss is a spike, > 0.

    Raises:
        ValueError: If an attribute lies outside its range.

    Example:
        >>> loss_filter = LossFilter(averaging=0.0, window=5)
        >>> state, clean = loss_filter.init(), []
        >>> for loss in (3.0, 2.9, 100.0, 2.8):
        ...     state = loss_filter.step(state, loss)
        ...     clean.append(state.clean)
        >>> clean
        [3.0, 2.9, 3.0, 2.8]

    Source: F. R. Hampel, "The influence curve and its role in robust estimation", JASA 69 (1974).
    """

    averaging: float = 0.9
    window: int = 11
    threshold: float = 4.0

    def __post_init__(self) -> None:
        plain_fields(self)
        if not 0.0 <= check_finite("averaging", self.averaging) < 1.0:
            raise ValueError(f"averaging must lie in [0, 1), got {self.averaging!r}; 0.9 averages over about ten steps")
        check_count("window", self.window, minimum=3)
        check_positive("threshold", self.threshold)

    def init(self) -> FilterState:
        """Return the state before the first loss."""
        return FilterState((0.0,) * self.window)

    def step(self, state: FilterState, loss: float, ops: Ops = Floats) -> FilterState:
        """Return the state after one more loss, which must be finite."""
        window = ops.push(state.window, loss)
        count = ops.minimum(state.filled + 1, self.window)
        middle = ops.median(window, count)
        spread = _MAD_TO_DEVIATION * ops.median(ops.distances(window, middle), count)
        accepted = ops.where(abs(loss - middle) <= self.threshold * spread, loss, middle)
        keep, new = self.averaging, 1.0 - self.averaging
        weight = keep * state.weight + new
        # no difference before the second loss
        noise_weight = ops.where(state.filled > 0, keep * state.noise_weight + new, 0.0)
        deviation = _CHANGE_TO_DEVIATION * abs(accepted - state.accepted)
        noise = state.noise + new / ops.maximum(noise_weight, new) * (deviation - state.noise)
        clean = state.clean + new / weight * (accepted - state.clean)
        noise = ops.where(state.filled > 0, noise, 0.0)
        return FilterState(window, count, accepted, clean, weight, noise, noise_weight)
