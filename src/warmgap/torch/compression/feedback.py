"""||EF21|| and ||EF21-SGDM|| among processes: as a communication hook of DDP, or before an optimizer's step."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from warmgap.torch.compression._state import (
    VERSION,
    First,
    Settings,
    Traffic,
    Worker,
    check_state,
    copy_into,
    is_gathered,
    local,
    mean,
    named,
    traffic_of,
    zeros_like,
)
from warmgap.torch.compression.compressors import Compressor, Message

__all__ = ["ErrorFeedback"]

if TYPE_CHECKING:
    GradBucket = Any  # torch's stubs do not have it
else:
    # DDP compares the annotation with this very class.
    GradBucket = getattr(dist, "GradBucket", object)


@final
class ErrorFeedback:
    """Compressed gradients with error feedback: this process is one worker of a group.

    Each worker i keeps v_i, its estimate of its gradient, and g_i, what the others have of it. In a step,

        v_i <- momentum * v_i + (1 - momentum) * gradient_i
        c_i  = C(v_i - g_i)           the message: all that is sent
        g_i <- g_i + c_i
        G   <- G + mean_i c_i         on every worker, the same bits

    and G takes the gradient's place. `G = mean_i g_i` always, up to the rounding of the sums (see `deviation`). The
    step is the optimizer's: normalized in l2 by `NormalizedGD`, which makes it ||EF21|| (momentum 0) or ||EF21-SGDM||,
    or in any other norm by its LMO, as `Muon(..., momentum=0.0, nesterov=False)` does (EF21-Muon).

    With `DistributedDataParallel`:

        feedback = ErrorFeedback(model, TopK(0.01))
        parallel = DistributedDataParallel(model)
        parallel.register_comm_hook(feedback, ErrorFeedback.hook)

    Without, each process differentiates the loss of its own data, and gradients are exchanged before the step:

        feedback = ErrorFeedback(model, TopK(0.01))
        feedback.attach(optimizer)

    Attach before anything else that looks at gradients before a step. A parameter without a gradient counts as one
    with a zero gradient. A worker's gradient with a NaN or an infinity is left out, that parameter's estimate stays.

    No `GradScaler`: its scale changes from step to step, and what was kept from earlier steps would have another one;
    and as gradients differ, workers would disagree on which steps to skip. Use bfloat16, which needs none.

    Sharded parameters (DTensor): a worker is then a whole mesh of processes, and `process_group` those that have the
    same shard in the other meshes, over which gradients must not have been averaged. Each shard is compressed by
    itself. Within one mesh, `fully_shard` averages gradients before an optimizer sees them, and there is nothing left
    to compress.

    Args:
        model: The model, or pairs of names and parameters. Frozen parameters are left out.
        compressor: What compresses each parameter's differences.
        momentum: Weight of the past in v_i; at least 0 and under 1. The paper's eta is 1 - momentum.
        first: `"all"` to send the first gradient as it is, as in the authors' experiments, or `"compressed"`.
        seed: For compressors that draw random numbers, at least 0; the same on every worker.
        process_group: The workers; all processes by default.

    Attributes:
        last: `Traffic` of the last step.
        total: `Traffic` of all steps since this object was made.

    Raises:
        ValueError: If a value is out of range, there is no trainable parameter, or parameters are sharded over the
            process group itself.

    Example:
        >>> import torch
        >>> from warmgap.torch.compression import ErrorFeedback, NormalizedGD, TopK
        >>> model = torch.nn.Linear(8, 2)
        >>> optimizer = NormalizedGD(model.parameters(), lr=0.1)
        >>> feedback = ErrorFeedback(model, TopK(0.25))
        >>> handle = feedback.attach(optimizer)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(4, 8)).square().mean().backward()
        ...     optimizer.step()
        >>> feedback.last.message
        40

    Source: arXiv 2410.16871, Algorithms 1 and 2; in other norms arXiv 2510.00643.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[tuple[str, Tensor]],
        compressor: Compressor,
        *,
        momentum: float = 0.0,
        first: First = "all",
        seed: int = 0,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        self._params = named(model)
        self._names = {p: name for name, p in self._params.items()}
        self._places = {name: place for place, name in enumerate(self._params)}
        self._settings = Settings(compressor, momentum, first, seed)
        self._group = process_group
        self._check_shards()
        self._worker = Worker(self._params, self._settings)
        self._server = zeros_like(self._params)
        self._steps = dict.fromkeys(self._params, 0)
        self._alike = False
        self._whole_step = True
        self.last = Traffic()
        self.total = Traffic()

    @property
    def workers(self) -> int:
        """How many workers there are; 1 before `torch.distributed` is initialised."""
        return dist.get_world_size(self._group) if dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""
        return dist.get_rank(self._group) if dist.is_initialized() else 0

    def hook(self, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        """What `DistributedDataParallel.register_comm_hook(feedback, ErrorFeedback.hook)` takes.

        State belongs to parameters, so that it does not matter that DDP fills its buckets anew after the first step.

        Raises:
            ValueError: If the bucket holds a parameter that is not one of the model's.
        """
        params = bucket.parameters()
        self._check_known(params)
        self._exchange(params, bucket.gradients())
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Exchange gradients at the beginning of each `optimizer.step()`; call `remove()` on what is returned to stop.

        The optimizer stays what it is, for schedules and checkpoints. Several optimizers, each of other parameters, are
        attached one after the other.

        Raises:
            ValueError: If it has a trainable parameter that is not one of the model's. From `step`, if it is given a
                closure, or the workers do not start from the same weights.
        """
        self._check_known([p for group in optimizer.param_groups for p in group["params"] if p.requires_grad])
        return optimizer.register_step_pre_hook(self._before_step)

    @torch.no_grad()
    def deviation(self) -> float:
        """How far G is from the mean of all g_i: the largest difference of two entries. All workers must call it."""
        means = self._means()
        return max(float((local(self._server[name]) - x).abs().max()) if x.numel() else 0.0 for name, x in means)

    @torch.no_grad()
    def synchronize(self) -> None:
        """Set G to the mean of all g_i, removing what rounding has added up. All workers must call it."""
        for name, x in self._means():
            local(self._server[name]).copy_(x)

    def state_dict(self) -> dict[str, Any]:
        """This worker's state and the common one: for one file a rank, or for `torch.distributed.checkpoint`.

        What belongs to this worker has its number in its key, so that a distributed checkpoint keeps all workers'.
        """
        return {
            "version": VERSION,
            "settings": self._settings.plain(),
            "workers": self.workers,
            "steps": torch.tensor(list(self._steps.values())),
            "server": dict(self._server),
            f"worker-{self.rank}": self._worker.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of this worker.

        Raises:
            ValueError: If it is that of another worker, of other settings, parameters or as many workers.
        """
        check_state(state, self._settings, self.workers)
        mine = f"worker-{self.rank}"
        if mine not in state:
            others = ", ".join(key for key in state if key.startswith("worker-"))
            raise ValueError(f"this is worker {self.rank}, the state that of {others}; load each rank's own")
        if len(state["steps"]) != len(self._steps):
            raise ValueError(
                f"the state has {len(state['steps'])} parameters, the model {len(self._steps)}; load it into the same "
                "model"
            )
        copy_into(self._server, state["server"])
        self._worker.load_state_dict(state[mine])
        self._steps = dict(zip(self._steps, map(int, state["steps"].tolist()), strict=True))

    def __repr__(self) -> str:
        steps = max(self._steps.values())
        return (
            f"ErrorFeedback({self._settings.compressor}, momentum={self._settings.momentum}, {self.workers} workers, "
            f"step {steps}: {self.last} a step)"
        )

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(given is not None for given in args[1:]) or kwargs.get("closure") is not None:
            raise ValueError(
                "step() was given a closure, but gradients are exchanged before it would be called; call "
                "loss.backward() first, then step() without a closure"
            )
        if getattr(optimizer, "grad_scale", None) is not None:
            raise ValueError(
                "step() was called by a GradScaler, whose changing scale error feedback can't take; use bfloat16"
            )
        params = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        self._check_alike()
        for p in params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            elif p.grad.layout != torch.strided:
                raise ValueError(f"sparse gradients are not supported, got layout {p.grad.layout}; use sparse=False")
        self._exchange(params, [local(p.grad) for p in params if p.grad is not None])

    @torch.no_grad()
    def _exchange(self, params: list[Tensor], gradients: list[Tensor]) -> None:
        """Give and take messages, and put G in place of these gradients."""
        names = [self._names[p] for p in params]
        messages: dict[str, Message] = {}
        dense: dict[str, bool] = {}
        for name, p, gradient in zip(names, params, gradients, strict=True):
            step = self._steps[name]
            dense[name] = self._settings.sends_all(p, step)
            seed = self._settings.seed_of(self._places[name], step)
            messages[name] = self._worker.message(name, gradient, step, seed, sends_all=dense[name])
            self._steps[name] = step + 1
        self._share(messages, dense)
        self._count(messages)
        for name, gradient in zip(names, gradients, strict=True):
            gradient.copy_(local(self._server[name]))

    def _share(self, messages: Mapping[str, Message], dense: Mapping[str, bool]) -> None:
        """Bring G up to date: messages go to everyone, or are added up, whichever is less traffic."""
        count = self.workers
        servers = {name: local(self._server[name]) for name in messages}
        gathered = [name for name in messages if count > 1 and is_gathered(messages[name], servers[name], count)]
        added = [name for name in messages if name not in set(gathered)]
        decode = self._settings.compressor.decode
        if gathered:
            by_rank = _gather([part for name in gathered for part in messages[name]], self._group, count)
            for name in gathered:
                size = len(messages[name])
                parts = [tuple(next(arrived) for _ in range(size)) for arrived in by_rank]
                found = (part[0] if dense[name] else decode(part, servers[name]) for part in parts)
                _renew(servers[name], mean(found, count), dense=dense[name])
        for dtype in {servers[name].dtype for name in added}:
            group = [name for name in added if servers[name].dtype == dtype]
            mine = [messages[name][0] if dense[name] else decode(messages[name], servers[name]) for name in group]
            flat = torch.cat([x.reshape(-1) for x in mine])
            flat = flat if count == 1 else _sum_in_order(flat, self._group, count).div_(count)
            for name, x in zip(group, flat.split([x.numel() for x in mine]), strict=True):
                _renew(servers[name], x.reshape(servers[name].shape), dense=dense[name])

    def _count(self, messages: Mapping[str, Message]) -> None:
        traffic = traffic_of([(message, local(self._server[name])) for name, message in messages.items()], self.workers)
        self.last = traffic if self._whole_step else self.last + traffic
        # Parameters come in buckets, or optimizer by optimizer.
        self._whole_step = len(set(self._steps.values())) == 1
        self.total += traffic

    def _means(self) -> list[tuple[str, Tensor]]:
        count = self.workers
        found = []
        for name, shared in self._worker.shared.items():
            x = local(shared)
            flat = x.reshape(-1)
            total = flat if count == 1 else _sum_in_order(flat, self._group, count)
            found.append((name, (total / count).reshape(x.shape)))
        return found

    def _check_known(self, params: Iterable[Tensor]) -> None:
        for p in params:
            if p not in self._names:
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} is not one of the {len(self._names)} that error feedback "
                    "was made for; make it with the model that is trained"
                )

    def _check_alike(self) -> None:
        """Workers that start from different weights would each go their own way."""
        if self._alike:
            return
        self._alike = True
        if self.workers == 1:
            return
        sums = torch.stack([local(p).detach().double().sum() for p in self._params.values()])
        by_rank = [next(arrived) for arrived in _gather([sums], self._group, self.workers)]
        for name, *values in zip(self._params, *by_rank, strict=True):
            if len({value.item() for value in values if not value.isnan()}) > 1:
                raise ValueError(
                    f"{name} is not the same on every worker; set the same seed before the model is made, or broadcast "
                    "its parameters"
                )

    def _check_shards(self) -> None:
        for name, p in self._params.items():
            mesh = getattr(p, "device_mesh", None)
            if mesh is None:
                continue
            if self._group is None:
                raise ValueError(
                    f"{name} is sharded, and its gradient is averaged over its mesh before an optimizer sees it; give "
                    "process_group, the processes that have the same shard in other meshes"
                )
            both = set(dist.get_process_group_ranks(self._group)) & set(mesh.mesh.flatten().tolist())
            if both - {dist.get_rank()}:
                raise ValueError(
                    f"{name} is sharded over ranks {sorted(both)}, which are also in process_group: their gradients "
                    "are one and the same; give the processes that have the same shard in other meshes"
                )


def _renew(server: Tensor, x: Tensor, *, dense: bool) -> None:
    """G after a mean of estimates, or of messages."""
    if dense:
        server.copy_(x)
    else:
        server.add_(x)


def _gather(parts: list[Tensor], group: dist.ProcessGroup | None, count: int) -> list[Iterator[Tensor]]:
    """An iterator over everyone's tensors for each rank, in the order of the ranks; shapes are the same on all."""
    mine = torch.cat([part.contiguous().reshape(-1).view(torch.uint8) for part in parts])
    arrived = [torch.empty_like(mine) for _ in range(count)]
    dist.all_gather(arrived, mine, group=group)
    sizes = [part.numel() * part.element_size() for part in parts]

    def tensors(row: Tensor) -> Iterator[Tensor]:
        for part, piece in zip(parts, row.split(sizes), strict=True):
            # A copy, as values of several bytes have to begin at a multiple of their size.
            yield piece.clone().view(part.dtype).reshape(part.shape)

    return [tensors(row) for row in arrived]


def _sum_in_order(flat: Tensor, group: dist.ProcessGroup | None, count: int) -> Tensor:
    """The sum over all ranks, every entry in the order of the ranks: the bits do not depend on its place in a bucket.

    It sends as much as a ring's all-reduce: each rank adds up its share of the entries, then all get all shares.
    """
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % count))
    shares = torch.empty_like(padded)
    dist.all_to_all_single(shares, padded, group=group)
    total, *others = shares.reshape(count, -1)
    total = total.clone()
    for x in others:
        total.add_(x)
    arrived = [torch.empty_like(total) for _ in range(count)]
    dist.all_gather(arrived, total, group=group)
    return torch.cat(arrived)[: flat.numel()]
