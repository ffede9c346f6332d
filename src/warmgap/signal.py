"""From raw losses to one clean loss that a rule may act on.

The published method feeds the raw loss of one rank's last micro-batch: one lucky batch below the peak gap ends the
warm-up for good. Here a Hampel filter takes out what is not a number and what is far from its neighbours, and a
bias-corrected average takes out the noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from warmgap._checks import check_count, check_finite, check_positive, plain_fields
from warmgap._state import State

_MAD_TO_DEVIATION = 1.4826  # median absolute deviation -> standard deviation, for a normal distribution
_CHANGE_TO_DEVIATION = math.sqrt(math.pi) / 2.0  # mean |difference of two independent draws| -> standard deviation


@dataclass(frozen=True)
class SignalState(State):
    """State of a `Signal`.

    Attributes:
        window: The last finite losses, oldest first.
        weighted: Running average of the accepted losses, before bias correction.
        weight: What to divide it by.
        accepted: The last accepted loss; None before the first.
        change: Running average of the absolute difference of successive accepted losses, before bias correction.
        change_weight: What to divide that by.
    """

    window: tuple[float, ...] = ()
    weighted: float = 0.0
    weight: float = 0.0
    accepted: float | None = None
    change: float = 0.0
    change_weight: float = 0.0

    @property
    def clean(self) -> float | None:
        """The clean loss; None until a finite loss was seen."""
        return self.weighted / self.weight if self.weight > 0.0 else None

    @property
    def noise(self) -> float | None:
        """The standard deviation of a single loss, from successive differences; None until there were two losses."""
        return _CHANGE_TO_DEVIATION * self.change / self.change_weight if self.change_weight > 0.0 else None


@dataclass(frozen=True)
class Signal:
    """A Hampel filter, then an exponential average with bias correction.

    A loss further than `threshold` standard deviations from the median of the last `window` losses (itself included;
    the deviation is taken from the median absolute deviation) is replaced by that median: isolated spikes, and bursts
    shorter than half the window, never get through, while a lasting change of level does. (A spike that comes first, or
    with too few losses before it, can't be told from the level itself.) A loss that is NaN or infinite changes nothing
    at all.

    Attributes:
        averaging: Share of the average that is kept at each step, in [0, 1): 0.9 averages over about ten steps, 0 not
            at all.
        window: Number of losses the filter looks at, at least 3.
        threshold: Standard deviations beyond which a loss is a spike, > 0.

    Raises:
        ValueError: If an attribute lies outside its range.
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

    def init(self) -> SignalState:
        """Return the state before the first loss."""
        return SignalState()

    def step(self, state: SignalState, loss: float) -> tuple[SignalState, float | None]:
        """Take in one raw loss; return the new state and the clean loss (None until a finite loss was seen)."""
        loss = float(loss)
        if not math.isfinite(loss):
            return state, state.clean
        window = (*state.window, loss)[-self.window :]
        middle = _low_median(window)
        spread = _MAD_TO_DEVIATION * _low_median([abs(value - middle) for value in window])
        accepted = loss if abs(loss - middle) <= self.threshold * spread else middle
        keep, new = self.averaging, 1.0 - self.averaging
        if state.accepted is not None:
            change = abs(accepted - state.accepted)
            state = replace(
                state, change=keep * state.change + new * change, change_weight=keep * state.change_weight + new
            )
        state = replace(
            state,
            window=window,
            weighted=keep * state.weighted + new * accepted,
            weight=keep * state.weight + new,
            accepted=accepted,
        )
        return state, state.clean


def _low_median(values: tuple[float, ...] | list[float]) -> float:
    """Return the median; of an even number the lower middle value: with two losses, the one that is no spike."""
    return sorted(values)[(len(values) - 1) // 2]
