"""Where the runs of a sweep are trained: in processes of this machine, or on a Ray cluster.

An engine takes jobs and yields messages: `("begin", job, None)`, `("rows", job, rows)`, `("end", job, result)`, and
`("tick", None, None)` now and then. It writes nothing but checkpoints; the driver does.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from warmgap.lab.config import TrainConfig, from_plain
from warmgap.lab.errors import UserError
from warmgap.lab.interruption import Interruption
from warmgap.lab.store import Result

Message = tuple[str, "Job | None", Any]
Claim = Callable[["Job"], bool]

_LOOK_EVERY = 0.5  # seconds between two ticks
_PATIENCE = 60.0  # seconds a worker has, after ctrl-C, to write its checkpoint
_RETRIES = 10  # of a run whose node dies


@dataclass(frozen=True)
class Job:
    """A run to train.

    Attributes:
        id: Its id in the database.
        config: Its settings.
        folder: Where its checkpoints go.
    """

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


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The GPUs that this process may use."""
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name.strip() and torch.cuda.is_available()]
    return [str(number) for number in range(torch.cuda.device_count())]


# ------------------------------------------------------------------------------------------------------------- locally


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None


@dataclass(frozen=True)
class Local:
    """A pool of processes on this machine, one run at a time each.

    With GPUs each worker has its own (`processes` of them); without, each run has one thread unless its settings say
    otherwise.

    Attributes:
        jobs: Runs at a time; None takes the GPUs, or the cores, by `processes`.
        processes: Processes a run, started by `torchrun` where there are several.
    """

    jobs: int | None = None
    processes: int = 1

    def train(self, jobs: Sequence[Job], claim: Claim, stop: Interruption) -> Iterator[Message]:
        """See `Engine.train`."""
        gpus = visible_gpus()
        slots = max(1, (len(gpus) or cores()) // self.processes)
        count = min(len(jobs), self.jobs or slots)
        queue = list(jobs)
        context = multiprocessing.get_context("spawn")
        workers: list[_Worker] = []

        def hire(slot: int) -> _Worker:
            ours, theirs = context.Pipe()
            first = slot % slots * self.processes
            own = ",".join(gpus[first : first + self.processes])
            process = context.Process(target=_work, args=(theirs, own, self.processes), daemon=self.processes == 1)
            process.start()
            theirs.close()
            return _Worker(process, ours)

        def give(worker: _Worker) -> Iterator[Message]:
            worker.job = None
            while queue and not stop.requested:
                job = queue.pop(0)
                if claim(job):
                    worker.job = job
                    with contextlib.suppress(OSError):  # a worker that is no more shows up in the wait below
                        worker.pipe.send(job)
                    yield "begin", job, None
                    return

        try:
            for slot in range(count):
                workers.append(hire(slot))
                yield from give(workers[slot])
            asked_at: float | None = None
            while any(worker.job is not None for worker in workers):
                ready = connection.wait([worker.pipe for worker in workers if worker.job], timeout=_LOOK_EVERY)
                for slot, worker in enumerate(workers):
                    if worker.pipe not in ready:
                        continue
                    job = worker.job
                    try:
                        kind, content = worker.pipe.recv()
                    except (EOFError, OSError):
                        worker.process.join()
                        kind, content = "end", _died(worker.process.exitcode, stop)
                        if queue and not stop.requested:
                            workers[slot] = hire(slot)
                    yield kind, job, content
                    if kind == "end":
                        worker.job = None
                        yield from give(workers[slot])
                yield "tick", None, None
                if stop.requested and asked_at is None:
                    asked_at = time.monotonic()
                    for worker in workers:
                        if worker.job is not None and worker.process.is_alive():
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(worker.process.pid or 0, signal.SIGINT)
                if asked_at is not None and (stop.impatient or time.monotonic() - asked_at > _PATIENCE):
                    break
        finally:
            for worker in workers:
                if worker.job is not None:
                    worker.process.kill()
                worker.pipe.close()
            for worker in workers:
                worker.process.join()
        for worker in workers:
            if worker.job is not None:
                yield "end", worker.job, Result("interrupted")


def _died(code: int | None, stop: Interruption) -> Result:
    if stop.requested:
        return Result("interrupted")
    return Result("failed", f"its process ended with exit code {code} (out of memory, or killed?)")


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
    place = job.folder / "job.json"
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(job.config).items()}
    place.write_text(json.dumps({"id": job.id, "config": settings}), encoding="utf-8")
    outcome = job.folder / "result.json"
    outcome.unlink(missing_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with (job.folder / "log.txt").open("w", encoding="utf-8") as log:
        child = subprocess.Popen([*command, "-m", "warmgap.lab.engines", str(place)], stdout=log, stderr=log)  # noqa: S603
        while child.poll() is None:
            try:
                child.wait()
            except KeyboardInterrupt:
                child.send_signal(signal.SIGINT)
    if outcome.exists():
        return Result(**json.loads(outcome.read_text(encoding="utf-8")))
    return Result("failed", f"torchrun ended with exit code {child.returncode} (see {job.folder / 'log.txt'})")


def _launched(place: Path) -> None:
    """One of the processes that `_launch` starts."""
    data = json.loads(place.read_text(encoding="utf-8"))
    result = train_job(Job(data["id"], from_plain(data["config"]), place.parent))
    if os.environ.get("RANK") == "0" or result.status == "failed":
        scratch = place.with_name(f"result.{os.getpid()}")
        scratch.write_text(json.dumps(vars(result)), encoding="utf-8")
        scratch.replace(place.with_name("result.json"))


# -------------------------------------------------------------------------------------------------------------- on Ray


@dataclass(frozen=True)
class OnRay:
    """Tasks on a Ray cluster, each with its cores or GPUs; a run whose node dies is begun again on another one.

    It goes on from its last checkpoint where the nodes share the folder, and else from the beginning: the numbers are
    the same.

    Attributes:
        jobs: Runs at a time; None leaves it to Ray.
        processes: GPUs, or cores, a run.
        address: Of the cluster; None takes the one that `RAY_ADDRESS` names, or starts one on this machine.
    """

    jobs: int | None = None
    processes: int = 1
    address: str | None = None

    def train(self, jobs: Sequence[Job], claim: Claim, stop: Interruption) -> Iterator[Message]:
        """See `Engine.train`."""
        try:
            import ray
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
        except ImportError as error:
            raise UserError("Runs on Ray need that package: pip install 'warmgap[cluster]'.") from error
        passed = {name: value for name, value in os.environ.items() if name in ("WARMGAP_CACHE", "OMP_NUM_THREADS")}
        ray.init(
            address=self.address,
            ignore_reinit_error=True,
            log_to_driver=False,
            logging_level="warning",
            runtime_env={"env_vars": passed},
        )
        with_gpus = ray.cluster_resources().get("GPU", 0) >= self.processes
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        inbox = ray.remote(_Inbox).options(num_cpus=0, scheduling_strategy=here).remote()
        task, gpus = ray.remote(_ray_task), self.processes if with_gpus else 0
        queue = list(jobs)
        under_way: dict[Any, Job] = {}
        while (queue and not stop.requested) or under_way:
            while queue and not stop.requested and len(under_way) < (self.jobs or len(jobs)):
                job = queue.pop(0)
                if claim(job):
                    threads = job.config.threads or 1
                    job = replace(job, config=replace(job.config, threads=threads), folder=job.folder.absolute())
                    needs = task.options(max_retries=_RETRIES, num_gpus=gpus, num_cpus=threads * self.processes)
                    reference = needs.remote(job, self.processes, inbox)
                    under_way[reference] = job
                    yield "begin", job, None
            ready, _ = ray.wait(list(under_way), timeout=_LOOK_EVERY) if under_way else ([], [])
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
            yield "tick", None, None
            if stop.requested:
                for reference in under_way:
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
