"""||EF21|| and ||EF21-SGDM|| of several workers, simulated in one process."""

from collections.abc import Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from warmgap._checks import check_count
from warmgap.torch.compression._state import (
    VERSION,
    First,
    Settings,
    Traffic,
    Worker,
    check_state,
    copy_into,
    mean,
    named,
    traffic_of,
    zeros_like,
)
from warmgap.torch.compression.compressors import Compressor, Message

__all__ = ["SimulatedWorkers"]


@final
class SimulatedWorkers:
    """Error feedback among n workers that take turns in one process: what `ErrorFeedback` computes, bit for bit.

    In each step every worker's gradient is collected, then exchanged:

        for worker, batch in enumerate(batches):
            optimizer.zero_grad()
            loss(batch).backward()
            workers.collect(worker)
        workers.exchange()      # the gradients are now G
        optimizer.step()

    Args:
        model: The model, or pairs of names and parameters. Frozen parameters are left out.
        workers: How many there are, at least 1.
        compressor: What compresses each parameter's differences.
        momentum: Weight of the past in each worker's estimate; at least 0 and under 1.
        first: `"all"` to send the first gradient as it is, or `"compressed"`.
        seed: For compressors that draw random numbers, at least 0.

    Attributes:
        last: `Traffic` of the last step, of one worker.
        total: `Traffic` of all steps since this object was made.

    Raises:
        ValueError: If a value is out of range, there is no trainable parameter, or one is sharded.

    Example:
        >>> import torch
        >>> from warmgap.torch.compression import NormalizedGD, ScaledSign, SimulatedWorkers
        >>> model = torch.nn.Linear(8, 2)
        >>> optimizer = NormalizedGD(model.parameters(), lr=0.1)
        >>> workers = SimulatedWorkers(model, 2, ScaledSign(), momentum=0.9)
        >>> for worker in range(2):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     workers.collect(worker)
        >>> workers.exchange()
        >>> optimizer.step()

    Source: arXiv 2410.16871, Algorithms 1 and 2.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[tuple[str, Tensor]],
        workers: int,
        compressor: Compressor,
        *,
        momentum: float = 0.0,
        first: First = "all",
        seed: int = 0,
    ) -> None:
        self._params = named(model)
        if sharded := [name for name, p in self._params.items() if hasattr(p, "device_mesh")]:
            raise ValueError(f"{sharded[0]} is sharded: workers that are real have ErrorFeedback; simulate on one rank")
        self._settings = Settings(compressor, momentum, first, seed)
        self._workers = [
            Worker(self._params, self._settings) for _ in range(check_count("workers", workers, minimum=1))
        ]
        self._server = zeros_like(self._params)
        self._messages: dict[int, dict[str, Message]] = {}
        self._step = 0
        self.last = Traffic()
        self.total = Traffic()

    @torch.no_grad()
    def collect(self, worker: int) -> None:
        """Take the present gradients as those of a worker; a parameter without one counts as one with zero.

        Raises:
            ValueError: If there is no such worker, or it was collected in this step already.
        """
        if check_count("worker", worker, minimum=0) >= len(self._workers):
            raise ValueError(f"worker must be under {len(self._workers)}, got {worker}")
        if worker in self._messages:
            raise ValueError(f"worker {worker} was collected already; call exchange() when all have been")
        self._messages[worker] = {
            name: self._workers[worker].message(
                name,
                torch.zeros_like(p) if p.grad is None else p.grad,
                self._step,
                self._settings.seed_of(place, self._step),
                sends_all=self._settings.sends_all(p, self._step),
            )
            for place, (name, p) in enumerate(self._params.items())
        }

    @torch.no_grad()
    def exchange(self) -> None:
        """Let the workers' messages arrive, and put G in place of the gradients.

        Raises:
            ValueError: If a worker has not been collected.
        """
        if missing := sorted(set(range(len(self._workers))) - self._messages.keys()):
            raise ValueError(f"worker {missing[0]} has not been collected in this step; call collect({missing[0]})")
        count = len(self._workers)
        for name, p in self._params.items():
            server = self._server[name]
            messages = [self._messages[worker][name] for worker in range(count)]
            if self._settings.sends_all(p, self._step):
                server.copy_(mean((message[0] for message in messages), count))
            else:
                decode = self._settings.compressor.decode
                server.add_(mean((decode(message, server) for message in messages), count))
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            p.grad.copy_(server)
        self.last = traffic_of([(message, self._server[name]) for name, message in self._messages[0].items()], count)
        self.total += self.last
        self._messages = {}
        self._step += 1

    @torch.no_grad()
    def deviation(self) -> float:
        """How far G is from the mean of all g_i: the largest difference of two entries."""
        return max(
            float((server - mean((worker.shared[name] for worker in self._workers), len(self._workers))).abs().max())
            for name, server in self._server.items()
            if server.numel()
        )

    def state_dict(self) -> dict[str, Any]:
        """The state of all workers, by parameter name."""
        workers = {f"worker-{rank}": worker.state_dict() for rank, worker in enumerate(self._workers)}
        return {
            "version": VERSION,
            "settings": self._settings.plain(),
            "workers": len(self._workers),
            "steps": torch.full((len(self._params),), self._step),
            "server": dict(self._server),
            **workers,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, also from those of the ranks of a run, put into one dict.

        Raises:
            ValueError: If it is that of other settings, parameters or as many workers.
        """
        check_state(state, self._settings, len(self._workers))
        copy_into(self._server, state["server"])
        for rank, worker in enumerate(self._workers):
            worker.load_state_dict(state[f"worker-{rank}"])
        self._step = int(state["steps"][0])
        self._messages = {}
