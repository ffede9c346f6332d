"""`warmgap train`: one training run."""

import argparse
import dataclasses
import os
from pathlib import Path

from warmgap.lab.config import TrainConfig
from warmgap.lab.corpus import NAMES
from warmgap.lab.errors import UserError
from warmgap.lab.model import sizes_table
from warmgap.lab.options import add_options, build

HELP = "train one model on one text, with the learning rate finding its own warm-up"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings of a run."""
    add_options(parser, TrainConfig)
    corpora = "\n".join(f"  {name:<24}{text}" for name, text in NAMES.items())
    parser.epilog = f"corpora:\n{corpora}\n\nmodels:\n{sizes_table()}"


def run(arguments: argparse.Namespace) -> int:
    """Train; return 0, or 130 where the run was interrupted and can be resumed."""
    config = build(TrainConfig, arguments)
    if config.output is None:
        name = f"{config.model}-{config.optimizer}-{config.rule.replace(':', '')}-{config.seed}"
        config = dataclasses.replace(config, output=Path("runs") / name)
    config.resolve()  # a mistake is told before the slow imports

    from warmgap.lab.train import train

    try:
        record = train(config)
    except RuntimeError as error:
        if not _lost(error):
            raise
        raise UserError(
            f"Process {os.environ.get('RANK', '0')} ends because another one of this run has ended or does not answer: "
            "run the same command with --resume, on any number of processes, to go on from the last checkpoint."
        ) from error
    if record.status == "interrupted":
        _say(f"Interrupted after step {record.step}: run the same command with --resume to go on.")
        return 130
    if record.status == "diverged":
        _say(f"Diverged at step {record.step}: the loss is no longer finite. The record is in {config.output}.")
        return 0
    warmup = "no warm-up ended" if record.warmup_iters is None else f"warm-up of {record.warmup_iters} steps"
    _say(
        f"Validation loss {record.final_val_loss:.4f}, {warmup}, {record.seconds:.0f} s. The record is in "
        f"{config.output}."
    )
    return 0


def _lost(error: BaseException | None) -> bool:
    """Return whether an error comes from talking to another process; gloo's have no class of their own."""
    from torch.distributed import DistError

    return error is not None and (
        isinstance(error, DistError) or "gloo/transport" in str(error) or _lost(error.__cause__)
    )


def _say(sentence: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # one process of several speaks
        print(sentence)  # noqa: T201
