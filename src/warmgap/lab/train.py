"""One training run: a task, a method that sets the rate, checkpoints, and what happened."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed import DistError

from warmgap import decay as decays
from warmgap.lab.checkpoints import STATE, WEIGHTS, final_weights, last_checkpoint, new_checkpoint
from warmgap.lab.config import TrainConfig
from warmgap.lab.errors import LostProcessError, RuleError, UserError
from warmgap.lab.interruption import Interruption
from warmgap.lab.methods import Method, decay_by_name
from warmgap.lab.optimizers import OPTIMIZERS
from warmgap.lab.schedules import ClockSchedule, PublishedSchedule
from warmgap.lab.store import Result
from warmgap.lab.tasks import make_task
from warmgap.torch import AdaptiveWarmup
from warmgap.torch.recognition import optimizer_kappa

MakeProbe = Callable[[Path, torch.optim.Optimizer, nn.Module], Any]
"""Makes what looks at the steps: `measure(closure, step=...)` is a context around each, see `SmoothnessProbe`."""

Sink = Callable[[Sequence[Sequence[Any]]], None]
"""Takes rows of metrics while the run goes on."""

CHECKPOINT_VERSION = 4
_EVAL_BATCH = 4096  # predictions evaluated at once
_READ_EVERY = 10  # steps between two looks of the host at the device's numbers
_SEND_EVERY = 0.5  # seconds between two calls of the sink
# What decides a run's numbers.
_PACKAGES = ("warmgap", "torch", "transformers", "accelerate", "tokenizers", "numpy")


def train(
    config: TrainConfig,
    folder: Path | None = None,
    *,
    resume: bool = False,
    probe: MakeProbe | None = None,
    sink: Sink | None = None,
    stop: Interruption | None = None,
) -> Result:
    """Train and evaluate.

    Runs in one process, or in each of several started by `torchrun` or `accelerate launch`. Ctrl-C and SIGTERM (where
    this is the main thread) end the run after the step at hand, with a checkpoint.

    Args:
        config: The settings.
        folder: Where checkpoints go; None keeps none.
        resume: Whether to go on from the folder's last checkpoint, where there is one.
        probe: Makes the probe that measures the steps, of `folder`, the optimizer and the model; it changes no number
            of the run.
        sink: Takes the rows of metrics as they come, twice a second at most. All of them are in the result, too.
        stop: The request to end early, where the caller takes ctrl-C itself.

    Raises:
        UserError: Settings that cannot be, a corpus that is not there or too short, a checkpoint of another run.
        LostProcessError: Another process of the run ended.
    """
    full = config.resolve()
    if full.threads is not None:
        torch.set_num_threads(full.threads)
    try:
        run = _Run(full, folder, probe, resume=resume)
        with Interruption() if stop is None else contextlib.nullcontext(stop) as asked:
            return run.go(asked, sink if run.accelerator.is_main_process else None)
    except RuntimeError as error:
        if not _lost(error):
            raise
        raise LostProcessError(
            f"Process {os.environ.get('RANK', '0')} ends because another one of this run has ended or does not "
            "answer: run the same command with --resume, on any number of processes, to go on from the last checkpoint."
        ) from error


def _lost(error: BaseException | None) -> bool:
    """Whether an error comes from talking to another process; gloo's have no class of their own."""
    if error is None:
        return False
    return isinstance(error, DistError) or "gloo/transport" in str(error) or _lost(error.__cause__)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise RuleError(f"The rule cannot go on: {error}.") from error


class _Run:
    """The parts of a run, and the steps made so far."""

    def __init__(self, config: TrainConfig, folder: Path | None, probe: MakeProbe | None, *, resume: bool) -> None:
        self.config, self.folder = config, folder
        # Without an accelerator it must be said, or it leaves the processes of `torchrun` each to itself.
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        device = self.accelerator.device
        # With several processes the accelerator says "cpu:0", which is none.
        self.device = torch.device("cpu") if device.type == "cpu" else device
        micro_batches = config.accumulation * self.accelerator.num_processes
        if config.batch_size % micro_batches:
            needed = f"accumulation x processes = {micro_batches}"
            raise UserError(f"The batch size must be a multiple of {needed}, got {config.batch_size}.")
        self.micro_batch = config.batch_size // micro_batches
        with self.accelerator.main_process_first():
            self.task = make_task(config)
        # What a checkpoint must be of.
        self.identity = {"version": CHECKPOINT_VERSION, "corpus_fingerprint": self.task.fingerprint, **config.numbers()}
        self.network = self.task.model().to(self.device)
        if config.start_from is not None:
            self.start_from(config.start_from)
        self.parallel: nn.Module = self.accelerator.prepare_model(self.network)
        names = ("lr", "weight_decay", "betas", "momentum", "second_lr", "radii")
        try:
            self.optimizers = OPTIMIZERS[config.optimizer].build(
                self.network, **{name: getattr(config, name) for name in names}
            )
            self.schedulers = _schedulers(config, self.optimizers)
            if probe is not None and len(self.optimizers) > 1:
                raise ValueError(f"{config.optimizer} is two optimizers, and a probe measures the steps of one")
            self.probe = None if probe is None else probe(folder or Path(), self.optimizers[0], self.network)
        except ValueError as error:
            raise UserError(f"These settings do not go together: {error}.") from error
        self.step = 0
        self.status = "running"
        self.first_loss = math.nan
        self.started = time.monotonic()  # less what came before it was resumed
        self.metrics: list[list[Any]] = []
        self.pending: list[tuple[Tensor, list[Any]]] = []
        self.sent = 0
        if folder is not None and resume and (checkpoint := last_checkpoint(folder)):
            self.load(checkpoint)
        self.accelerator.wait_for_everyone()

    def go(self, stop: Interruption, sink: Sink | None) -> Result:
        config, last_sent, message = self.config, 0.0, ""
        while self.step < config.steps and self.status == "running":
            try:
                self.pending.append(self.one_step())
            except RuleError as error:
                self.status, message = "refused", str(error)
                break
            evaluates = self.step == config.steps or bool(config.eval_every and self.step % config.eval_every == 0)
            saves = bool(config.save_every) and (self.step == config.steps or self.step % config.save_every == 0)
            looks = self.device.type == "cpu" or self.step % _READ_EVERY == 0 or self.step == config.steps
            if looks or evaluates or saves:
                if stop.requested:
                    self.accelerator.set_trigger()
                if self.accelerator.check_trigger():  # set in any process: they must stop at the same step
                    self.status = "interrupted"
                self.read(evaluates=evaluates)
                over = self.step == config.steps or self.status != "running"
                if sink is not None and (over or time.monotonic() - last_sent > _SEND_EVERY):
                    sink(self.metrics[self.sent :])
                    self.sent, last_sent = len(self.metrics), time.monotonic()
            if self.status != "diverged" and (saves or self.status == "interrupted"):
                self.save()
        if self.status in ("running", "interrupted") and self.step == config.steps:
            self.status = "done"
        self.accelerator.wait_for_everyone()
        events = [(e.step, e.loss, e.before, e.after, e.reason, e.role, str(e)) for e in self.schedulers[0].events]
        return Result(self.status, message, self.record(), self.metrics, events)

    def one_step(self) -> tuple[Tensor, list[Any]]:
        """Make one optimizer step; nothing here waits for the device. Return its loss, and its row of metrics."""
        config, accelerator = self.config, self.accelerator
        adaptive = isinstance(self.schedulers[0], AdaptiveWarmup)  # takes the loss of each micro-batch
        total = torch.zeros((), device=self.device)
        batch = self.task.batch(self.step)
        shape = (config.accumulation, accelerator.num_processes, self.micro_batch, batch.shape[1])
        micro_batches = list(batch.reshape(shape)[:, accelerator.process_index])
        for index, examples in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.parallel):
                loss = self.loss(self.parallel, examples)
                (loss / config.accumulation).backward()
            total += loss.detach() / config.accumulation
            for scheduler in self.schedulers if adaptive else ():
                scheduler.observe(loss.detach(), weight=self.micro_batch * self.task.predictions)
        total = accelerator.reduce(total, reduction="mean")
        if self.step == 0:
            self.first_loss = float(total)
        for scheduler in () if adaptive else self.schedulers:
            scheduler.observe(total)
        if config.clip:
            accelerator.clip_grad_norm_(self.network.parameters(), config.clip)
        probed: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self.probe is not None:
            probed = self.probe.measure(
                lambda: (self.loss(self.network, examples) / len(micro_batches) for examples in micro_batches),
                step=self.step,
            )
        with probed, _refusals():
            for optimizer in self.optimizers:
                optimizer.step()
        # Only now: the first step may have started on its own loss.
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        lr = float(max(group["lr"] for group in groups))
        factor = float(min(group["lr"] / group["initial_lr"] for group in groups))
        phase = self.schedulers[0].phase
        with _refusals():
            for scheduler in self.schedulers:
                scheduler.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.step += 1
        return total, [self.step, None, lr, factor, phase, self.schedulers[0].gap, None]

    def loss(self, model: nn.Module, examples: NDArray[np.int64]) -> Tensor:
        """Mean cross-entropy of `model` in nats a prediction, on examples of shape `(count, width)`."""
        rows = torch.from_numpy(examples)
        if self.device.type == "cuda":
            rows = rows.pin_memory()
        rows = rows.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            logits, classes = self.task.predict(model, rows)
        return nn.functional.cross_entropy(logits.float(), classes)

    def read(self, *, evaluates: bool) -> None:
        """Look at the steps made since the last look, write them down, and stop where a loss is no longer finite."""
        rows = [row for _, row in self.pending]
        for row, loss in zip(rows, torch.stack([loss for loss, _ in self.pending]).tolist(), strict=True):
            row[1] = loss if math.isfinite(loss) else None
        self.pending = []
        if any(row[1] is None for row in rows):
            self.status = "diverged"
        elif evaluates:
            val_loss = self.evaluate()
            if math.isfinite(val_loss):
                rows[-1][-1] = val_loss
            else:
                self.status = "diverged"
        self.metrics += rows

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

    def record(self) -> dict[str, Any]:
        """The columns of `runs` on this run."""
        scheduler, seconds = self.schedulers[0], time.monotonic() - self.started
        predictions = self.step * self.config.batch_size * self.task.predictions
        return {
            "step": self.step,
            "first_loss": self.first_loss if math.isfinite(self.first_loss) else None,
            "final_val_loss": self.metrics[-1][-1] if self.step == self.config.steps else None,
            "best_val_loss": min((row[-1] for row in self.metrics if row[-1] is not None), default=None),
            "warmup_iters": scheduler.warmup_iters,
            "target_loss": scheduler.target_loss,
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "seconds": round(seconds, 3),
            "tokens_per_second": round(predictions / max(seconds, 1e-9), 1),
            "device": self.device.type,
            "processes": self.accelerator.num_processes,
            "corpus_fingerprint": self.task.fingerprint,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
            "code": code(),
            "summary": str(scheduler.summary()),
            "verdict": scheduler.verdict,
        }

    def save(self) -> None:
        """Write a checkpoint; the one before it stays until the new one is whole."""
        if self.folder is not None and self.accelerator.is_main_process:
            with new_checkpoint(self.folder, self.step, self.config.steps) as scratch:
                # Written by Python, whose errors say what is wrong with the disk; the libraries' own do not.
                # A tied parameter comes once.
                weights = {name: each.detach().contiguous() for name, each in self.network.named_parameters()}
                (scratch / WEIGHTS).write_bytes(safetensors.torch.save(weights))
                buffer = io.BytesIO()
                torch.save(self.state(), buffer)
                (scratch / STATE).write_bytes(buffer.getbuffer())
        self.accelerator.wait_for_everyone()

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds besides the weights, as plain values and tensors."""
        return {
            **{name: self.identity[name] for name in ("version", "corpus_fingerprint")},
            "config": self.identity,
            "step": self.step,
            "first_loss": self.first_loss,
            "seconds": time.monotonic() - self.started,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "random": torch.get_rng_state(),
            "metrics": json.dumps(self.metrics),
        }

    def start_from(self, folder: Path) -> None:
        """Take over the weights that another run ended with."""
        path = final_weights(folder)
        try:
            safetensors.torch.load_model(self.network, path, device=str(self.device))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"The weights of {folder} are of another model than this run's, or damaged: give the same --model, "
                f"--vocab-size and --tied as there ({str(error).splitlines()[-1].strip()})."
            ) from error

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint."""
        try:
            state = torch.load(checkpoint / STATE, map_location=self.device, weights_only=True)
            own = self.identity
            saved = {**state["config"], "version": state["version"], "corpus_fingerprint": state["corpus_fingerprint"]}
            for name in {**own, **saved}:
                if saved.get(name) != own.get(name):
                    raise UserError(
                        f"{checkpoint} belongs to another run ({name} was {saved.get(name)!r}, here "
                        f"{own.get(name)!r}): give the same settings, or another --output."
                    )
            safetensors.torch.load_model(self.network, checkpoint / WEIGHTS, device=str(self.device))
            for optimizer, saved_state in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved_state)
            for scheduler, saved_state in zip(self.schedulers, state["schedulers"], strict=True):
                scheduler.load_state_dict(saved_state)
        except UserError:
            raise
        except Exception as error:  # the libraries raise whatever their readers raise
            raise UserError(f"The checkpoint {checkpoint} is damaged: delete that folder and resume again.") from error
        torch.set_rng_state(state["random"].cpu())
        self.step, self.first_loss = state["step"], state["first_loss"]
        self.started -= state["seconds"]
        self.metrics = json.loads(state["metrics"])


def _schedulers(config: TrainConfig, optimizers: Sequence[torch.optim.Optimizer]) -> list[Any]:
    """A scheduler for each optimizer; they see the same losses, and so have the same factor."""
    method = Method.parse(config.method)
    decay = method.decay or config.decay
    target = config.target_loss if method.target is None else method.target
    if not method.adaptive:
        return [ClockSchedule(optimizer, config.steps, method, decay) for optimizer in optimizers]
    if method.rule == "published":
        kappa = dict(method.options).get("kappa") or optimizer_kappa(optimizers[0])
        own: dict[str, Any] = {"kappa": kappa, "target_loss": target, "peak_lr": config.lr, "floor": config.floor}
        return [PublishedSchedule(optimizer, config.steps, method, decay, **own) for optimizer in optimizers]
    found: list[Any] = []
    for optimizer in optimizers:
        found.append(
            AdaptiveWarmup(
                optimizer,
                config.steps,
                rule=found[0].schedule.rule if found else method.rule_name,  # of the optimizer whose norm counts
                target_loss="auto" if target is None else target,
                floor=config.floor,
                decay=decay if decay in decays.NAMES else decay_by_name(decay),
                cap=method.cap,
            )
        )
    return found


def code() -> str:
    """Which code ran: the commit of its checkout, with `+` where files differ, else a hash of the package's files."""
    root = Path(__file__).parents[3]
    if (root / ".git").exists():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return _git(root, "rev-parse", "HEAD") + ("+" if _git(root, "status", "--porcelain", "src") else "")
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603
