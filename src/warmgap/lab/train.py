"""One training run: a task, a learning rate that finds its own warm-up, and a record of what happened."""

import contextlib
import dataclasses
import io
import math
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import safetensors.torch
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from warmgap.lab.config import LATE, TrainConfig
from warmgap.lab.errors import RULE_GAVE_UP, UserError
from warmgap.lab.interruption import Interruption
from warmgap.lab.optimizers import OPTIMIZERS
from warmgap.lab.published import PublishedRule
from warmgap.lab.record import (
    Metrics,
    RunRecord,
    checkpoint_name,
    commit,
    final_weights,
    last_checkpoint,
    new_checkpoint,
    versions,
)
from warmgap.lab.tasks import make_task
from warmgap.rules import LinearRule, Rule, by_name
from warmgap.torch import AdaptiveWarmup, SmoothnessProbe
from warmgap.torch.recognition import optimizer_kappa, optimizer_norm

__all__ = ["RunRecord", "TrainConfig", "train"]

T = TypeVar("T")

MakeProbe = Callable[[torch.optim.Optimizer, nn.Module], SmoothnessProbe]

CHECKPOINT_VERSION = 2
_EVAL_BATCH = 4096  # predictions evaluated at once
_READ_EVERY = 10  # steps between two looks of the host at the device's numbers


def train(config: TrainConfig, *, progress: bool = True, probe: MakeProbe | None = None) -> RunRecord:
    """Train, evaluate, and leave a record.

    Runs in one process, or in each of several started by `torchrun` or `accelerate launch`. With `config.output`, the
    folder holds `run.json`, `metrics.jsonl` and the last checkpoint. A run that ended is not run again: with `resume`
    its record is returned. Ctrl-C and SIGTERM (where this is the main thread) end the run after the step at hand, with
    a checkpoint.

    Args:
        config: The settings.
        progress: Whether to show how it goes, on the standard error stream.
        probe: Makes the probe that measures the steps, of the optimizer and the model; it changes no number of the run.

    Returns:
        The record. Its status is `done`, `interrupted`, or `diverged`.

    Raises:
        UserError: Settings that cannot be, a corpus that is not there or too short, a folder with another run in it.
    """
    full = config.resolve()
    folder = full.output
    if full.threads is not None:
        torch.set_num_threads(full.threads)
    if folder is not None and (folder / "run.json").exists():
        found = RunRecord.load(folder)
        if not full.resume:
            raise UserError(
                f"{folder} already holds a run ({found.status}): give --resume to go on with it, or another --output."
            )
        _check_same(full, found.config, folder)
        if found.status in ("done", "diverged"):
            return found
    run = _Run(full, config.command(), probe)
    with contextlib.ExitStack() as stack:
        display = stack.enter_context(_display(full, shown=progress and run.accelerator.is_main_process))
        stop = stack.enter_context(Interruption())
        return run.go(stop, display)


@dataclass
class _Seen:
    """A step whose numbers may still be on their way from the device."""

    step: int
    loss: Tensor
    lr: float
    factor: float
    phase: str
    gap: float | None


class _Run:
    """The parts of a run, and the steps made so far."""

    def __init__(self, config: TrainConfig, command: str, probe: MakeProbe | None = None) -> None:
        self.config = config
        self.command = command
        # Without an accelerator it must be told, or it leaves the processes of `torchrun` each to itself.
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self.device = self.accelerator.device
        processes = self.accelerator.num_processes
        micro_batches = config.accumulation * processes
        if config.batch_size % micro_batches:
            raise UserError(
                f"The batch size must be a multiple of accumulation x processes = {micro_batches}, got "
                f"{config.batch_size}."
            )
        self.micro_batch = config.batch_size // micro_batches
        # Every process has looked at the folder before the first one writes to it.
        self.accelerator.wait_for_everyone()
        with self.accelerator.main_process_first():
            self.task = make_task(config)
        self.network = self.task.model().to(self.device)
        if config.start_from is not None:
            self.start_from(config.start_from)
        self.parallel: nn.Module = self.accelerator.prepare_model(self.network)
        try:
            self.optimizers = OPTIMIZERS[config.optimizer].build(self.network, _known(config.lr), config.weight_decay)
            rule = _rule(config, self.optimizers[0])
            # They see the same losses, and so have the same factor.
            self.schedulers = [
                AdaptiveWarmup(optimizer, config.steps, rule=rule, decay=config.decay) for optimizer in self.optimizers
            ]
        except ValueError as error:
            raise UserError(f"These settings do not go together: {error}") from error
        if probe is not None and len(self.optimizers) > 1:
            raise UserError(
                f"{config.optimizer} is two optimizers, and a probe measures the steps of one: take another."
            )
        self.probe = None if probe is None else probe(self.optimizers[0], self.network)
        self.step = 0
        self.status = "running"
        self.best_val_loss: float | None = None
        self.final_val_loss: float | None = None
        self.seconds_before = 0.0
        self.started = time.monotonic()
        self.pending: list[_Seen] = []
        if config.output is not None and config.resume and (checkpoint := last_checkpoint(config.output)):
            self.load(checkpoint)
        self.accelerator.wait_for_everyone()

    # --------------------------------------------------------------------------------------------------------- the loop

    def go(self, stop: Interruption, display: "_Display") -> RunRecord:
        config, folder = self.config, self.config.output
        writes = folder is not None and self.accelerator.is_main_process
        metrics: Metrics | None = None
        with contextlib.ExitStack() as stack:
            if writes and folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                self.record().save(folder)
                metrics = Metrics(folder, self.step)
                stack.callback(metrics.close)
            while self.step < config.steps and self.status == "running":
                self.pending.append(self.one_step())
                evaluates = self.step == config.steps or bool(config.eval_every and self.step % config.eval_every == 0)
                saves = bool(config.save_every) and (self.step == config.steps or self.step % config.save_every == 0)
                looks = self.device.type == "cpu" or self.step % _READ_EVERY == 0 or self.step == config.steps
                if looks or evaluates or saves:
                    if self.agreed(stop.requested):
                        self.status = "interrupted"
                    self.read(metrics, display, evaluates=evaluates)
                if self.status != "diverged" and (saves or self.status == "interrupted"):
                    self.save()
            if self.status in ("running", "interrupted") and self.step == config.steps:
                self.status = "done"
        record = self.record()
        if writes and folder is not None:
            record.save(folder)
        self.accelerator.wait_for_everyone()
        return record

    def one_step(self) -> _Seen:
        """Make one optimizer step; nothing here waits for the device."""
        config, accelerator = self.config, self.accelerator
        losses: list[Tensor] = []
        total = torch.zeros((), device=self.device)
        micro_batches = self.micro_batches()
        for index, examples in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.parallel):
                loss = self.loss(self.parallel, examples)
                (loss / config.accumulation).backward()
            losses.append(loss.detach())
            total += losses[-1] / config.accumulation
        if config.rule != LATE:
            self.observe(losses)
        if config.clip:
            accelerator.clip_grad_norm_(self.network.parameters(), config.clip)
        with self.probed(micro_batches), self.refusals():
            for optimizer in self.optimizers:
                optimizer.step()
        # Only now: the first step may have started on its own loss.
        scheduler = self.schedulers[0]
        factor, lr = scheduler.factor, max(float(rate) for rate in scheduler.get_last_lr())
        phase = scheduler.phase
        if config.rule == LATE:
            self.observe(losses)
        with self.refusals():
            for each in self.schedulers:
                each.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.step += 1
        return _Seen(self.step, self.mean(total), lr, factor, phase, scheduler.gap)

    @contextlib.contextmanager
    def refusals(self) -> Iterator[None]:
        """Where the rule refuses a loss, end the run with a sentence."""
        try:
            yield
        except ValueError as error:
            raise UserError(f"{RULE_GAVE_UP} go on: {error}") from error

    def observe(self, losses: list[Tensor]) -> None:
        """Show the schedulers the micro-batches' losses."""
        for scheduler in self.schedulers:
            for loss in losses:
                scheduler.observe(loss, weight=self.micro_batch * self.task.predictions)

    def micro_batches(self) -> list[NDArray[np.int64]]:
        """This process's micro-batches of the next step, each of shape `(micro_batch, width)`."""
        batch = self.task.batch(self.step)
        shape = (self.config.accumulation, self.accelerator.num_processes, self.micro_batch, batch.shape[1])
        return list(batch.reshape(shape)[:, self.accelerator.process_index])

    def probed(self, micro_batches: list[NDArray[np.int64]]) -> contextlib.AbstractContextManager[None]:
        """The probe's measurement of a step on these micro-batches, where there is a probe."""
        if self.probe is None:
            return contextlib.nullcontext()
        return self.probe.measure(
            lambda: (self.loss(self.network, examples) / len(micro_batches) for examples in micro_batches),
            step=self.step,
        )

    def loss(self, model: nn.Module, examples: NDArray[np.int64]) -> Tensor:
        """Mean cross-entropy of `model` in nats a prediction, on examples of shape `(count, width)`."""
        rows = torch.from_numpy(examples)
        if self.device.type == "cuda":
            rows = rows.pin_memory()
        rows = rows.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            logits, classes = self.task.predict(model, rows)
        return nn.functional.cross_entropy(logits.float(), classes)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over processes."""
        if self.accelerator.num_processes == 1:
            return value
        reduced: Tensor = self.accelerator.reduce(value, reduction="mean")
        return reduced

    def agreed(self, flag: bool) -> bool:
        """Whether any process has the flag: they must stop at the same step."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.mean(torch.tensor(float(flag), device=self.device)).item() > 0.0)

    def read(self, metrics: Metrics | None, display: "_Display", *, evaluates: bool) -> None:
        """Look at the steps made since the last look, write them down, and stop where a loss is no longer finite."""
        losses = torch.stack([seen.loss for seen in self.pending]).tolist()
        seen_last, pending = self.pending[-1], self.pending
        self.pending = []
        if not all(math.isfinite(loss) for loss in losses):
            self.status = "diverged"
            evaluates = False
        val_loss = self.evaluate() if evaluates else None
        if val_loss is not None and not math.isfinite(val_loss):
            self.status, val_loss = "diverged", None
        if val_loss is not None:
            self.best_val_loss = val_loss if self.best_val_loss is None else min(val_loss, self.best_val_loss)
            if self.step == self.config.steps:
                self.final_val_loss = val_loss
        if metrics is not None:
            for seen, loss in zip(pending, losses, strict=True):
                row = {
                    "step": seen.step,
                    "loss": loss if math.isfinite(loss) else None,
                    "lr": seen.lr,
                    "factor": seen.factor,
                    "phase": seen.phase,
                    "gap": seen.gap,
                }
                metrics.write(row | ({"val_loss": val_loss} if seen is seen_last and val_loss is not None else {}))
            metrics.flush()
        display.show(self.step, losses[-1], seen_last, val_loss)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss in nats over the first `eval_tokens` predictions of the validation, the same for every process."""
        count = max(1, min(self.config.eval_tokens // self.task.predictions, self.task.held_out))
        parts = np.array_split(np.arange(count), min(count, math.ceil(count * self.task.predictions / _EVAL_BATCH)))
        losses = torch.zeros(len(parts), device=self.device)
        for index in range(self.accelerator.process_index, len(parts), self.accelerator.num_processes):
            # The bare model: its wrapper talks to the other processes, which may have fewer parts.
            losses[index] = self.loss(self.network, self.task.validation(parts[index]))
        # Summed by the host in float64, which not every device has. A loss plus the other processes' zeros is itself.
        on_host: list[float] = self.accelerator.reduce(losses, reduction="sum").tolist()
        return sum(loss * len(part) for loss, part in zip(on_host, parts, strict=True)) / count

    # ----------------------------------------------------------------------------------------- what is left on the disk

    def record(self) -> RunRecord:
        seconds = self.seconds_before + time.monotonic() - self.started
        return RunRecord(
            status=self.status,
            config=self.config.numbers(),
            command=self.command,
            step=self.step,
            parameters=sum(parameter.numel() for parameter in self.network.parameters()),
            corpus_fingerprint=self.task.fingerprint,
            final_val_loss=self.final_val_loss,
            best_val_loss=self.best_val_loss,
            warmup_iters=self.schedulers[0].warmup_iters,
            target_loss=self.schedulers[0].target_loss,
            seconds=round(seconds, 3),
            tokens_per_second=round(self.step * self.config.batch_size * self.task.predictions / max(seconds, 1e-9), 1),
            device=self.device.type,
            processes=self.accelerator.num_processes,
            versions=versions(),
            commit=commit(),
        )

    def save(self) -> None:
        """Write a checkpoint; the one before it stays until the new one is whole."""
        folder = self.config.output
        if folder is not None and self.accelerator.is_main_process:
            last = last_checkpoint(folder)
            if last is None or last.name != checkpoint_name(self.step):
                with new_checkpoint(folder, self.step) as scratch:
                    # Written by Python, whose errors say what is wrong with the disk; the libraries' own do not.
                    (scratch / "model.safetensors").write_bytes(safetensors.torch.save(self.weights()))
                    buffer = io.BytesIO()
                    torch.save(self.state(), buffer)
                    (scratch / "trainer.pt").write_bytes(buffer.getbuffer())
                self.record().save(folder)
        self.accelerator.wait_for_everyone()

    def weights(self) -> dict[str, Tensor]:
        """The parameters by name, a tied one once."""
        return {name: parameter.detach().contiguous() for name, parameter in self.network.named_parameters()}

    def state(self) -> dict[str, Any]:
        return {
            "version": CHECKPOINT_VERSION,
            "config": self.config.numbers(),
            "corpus_fingerprint": self.task.fingerprint,
            "step": self.step,
            "best_val_loss": self.best_val_loss,
            "final_val_loss": self.final_val_loss,
            "seconds": self.seconds_before + time.monotonic() - self.started,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "random": torch.get_rng_state(),
        }

    def start_from(self, folder: Path) -> None:
        """Take over the weights that another run ended with."""
        path = final_weights(folder)
        try:
            saved = safetensors.torch.load_file(path, device=str(self.device))
        except Exception as error:  # safetensors raises its own kinds
            raise UserError(f"The weights {path} cannot be read ({error}): train that run again.") from error
        own = dict(self.network.named_parameters())
        for name in sorted(own.keys() | saved.keys()):
            if name not in own or name not in saved or own[name].shape != saved[name].shape:
                raise UserError(
                    f"The weights of {folder} are of another model than this run's (they differ in {name}): give the "
                    "same --model, --vocab-size and --tied as there."
                )
        for name, parameter in own.items():
            parameter.data.copy_(saved[name])

    def load(self, checkpoint: Path) -> None:
        try:
            state = torch.load(checkpoint / "trainer.pt", map_location=self.device, weights_only=True)
            version = state["version"]
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise UserError(f"The checkpoint {checkpoint} is damaged: delete that folder and resume again.") from error
        if version != CHECKPOINT_VERSION:
            raise UserError(
                f"The checkpoint {checkpoint} was written by another version of warmgap (form {version}, this one "
                "reads form "
                f"{CHECKPOINT_VERSION}): use that version, or another --output."
            )
        _check_same(self.config, state["config"], checkpoint)
        if state["corpus_fingerprint"] != self.task.fingerprint:
            raise UserError(
                f"The text of corpus {self.config.corpus!r} is not the one that {checkpoint} was trained on: take "
                "another --output."
            )
        try:
            saved = safetensors.torch.load_file(checkpoint / "model.safetensors", device=str(self.device))
            for name, parameter in self.network.named_parameters():
                parameter.data.copy_(saved[name])
            for optimizer, saved_state in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved_state)
            for scheduler, saved_state in zip(self.schedulers, state["schedulers"], strict=True):
                scheduler.load_state_dict(saved_state)
        except Exception as error:  # safetensors raises its own kinds
            raise UserError(
                f"The checkpoint {checkpoint} cannot be read ({error}): delete that folder and resume again."
            ) from error
        torch.set_rng_state(state["random"].cpu())
        self.step = int(state["step"])
        self.best_val_loss = state["best_val_loss"]
        self.final_val_loss = state["final_val_loss"]
        self.seconds_before = float(state["seconds"])


def _rule(config: TrainConfig, optimizer: torch.optim.Optimizer) -> Rule[Any]:
    """The warm-up rule; `optimizer` is the one whose norm counts."""
    steps = config.linear_steps()
    if steps is not None:
        return LinearRule(steps)
    if config.rule == "published":
        return PublishedRule(
            kappa=optimizer_kappa(optimizer),
            target_loss=_known(config.target_loss),
            peak_lr=_known(config.lr),
            floor=config.floor,
        )
    rule: Any = by_name(
        "auto" if config.rule == LATE else config.rule,
        config.steps,
        floor=config.floor,
        target_loss="auto" if config.target_loss is None else config.target_loss,
        kappa=partial(optimizer_kappa, optimizer),
        norm=partial(optimizer_norm, optimizer),
    )
    if config.averaging is not None:
        rule = dataclasses.replace(rule, signal=dataclasses.replace(rule.signal, averaging=config.averaging))
    found: Rule[Any] = rule
    return found


def _known(value: T | None) -> T:
    """A setting that `TrainConfig.resolve` has filled in."""
    assert value is not None  # noqa: S101 - narrows for the type checker
    return value


def _check_same(config: TrainConfig, saved: dict[str, Any], where: Path) -> None:
    own = config.numbers()
    different = [name for name in {**own, **saved} if saved.get(name) != own.get(name)]
    if different:
        name = different[0]
        raise UserError(
            f"{where} belongs to another run ({name} was {saved.get(name)!r}, here {own.get(name)!r}"
            f"{f', and {len(different) - 1} more' if len(different) > 1 else ''}): give the same settings, or "
            "another --output."
        )


# -------------------------------------------------------------------------------------------------------- what is shown


class _Display(Protocol):
    def show(self, step: int, loss: float, seen: _Seen, val_loss: float | None) -> None:
        """Show how the run stands after `step`."""


class _Silent:
    def show(self, step: int, loss: float, seen: _Seen, val_loss: float | None) -> None:
        del step, loss, seen, val_loss


class _Bar:
    """A live line in a terminal."""

    def __init__(self, progress: Progress, steps: int) -> None:
        self._progress = progress
        self._task = progress.add_task("warm-up", total=steps, numbers="")
        self._val = ""

    def show(self, step: int, loss: float, seen: _Seen, val_loss: float | None) -> None:
        if val_loss is not None:
            self._val = f" val {val_loss:.4f}"
        phase = "warm-up" if seen.phase == "warmup" else "decay"
        self._progress.update(self._task, completed=step, description=phase, numbers=_numbers(loss, seen) + self._val)


class _Lines:
    """A line now and then, where the standard error stream is a file."""

    def __init__(self, steps: int) -> None:
        self._every = max(1, steps // 10)
        self._steps = steps

    def show(self, step: int, loss: float, seen: _Seen, val_loss: float | None) -> None:
        if val_loss is not None or step % self._every == 0 or not math.isfinite(loss):
            val = "" if val_loss is None else f" val {val_loss:.4f}"
            print(f"step {step}/{self._steps} {seen.phase} {_numbers(loss, seen)}{val}", file=sys.stderr, flush=True)  # noqa: T201


def _numbers(loss: float, seen: _Seen) -> str:
    return f"loss {loss:.4f} lr {seen.lr:.2e}" + ("" if seen.gap is None else f" gap {seen.gap:.3f}")


@contextlib.contextmanager
def _display(config: TrainConfig, *, shown: bool) -> Iterator[_Display]:
    if not shown:
        yield _Silent()
    elif sys.stderr.isatty():
        columns = (
            TextColumn("{task.description:>7}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            yield _Bar(bar, config.steps)
    else:
        yield _Lines(config.steps)
