"""The default, slow and obvious: every quantity anew at every step from the list of all losses, as the docs say it."""

from __future__ import annotations

import math
from statistics import median_low

import numpy as np


class Reference:
    """`Schedule(total, SpectralRule(hold, floor), "cosine")`, in lists."""

    def __init__(self, total: int, hold: float = 0.6, floor: float = 0.01) -> None:
        self.total, self.hold, self.floor = total, hold, floor
        self.losses: list[float] = []  # that were finite
        self.accepted: list[float] = []  # what the Hampel filter made of them
        self.largest_noise = 0.0
        self.averages: list[float] = []  # since the last alarm
        self.start_of_average = 0
        self.steps, self.ramp, self.peak_at = 0, floor, -1
        self.scale, self.low, self.pause, self.back, self.rest, self.missing = 1.0, 1.0, 0, 0, 0, 0
        self.alarm_losses: list[float] = []
        self.in_a_row, self.off = 0, False

    def first(self) -> None:
        """There is evidence before the first step."""
        self.ramp, self.peak_at = 1.0, 0

    def factor(self) -> float:
        """The factor of the next step."""
        decay = 1.0
        begins = max(self.peak_at, math.ceil(self.hold * self.total))
        if self.peak_at >= 0 and self.steps > begins:
            length = max(1, self.total - begins)
            progress = min(self.steps - begins, length - 1) / length
            decay = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.ramp * self.scale * decay

    def step(self, loss: float) -> None:
        """A step was made, and this was its loss."""
        self.steps += 1
        self.ramp = min(1.0, 2.0 * self.ramp)
        if self.ramp == 1.0 and self.peak_at < 0:
            self.peak_at = self.steps
        self.rest = max(0, self.rest - 1)
        finite = math.isfinite(loss) and abs(loss) < 1e38
        self.missing = 0 if finite else self.missing + 1
        if finite:
            self._take(loss)
        rose = finite and self._rises()
        lost = self.missing >= 3 and self.scale > 0.125 and self.rest == 0 and not self.off
        if rose or lost:
            self._alarm(rose)
        elif self.off:
            self.scale = min(1.0, 2.0 * self.scale)
        elif self.scale < 1.0 and self.rest == 0 and finite:
            self.back += 1
            self.scale = min(1.0, self.low * 2.0 ** (self.back / self.pause))

    def _take(self, loss: float) -> None:
        self.losses.append(loss)
        window = self.losses[-11:]
        middle = median_low(window)
        spread = 1.4826 * median_low([abs(value - middle) for value in window])
        self.accepted.append(loss if abs(loss - middle) <= 4.0 * spread else middle)
        changes = np.abs(np.diff(self.accepted)) * math.sqrt(math.pi) / 2.0
        noise = weighted(changes) if len(changes) else 0.0
        self.largest_noise = max(noise, 0.99 * self.largest_noise)
        self.averages.append(self._average())

    def _average(self) -> float:
        """The average since the last alarm."""
        return weighted(np.array(self.accepted[self.start_of_average :]))

    def _rises(self) -> bool:
        mature = 1.0 - 0.9 ** len(self.averages) >= 0.5
        if self.rest > 0 or self.off or not mature:
            return False
        average, best = self.averages[-1], min(self.averages[6:])
        fell_between = len(self.alarm_losses) - self.in_a_row
        if average > best + max(3.0 * 2.0**fell_between * self.largest_noise, abs(best) / 128.0):
            return True
        if len(self.losses) < 8:
            return False
        level = median_low(self.losses[:8])
        allowed = 0.5 * abs(level)
        if level <= self.largest_noise:
            allowed = max(allowed, 5.0 * self.largest_noise)
        return average > level + allowed and self._higher(average)

    def _higher(self, average: float) -> bool:
        return not self.alarm_losses or average > self.alarm_losses[-1] + self.largest_noise

    def _alarm(self, rose: bool) -> None:
        if rose:
            average = self.averages[-1]
            self.in_a_row = self.in_a_row + 1 if self._higher(average) else 1
            self.alarm_losses.append(max(average, median_low(self.losses[-11:])))
            self.off = self.in_a_row >= 4
        again = self.scale >= 2.0 * self.low
        shortest = max(20, self.total // 20)
        self.pause = (
            shortest if self.pause == 0 else min(2 * self.pause, max(shortest, self.total)) if again else self.pause
        )
        if not self.off:
            self.scale = max(0.125, 0.5 * self.scale)
        self.low, self.back, self.rest, self.missing = self.scale, 0, 10, 0
        self.averages, self.start_of_average = [], len(self.accepted)


def weighted(values: np.ndarray) -> float:
    """The mean of the values, the last with weight 1, each before it with 0.9 of the next one's."""
    return float(np.average(values, weights=0.9 ** np.arange(len(values))[::-1]))
