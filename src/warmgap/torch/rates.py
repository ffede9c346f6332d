"""The learning rates of an optimizer's groups: as a schedule sets them, and as others change them in between."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from warmgap._checks import check_finite

Rate = float | Tensor


class GroupRates:
    """Each group's rate: its peak times a factor, times what others have multiplied it by since."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.peaks: list[Rate] = []
        self.scales: list[float] = []  # what others have multiplied the rates by
        self.last: list[Rate] = []  # the rates as last set, tensors as copies
        self._plain: list[float | None] = []  # as set here, without the scales; None for a group that is left alone

    def restart(self) -> None:
        """Take the groups' peaks, and forget what others have multiplied them by."""
        self.peaks = [peak_of(group) for group in self.optimizer.param_groups]
        self.scales = [1.0] * len(self.peaks)

    def join(self) -> None:
        """Take in the groups that were added since, each with its rate as its peak."""
        for group in self.optimizer.param_groups[len(self.peaks) :]:
            group.setdefault("initial_lr", float(group["lr"]))
            self.peaks.append(peak_of(group))
            self.scales.append(1.0)
            self.last.append(group["lr"])
            self._plain.append(None)

    def scaled(self, plain: list[float | None]) -> list[Rate]:
        """Return these rates times what others have multiplied them by; that of a group left alone is as it is."""
        groups = zip(self.optimizer.param_groups, plain, self.scales, strict=True)
        return [group["lr"] if rate is None else rate * scale for group, rate, scale in groups]

    def write(self, plain: list[float | None]) -> None:
        """Set the rates, of tensors in place; None leaves a group's alone."""
        self._plain, self.last = plain, []
        for index, group in enumerate(self.optimizer.param_groups):
            lr, rate = group["lr"], plain[index]
            if rate is not None and isinstance(lr, Tensor):
                lr.fill_(rate * self.scales[index])
            elif rate is not None:
                group["lr"] = lr = rate * self.scales[index]
            self.last.append(lr.clone() if isinstance(lr, Tensor) else lr)

    def accept(self) -> None:
        """Take the rates as they are: nothing of them is to be carried on."""
        groups = self.optimizer.param_groups[: len(self.peaks)]  # some may be new
        self.last = [group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"] for group in groups]

    def carry(self) -> tuple[float, float] | None:
        """Keep what others have multiplied the rates by since they were written, but where that lies on a device.

        Returns the first changed group's scale before, and the last one's after; None where none was changed.
        """
        changed: list[float] = []
        for index, group in enumerate(self.optimizer.param_groups):
            if group["lr"] is (last := self.last[index]) or not (plain := self._plain[index]):
                continue
            if (lr := _on_host(group["lr"])) is not None and lr != _on_host(last):
                changed += self.scales[index], lr / plain
                self.scales[index] = changed[-1]
        return (changed[0], changed[-1]) if changed else None

    def on_host(self, group: dict[str, Any]) -> float:
        """Return a group's rate, without waiting for the device where it lies there and was set here."""
        if (lr := _on_host(group["lr"])) is not None:
            return lr
        rows = zip(self.optimizer.param_groups, self._plain, self.scales)  # noqa: B905 # some groups may be new
        rates = (plain * scale for one, plain, scale in rows if one is group and plain is not None)
        rate = next(rates, None)
        return float(group["lr"]) if rate is None else rate

    @property
    def put_to_0(self) -> bool:
        """Whether somebody has put 0 for a rate for a moment, as to have the optimizer make its state."""
        pairs = zip(self.optimizer.param_groups, self.last)  # noqa: B905 # some groups may be new
        return any(_on_host(group["lr"]) == 0.0 != _on_host(last) for group, last in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return peaks and scales as plain Python values."""
        return {"base_lrs": [float(peak) for peak in self.peaks], "scales": list(self.scales)}

    def read(self, saved: dict[str, Any]) -> tuple[list[Rate], list[float]]:
        """Return the peaks and scales that `to_dict` described; refuse those of another number of groups."""
        count, here = len(saved["base_lrs"]), len(self.optimizer.param_groups)
        if count != here:
            raise ValueError(
                f"this state belongs to an optimizer with {count} parameter groups, and this one has {here}: build the "
                "optimizer as it was"
            )
        hint = "this state is damaged or was edited"
        peaks: list[Rate] = [check_finite("base_lrs", peak, hint) for peak in saved["base_lrs"]]
        return peaks, [check_finite("scales", scale, hint) for scale in saved["scales"]]


def peak_of(group: dict[str, Any]) -> float:
    """Return the peak rate of a group: its `initial_lr`, times its `lr_scale` where it has one.

    `lr_scale` is the convention of timm and others for layer-wise rates: the schedule's rate is multiplied by it.
    """
    return float(group["initial_lr"]) * check_finite("lr_scale of a group", group.get("lr_scale", 1.0))


def _on_host(lr: Rate) -> float | None:
    """Return a rate; None where reading it would wait for a device."""
    return None if isinstance(lr, Tensor) and lr.device.type != "cpu" else float(lr)
