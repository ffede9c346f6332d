"""Does the gradient point away from where the run ended? The unified parametric assumption along a PyTorch run.

Source: arXiv 2502.12329, Assumption 1 and its measurement protocol.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from warmgap.smoothness.unified import UnifiedCheck

Closure = Callable[[], Tensor]


class TrajectoryChecker:
    """Collects points of a run, then compares each with where the run ended.

        checker = TrajectoryChecker(model)
        for step, batch in enumerate(loader):
            if step % 50 == 0:
                checker.record(lambda batch=batch: model(batch))
            ...
        check = checker.finalize()
        print(check.largest_c1, check.c2(0.1), check.outliers(0.1))

    A point is a batch's loss and gradient at the weights of that moment. Its gradient is kept, on the CPU, so that a
    point costs as much memory as the weights: take one an epoch, or every hundred steps. `.grad`, weights and buffers
    are left as they are.

    Args:
        model: The model that is trained; its parameters that need a gradient are the point.

    Raises:
        ValueError: If no parameter of the model needs a gradient.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> checker = TrajectoryChecker(model)
        >>> for _ in range(20):
        ...     checker.record(lambda: model(torch.eye(2)).square().mean())
        ...     with torch.no_grad():
        ...         for p in model.parameters():
        ...             _ = p.mul_(0.9)
        >>> checker.finalize().largest_c1 > 1.0  # convex
        True

    Source: arXiv 2502.12329, the measurement protocol.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._params = [p for p in model.parameters() if p.requires_grad]
        if not self._params:
            raise ValueError("no parameter of the model needs a gradient, so there is no trajectory")
        self._points: list[_Point] = []

    def __len__(self) -> int:
        return len(self._points)

    def record(self, closure: Closure) -> None:
        """Keep a point.

        Args:
            closure: Returns the loss of a batch as a tensor with one element, with its graph. It is called again by
                `finalize`, at the end of the run, and so must hold on to its batch; random numbers, as of dropout, are
                then those of this call.

        Raises:
            TypeError: If it returns no tensor.
        """
        random = _random_state(self._params)
        with self._aside(), torch.enable_grad():
            loss = _loss(closure)
            found = torch.autograd.grad(loss, self._params, allow_unused=True)
        gradients = [None if g is None else g.detach().to("cpu", copy=True) for g in found]
        at = math.fsum(_dot(g, p) for g, p in zip(gradients, self._params, strict=True))
        self._points.append(_Point(closure, random, float(loss.detach()), gradients, at))

    def finalize(self, *, progress: Literal["gap", "gradient"] = "gap") -> UnifiedCheck:
        """Return both sides of the inequality at every point; the present weights are x*.

        Args:
            progress: `"gap"`: P is the loss minus the loss at x* on the same batch; `"gradient"`: the squared Euclidean
                norm of the gradient.

        Raises:
            ValueError: If there are fewer than two points, none is finite, the present weights are not, or `progress`
                is unknown.
        """
        if len(self) < 2:
            raise ValueError(f"a trajectory has at least two points, got {len(self)}: call record during the run")
        if progress not in ("gap", "gradient"):
            raise ValueError(f"progress must be 'gap' or 'gradient', got {progress!r}")
        if not all(bool(torch.isfinite(p).all()) for p in self._params):
            raise ValueError("the present weights, which are the reference, are not finite: finalize an earlier run")
        inner, sizes = [], []
        for point in self._points:
            pairs = list(zip(point.gradients, self._params, strict=True))
            inner.append(point.at - math.fsum(_dot(g, p) for g, p in pairs))
            if progress == "gradient":
                sizes.append(math.fsum(_dot(g, g) for g, _ in pairs if g is not None))
                continue
            with self._aside(), torch.no_grad(), torch.random.fork_rng(devices=list(point.random[1])):
                _set_random_state(point.random)
                sizes.append(point.loss - float(_loss(point.closure)))
        return UnifiedCheck.of(inner, sizes)

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Buffers, such as batch-norm statistics, put back afterwards."""
        buffers = [(b, b.detach().clone()) for b in self._model.buffers()]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, kept in buffers:
                    buffer.copy_(kept)


RandomState = tuple[Tensor, dict[torch.device, Tensor]]


@dataclass(frozen=True)
class _Point:
    closure: Closure
    random: RandomState
    loss: float
    gradients: Sequence[Tensor | None]
    at: float
    """<gradient, weights> at the point."""


def _loss(closure: Closure) -> Tensor:
    loss = closure()
    if not isinstance(loss, Tensor):
        raise TypeError(f"the closure must return the loss as a tensor, got {type(loss).__name__}; leave out .item()")
    return loss


def _dot(g: Tensor | None, p: Tensor) -> float:
    if g is None:
        return 0.0
    return float(torch.dot(g.double().flatten(), p.detach().to("cpu", torch.float64).flatten()))


def _random_state(params: list[nn.Parameter]) -> RandomState:
    devices = {p.device for p in params if p.device.type == "cuda"}
    return torch.get_rng_state(), {device: torch.cuda.get_rng_state(device) for device in devices}


def _set_random_state(state: RandomState) -> None:
    torch.set_rng_state(state[0])
    for device, kept in state[1].items():
        torch.cuda.set_rng_state(kept, device)
