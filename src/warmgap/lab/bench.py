"""The bench: a fixed suite of workloads, on each of them every rule beside a grid of hand-tuned lengths, with seeds.

Rules are named as everywhere, and lengths by their share of the run (`linear:10%`, `none`), so that a method has one
name on every workload. What comes out is one file, `results.json`, from which table and pictures are made.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from warmgap.lab.config import TrainConfig
from warmgap.lab.errors import RULE_GAVE_UP, UserError
from warmgap.lab.record import RunRecord, versions, write_atomically
from warmgap.lab.sweep import Outcome, in_folder, linear_rule, run_sweep, tell
from warmgap.lab.table import Run

if TYPE_CHECKING:
    from rich.console import Console

RESULTS_FILE = "results.json"
RESULTS_VERSION = 1

LENGTHS = ("none", "linear:1%", "linear:2%", "linear:5%", "linear:10%", "linear:20%", "linear:40%", "linear:60%")
"""The hand-tuned warm-ups: shares of the run."""

RULES = ("loss-ratio", "power", "published", "gap", "auto-late", "auto")
"""The rules that find the length themselves."""

METHODS = LENGTHS + RULES

SEEDS = (0, 1, 2)

_CURVE_POINTS = 120

Split = Literal["development", "test"]


@dataclass(frozen=True)
class Workload:
    """Something to train, on which the warm-ups are compared.

    Attributes:
        name: Its name.
        split: `development`, where rules may be made to fit, or `test`, which is only looked at afterwards.
        config: Its settings; rule and seed are the bench's.
        target_loss: The loss that a person would call optimal; for the published rule, which needs to be told.
        start_from: The run whose weights it starts from, None for random ones.
        setting: What was changed of the workload of this name to see whether it matters; empty for the workload itself.
    """

    name: str
    split: Split
    config: TrainConfig
    target_loss: float
    start_from: TrainConfig | None = None
    setting: str = ""

    @property
    def slug(self) -> str:
        """Its name for folders."""
        words = f"{self.name} {self.setting}".strip()
        return "".join(sign if sign.isalnum() or sign in "._" else "-" for sign in words)

    def run(self, method: str, seed: int) -> TrainConfig:
        """The settings of one run: a rule, or a length in percent of the steps."""
        config = replace(self.config, rule=method, seed=seed)
        if method.startswith("linear:"):
            config = replace(config, rule=linear_rule(method.removeprefix("linear:"), config.steps))
        if share_of(method) is not None:  # it looks at no loss
            return replace(config, target_loss=None, averaging=None)
        return replace(config, target_loss=self.target_loss) if method == "published" else config


Plan = Sequence[tuple[Workload, Sequence[str]]]
"""Workloads, each with the methods to train on it."""

_TINY = TrainConfig(model="tiny", steps=200, batch_size=16, eval_every=0, save_every=0)
_IMAGES = replace(_TINY, model="mlp", corpus="digits")

_WIKI, _BPE, _STDLIB, _CODE_BPE, _DIGITS = 1.8, 3.5, 1.3, 2.5, 0.05
"""Losses that a person would call optimal for runs of these lengths: somewhat below those reached."""


def _text(
    name: str, split: Split, optimizer: str, lr: float, corpus: str = "wiki", target_loss: float = _WIKI, **more: Any
) -> Workload:
    return Workload(name, split, replace(_TINY, corpus=corpus, optimizer=optimizer, lr=lr, **more), target_loss)


def _finetune(
    name: str,
    split: Split,
    optimizer: str,
    lr: float,
    corpus: str = "stdlib",
    target_loss: float = _STDLIB,
    *,
    base_lr: float | None = None,
    **more: Any,
) -> Workload:
    """Training on from a model of `wiki`, which was trained at `base_lr`, or the same rate."""
    base = replace(
        _TINY, corpus="wiki", optimizer=optimizer, lr=lr if base_lr is None else base_lr, steps=600, rule="linear:30"
    )
    return replace(_text(name, split, optimizer, lr, corpus, target_loss, **more), start_from=base)


SUITE = (
    _text("muon-wiki", "development", "muon", 2e-2),
    _text("muon-wiki-x3", "development", "muon", 6e-2),
    _text("muon-wiki-x1/3", "development", "muon", 2e-2 / 3),
    _text("lion-wiki", "development", "lion", 2e-3),
    _text("lion-wiki-x3", "development", "lion", 6e-3),
    _text("lion-wiki-x1/3", "development", "lion", 2e-3 / 3),
    _text("signum-wiki", "development", "signum", 2e-3),
    _text("signum-wiki-x3", "development", "signum", 6e-3),
    _text("nsgd-wiki", "development", "normalized-sgd", 6e-2),
    _text("nsgd-wiki-x3", "development", "normalized-sgd", 1.8e-1),
    _text("nsgd-wiki-x1/3", "development", "normalized-sgd", 2e-2),
    _text("nsgd-wiki-long", "development", "normalized-sgd", 6e-2, steps=800),
    _text("signum-wiki-x1/3", "development", "signum", 2e-3 / 3),
    _text("muon-wiki-long", "development", "muon", 2e-2, steps=800),
    _text("lion-wiki-batch-x4", "development", "lion", 2e-3, batch_size=64),
    _text("scion-wiki", "development", "scion", 1e-3),
    _text("torch-muon-wiki", "development", "torch-muon", 1e-2),
    _text("muon-stdlib", "development", "muon", 2e-2, "stdlib", _STDLIB),
    _text("muon-stdlib-x3", "development", "muon", 6e-2, "stdlib", _STDLIB),
    _text("lion-stdlib", "development", "lion", 2e-3, "stdlib", _STDLIB),
    _text("lion-stdlib-x1/3", "development", "lion", 2e-3 / 3, "stdlib", _STDLIB),
    _text("signum-stdlib", "development", "signum", 2e-3, "stdlib", _STDLIB),
    _text("nsgd-stdlib", "development", "normalized-sgd", 6e-2, "stdlib", _STDLIB),
    _text("lion-pytorch-stdlib", "development", "lion-pytorch", 2e-3, "stdlib", _STDLIB),
    _finetune("muon-finetune", "development", "muon", 2e-2),
    _finetune("lion-finetune", "development", "lion", 2e-3),
    Workload("digits-lion", "development", replace(_IMAGES, optimizer="lion", lr=5e-4), _DIGITS),
    Workload("digits-muon", "development", replace(_IMAGES, optimizer="muon", lr=1e-2), _DIGITS),
    _text("gluon-wiki", "development", "gluon", 1e-3),
    _text("muon-wiki-batch-x1/2", "development", "muon", 2e-2, batch_size=8),
    _text("muon-stdlib-x1/3", "development", "muon", 2e-2 / 3, "stdlib", _STDLIB),
    _text("torch-muon-stdlib", "development", "torch-muon", 1e-2, "stdlib", _STDLIB),
    _text("scion-stdlib", "development", "scion", 1e-3, "stdlib", _STDLIB),
    _text("lion-stdlib-x3", "development", "lion", 6e-3, "stdlib", _STDLIB),
    _text("signum-stdlib-x3", "development", "signum", 6e-3, "stdlib", _STDLIB),
    _text("nsgd-stdlib-x1/3", "development", "normalized-sgd", 2e-2, "stdlib", _STDLIB),
    _finetune("signum-finetune", "development", "signum", 2e-3),
    Workload("digits-signum", "development", replace(_IMAGES, optimizer="signum", lr=5e-4), _DIGITS),
    _text("muon-wiki-bpe", "development", "muon", 2e-2, target_loss=_BPE, steps=400, vocab_size=512),
    _text("muon-stdlib-long", "development", "muon", 2e-2, "stdlib", _STDLIB, steps=800),
    _text("torch-muon-wiki-x3", "development", "torch-muon", 3e-2, steps=400),
    _text("scion-wiki-x1/3", "development", "scion", 1e-3 / 3, steps=400),
    _text("gluon-stdlib", "development", "gluon", 1e-3, "stdlib", _STDLIB, steps=400),
    _text("lion-stdlib-longer", "development", "lion", 2e-3, "stdlib", _STDLIB, steps=600),
    _text("lion-wiki-sequence-x2", "development", "lion", 2e-3, steps=400, batch_size=8, sequence_length=128),
    _text("lion-pytorch-wiki-x3", "development", "lion-pytorch", 6e-3, steps=400),
    _text("signum-wiki-bpe-x1/3", "development", "signum", 2e-3 / 3, target_loss=_BPE, steps=400, vocab_size=1024),
    _text("signum-stdlib-batch-x2", "development", "signum", 2e-3, "stdlib", _STDLIB, batch_size=32),
    _text("signum-wiki-wsd", "development", "signum", 2e-3, steps=400, decay="wsd"),
    _text("nsgd-stdlib-x3", "development", "normalized-sgd", 1.8e-1, "stdlib", _STDLIB, steps=400),
    _finetune("nsgd-finetune", "development", "normalized-sgd", 6e-2),
    _finetune("lion-wiki-continued-x1/3", "development", "lion", 2e-3 / 3, "wiki", _WIKI, base_lr=2e-3, steps=400),
    Workload("digits-nsgd", "development", replace(_IMAGES, optimizer="normalized-sgd", lr=1e-1), _DIGITS),
    Workload("digits-lion-x3", "development", replace(_IMAGES, optimizer="lion", lr=1.5e-3), _DIGITS),
    _text("muon-wiki-sequence-x2", "test", "muon", 2e-2, steps=300, batch_size=8, sequence_length=128),
    _text("muon-stdlib-bpe-x3", "test", "muon", 6e-2, "stdlib", _CODE_BPE, steps=300, vocab_size=512),
    _text("torch-muon-stdlib-long", "test", "torch-muon", 1e-2, "stdlib", _STDLIB, steps=600),
    _text("scion-wiki-x3", "test", "scion", 3e-3, steps=300),
    _text("gluon-wiki-x1/3", "test", "gluon", 1e-3 / 3, steps=300),
    _text("lion-stdlib-bpe", "test", "lion", 2e-3, "stdlib", _CODE_BPE, steps=400, vocab_size=1024),
    _text("lion-wiki-batch-x1/2-x3", "test", "lion", 6e-3, steps=300, batch_size=8),
    _text("lion-pytorch-stdlib-x1/3", "test", "lion-pytorch", 2e-3 / 3, "stdlib", _STDLIB, steps=300),
    _text("signum-wiki-long", "test", "signum", 2e-3, steps=800),
    _text("signum-stdlib-sequence-x2", "test", "signum", 2e-3, "stdlib", _STDLIB, batch_size=8, sequence_length=128),
    _text("nsgd-wiki-decay-linear", "test", "normalized-sgd", 6e-2, steps=300, decay="linear"),
    _text("nsgd-wiki-batch-x2-x3", "test", "normalized-sgd", 1.8e-1, batch_size=32),
    _finetune("lion-finetune-x3", "test", "lion", 6e-3, base_lr=2e-3, steps=300),
    _finetune("muon-finetune-x1/3", "test", "muon", 2e-2 / 3, base_lr=2e-2, steps=300),
    Workload("digits-muon-x3", "test", replace(_IMAGES, optimizer="muon", lr=3e-2), _DIGITS),
    Workload("digits-nsgd-long", "test", replace(_IMAGES, optimizer="normalized-sgd", lr=1e-1, steps=600), _DIGITS),
)
"""The suite: seventy workloads, sixteen for the test. A peak rate is the optimizer's tuned one, or three times or a
third of it."""

MINI = (
    Workload("digits-lion", "development", replace(_IMAGES, optimizer="lion", lr=5e-4, steps=30), _DIGITS),
    Workload(
        "muon-wiki",
        "test",
        replace(_TINY, corpus="wiki", optimizer="muon", steps=12, batch_size=4, eval_tokens=4096),
        _WIKI,
    ),
)
"""A suite of seconds, to see that everything works."""

MINI_METHODS = ("none", "linear:10%", "linear:40%", "loss-ratio", "auto")

SUITES: Mapping[str, tuple[tuple[Workload, ...], tuple[str, ...], tuple[int, ...]]] = {
    "full": (SUITE, METHODS, SEEDS),
    "mini": (MINI, MINI_METHODS, (0, 1)),
}
"""By name: the workloads, and the methods and seeds unless others are asked for."""


def share_of(method: str) -> float | None:
    """The share of the run that a hand-tuned length takes; None for a rule that finds the length itself.

    Raises:
        UserError: A length that is no share.
    """
    if method == "none":
        return 0.0
    if not method.startswith("linear:"):
        return None
    try:
        if method.endswith("%"):
            return float(method.removeprefix("linear:").removesuffix("%")) / 100
    except ValueError:
        pass
    raise UserError(f"The bench names a length by its share of the run, such as linear:10%, got {method!r}.")


def choose(
    workloads: Sequence[Workload], split: str = "all", names: Sequence[str] | None = None
) -> tuple[Workload, ...]:
    """The workloads of a split, or those of these names.

    Raises:
        UserError: No such workload or split.
    """
    if split not in ("all", "development", "test"):
        raise UserError(f"Unknown split {split!r}: choose one of development, test, all.")
    known = [workload.name for workload in workloads]
    for name in names or ():
        if name not in known:
            raise UserError(f"Unknown workload {name!r}: choose from {', '.join(known)}.")
    return tuple(
        workload for workload in workloads if (workload.name in names if names else split in ("all", workload.split))
    )


def changed(workload: Workload, best_loss: float, lengths: Sequence[str] = LENGTHS) -> Plan:
    """A workload with one setting after the other changed, each with the methods that the setting bears on.

    Whatever changes the hand-tuned runs (the number of steps, the peak rate) has the lengths again; else those of the
    workload itself are the ones to compare with.

    Args:
        workload: The workload.
        best_loss: The final loss of its best hand-tuned length.
        lengths: The hand-tuned lengths.
    """
    config = workload.config.resolve()
    assert config.lr is not None  # noqa: S101 - resolved
    settings: dict[str, tuple[dict[str, Any], Sequence[str]]] = {
        **{f"floor {floor:g}": ({"floor": floor}, ("auto",)) for floor in (0.001, 0.1)},
        **{f"averaging {share:g}": ({"averaging": share}, ("auto",)) for share in (0.8, 0.95)},
        "steps x1/2": ({"steps": config.steps // 2}, (*lengths, "auto")),
        "steps x4": ({"steps": config.steps * 4}, (*lengths, "auto")),
        "rate x1/3": ({"lr": config.lr / 3}, (*lengths, "auto")),
        "rate x3": ({"lr": config.lr * 3}, (*lengths, "auto")),
        "target 0": ({"target_loss": 0.0}, ("gap", "auto")),
        "target x2": ({"target_loss": round(2 * best_loss, 3)}, ("gap", "auto")),
    }
    return [
        (replace(workload, setting=setting, config=replace(workload.config, **change)), methods)
        for setting, (change, methods) in settings.items()
    ]


# ------------------------------------------------------------------------------------------------------------- training


def train_bench(
    plan: Plan, seeds: Sequence[int], folder: Path, *, command: str, jobs: int | None = None, console: Console
) -> int:
    """Train what is not trained yet, and write the results so far to `results.json`.

    Finished runs are skipped and interrupted ones resumed, as in a sweep. The runs that others start from come first.

    Args:
        plan: Workloads, each with its rules and lengths.
        seeds: The seeds.
        folder: Where runs and results go.
        command: The command line that makes this bench.
        jobs: Runs at a time (see `run_sweep`).
        console: Where to show progress.

    Returns:
        Exit code: 0, 1 where a run failed, 130 where it was interrupted.

    Raises:
        UserError: A setting that is not allowed, nothing asked for, or a folder that cannot be written to.
    """
    # A seed at a time, so that a bench that is interrupted has seen every workload.
    wanted = [
        (workload, method, workload.run(method, seed).resolve())
        for seed in dict.fromkeys(seeds)
        for workload, methods in plan
        for method in dict.fromkeys(methods)
    ]
    if not wanted:
        raise UserError("The bench has nothing to train: give a workload, a rule and a seed.")
    asked = {"plan": [[workload.slug, list(methods)] for workload, methods in plan], "seeds": list(seeds)}
    bases = {
        base: in_folder(replace(base, save_every=base.steps).resolve(), folder / "base")
        for workload, _ in plan
        if (base := workload.start_from)
    }
    if bases:
        outcomes = run_sweep(
            list(bases.values()), folder / "base", command=command, asked=asked, jobs=jobs, console=console
        )
        if any(outcome.status != "done" for outcome in outcomes):
            return tell(outcomes, folder / "base", console) or 1  # where one diverged
    # Two lengths that are as many steps of a short run are one run.
    runs: dict[TrainConfig, list[tuple[Workload, str]]] = {}
    for workload, method, config in wanted:
        start = bases[workload.start_from].output if workload.start_from else None
        run = in_folder(replace(config, start_from=start), folder / workload.slug)
        runs.setdefault(run, []).append((workload, method))
    outcomes = run_sweep(list(runs), folder, command=command, asked=asked, jobs=jobs, console=console)
    results = Results(
        command=command,
        commit=_trained_at(outcomes, console),
        versions=versions(),
        workloads=[describe(workload) for workload, _ in plan],
        rows=[
            _row(workload, method, outcome)
            for outcome in outcomes
            if _counts(outcome)
            for workload, method in runs[outcome.config]
        ],
        curves=[
            _curve(workload, method, outcome.config)
            for outcome in outcomes
            for workload, method in runs[outcome.config]
            if outcome.status == "done" and outcome.config.seed == seeds[0] and outcome.config.rule == "auto"
        ],
    )
    results.save(folder / RESULTS_FILE)
    return tell(outcomes, folder, console)


# ------------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Row:
    """One run of the bench.

    Attributes:
        workload: Name of its workload.
        setting: What was changed of that workload; empty for the workload itself.
        method: Rule, or length in percent of the steps.
        seed: Seed.
        status: `done`, `diverged`, or `failed` (the rule could not go on).
        final_val_loss: Final validation loss, None unless done.
        first_loss: Loss of the first training step, None where not even that was finite.
        warmup_iters: Steps of warm-up, None where it never ended.
        seconds: Wall time.
        fingerprint: Of its settings.
    """

    workload: str
    setting: str
    method: str
    seed: int
    status: str
    final_val_loss: float | None
    first_loss: float | None
    warmup_iters: int | None
    seconds: float
    fingerprint: str


@dataclass(frozen=True)
class Results:
    """What `results.json` holds.

    Attributes:
        command: The command line that made it.
        commit: The commit of warmgap's checkout that trained the runs, all of them where there are several; None where
            it was not one.
        versions: Of Python and the packages that matter.
        workloads: Name, split, setting and the telling settings of each workload.
        rows: One a run.
        curves: The factor against steps of the runs of `auto` with the first seed: workload, setting, method, seed,
            steps, factors. (Those of a hand-tuned length follow from the length.)
    """

    command: str
    commit: str | None
    versions: Mapping[str, str]
    workloads: Sequence[Mapping[str, Any]]
    rows: Sequence[Row]
    curves: Sequence[Mapping[str, Any]]

    def save(self, path: Path) -> None:
        """Write it to `path`, a line a run."""
        parts = [f'"version": {RESULTS_VERSION}']
        parts += [f'"{name}": {json.dumps(getattr(self, name))}' for name in ("command", "commit", "versions")]
        rows = [dataclasses.asdict(row) for row in self.rows]
        for name, items in (("workloads", self.workloads), ("runs", rows), ("curves", self.curves)):
            lines = ",\n".join(json.dumps(item) for item in items)
            parts.append(f'"{name}": [\n{lines}\n]')
        write_atomically(path, "{\n" + ",\n".join(parts) + "\n}\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` wrote.

        Raises:
            UserError: It is not there, not one of ours, or of another version.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["version"] != RESULTS_VERSION:
                raise UserError(
                    f"{path} was written by another version of warmgap (form {data['version']}, this one reads form "
                    f"{RESULTS_VERSION}): use that version, or run the bench again."
                )
            return cls(
                data["command"],
                data["commit"],
                data["versions"],
                data["workloads"],
                [Row(**row) for row in data["runs"]],
                data["curves"],
            )
        except FileNotFoundError as error:
            raise UserError(f"There is no {path}: give the results.json of a bench.") from error
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} holds no results of a bench: give the results.json of one.") from error


def _counts(outcome: Outcome) -> bool:
    """Whether a run says something about its warm-up; one that failed for want of memory or disk does not."""
    gave_up = outcome.status == "failed" and outcome.message.startswith(RULE_GAVE_UP)
    return gave_up or outcome.status in ("done", "diverged")


def _trained_at(outcomes: Sequence[Outcome], console: Console) -> str | None:
    """The commits that trained the runs, that of most first; several are told of, as a rule may differ in them."""
    folders = [outcome.config.output for outcome in outcomes if _counts(outcome)]
    records = [RunRecord.load(folder) for folder in folders if folder is not None and (folder / "run.json").exists()]
    found = Counter(record.commit for record in records)
    if len(found) > 1:
        console.print(
            f"The finished runs are of {len(found)} commits of warmgap and are not trained again: if what they train "
            "has changed since, take another --output.",
            highlight=False,
        )
    return ", ".join(name or "no checkout" for name, _ in found.most_common()) if any(found) else None


def _row(workload: Workload, method: str, outcome: Outcome) -> Row:
    config = outcome.config
    assert config.output is not None  # noqa: S101 - every run of a sweep has one
    record, first = None, None
    if (config.output / "run.json").exists():
        record = RunRecord.load(config.output)
        steps, losses = Run(config.output, record).metrics().get("loss", ([], []))
        first = losses[0] if steps and steps[0] == 1 else None
    return Row(
        workload=workload.name,
        setting=workload.setting,
        method=method,
        seed=config.seed,
        status=outcome.status,
        final_val_loss=record.final_val_loss if record and outcome.status == "done" else None,
        first_loss=first,
        warmup_iters=record.warmup_iters if record else None,
        seconds=record.seconds if record else 0.0,
        fingerprint=config.fingerprint(),
    )


def describe(workload: Workload) -> dict[str, Any]:
    """A workload as plain values, with the settings that tell it from others."""
    config = workload.config.resolve()
    telling = ("corpus", "model", "optimizer", "lr", "steps", "batch_size", "decay")
    return {
        "name": workload.name,
        "split": workload.split,
        "setting": workload.setting,
        **{name: getattr(config, name) for name in telling},
        "target_loss": workload.target_loss,
        "start_from": workload.start_from.command() if workload.start_from else None,
    }


def _curve(workload: Workload, method: str, config: TrainConfig) -> dict[str, Any]:
    """The factor against steps of a run that is done, at few steps and with few digits."""
    assert config.output is not None  # noqa: S101 - every run of a sweep has one
    steps, factors = Run(config.output, RunRecord.load(config.output)).metrics()["factor"]
    kept = _thinned(len(steps))
    return {
        "workload": workload.name,
        "setting": workload.setting,
        "method": method,
        "seed": config.seed,
        "steps": [steps[index] for index in kept],
        "factors": [round(factors[index], 4) for index in kept],
    }


def _thinned(count: int) -> list[int]:
    """Indices of at most `_CURVE_POINTS` of `count` steps, the denser the earlier: what differs differs early."""
    last = math.sqrt(max(0, count - 1))
    return sorted({round((index / (_CURVE_POINTS - 1) * last) ** 2) for index in range(_CURVE_POINTS)})
