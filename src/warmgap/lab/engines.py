"""Where runs are trained: in this process, in processes of this machine, or on a Ray cluster.

An engine takes jobs and tells what happens to them: `("begin", job, None)`, `("rows", job, rows of metrics)` and
`("end", job, result)`. It writes nothing but checkpoints; the driver does.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from warmgap.lab.config import TrainConfig
from warmgap.lab.errors import INTERRUPTED, UserError, explained
from warmgap.lab.interruption import Interruption
from warmgap.lab.store import Result

Tell = Callable[[str, "Job", Any], None]
Report = Callable[[Any], None]
"""Takes rows of metrics."""

_LOOK_EVERY = 0.5  # seconds between two looks at a request to stop
_PATIENCE = 60.0  # seconds a process has, after ctrl-C, to write its checkpoint
_RETRIES = 10  # of a run whose node dies
_PRELOADED = ["warmgap.lab.train", "transformers.models.llama.modeling_llama"]


@dataclass(frozen=True)
class Job:
    """A run to train, with its id in the database and the folder of its checkpoints."""

    id: str
    config: TrainConfig
    folder: Path


class Engine(Protocol):
    """Where runs are trained."""

    def train(self, jobs: Iterator[Job], stop: Interruption, tell: Tell) -> None:
        """Train jobs, taking the next when there is room, resuming from checkpoints; end early on a request to stop."""


def train_job(job: Job, report: Report | None = None, **how: Any) -> Result:
    """Train one run; whatever goes wrong becomes a result. `how` are more arguments of `train`."""
    from warmgap.lab.train import train

    try:
        return train(job.config, job.folder, sink=report, **{"resume": True, **how})
    except (UserError, OSError) as error:
        return Result("failed", explained(error))
    except Exception as error:  # of anything: it goes wrong for this run only
        details = job.folder / "error.txt"
        with contextlib.suppress(OSError):
            job.folder.mkdir(parents=True, exist_ok=True)
            details.write_text(traceback.format_exc(), encoding="utf-8")
        return Result("failed", f"{explained(error)[:-1]} (see {details}).")


@dataclass(frozen=True)
class Here:
    """This process, one run after the other."""

    resume: bool = True
    probe: Any = None  # see `train`

    def train(self, jobs: Iterator[Job], stop: Interruption, tell: Tell) -> None:
        """See `Engine.train`."""
        for job in jobs:
            tell("begin", job, None)
            result = train_job(job, partial(tell, "rows", job), resume=self.resume, probe=self.probe, stop=stop)
            tell("end", job, result)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use."""
    import torch

    count = torch.cuda.device_count()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(count)] if chosen is None else chosen.split(",")[:count]


@dataclass(frozen=True)
class Local:
    """A process of this machine for each run.

    With GPUs each run has its own (`processes` of them); without, it has one thread unless its settings say otherwise.
    """

    jobs: int | None = None  # runs at a time; None takes the GPUs, or the cores, by `processes`
    processes: int = 1  # processes a run, started by `torchrun` where there are several

    def train(self, jobs: Iterator[Job], stop: Interruption, tell: Tell) -> None:
        """See `Engine.train`."""
        import torch

        gpus = visible_gpus()
        if 0 < len(gpus) < self.processes:
            raise UserError(f"A run shall have {self.processes} GPUs, and there are {len(gpus)}: lower --processes.")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        slots = max(1, (len(gpus) or cores) // self.processes)
        first = [slot % slots * self.processes for slot in range(self.jobs or slots)]
        free = [gpus[at : at + self.processes] for at in first]
        # A process is forked from one that has loaded PyTorch; where there is an accelerator, that is not safe.
        quick = sys.platform == "linux" and not torch.accelerator.is_available()
        context: Any = multiprocessing.get_context("forkserver" if quick else "spawn")
        if quick:
            context.set_forkserver_preload(_PRELOADED)
        under_way: dict[Any, tuple[Job, BaseProcess, list[str]]] = {}
        deadline = math.inf
        try:
            while time.monotonic() < deadline:
                while free and (job := next(jobs, None)):
                    pipe, theirs = context.Pipe(duplex=False)
                    own = free.pop(0)
                    # One that starts processes itself cannot be a daemon.
                    process = context.Process(
                        target=_work, args=(theirs, job, own, self.processes), daemon=self.processes == 1
                    )
                    tell("begin", job, None)
                    try:
                        process.start()
                    except EOFError:  # a signal to all processes has ended the one that is forked
                        if stop.requested:
                            return
                        raise
                    theirs.close()
                    under_way[pipe] = job, process, own
                if not under_way:
                    return
                ready: list[Any] = connection.wait([*under_way], timeout=_LOOK_EVERY)
                for pipe in ready:
                    job, process, own = under_way[pipe]
                    try:
                        kind, content = pipe.recv()
                    except (EOFError, OSError):
                        process.join()
                        died = f"its process ended with exit code {process.exitcode} (out of memory, or killed?)."
                        kind, content = "end", Result("interrupted") if stop.requested else Result("failed", died)
                    if kind == "end":
                        del under_way[pipe]
                        process.join()
                        free.append(own)
                    tell(kind, job, content)
                if stop.requested and deadline == math.inf:
                    deadline = time.monotonic() + _PATIENCE
                    for _, process, _ in under_way.values():
                        _send(signal.SIGINT, process)
        finally:
            for _, process, _ in under_way.values():
                _send(signal.SIGKILL, process, os.killpg)  # with what torchrun started


def _send(number: signal.Signals, process: BaseProcess, send: Callable[[int, int], None] = os.kill) -> None:
    with contextlib.suppress(ProcessLookupError):
        send(process.pid or -1, number)


def _work(pipe: Connection, job: Job, gpus: list[str], processes: int) -> None:
    """A process that trains one run."""
    os.setpgrp()  # ctrl-C in the terminal is for the driver, which asks for the checkpoint itself
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # what comes after the first request
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    elif not job.config.threads:
        job = replace(job, config=replace(job.config, threads=1))
    if processes > 1:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        result = _launch(job, processes, pipe)
    else:
        with Interruption() as stop:
            result = train_job(job, lambda rows: pipe.send(("rows", rows)), stop=stop)
    with contextlib.suppress(OSError):  # the driver is no more
        pipe.send(("end", result))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)


def _launch(job: Job, processes: int, pipe: Connection | None = None) -> Result:
    """Train a run in several processes, as `torchrun` starts them; what they print goes into `log` in its folder."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logs = DefaultLogsSpecs(str(job.folder / "log"), redirects=Std.ALL)
    config = LaunchConfig(
        1, 1, processes, logs, job.id, rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0
    )
    try:
        results: dict[int, Result] = elastic_launch(config, _rank)(job, pipe)
    except (SignalException, KeyboardInterrupt):  # it has handed the signal on, and waited for the checkpoint
        return Result("interrupted")
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        ended = f"A process ended with exit code {code} (see {job.folder / 'log'})."
        return Result("interrupted") if code == INTERRUPTED else Result("failed", ended)
    return next((result for result in results.values() if result.status == "failed"), results[0])


def _rank(job: Job, pipe: Connection | None) -> Result:
    """One of the processes of a run."""
    result = train_job(job, None if pipe is None else lambda rows: pipe.send(("rows", rows)))
    if result.status != "interrupted":
        return result
    if pipe is not None and os.environ["RANK"] == "0":
        pipe.send(("end", result))
    raise SystemExit(INTERRUPTED)  # the launcher, which is ending, takes no more results and would be waited for


@dataclass(frozen=True)
class OnRay:
    """Tasks on a Ray cluster, each with its cores or GPUs; a run whose node dies is begun again on another one.

    It goes on from its last checkpoint where the nodes share the folder, and else from the beginning: the numbers are
    the same.
    """

    jobs: int | None = None  # runs at a time; None leaves it to Ray
    processes: int = 1  # GPUs, or cores, a run
    address: str | None = None  # of the cluster; None takes what `RAY_ADDRESS` names, or starts one on this machine

    def train(self, jobs: Iterator[Job], stop: Interruption, tell: Tell) -> None:
        """See `Engine.train`."""
        import ray
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        passed = {name: value for name, value in os.environ.items() if name in ("WARMGAP_CACHE", "OMP_NUM_THREADS")}
        quiet: dict[str, Any] = {"ignore_reinit_error": True, "log_to_driver": False, "logging_level": "warning"}
        try:
            ray.init(address=self.address, runtime_env={"env_vars": passed}, **quiet)
        except ConnectionError as error:
            place = self.address or os.environ.get("RAY_ADDRESS")
            raise UserError(f"No Ray cluster answers at {place}: start one there, or unset RAY_ADDRESS.") from error
        gpus = self.processes if ray.cluster_resources().get("GPU", 0) >= self.processes else 0
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        inbox = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        task = ray.remote(_ray_task)
        under_way: dict[Any, Job] = {}
        asked = False
        try:
            while True:
                while len(under_way) < (self.jobs or math.inf) and (job := next(jobs, None)):
                    threads = job.config.threads or 1
                    job = replace(job, config=replace(job.config, threads=threads), folder=job.folder.absolute())
                    chosen = task.options(max_retries=_RETRIES, num_gpus=gpus, num_cpus=threads * self.processes)
                    under_way[chosen.remote(job, self.processes, inbox)] = job
                    tell("begin", job, None)
                if not under_way:
                    return
                ready, _ = ray.wait(list(under_way), timeout=_LOOK_EVERY)
                by_id = {job.id: job for job in under_way.values()}
                for identity, rows in inbox.get_nowait_batch(inbox.qsize()):
                    if identity in by_id:
                        tell("rows", by_id[identity], rows)
                for reference in ready:
                    try:
                        result = ray.get(reference)
                    except ray.exceptions.TaskCancelledError:
                        result = Result("interrupted")
                    except ray.exceptions.RayError as error:
                        result = Result("failed", str(error).splitlines()[0])
                    tell("end", under_way.pop(reference), result)
                for reference in under_way if stop.requested and not asked else ():
                    ray.cancel(reference)
                asked = stop.requested
        finally:
            for reference in under_way:
                ray.cancel(reference, force=True)
            inbox.shutdown(force=True)


def _ray_task(job: Job, processes: int, inbox: Any) -> Result:
    if processes > 1:
        return _launch(job, processes)
    return train_job(job, lambda rows: inbox.actor.put_nowait.remote((job.id, rows)))
