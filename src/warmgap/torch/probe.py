"""Measures the curvature of the loss along a training run, in the norm that bounds the optimizer's steps.

Source: arXiv 2602.05813, Assumption 2 and its measurement (gradients on one batch before and after a step), arXiv
2510.03164 (gradients on consecutive batches), arXiv 2505.13416 (the same block by block).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from warmgap._checks import check_count, check_finite
from warmgap.smoothness import Block, Record, append_record, read_records
from warmgap.torch.layout import matrices_of
from warmgap.torch.norms import Frobenius, LayerRule, Max, Spectral, SupOverBlocks, layer_norm
from warmgap.torch.recognition import norm_blocks

Estimator = Literal["same-batch", "consecutive", "directional", "eigenvalue"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)

Closure = Callable[[], Tensor | Iterable[Tensor]]

NORM_CHOICES = ("auto", "spectral", "max", "frobenius", "euclidean", "gluon")


class BlockNorm(Protocol):
    """What a probe needs of a norm; those of `warmgap.torch.norms` have it."""

    def norm(self, x: Tensor) -> Tensor:
        """The norm of x, a 0-d tensor."""

    def dual(self, g: Tensor) -> Tensor:
        """The dual norm of g, a 0-d tensor."""


class SmoothnessProbe:
    """Measures `||grad f(x) - grad f(y)||_* / ||x - y||` around optimizer steps from x to y.

        probe = SmoothnessProbe(optimizer)
        ...
        with probe.measure(lambda: model(batch)):
            optimizer.step()

    A measurement calls the closure before and after the step and differentiates what it returns by itself: gradients in
    `.grad` are neither read nor written, so that clipping, accumulation and optimizers that change gradients make no
    difference. The random state is the same in both calls and afterwards is as if they had not been made; so are
    parameters, `.grad`, and, where `model` is given, its buffers. Python's and NumPy's random states are not looked
    after.

    The norm of a model is the largest of its blocks' norms, its dual norm the sum of theirs. Blocks are the matrices
    and convolutions that the optimizer steps in a norm (vectors where there is nothing else):

        norm            of a block
        "auto"          what the optimizer's groups or its class say; `"euclidean"` for an optimizer that is not known
        "spectral"      largest singular value; dual: nuclear norm
        "max"           largest entry; dual: sum of the absolute entries
        "frobenius"     Euclidean length; dual: the same
        "gluon"         Gluon's and Scion's, scaled by the shape, of every parameter: by the group's `rule` or, without
                        one, spectral for matrices and convolutions, root mean square for vectors
        "euclidean"     not by blocks: the length of all parameters as one vector; blocks are recorded in Frobenius norm

    Estimators of the curvature, in the `ratio` of a record:

        "same-batch"    the ratio above, on the step's own batch (two gradients)
        "consecutive"   the gradient at y on the next step's batch instead: `measure` must then be called around every
                        step; contains the noise between batches, divided by the step length (two gradients)
        "directional"   <u, H u> / ||u||^2 of the step u = y - x and the Hessian H at x, with its sign
        "eigenvalue"    largest absolute eigenvalue of H in those blocks, by Lanczos iteration: the truth in the
                        Euclidean norm, for calibration (up to `lanczos_steps` gradients of gradients)

    In half precision the gradients' rounding is part of the ratio: where steps are so short that they change the
    gradient by less than a few percent, let the closure leave autocast out. The last two estimators differentiate
    twice, which a compiled model cannot. Parameters beside the blocks that move in the same step have a part in the
    gradient's change.

    Where `torch.distributed` is initialised, gradients and losses are averaged over the ranks: measure on every rank.
    The closure may call the model or its `DistributedDataParallel` wrapper. Sharded parameters (FSDP) are refused.

    Args:
        optimizer: Any optimizer; one that wraps another, as Accelerate's does, stands for that one.
        norm: One of the above, or an object with `norm(x)` and `dual(g)` for every block, or a `norms.SupOverBlocks`
            with the norm of each parameter, in the optimizer's order.
        target_loss: The loss that gaps are taken to.
        every: Measure the steps whose number is a multiple of this.
        estimator: What `ratio` is.
        also: Further estimators, written to `others` of each record; `"consecutive"` is not among them.
        model: For the blocks' names, and to keep its buffers (batch-norm statistics) as they were.
        path: A file that each record is appended to at once; read it with `warmgap.smoothness.read_records`. A run that
            was resumed goes on with its file: give `measure` the number of the step.
        lanczos_steps: Most Lanczos steps of an eigenvalue; each keeps a vector of the parameters' size.
        process_group: The ranks to average over; the default group where there is one.
        scaler: The GradScaler of a run in float16. Gradients are taken of the loss times its scale, as the run's own
            are, so that small ones do not vanish, and divided by it; the closure returns the loss unscaled.

    Attributes:
        records: The measurements so far, oldest first.

    Raises:
        TypeError: If `optimizer` is not an optimizer, or a parameter is sharded.
        ValueError: If an argument is out of range, no parameter is left to measure, or the file is none of records.

    Example:
        >>> import torch
        >>> from warmgap.torch import Muon
        >>> model = torch.nn.Linear(4, 4, bias=False)
        >>> optimizer = Muon(model.parameters(), lr=0.01)
        >>> probe = SmoothnessProbe(optimizer, model=model)
        >>> x = torch.eye(4)
        >>> loss = lambda: model(x).square().mean()
        >>> loss().backward()
        >>> with probe.measure(loss):
        ...     optimizer.step()
        >>> record = probe.records[0]
        >>> record.loss_after < record.loss, record.blocks[0].name
        (True, 'weight')
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        norm: str | BlockNorm | SupOverBlocks = "auto",
        target_loss: float = 0.0,
        every: int = 1,
        estimator: Estimator = "same-batch",
        also: tuple[Estimator, ...] = (),
        model: nn.Module | None = None,
        path: str | os.PathLike[str] | None = None,
        lanczos_steps: int = 20,
        process_group: dist.ProcessGroup | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        optimizer = _stepped(optimizer)
        for name in (estimator, *also):
            if name not in ESTIMATORS:
                raise ValueError(f"estimator must be one of {', '.join(map(repr, ESTIMATORS))}, got {name!r}")
        if "consecutive" in also:
            raise ValueError("'consecutive' cannot be in also; make it the estimator, and 'same-batch' the other")
        self.records: list[Record] = []
        self._target_loss = check_finite("target_loss", target_loss)
        self._every = check_count("every", every, minimum=1)
        self._estimator = estimator
        self._wanted = {estimator, *also}
        self._also = also
        self._model = model
        self._path = path
        # Of a run before this one: steps counted from 0 would mix with them.
        self._recorded = bool(path is not None and Path(path).exists() and read_records(path))
        self._lanczos_steps = check_count("lanczos_steps", lanczos_steps, minimum=1)
        self._group = process_group
        self._scaler = scaler
        self._optimizer = optimizer
        self._all = [p for group in optimizer.param_groups for p in group["params"]]
        self._trained = _trained(optimizer)
        self._joint, self._blocks = _read_norms(optimizer, norm, model)
        if not self._blocks:
            raise ValueError("the optimizer has no parameter that needs a gradient, so there is nothing to measure")
        self._params = [block.parameter for block in self._blocks]
        if any(hasattr(p, "full_tensor") for p in self._params):
            raise TypeError(
                "sharded parameters (DTensor) cannot be measured; probe a run on one device or with "
                "DistributedDataParallel, or a copy of the model whose parameters are each p.full_tensor()"
            )
        self._pending: _Pending | None = None
        self._steps = 0
        _count_steps(optimizer, self)

    @contextlib.contextmanager
    def measure(self, closure: Closure, *, step: int | None = None) -> Iterator[None]:
        """Measure the optimizer step made inside the `with` block, if it is one of every `every`.

        Args:
            closure: Returns the loss of the step's own batch as a tensor with one element, unscaled, with its graph; or
                an iterable of such losses, which are summed and differentiated one at a time: with accumulation, a
                generator of `loss / micro_batches`. It may enter autocast; it must not call `backward`.
            step: Number of the step; steps of the optimizer made since the probe was, unless given. It must be given
                where the probe's file has records already.

        Raises:
            TypeError: If the closure returns no tensor.
            ValueError: If the closure returns no loss, or one with more than one element or no graph; the optimizer
                trains other parameters than when the probe was made; the file holds records of a run before this one
                and no step is given; or, with `"consecutive"`, a step was left out.
        """
        if step is None and self._recorded:
            raise ValueError(
                f"{self._path} had records before this probe was made, and steps counted from 0 would mix with them; "
                "where they are of this run, give measure the number of the step, else another path"
            )
        number = self._steps if step is None else check_count("step", step, minimum=0)
        measured = number % self._every == 0
        if not measured and self._pending is None:
            yield
            return
        if _trained(self._optimizer) != self._trained:
            raise ValueError(
                "the optimizer trains other parameters than when the probe was made (add_param_group, requires_grad_); "
                "make a new probe"
            )
        random = _RandomState(self._params)
        with self._aside(random):
            loss, gradients = self._evaluate(closure)
        if self._pending is not None:
            self._complete(self._pending, number, gradients)
        if not measured:
            yield
            return
        start = [p.detach().clone() for p in self._params]
        yield
        steps = [_wide(p.detach()) - _wide(x) for p, x in zip(self._params, start, strict=True)]
        lengths = [block.norm(u) for block, u in zip(self._blocks, steps, strict=True)]
        duals = [block.dual(g) for block, g in zip(self._blocks, gradients, strict=True)]
        length, dual = self._largest(lengths), self._sum(duals)
        estimates: dict[str, float] = {}
        changes: list[float] | None = None
        loss_after = math.nan
        if "same-batch" in self._wanted:
            with self._aside(random):
                after, gradients_after = self._evaluate(closure)
            loss_after = float(after)
            changes = self._changes(gradients, gradients_after)
            estimates["same-batch"] = _divide(self._sum(changes), length)
        if self._wanted & {"directional", "eigenvalue"}:
            with self._at(start):
                estimates |= self._curvature(closure, random, steps, length)
        if self._estimator == "consecutive":
            estimates["consecutive"] = math.nan  # until the next batch
            changes = [math.nan] * len(self._blocks)
        elif self._estimator != "same-batch":
            changes = None
        record = Record(
            step=number,
            loss=float(loss),
            gap=float(loss) - self._target_loss,
            ratio=estimates[self._estimator],
            step_length=length,
            dual_norm=dual,
            loss_after=loss_after,
            estimator=self._estimator,
            norm="+".join(dict.fromkeys(block.label for block in self._blocks)) if not self._joint else "euclidean",
            blocks=self._block_records(lengths, duals, changes),
            others={name: estimates[name] for name in self._also if name != self._estimator},
        )
        # A step that an AMP scaler skipped is not counted, and its batch does not come again.
        if self._estimator == "consecutive" and length > 0.0:
            self._pending = _Pending(record, gradients, lengths, duals)
        else:
            self._keep(record)

    # -------------------------------------------------------------------------------------------------------- gradients

    def _evaluate(self, closure: Closure) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradients, averaged over the ranks."""
        scale = self._scale
        total = torch.zeros((), device=self._params[0].device)
        gradients: list[Tensor | None] = [None] * len(self._params)
        for loss in _losses(closure):
            found = torch.autograd.grad(_wide(loss) * scale, self._params, allow_unused=True)
            for index, g in enumerate(found):
                if g is not None:
                    g = g.to_dense() if g.layout != torch.strided else g  # of an embedding with sparse=True
                    kept = gradients[index]
                    gradients[index] = g if kept is None else kept + g
            total = total.to(torch.promote_types(total.dtype, loss.dtype)) + loss.detach().to(total.device)
        full = [torch.zeros_like(p) if g is None else g.detach() for g, p in zip(gradients, self._params, strict=True)]
        return self._mean(total), [self._mean(g if scale == 1.0 else _wide(g) / scale) for g in full]

    @property
    def _scale(self) -> float:
        return 1.0 if self._scaler is None else self._scaler.get_scale()

    def _mean(self, value: Tensor) -> Tensor:
        if not _distributed() or dist.get_world_size(self._group) == 1:
            return value
        value = value.contiguous().clone()
        dist.all_reduce(value, group=self._group)
        return value / dist.get_world_size(self._group)

    @contextlib.contextmanager
    def _aside(self, random: _RandomState) -> Iterator[None]:
        """Everything that a closure may touch, put back afterwards."""
        before = [(p, p.grad) for p in self._all]
        modules = [] if self._model is None else list(self._model.modules())
        places = [(module._buffers, dict(module._buffers)) for module in modules if module._buffers]
        buffers = [(b, b.detach().clone()) for _, found in places for b in found.values() if b is not None]
        for p, _ in before:
            p.grad = None
        # An autocast region around the loop keeps casts of the weights, which a step makes stale.
        torch.clear_autocast_cache()
        try:
            with random.replayed(), torch.enable_grad():
                yield
        finally:
            torch.clear_autocast_cache()
            for p, gradient in before:
                p.grad = gradient
            with torch.no_grad():
                for place, found in places:
                    place.update(found)  # a module may have put a new tensor in the place of the old one
                for buffer, kept in buffers:
                    buffer.copy_(kept)

    @contextlib.contextmanager
    def _at(self, place: Sequence[Tensor]) -> Iterator[None]:
        """The parameters at another place, and back bit by bit."""
        here = [p.detach().clone() for p in self._params]
        try:
            with torch.no_grad():
                for p, x in zip(self._params, place, strict=True):
                    p.copy_(x)
            yield
        finally:
            with torch.no_grad():
                for p, x in zip(self._params, here, strict=True):
                    p.copy_(x)

    # ----------------------------------------------------------------------------------------------------- second order

    def _curvature(
        self, closure: Closure, random: _RandomState, steps: list[Tensor], length: float
    ) -> dict[str, float]:
        scale = self._scale

        def hessian(vector: Tensor) -> Tensor:
            # Fused attention has no second derivative.
            with self._aside(random), sdpa_kernel(SDPBackend.MATH):
                parts = vector.split([p.numel() for p in self._params])
                direction = [part.view_as(p).to(p.dtype) for part, p in zip(parts, self._params, strict=True)]
                total = torch.zeros_like(vector)
                for loss in _losses(closure):
                    slopes = torch.autograd.grad(
                        _wide(loss) * scale, self._params, create_graph=True, allow_unused=True
                    )
                    terms = [(g * v).sum() for g, v in zip(slopes, direction, strict=True) if g is not None]
                    if not terms or not (slope := torch.stack(terms).sum()).requires_grad:
                        continue  # a loss that is linear in the parameters
                    found = torch.autograd.grad(slope, self._params, allow_unused=True)
                    total += torch.cat(
                        [
                            torch.zeros_like(_wide(p)).flatten() if h is None else _wide(h.detach()).flatten()
                            for h, p in zip(found, self._params, strict=True)
                        ]
                    )
            return self._mean(total) / scale

        step = torch.cat([u.flatten() for u in steps])
        found: dict[str, float] = {}
        if "directional" in self._wanted:
            found["directional"] = _divide(float(step @ hessian(step)), length**2) if length > 0.0 else math.nan
        if "eigenvalue" in self._wanted:
            found["eigenvalue"] = _largest_eigenvalue(hessian, step, self._lanczos_steps)
        return found

    # ---------------------------------------------------------------------------------------------------------- records

    def _largest(self, values: Sequence[float]) -> float:
        return math.hypot(*values) if self._joint else _max(values)

    def _sum(self, values: Sequence[float]) -> float:
        return math.hypot(*values) if self._joint else math.fsum(values)

    def _changes(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> list[float]:
        return [
            block.dual(_wide(one) - _wide(other)) for block, one, other in zip(self._blocks, after, before, strict=True)
        ]

    def _block_records(
        self, lengths: Sequence[float], duals: Sequence[float], changes: Sequence[float] | None
    ) -> tuple[Block, ...]:
        if changes is None:
            return ()
        return tuple(
            Block(block.name, block.label, _divide(change, length), length, dual)
            for block, length, dual, change in zip(self._blocks, lengths, duals, changes, strict=True)
        )

    def _complete(self, pending: _Pending, number: int, gradients: Sequence[Tensor]) -> None:
        self._pending = None
        record = pending.record
        if number != record.step + 1:
            raise ValueError(
                f"the consecutive estimate of step {record.step} needs the batch of step {record.step + 1}, got that "
                f"of step {number}; call measure around every step and let every={self._every} pick, or use the "
                "'same-batch' estimator"
            )
        changes = self._changes(pending.gradients, gradients)
        self._keep(
            dataclasses.replace(
                record,
                ratio=_divide(self._sum(changes), record.step_length),
                blocks=self._block_records(pending.lengths, pending.duals, changes),
            )
        )

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        if self._path is not None and (not _distributed() or dist.get_rank(self._group) == 0):
            append_record(self._path, record)


@dataclass
class _Pending:
    """A consecutive measurement that waits for the next batch."""

    record: Record
    gradients: Sequence[Tensor]
    lengths: Sequence[float]
    duals: Sequence[float]


class _RandomState:
    """The random state of the CPU and of the parameters' devices at one moment, to be replayed."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        self._cpu = torch.get_rng_state()
        devices = {p.device for p in params if p.device.type != "cpu"}
        self._states = {device: torch.get_device_module(device).get_rng_state(device) for device in devices}

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Start from the state kept; leave the one found."""
        found = torch.get_rng_state()
        found_on = {device: torch.get_device_module(device).get_rng_state(device) for device in self._states}
        self._set(self._cpu, self._states)
        try:
            yield
        finally:
            self._set(found, found_on)

    @staticmethod
    def _set(cpu: Tensor, states: dict[torch.device, Tensor]) -> None:
        torch.set_rng_state(cpu)
        for device, state in states.items():
            torch.get_device_module(device).set_rng_state(state, device)


# ------------------------------------------------------------------------------------------------------------ the norms


@dataclass(frozen=True)
class _MeasuredBlock:
    """A parameter, with the norm of the matrices it consists of: one, or those of a stack or of fused projections."""

    name: str
    label: str
    parameter: Tensor
    group: dict[str, Any]
    of: Callable[[Tensor], BlockNorm]
    """The norm of one of its matrices, whose shape may set its scale."""
    split: bool

    def norm(self, x: Tensor) -> float:
        return _max([float(self.of(part).norm(part)) for part in self._parts(x)])

    def dual(self, g: Tensor) -> float:
        return math.fsum(float(self.of(part).dual(part)) for part in self._parts(_wide(g)))

    def _parts(self, x: Tensor) -> Iterator[Tensor]:
        if not self.split:
            yield x
            return
        yield from matrices_of(x, self.group)


_SPECTRAL = Spectral(measure="gram")

_BY_NAME: dict[str, BlockNorm] = {"spectral": _SPECTRAL, "max": Max(), "frobenius": Frobenius()}


def _read_norms(
    optimizer: Optimizer, norm: str | BlockNorm | SupOverBlocks, model: nn.Module | None
) -> tuple[bool, list[_MeasuredBlock]]:
    """Whether all parameters are one vector, and the blocks."""
    names = _names(optimizer, model)
    everything = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    found: list[tuple[str, Tensor, dict[str, Any]]]
    refusal = f"norm must be one of {', '.join(map(repr, NORM_CHOICES))} or an object with norm and dual, got {norm!r}"
    if not isinstance(norm, str):
        own: Sequence[BlockNorm] = norm.norms if isinstance(norm, SupOverBlocks) else [norm] * len(everything)
        if not all(callable(getattr(one, what, None)) for one in own for what in ("norm", "dual")):
            raise ValueError(refusal)
        if len(own) != len(everything):
            raise ValueError(
                f"norm must have a norm for each of the optimizer's {len(everything)} parameters, got {len(own)}"
            )
        blocks = [
            _MeasuredBlock(
                names[p], getattr(one, "name", type(one).__name__.lower()), p, group, _constant(one), split=False
            )
            for one, (p, group) in zip(own, everything, strict=True)
        ]
        return False, _usable(blocks)
    if norm not in NORM_CHOICES:
        raise ValueError(refusal)
    joint = norm == "euclidean"
    if norm == "gluon":
        by_rule = [(_layer_rule(group, p), p, group) for p, group in everything]
        blocks = [
            _MeasuredBlock(names[p], f"gluon {rule}", p, group, _scaled(rule), split=rule != "rms")
            for rule, p, group in by_rule
        ]
        return False, _usable(blocks)
    if not joint:
        try:
            found = norm_blocks(optimizer, norm)
        except ValueError:
            if norm != "auto":
                raise
            joint = True
    if joint:
        found = [("frobenius", p, group) for p, group in everything]
    blocks = [
        _MeasuredBlock(names[p], name, p, group, _constant(_BY_NAME[name]), split=name == "spectral")
        for name, p, group in found
    ]
    return joint, _usable(blocks)


def _usable(blocks: Iterable[_MeasuredBlock]) -> list[_MeasuredBlock]:
    return [block for block in blocks if block.parameter.requires_grad and block.parameter.numel()]


def _constant(norm: BlockNorm) -> Callable[[Tensor], BlockNorm]:
    return lambda _: norm


def _layer_rule(group: dict[str, Any], parameter: Tensor) -> LayerRule:
    rule = group.get("rule")
    rules: tuple[LayerRule, ...] = get_args(LayerRule)
    fallback: LayerRule = "spectral" if parameter.ndim >= 2 else "rms"
    return next((known for known in rules if known == rule), fallback)


def _scaled(rule: LayerRule) -> Callable[[Tensor], BlockNorm]:
    """Gluon's norm of a block."""
    return lambda x: layer_norm(rule, x.shape, spectral=_SPECTRAL)


def _names(optimizer: Optimizer, model: nn.Module | None) -> dict[Tensor, str]:
    of_model = {} if model is None else {p: name for name, p in model.named_parameters()}
    names: dict[Tensor, str] = {}
    for number, group in enumerate(optimizer.param_groups):
        own = group.get("param_names") or [f"{number}.{index}" for index in range(len(group["params"]))]
        names |= {p: of_model.get(p, name) for p, name in zip(group["params"], own, strict=True)}
    return names


# -------------------------------------------------------------------------------------------------------- small helpers


def _losses(closure: Closure) -> Iterator[Tensor]:
    """The losses that a closure returns, one or several, checked."""
    returned = closure()
    if isinstance(returned, Mapping):
        raise TypeError(
            f"the closure must return the loss as a tensor, got {type(returned).__name__}; return its loss alone"
        )
    none = True
    for loss in (returned,) if isinstance(returned, Tensor) else _iterated(returned):
        none = False
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"the closure must return the loss as a tensor, got {type(loss).__name__}; leave out .item()"
            )
        if loss.numel() != 1:
            raise ValueError(f"the closure must return a mean loss of one element, got shape {tuple(loss.shape)}")
        if not loss.requires_grad:
            raise ValueError(
                "the closure's loss has no graph to differentiate; compute it from the parameters, with gradients on, "
                "and return it undetached"
            )
        yield loss.reshape(())
    if none:
        raise ValueError(
            "the closure returned no loss; it is called several times, and a generator gives its losses only once: "
            "make a new one at each call"
        )


def _iterated(returned: Any) -> Iterator[Any]:
    try:
        return iter(returned)
    except TypeError:
        raise TypeError(
            f"the closure must return the loss as a tensor (or several of them), got {type(returned).__name__}; leave "
            "out .item()"
        ) from None


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _divide(change: float, length: float) -> float:
    """Their ratio; NaN where nothing moved, since then nothing was measured."""
    return change / length if length > 0.0 else math.nan


def _max(values: Sequence[float]) -> float:
    """The largest, NaN if one of them is: Python's own max would depend on the order."""
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def _largest_eigenvalue(apply: Callable[[Tensor], Tensor], like: Tensor, steps: int, tolerance: float = 1e-4) -> float:
    """Largest absolute eigenvalue of a symmetric operator, by Lanczos iteration with full reorthogonalisation."""
    generator = torch.Generator().manual_seed(0)  # its own: the global random state is not touched
    vector = torch.randn(like.numel(), generator=generator, dtype=like.dtype).to(like.device)
    basis = [vector / torch.linalg.vector_norm(vector)]
    diagonal: list[float] = []
    beside: list[float] = []
    value = math.nan
    for _ in range(min(steps, like.numel())):
        image = apply(basis[-1])
        if not bool(torch.isfinite(image).all()):
            return math.nan
        diagonal.append(float(basis[-1] @ image))
        for _ in range(2):  # once is not enough in float32
            for direction in basis:
                image = image - (direction @ image) * direction
        remainder = float(torch.linalg.vector_norm(image))
        small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        for index, entry in enumerate(beside):
            small[index, index + 1] = small[index + 1, index] = entry
        values, vectors = torch.linalg.eigh(small)
        best = int(values.abs().argmax())
        value = abs(float(values[best]))
        if remainder * abs(float(vectors[-1, best])) <= tolerance * value:
            break
        beside.append(remainder)
        basis.append(image / remainder)
    return value


def _stepped(optimizer: Optimizer) -> Optimizer:
    """The optimizer that makes the steps, where the one given only wraps it and runs no step hooks."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    inner: Any = optimizer
    while not hasattr(inner, "_optimizer_step_post_hooks"):
        inner = getattr(inner, "optimizer", None)
        if not isinstance(inner, Optimizer):
            raise ValueError(
                f"{type(optimizer).__name__} only wraps an optimizer and runs no step hooks; make the probe on the "
                "optimizer itself"
            )
    stepped: Optimizer = inner
    return stepped


def _trained(optimizer: Optimizer) -> list[int]:
    """Which parameters it trains, by their identity."""
    return [id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def _count_steps(optimizer: Optimizer, probe: SmoothnessProbe) -> None:
    owner = weakref.ref(probe)

    def hook(*_: Any) -> None:
        if (alive := owner()) is not None:
            alive._steps += 1

    optimizer.register_step_post_hook(hook)
