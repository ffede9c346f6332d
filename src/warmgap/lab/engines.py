"""Where the runs of a sweep are trained: in processes of this machine, or on a Ray cluster.

An engine takes jobs and yields messages: `("begin", job, None)`, `("rows", job, rows)` and `("end", job, result)`. It
writes nothing but checkpoints; the driver does.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from warmgap.lab.config import TrainConfig
from warmgap.lab.errors import UserError, needs
from warmgap.lab.interruption import Interruption
from warmgap.lab.store import Result, Run, Store

Message = tuple[str, "Job", Any]
Claim = Callable[["Job"], bool]

_LOOK_EVERY = 0.5  # seconds between two looks at a request to stop
_PATIENCE = 60.0  # seconds a worker has, after ctrl-C, to write its checkpoint
_RETRIES = 10  # of a run whose node dies
_JOB, _RESULT = "job.pkl", "result.pkl"  # what passes between a worker and the processes that torchrun starts


@dataclass(frozen=True)
class Job:
    """A run to train, with its id in the database and the folder of its checkpoints."""

    id: str
    config: TrainConfig
    folder: Path


class Engine(Protocol):
    """Where runs are trained."""

    def train(self, jobs: Sequence[Job], claim: Claim, stop: Interruption) -> Iterator[Message]:
        """Train the jobs that `claim` grants, resuming those with a checkpoint; end early where `stop` asks for it."""


def train_job(job: Job, report: Callable[[Any], None] | None = None) -> Result:
    """Train one run; whatever goes wrong becomes a result."""
    from warmgap.lab.train import train

    try:
        return train(job.config, job.folder, resume=True, sink=report)
    except UserError as error:
        return Result("failed", str(error))
    except Exception as error:  # of anything: it goes wrong for this run only
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        first = (str(error) or type(error).__name__).splitlines()[0]
        return Result("failed", f"{type(error).__name__}: {first} (see {job.folder / 'error.txt'})")


def train_here(store: Store, job: Job, name: str, busy: str, **how: Any) -> Run:
    """Train one run in this process, shown on its standard error stream; return it as the database then holds it.

    Args:
        store: Where it is written down, under the folder's name `name`.
        job: The run.
        name: See `store`.
        busy: What to say where it is finished, or another process has it.
        how: More arguments of `train`.
    """
    store.add([(job.id, name, job.config.numbers(), job.config.command(job.folder))])
    if not store.claim(job.id):
        raise UserError(busy)
    from warmgap.lab.train import train

    try:
        with store.beating():
            result = train(job.config, job.folder, progress=True, sink=partial(store.write, job.id), **how)
    except Exception as error:
        store.finish(job.id, Result("failed", str(error)))
        raise
    store.finish(job.id, result)
    return store.run(job.id)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use."""
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip() and torch.cuda.is_available()]
    return [str(number) for number in range(torch.cuda.device_count())]


@dataclass
class _Worker:
    """A process on its GPUs, begun when it is needed, that trains one job after the other."""

    gpus: str
    processes: int
    job: Job | None = None
    process: BaseProcess | None = None

    def give(self, job: Job) -> None:
        self.job = job
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            ours = (theirs, self.gpus, self.processes)
            self.process = context.Process(target=_work, args=ours, daemon=self.processes == 1)
            self.process.start()
            theirs.close()
        with contextlib.suppress(OSError):  # a process that is no more shows when it is heard
            self.pipe.send(job)

    def hear(self, stop: Interruption) -> tuple[str, Any]:
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):
            self.job = None
            died = f"its process ended with exit code {self.end()} (out of memory, or killed?)"
            return "end", Result("interrupted") if stop.requested else Result("failed", died)
        if kind == "end":
            self.job = None
        return kind, content

    def interrupt(self) -> None:
        if self.job is not None and self.process is not None and self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGINT)

    def end(self) -> int | None:
        """End the process; return its exit code."""
        if self.process is None:
            return None
        if self.job is not None:
            self.process.kill()
        self.pipe.close()
        self.process.join()
        code, self.process = self.process.exitcode, None
        return code


@dataclass(frozen=True)
class Local:
    """A pool of processes on this machine, one run at a time each.

    With GPUs each worker has its own (`processes` of them); without, each run has one thread unless its settings say
    otherwise.
    """

    jobs: int | None = None  # runs at a time; None takes the GPUs, or the cores, by `processes`
    processes: int = 1  # processes a run, started by `torchrun` where there are several

    def train(self, jobs: Sequence[Job], claim: Claim, stop: Interruption) -> Iterator[Message]:
        """See `Engine.train`."""
        gpus = visible_gpus()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        slots = max(1, (len(gpus) or cores) // self.processes)
        places = [slot % slots * self.processes for slot in range(min(len(jobs), self.jobs or slots))]
        workers = [_Worker(",".join(gpus[place : place + self.processes]), self.processes) for place in places]
        queue = (job for job in jobs if not stop.requested and claim(job))
        deadline = 0.0
        try:
            while True:
                for worker in workers:
                    if worker.job is None and (job := next(queue, None)):
                        worker.give(job)
                        yield "begin", job, None
                busy = [worker for worker in workers if worker.job]
                if not busy:
                    return
                ready = connection.wait([worker.pipe for worker in busy], timeout=_LOOK_EVERY)
                for worker in busy:
                    if worker.pipe in ready and (job := worker.job):
                        kind, content = worker.hear(stop)
                        yield kind, job, content
                if stop.requested and not deadline:
                    deadline = time.monotonic() + _PATIENCE
                    for worker in workers:
                        worker.interrupt()
                if deadline and (stop.impatient or time.monotonic() > deadline):
                    break
        finally:
            for worker in workers:
                worker.end()
        for worker in workers:
            if worker.job is not None:
                yield "end", worker.job, Result("interrupted")


def _work(pipe: Connection, gpus: str, processes: int) -> None:
    """A worker process: train what comes through the pipe, one run after the other."""
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # ctrl-C in the terminal is for the parent, which asks for the checkpoints itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def send(*message: Any) -> None:
        with contextlib.suppress(OSError):
            pipe.send(message)

    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        if not job.config.threads and not gpus:
            job = replace(job, config=replace(job.config, threads=1))
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            result = _launch(job, processes) if processes > 1 else train_job(job, lambda rows: send("rows", rows))
        except KeyboardInterrupt:
            result = Result("interrupted")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        send("end", result)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.killpg(os.getpgrp(), signal.SIGKILL) if os.getpgrp() == os.getpid() else os._exit(1)


def _launch(job: Job, processes: int) -> Result:
    """Train a run in several processes, by `torchrun`."""
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / _JOB).write_bytes(pickle.dumps(job))
    (job.folder / _RESULT).unlink(missing_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "warmgap.lab.engines", str(job.folder)]
    with (job.folder / "log.txt").open("w", encoding="utf-8") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603
        while child.poll() is None:
            try:
                child.wait()
            except KeyboardInterrupt:
                child.send_signal(signal.SIGINT)
    if (job.folder / _RESULT).exists():
        result: Result = pickle.loads((job.folder / _RESULT).read_bytes())  # noqa: S301 - written by the child
        return result
    return Result("failed", f"torchrun ended with exit code {child.returncode} (see {job.folder / 'log.txt'})")


def _launched(folder: Path) -> None:
    """One of the processes that `_launch` starts."""
    job = pickle.loads((folder / _JOB).read_bytes())  # noqa: S301 - written by the parent
    result = train_job(job)
    if os.environ.get("RANK") == "0" or result.status == "failed":
        scratch = folder / f"{_RESULT}.{os.getpid()}"
        scratch.write_bytes(pickle.dumps(result))
        scratch.replace(folder / _RESULT)


@dataclass(frozen=True)
class OnRay:
    """Tasks on a Ray cluster, each with its cores or GPUs; a run whose node dies is begun again on another one.

    It goes on from its last checkpoint where the nodes share the folder, and else from the beginning: the numbers are
    the same.
    """

    jobs: int | None = None  # runs at a time; None leaves it to Ray
    processes: int = 1  # GPUs, or cores, a run
    address: str | None = None  # of the cluster; None takes what `RAY_ADDRESS` names, or starts one on this machine

    def train(self, jobs: Sequence[Job], claim: Claim, stop: Interruption) -> Iterator[Message]:
        """See `Engine.train`."""
        with needs("A sweep on Ray", "ray", "'warmgap[cluster]'"):
            import ray
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
        passed = {name: value for name, value in os.environ.items() if name in ("WARMGAP_CACHE", "OMP_NUM_THREADS")}
        quiet: dict[str, Any] = {"ignore_reinit_error": True, "log_to_driver": False, "logging_level": "warning"}
        ray.init(address=self.address, runtime_env={"env_vars": passed}, **quiet)
        gpus = self.processes if ray.cluster_resources().get("GPU", 0) >= self.processes else 0
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        inbox = ray.remote(_Inbox).options(num_cpus=0, scheduling_strategy=here).remote()
        task = ray.remote(_ray_task)
        queue = (job for job in jobs if not stop.requested and claim(job))
        under_way: dict[Any, Job] = {}
        while True:
            while len(under_way) < (self.jobs or len(jobs)) and (job := next(queue, None)):
                threads = job.config.threads or 1
                job = replace(job, config=replace(job.config, threads=threads), folder=job.folder.absolute())
                chosen = task.options(max_retries=_RETRIES, num_gpus=gpus, num_cpus=threads * self.processes)
                under_way[chosen.remote(job, self.processes, inbox)] = job
                yield "begin", job, None
            if not under_way:
                break
            ready, _ = ray.wait(list(under_way), timeout=_LOOK_EVERY)
            by_id = {job.id: job for job in under_way.values()}
            for identity, rows in ray.get(inbox.take.remote()):
                if identity in by_id:
                    yield "rows", by_id[identity], rows
            for reference in ready:
                try:
                    result = ray.get(reference)
                except ray.exceptions.TaskCancelledError:
                    result = Result("interrupted")
                except ray.exceptions.RayError as error:
                    result = Result("failed", str(error).splitlines()[0])
                yield "end", under_way.pop(reference), result
            for reference in under_way if stop.requested else ():
                with contextlib.suppress(Exception):
                    ray.cancel(reference, force=stop.impatient)
        ray.kill(inbox)


class _Inbox:
    """Where the runs on a cluster put their rows until the driver takes them."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, Any]] = []

    def put(self, identity: str, rows: Any) -> None:
        self.waiting.append((identity, rows))

    def take(self) -> list[tuple[str, Any]]:
        found, self.waiting = self.waiting, []
        return found


def _ray_task(job: Job, processes: int, inbox: Any) -> Result:
    if processes > 1:
        return _launch(job, processes)
    return train_job(job, lambda rows: inbox.put.remote(job.id, rows))


if __name__ == "__main__":
    _launched(Path(sys.argv[1]))
