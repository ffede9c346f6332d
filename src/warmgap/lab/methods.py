"""What sets the learning rate of a run, as a value with a name.

A method is an adaptive rule (`auto`, `gap`, ...) or a clock schedule, a function of the step count alone:

    none                    no warm-up, the decay begins at once
    linear:10%              straight warm-up from 1 %, over a share of the run or a number of steps (linear:400)
    geometric:40%@hidden    geometric warm-up from 1/4, of the hidden matrices only
    hold:40%                the peak until 40 % of the run, then the decay
    linear:10%+hold:60%/linear      both, with a linear decay
    gap@all, gap,sigma=0.01         a rule with its roles and its options
    gap,target=3                    a rule with its target loss
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from warmgap import decay as decays
from warmgap.lab.errors import UserError

RULES: dict[str, tuple[str, ...]] = {
    "auto": ("cap", "hold"),
    "spectral": ("cap", "hold"),
    "gap": ("cap", "kappa", "max_warmup", "sigma", "target"),
    "loss-ratio": ("cap", "level", "max_warmup"),
    "power": ("cap", "max_warmup", "rho", "target"),
    "published": ("kappa", "sigma", "target"),
}
"""The adaptive rules by name, each with the options it knows.

`level` is the paper's C, `target` the target loss (else the run's); `cap=0` is no cap.
"""

WITH_TARGET = tuple(rule for rule, options in RULES.items() if "target" in options)
"""The rules that take a target loss."""

SHAPES = {"linear": 0.01, "geometric": 0.25}
"""Shapes of a clock warm-up, each with the factor it starts from."""

DECAYS = (*dict.fromkeys((*decays.NAMES, "1-sqrt")),)
"""Names of decays. `1-sqrt` is one minus the square root of progress (arXiv 2405.18392)."""

ROLES = ("hidden", "all")

EXAMPLES = "auto, gap, linear:10%, linear:400, none, hold:40%, geometric:40%@hidden"

_PART = re.compile(r"(?P<name>[a-z-]+)(?::(?P<length>[^,@]+))?(?P<options>(?:,[a-z_]+=[^,@]+)*)(?:@(?P<roles>[a-z]+))?")


@dataclass(frozen=True)
class Length:
    """A number of steps, or a share of the run in [0, 1]."""

    value: float = 0.0
    share: bool = False

    @classmethod
    def parse(cls, text: str) -> Length:
        """Read `400` or `10%`."""
        share = text.endswith("%")
        try:
            value = float(text.removesuffix("%")) / 100 if share else float(int(text))
        except ValueError:
            value = -1.0
        if not value >= 0.0 or (share and value > 1.0):
            raise UserError(f"A length is a number of steps or a share of the run, such as 400 or 10%, got {text!r}.")
        return cls(value, share)

    def steps(self, total: int) -> int:
        """The length in steps of a run of `total` steps."""
        return round(self.value * total) if self.share else int(self.value)

    def __str__(self) -> str:
        return f"{100 * self.value:g}%" if self.share else f"{self.value:g}"


@dataclass(frozen=True)
class Method:
    """What sets the rate; `parse` reads one, `str` writes it."""

    rule: str | None = None  # None for a clock schedule
    roles: str | None = None  # what is warmed up, `hidden` or `all`; None leaves it to the rule (a clock schedule: all)
    options: tuple[tuple[str, float], ...] = ()  # settings of the rule by name
    warmup: Length = Length()  # of a clock warm-up
    shape: str = "linear"
    hold: Length | None = None  # when a clock schedule's decay begins; never before the warm-up ends
    decay: str | None = None  # None takes the run's

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read a method's name."""
        schedule, slash, decay = text.partition("/")
        if slash and decay not in DECAYS:
            raise UserError(f"Unknown decay {decay!r} in {text!r}: choose one of {', '.join(DECAYS)}.")
        method = cls(decay=decay or None)
        parts = schedule.split("+")
        for part in parts:
            match = _PART.fullmatch(part.strip())
            if match is None:
                raise UserError(f"Unknown method {text!r}: name one such as {EXAMPLES}.")
            method = method._with(text, **match.groupdict())
        if len(parts) > 1 and method.rule:
            raise UserError(f"An adaptive rule has no other parts, got {text!r}.")
        return method

    def _with(self, text: str, name: str, length: str | None, options: str, roles: str | None) -> Method:
        if roles is not None and roles not in ROLES:
            raise UserError(f"A method warms up {' or '.join(ROLES)}, got {roles!r} in {text!r}.")
        method = self if roles is None else replace(self, roles=roles)
        if name in RULES and length is None:
            return replace(method, rule=name).with_options(**_read_options(text, options))
        if options:
            raise UserError(f"A clock schedule has no options, got {text!r}.")
        if name == "none" and length is None:
            return method
        if name == "hold" and length is not None:
            return replace(method, hold=Length.parse(length))
        if name in SHAPES:
            return replace(method, shape=name, warmup=Length.parse(length or "10%"))
        raise UserError(f"Unknown method {text!r}: name one such as {EXAMPLES}.")

    def with_options(self, **options: float | None) -> Method:
        """The method with these options of its rule; those that are None stay as they are."""
        given = {name: value for name, value in options.items() if value is not None}
        known = RULES.get(self.rule or "", ())
        if unknown := [name for name in given if name not in known]:
            has = f"leave it out, or give one of {', '.join(known)}" if known else "leave it out"
            raise UserError(f"The method {self} has no use for {unknown[0]}: {has}.")
        return replace(self, options=tuple(sorted((dict(self.options) | given).items())))

    def __str__(self) -> str:
        roles = f"@{self.roles}" if self.roles else ""
        decay = f"/{self.decay}" if self.decay else ""
        if self.rule:
            return self.rule + "".join(f",{name}={value:g}" for name, value in self.options) + roles + decay
        parts = [f"{self.shape}:{self.warmup}{roles}"] if self.warmup.value else []
        parts += [f"hold:{self.hold}"] if self.hold else []
        return ("+".join(parts) or "none") + decay

    @property
    def adaptive(self) -> bool:
        """Whether it looks at losses or steps."""
        return self.rule is not None

    @property
    def rule_name(self) -> str:
        """The rule with its settings, as `warmgap.rules.by_name` reads it: `gap(sigma=0.01, roles='all')`."""
        settings = [f"{name}={value!r}" for name, value in self.options if name not in ("cap", "target")]
        settings += [f"roles={self.roles!r}"] if self.roles else []
        return f"{self.rule}({', '.join(settings)})" if settings else str(self.rule)

    @property
    def cap(self) -> float | Literal["auto"] | None:
        """The spectral cap that is asked for, None for none."""
        value = dict(self.options).get("cap")
        return "auto" if value is None else (value or None)

    @property
    def target(self) -> float | None:
        """The target loss that it names."""
        return dict(self.options).get("target")

    @property
    def label(self) -> str:
        """Its name for readers of a table."""
        if self.rule:
            return str(self)
        parts = ["no warm-up"]
        if self.warmup.value:
            steps = "" if self.warmup.share else " steps"
            parts = [f"{self.shape} {self.warmup}{steps}{' of hidden matrices' if self.roles == 'hidden' else ''}"]
        if self.hold:
            parts.append(f"peak to {self.hold}")
        return ", ".join(parts) + (f", {self.decay}" if self.decay else "")

    def check(self, total: int) -> None:
        """Check that the method fits a run of `total` steps."""
        for what, length in (("warm-up", self.warmup), ("hold", self.hold)):
            if length is not None and length.steps(total) >= total:
                raise UserError(
                    f"A {what} of {length.steps(total)} steps does not end within a run of {total} steps: shorten it."
                )

    def clock(self, step: int, total: int, decay: str) -> tuple[float, float]:
        """Factors of a clock schedule at `step` = 0, 1, ..., total - 1: of what is warmed up, and of the rest.

        `decay` is the run's, for a method that names none.
        """
        warmup = self.warmup.steps(total)
        begins = max(warmup, self.hold.steps(total) if self.hold else 0)
        base = 1.0
        if step >= begins:
            base = decay_by_name(self.decay or decay)((step - begins) / (total - begins))
        if step >= warmup:
            return base, base
        start, progress = SHAPES[self.shape], step / warmup
        rising = start + (1.0 - start) * progress if self.shape == "linear" else start ** (1.0 - progress)
        return rising * base, base if self.roles == "hidden" else rising * base


def _read_options(text: str, options: str) -> dict[str, float]:
    pairs = [option.partition("=") for option in filter(None, options.split(","))]
    try:
        return {name: float(value) for name, _, value in pairs}
    except ValueError:
        raise UserError(f"The options of a rule are numbers, got {text!r}.") from None


def varied(methods: Sequence[str], options: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """Each method with every combination of these values of its options; methods that know none stay as they are."""
    found: list[Method] = []
    given = {name: values for name, values in options.items() if values}
    for method in map(Method.parse, methods):
        own = [name for name in given if name in RULES.get(method.rule or "", ())]
        combinations = itertools.product(*(given[name] for name in own))
        found += [method.with_options(**dict(zip(own, values, strict=True))) for values in combinations]
    for name in given:
        if not any(name in dict(method.options) for method in found):
            raise UserError(f"No method of the sweep has a {name}: add one such as gap, or leave it out.")
    return tuple(dict.fromkeys(map(str, found)))


def decay_by_name(name: str) -> decays.Decay:
    """The decay of that name: progress in [0, 1] in, factor out."""
    return decays.by_name(name) if name in decays.NAMES else _one_minus_sqrt


def _one_minus_sqrt(progress: float) -> float:
    return 1.0 - math.sqrt(progress)
