"""Recipes: what to train, as TOML files in `recipes/`. A row of a paper's table is one, a suite of the bench another.

title = "..."
source = "arXiv ..."              # where the settings and the printed figures are from
methods = ["auto", "linear:10%"]
seeds = [0]
rates = [1.0]                     # factors of the peak rate
[base]                            # settings of `warmgap train`, shared by all workloads
[[workload]]                      # each with a name and its own settings
name = "1B"
split = "test"
[workload.printed]                # what the paper prints: a method and its final loss
[workload.start_from]             # settings of the run whose weights this one starts from
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from warmgap.lab.config import TrainConfig, from_plain
from warmgap.lab.corpus import BYTES, TRAINED
from warmgap.lab.errors import UserError
from warmgap.lab.methods import Length, Method
from warmgap.lab.model import IMAGE_MODELS, size_of

_INSIDE = Path(__file__).parent / "recipes"  # in a wheel
FOLDER = _INSIDE if _INSIDE.is_dir() else Path(__file__).parents[3] / "recipes"


@dataclass(frozen=True)
class Workload:
    """Something to train, on which methods are compared; method, seed and rate are the recipe's."""

    name: str
    config: TrainConfig
    split: str = ""  # `development`, where rules may be made to fit, `test`, or empty
    start_from: TrainConfig | None = None  # the run whose weights it starts from
    printed: Mapping[str, float] = dataclasses.field(default_factory=dict)  # method -> final loss in the paper
    methods: tuple[str, ...] = ()  # of its own, instead of the recipe's


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says; `rates` are factors of the peak rate."""

    title: str
    workloads: tuple[Workload, ...]
    source: str = ""
    methods: tuple[str, ...] = ("auto",)
    seeds: tuple[int, ...] = (0,)
    rates: tuple[float, ...] = (1.0,)
    notes: str = ""

    @classmethod
    def load(cls, name: str) -> Recipe:
        """Read a recipe by its name (`suites/mini`, `2602.05813/lion-124m-32`), or a `.toml` file."""
        path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            there = ", ".join(rows(Path(name).parts[0])) if "/" in name else ", ".join(papers())
            raise UserError(f"There is no recipe {name!r}: there are {there or 'none'}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no TOML file: {error}.") from error
        base, listed = data.pop("base", {}), data.pop("workload", None)
        if not isinstance(listed, list) or not all(isinstance(each, dict) and each.get("name") for each in listed):
            raise UserError(f"{path} must have workloads, [[workload]], each with a name.")
        for name, kind in (("methods", str), ("seeds", int), ("rates", int | float)):
            if not isinstance(values := data.get(name, []), list) or not all(isinstance(each, kind) for each in values):
                raise UserError(f"The {name} in {path} must be a list such as {getattr(cls, name)}, got {values!r}.")
        workloads = [_workload(base, dict(each)) for each in listed]
        known = {field.name for field in dataclasses.fields(cls)} - {"workloads"} | {"base", "workload"}
        if unknown := sorted(data.keys() - known):
            raise UserError(f"A recipe has no {unknown[0]!r}, got one in {path}: it has {', '.join(sorted(known))}.")
        given: dict[str, Any] = {"title": path.stem, **data}
        given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
        return cls(**given, workloads=tuple(workloads))

    def chosen(self, *, split: str | None = None, workloads: Sequence[str] = (), **lists: Sequence[Any]) -> Recipe:
        """The recipe with these of its workloads, and these `methods`, `seeds` and `rates` where they are given."""
        names = [workload.name for workload in self.workloads]
        if unknown := [name for name in workloads if name not in names]:
            raise UserError(f"Unknown workload {unknown[0]!r}: choose from {', '.join(names)}.")
        left = [
            replace(workload, methods=() if lists.get("methods") else workload.methods)
            for workload in self.workloads
            if workload.name in (workloads or names) and split in (None, workload.split)
        ]
        if not left:
            raise UserError(f"No workload is of the split {split!r}: choose development or test.")
        given: dict[str, Any] = {name: tuple(values) for name, values in lists.items() if values}
        return replace(self, workloads=tuple(left), **given)

    def scaled(self, scale: str, *, corpus: str | None = None, tokenizer: str | None = None) -> Recipe:
        """The recipe at a share of its size.

        Width and layers shrink with the cube root of the scale, the vocabulary with its square (so parameters follow
        the scale), steps with its square root, batch and sequence with its fourth root (so tokens do too). Rates,
        betas, weight decay, clip and floor stay; warm-ups keep their share of the run; a target loss keeps its share of
        the loss of guessing, ln(vocabulary). The vocabulary is trained on the corpus, which may be another one; only at
        the whole size a tokenizer may be given.
        """
        try:
            share = float(Fraction(scale))
        except (ValueError, ZeroDivisionError):
            share = 0.0
        if not 0.0 < share <= 1.0:
            raise UserError(f"The scale is a share such as 1/100, got {scale!r}.")
        if tokenizer is not None and share < 1.0:
            raise UserError("A smaller recipe trains its tokenizer on the corpus: leave --tokenizer out.")
        title = self.title if share == 1.0 else f"{self.title}, at {scale} of its size"
        given = {name: value for name, value in (("corpus", corpus), ("tokenizer", tokenizer)) if value is not None}
        made = [_scaled(workload, share, given, self.methods) for workload in self.workloads]
        return replace(self, title=title, workloads=tuple(made))


def papers() -> list[str]:
    """The folders of recipes."""
    return sorted(path.name for path in FOLDER.iterdir() if path.is_dir()) if FOLDER.is_dir() else []


def rows(paper: str) -> list[str]:
    """The recipes in a folder."""
    folder = FOLDER / paper
    if not folder.is_dir():
        raise UserError(f"There are no recipes of {paper!r}: there are {', '.join(papers())}.")
    return sorted(path.stem for path in folder.glob("*.toml"))


def _workload(base: Mapping[str, Any], data: dict[str, Any]) -> Workload:
    start, methods = data.pop("start_from", None), tuple(data.pop("methods", ()))
    known = {"name": "", **{name: data.pop(name) for name in ("name", "split", "printed") if name in data}}
    config = from_plain({**base, **data})
    started = None if start is None else from_plain({**base, **data, **start})
    return Workload(**known, config=config, start_from=started, methods=methods)


def _scaled(workload: Workload, share: float, given: Mapping[str, Any], methods: Sequence[str]) -> Workload:
    config = replace(workload.config, **given)
    own = workload.methods or methods
    if share == 1.0:
        return replace(workload, config=config, methods=tuple(own))
    size = size_of(config.model)
    if size is None or config.model in IMAGE_MODELS:
        raise UserError(f"The model {config.model} has one size: a recipe of it cannot be scaled.")
    usual = config.vocab_size or size.vocab_size
    cube, root, fourth = share ** (1 / 3), share**0.5, share**0.25
    vocabulary = max(BYTES, round(usual * cube**2))
    same_share = math.log(vocabulary) / math.log(usual)
    config = replace(
        config,
        target_loss=None if config.target_loss is None else round(config.target_loss * same_share, 3),
        model=f"{max(1, round(size.layers * cube))}x{max(32, round(size.width * cube / 32) * 32)}",
        tied=size.tied if config.tied is None else config.tied,
        vocab_size=vocabulary,
        tokenizer=TRAINED,
        steps=max(2, round(config.steps * root)),
        batch_size=max(1, round(config.batch_size * fourth)),
        accumulation=1,
        sequence_length=max(16, round((config.sequence_length or size.sequence_length) * fourth)),
        eval_every=config.eval_every and max(1, round(config.eval_every * root)),
        precision="fp32",
    )
    shares = {method: _in_shares(method, workload.config.steps, same_share) for method in (*own, *workload.printed)}
    return replace(
        workload,
        config=config,
        methods=tuple(shares[method] for method in own),
        printed={shares[method]: loss for method, loss in workload.printed.items()},
    )


def _in_shares(text: str, steps: int, same_share: float) -> str:
    """A method with its lengths as shares of a run of `steps`, and the losses it names times `same_share`."""
    method = Method.parse(text)
    losses = {name: value for name, value in method.options if name in ("level", "target")}
    if losses:
        method = method.with_options(**{name: round(value * same_share, 3) for name, value in losses.items()})
    lengths: dict[str, Any] = {
        name: Length(round(length.value / steps, 6), share=True)
        for name in ("warmup", "hold")
        if (length := getattr(method, name)) is not None and not length.share and length.value
    }
    return str(replace(method, **lengths))
