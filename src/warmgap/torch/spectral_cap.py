"""The spectral cap: how far one step may move the hidden matrices of a model.

Early gradients of hidden matrices have low rank, and a step made of signs, or divided by a root mean square, turns low
rank into a large spectral norm: up to `lr * sqrt(rows * columns)` where a full-rank step has about
`lr * (sqrt(rows) + sqrt(columns))`. Such steps overwrite the weights before the model has learned anything. The cap
holds them back by their size, not by a step count: warm-up comes about where there is cause for it, and ends by itself.

A step's size is its spectral norm over sqrt(outputs / inputs), the size that changes what a layer gives by about one
(the spectral condition for feature learning, arXiv 2310.17813). What was measured here is in docs/schedule.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from warmgap._checks import check_count, check_positive, warn
from warmgap.rules import default_rho
from warmgap.torch.layout import matrices_of
from warmgap.torch.orthogonalize import as_matrix
from warmgap.torch.sharding import is_sharded, local
from warmgap.torch.split import role_of

STATE_VERSION = 1

_ITERATIONS = 4  # of the power method
_BUDGET = 2**24  # entries measured a step (28 matrices of 768 x 768); larger models are measured in turn
_EXPERTS = 8  # matrices of a stack that are measured
_TINY = 1e-30

SIGN_FIRST = frozenset(
    {
        "Adam",
        "AdamW",
        "Adam8bit",
        "AdamW8bit",
        "PagedAdam",
        "PagedAdamW",
        "PagedAdam8bit",
        "PagedAdamW8bit",
        "FusedAdam",
        "DeepSpeedCPUAdam",
        "Lion",
        "Lion8bit",
        "PagedLion",
        "PagedLion8bit",
        "SignSGD",
        "Signum",
    }
)
"""Class names of optimizers, not ours, whose first step moves every entry by the sign of its gradient."""

WHOLE_STEP = frozenset({"SGD", "NormalizedSGD"})
"""Class names of optimizers whose step is one vector for the whole model: norms and biases take a large share of it."""


@torch.no_grad()
def spectral_norms(matrices: Sequence[Tensor], iterations: int = _ITERATIONS) -> Tensor:
    """Estimate the spectral norm of matrices of one shape by the power method from each one's longest row.

    Nothing random and no memory of earlier calls: the same matrices give the same numbers on every rank and after a
    resume. The estimate is never above the norm. With four iterations it is 0.8 to 1 of it on random matrices (median
    0.94), and exact on matrices of rank one. The host does not wait for the device.

    Args:
        matrices: At least one, each of shape (rows, columns); half precision is computed in float32.
        iterations: Products with the matrix and its transpose, at least one.

    Returns:
        One norm a matrix, shape (n,), float32 or float64, on the matrices' device.

    Example:
        >>> import torch
        >>> spectral_norms([torch.diag(torch.tensor([3.0, 1.0])), torch.zeros(2, 2)]).tolist()
        [3.0, 0.0]
    """
    dtype = torch.promote_types(matrices[0].dtype, torch.float32)
    if matrices[0].device.type == "cpu":  # batched products with one column are slow there
        return torch.cat([_power(matrix.to(dtype).unsqueeze(0), iterations) for matrix in matrices])
    return _power(torch.stack([matrix.to(dtype) for matrix in matrices]), iterations)


def _power(batch: Tensor, iterations: int) -> Tensor:
    """The norm of M^T u of each matrix M of the batch, for u after so many steps from its longest row."""
    longest = torch.linalg.vector_norm(batch, dim=-1).argmax(-1)[:, None, None].expand(-1, 1, batch.shape[-1])
    v = batch.gather(1, longest).mT
    for _ in range(iterations):
        u = batch @ (v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_min(_TINY))
        v = batch.mT @ (u / torch.linalg.vector_norm(u, dim=1, keepdim=True).clamp_min(_TINY))
    norms: Tensor = torch.linalg.vector_norm(v, dim=(1, 2))
    return norms


class SpectralCap:
    """Hold the steps of the hidden matrices W_i under a cap: one factor `min(1, rho / r)` for all of them.

    `r` is the median over i of `||D_i||_2 / sqrt(outputs_i / inputs_i)`, where D_i is what the step changes W_i by.
    Inputs and outputs of a convolution, a matrix of shape (outputs, inputs * taps), are its channels. All hidden
    matrices share the factor, so their learning rates keep their ratios. Embedding, head, norms and biases are left
    alone, with two exceptions: in a model without an embedding (MLP, convnet) all of them share the factor, and norms
    and biases share it with optimizers that make one step of all weights (SGD, NormalizedSGD).

    Works around any `torch.optim.Optimizer`. With the optimizers of `warmgap.torch` the directions are measured before
    each step is made, so that the cap is exact for that step (on CUDA it acts one step late, since the host does not
    wait for the device); how large an orthogonalized direction, Muon's and Scion's, can be is known, and nothing is
    measured. With any other optimizer the step just made is measured, by copies of the matrices whose turn
    it is, and the next one is held back; its first step is measured on the gradients where it is known to be their sign
    (Adam, Lion, sign methods) or themselves (SGD). Models of more than 2^24 entries in hidden matrices are measured in
    turn, some matrices a step. No step waits for the device, but the first.

    Args:
        optimizer: Any optimizer whose groups have roles, as `split_parameters(model)` gives them.
        rho: The cap, above 0; `"auto"` takes `warmgap.rules.default_rho(total_iters)`.
        total_iters: Optimizer steps in the whole run; for `"auto"`.
        roles: The roles that are held: `"auto"`, as said above; some names; or None for all groups, whose roles are
            then not asked, and every parameter of two or more dimensions is measured.
        apply: Whether to change the steps; False only measures, for a scheduler that sets the rates itself.

    Attributes:
        rho: The cap as a number.
        agree: Makes one number of what each rank measured; called once a step, and must not wait for the device.

    Raises:
        TypeError: If `optimizer` is not an optimizer.
        ValueError: If an argument lies outside its range, or no parameter is to be held.

    Example:
        >>> import torch
        >>> from warmgap.torch import SpectralCap, split_parameters
        >>> model = torch.nn.Sequential(torch.nn.Embedding(8, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 8))
        >>> optimizer = torch.optim.AdamW(split_parameters(model), lr=0.1)
        >>> cap = SpectralCap(optimizer, rho=0.05)
        >>> model(torch.arange(8)).square().mean().backward()
        >>> optimizer.step()
        >>> cap.factor < 0.5  # the step of the hidden matrix was held back
        True
    """

    def __init__(
        self,
        optimizer: Optimizer,
        rho: float | Literal["auto"] = "auto",
        *,
        total_iters: int | None = None,
        roles: Iterable[str] | Literal["auto"] | None = "auto",
        apply: bool = True,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if total_iters is not None:
            check_count("total_iters", total_iters, minimum=1)
        self.rho = default_rho(total_iters) if rho == "auto" else check_positive("rho", rho)
        self.factor = 1.0
        self._optimizer = optimizer
        self._roles = roles if roles is None or roles == "auto" else frozenset(roles)
        self._members: list[_Member] = []
        self._copies: list[tuple[_Member, Tensor]] = []
        self._rates: list[tuple[dict[str, Any], float | Tensor]] = []
        self._turn = 0
        self._warned = False
        self._ratio: float | None = None
        self._late: tuple[Tensor, Any] | None = None
        self.agree: Callable[[Tensor], Tensor] = _own
        if not self._measured:
            raise ValueError(
                f"none of the groups of {type(optimizer).__name__} has a role of a matrix to hold (roles={roles!r}): "
                "give it split_parameters(model), or roles=None to hold every matrix"
            )
        if apply:
            separate_rates(optimizer)
            optimizer.register_step_pre_hook(lambda _, args, kwargs: self._hold(args, kwargs))
            optimizer.register_step_post_hook(lambda *_: self._release())

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups that are held."""
        groups = self._optimizer.param_groups
        if self._roles == "auto":
            if all(role_of(group) != "embedding" for group in groups):
                return groups
            whole_step = type(self._optimizer).__name__ in WHOLE_STEP
            return [g for g in groups if role_of(g) == "hidden" or (whole_step and role_of(g) == "other")]
        return [g for g in groups if self._roles is None or role_of(g) in self._roles]

    @property
    def scope(self) -> str:
        """What is held, in words."""
        roles = {role_of(group) for group in self.groups}
        if len(self.groups) == len(self._optimizer.param_groups):
            return "all weights"
        return "the hidden matrices, norms and biases" if "other" in roles else "the hidden matrices"

    @property
    def _measured(self) -> list[dict[str, Any]]:
        """The groups whose matrices are measured."""
        if self._roles == "auto":
            return [g for g in self._optimizer.param_groups if role_of(g) == "hidden"]
        return self.groups

    @property
    def ratio(self) -> float | None:
        """Median of ||D_i||_2 / sqrt(outputs_i / inputs_i) for steps at rate 1; None before the first measurement."""
        return self._ratio

    @property
    def limit(self) -> float:
        """The largest rate of the first held group under the cap; infinite before the first measurement."""
        return self.rho / self._ratio if self._ratio else math.inf

    def factor_at(self, rate: float) -> float:
        """Return the factor in (0, 1] that brings steps at this rate of the first held group under the cap."""
        return min(1.0, self.limit / rate) if rate > 0.0 else 1.0

    @torch.no_grad()
    def before(self, *, closure: bool = False) -> None:
        """Measure the step that is about to be made, or get ready to measure it afterwards.

        Args:
            closure: Whether the gradients are yet to be computed, within the step.
        """
        first = self._ratio is None
        self._arrive()
        self._take_in()
        if not self._members:
            self._warn_of_vectors()
            return
        due = self._due(all_of_them=first)
        directions = None if closure and due else self._directions(due, first=first)
        self._copies = []  # of an earlier call in the same step
        if directions is not None:
            self._measure(due, directions)
            self._publish(wait=first)
        else:
            self._copies = [(member, local(member.param).clone()) for member in due]

    def after(self) -> None:
        """Measure the step just made, if it could not be measured before it; cut a first one down to the cap."""
        if self._copies:
            self._measure_made()

    @torch.no_grad()
    def _measure_made(self) -> None:
        first = self._ratio is None
        copies, self._copies = self._copies, []
        members = [member for member, _ in copies]
        if not all(_rate(member.group) > 0.0 for member in members):
            return
        self._measure(members, ((old - local(m.param)) / _rate(m.group) for m, old in copies))
        self._publish(wait=first)
        factor = self.factor_at(_rate(self.groups[0])) if first else 1.0
        if factor < 1.0:
            for member, old in copies:
                local(member.param).lerp_(old, 1.0 - factor)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain Python values."""
        self._arrive()
        return {
            "version": STATE_VERSION,
            "ratios": [member.ratios.tolist() for member in self._members],
            "turn": self._turn,
            "ratio": self._ratio,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state.

        Raises:
            ValueError: If it is no such state, of another version, or of a model with other hidden matrices.
        """
        if not isinstance(state_dict, dict) or state_dict.get("version") != STATE_VERSION:
            raise ValueError(f"this is not the state of a SpectralCap of version {STATE_VERSION}: {state_dict!r:.80}")
        members = [self._member(p, group) for p, group in self._matrices()]
        ratios = state_dict["ratios"]
        if ratios and [len(ratio) for ratio in ratios] != [len(member.scales) for member in members]:
            raise ValueError(
                f"this state belongs to a model with {len(ratios)} measured parameters, and this one has "
                f"{len(members)} or others: give the optimizer the groups it had"
            )
        for member, ratio in zip(members, ratios, strict=False):
            member.ratios = torch.tensor(ratio, device=member.ratios.device)
        self._members = members if ratios else []
        self._turn, self._ratio, self._late = state_dict["turn"], state_dict["ratio"], None

    # -------------------------------------------------------------------------------------------------------- by itself

    def _hold(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.before(closure=any(callable(value) for value in (*args, *kwargs.values())))
        self.factor = self.factor_at(_rate(self.groups[0]))
        if self.factor < 1.0:
            for group in self.groups:
                lr = group["lr"]
                self._rates.append((group, lr.clone() if isinstance(lr, Tensor) else lr))
                _set_rate(group, lr * self.factor)

    def _release(self) -> None:
        self.after()
        for group, lr in self._rates:
            _set_rate(group, lr)
        self._rates.clear()

    # ----------------------------------------------------------------------------------------------------- measurements

    def _matrices(self) -> list[tuple[Tensor, dict[str, Any]]]:
        """The parameters that are measured, each with its group."""
        return [(p, group) for group in self._measured for p in group["params"] if p.ndim >= 2 and p.numel()]

    def _take_in(self) -> None:
        """Take in what is new among the parameters and groups: loading an optimizer's state makes new groups."""
        matrices = self._matrices()
        pairs = zip(self._members, matrices, strict=False)
        if len(self._members) != len(matrices) or any(m.param is not p or m.group is not g for m, (p, g) in pairs):
            known = {id(member.param): member for member in self._members}
            self._members = [known.get(id(p)) or self._member(p, group) for p, group in matrices]
            for member, (_, group) in zip(self._members, matrices, strict=True):
                member.group = group

    def _member(self, p: Tensor, group: dict[str, Any]) -> _Member:
        """A parameter, and the norm of its steps where the optimizer knows it."""
        optimizer: Any = self._optimizer
        norm = optimizer.direction_norm(group, p) if hasattr(optimizer, "direction_norm") else None
        return _Member(p, group, norm)

    def _warn_of_vectors(self) -> None:
        """Say so, once, where what was a group of matrices holds vectors."""
        flattened = any(g.get("role") == "hidden" and g["params"] for g in self._measured)
        if flattened and not self._warned:
            self._warned = True
            warn(
                f"the hidden matrices of {type(self._optimizer).__name__} have become vectors, whose spectral norm "
                "nothing tells, so that the cap holds no step back (DeepSpeed's ZeRO flattens parameters, and so does "
                "FSDP with use_orig_params=False): shard them with FSDP2, or give rule='linear'"
            )

    def _due(self, *, all_of_them: bool) -> list[_Member]:
        """The parameters whose turn it is: all of a small model. None whose steps' norm is known."""
        members = [member for member in self._members if not member.known]
        if all_of_them:
            return members
        due: list[_Member] = []
        entries = 0
        while len(due) < len(members) and entries < _BUDGET:
            due.append(members[self._turn % len(members)])
            entries += due[-1].param.numel()
            self._turn = (self._turn + 1) % len(members)
        return due

    def _directions(self, due: list[_Member], *, first: bool) -> Iterable[Tensor] | None:
        """What the step will change these parameters by at rate 1; None where that is not known before it."""
        optimizer: Any = self._optimizer
        if any(member.param.grad is None for member in due):
            return None
        if hasattr(optimizer, "directions"):
            runs = _runs(due)
            return (d for some in runs for d in optimizer.directions(some[0].group, [m.param for m in some]))
        name = type(optimizer).__name__
        if not first or optimizer.state or getattr(optimizer, "grad_scale", None) is not None:
            return None
        gradients = (local(grad) for member in due if (grad := member.param.grad) is not None)
        if name in SIGN_FIRST:
            return (gradient.sign() for gradient in gradients)
        return gradients if name == "SGD" else None

    def _measure(self, members: list[_Member], directions: Iterable[Tensor]) -> None:
        for member, direction in zip(members, directions, strict=True):
            ratios = spectral_norms(member.sample(direction)).float() / member.scales
            # A step that did not happen (an overflow skipped inside a fused kernel) measures nothing.
            member.ratios = torch.where(torch.isfinite(ratios) & (ratios > 0.0), ratios, member.ratios)

    def _publish(self, *, wait: bool) -> None:
        """Make the median known to the host: at once on a CPU and after the first measurement, else one step late."""
        base = _rate(self.groups[0])
        weights = {id(group): _rate(group) / base if base > 0.0 else 1.0 for group in self.groups}
        device = self._members[0].ratios.device
        ratios = [member.ratios.to(device) * weights[id(member.group)] for member in self._members]
        median = self.agree(torch.nanquantile(torch.cat(ratios), 0.5))
        if device.type != "cuda":
            self._set(float(median))
            return
        host = torch.empty((), dtype=median.dtype, pin_memory=True)
        host.copy_(median, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        self._late = (host, event)
        if wait:
            self._arrive()

    def _arrive(self) -> None:
        if self._late is not None:
            host, event = self._late
            event.synchronize()
            self._late = None
            self._set(float(host))

    def _set(self, ratio: float) -> None:
        if math.isfinite(ratio) and ratio > 0.0:
            self._ratio = ratio


class _Member:
    """A parameter that is measured.

    Attributes:
        param: The parameter.
        group: Its group.
        scales: sqrt(outputs / inputs) of each of its matrices (of a convolution, its channels), on its device.
        known: Whether the norm of its direction follows from its shape.
        ratios: ||direction||_2 over the scale, of each matrix when last measured; NaN before.
    """

    def __init__(self, param: Tensor, group: dict[str, Any], norm: float | None) -> None:
        self.param, self.group, self.known = param, group, norm is not None
        shapes = [matrix.shape for matrix in self.sample(torch.empty(param.shape, device="meta"))]
        taps = math.prod(param.shape[2:]) if group.get("kind") == "conv" else 1
        scales = [math.sqrt(taps * rows / columns) for rows, columns in shapes]
        self.scales = torch.tensor(scales, device=local(param).device)
        self.ratios = (math.nan if norm is None else norm) / self.scales

    def sample(self, x: Tensor) -> list[Tensor]:
        """The matrices of the parameter, or of what belongs to it; of a large stack of experts, eight of them."""
        matrices = [as_matrix(matrix) for matrix in matrices_of(whole(x, self.param), self.group)]
        return matrices[:: max(1, len(matrices) // _EXPERTS)]


def _runs(members: list[_Member]) -> Iterator[list[_Member]]:
    """Parameters of one group in a row, no more at once than are measured in a step."""
    entries = 0

    def place(member: _Member) -> tuple[int, int]:
        nonlocal entries
        entries += member.param.numel()
        return id(member.group), entries // _BUDGET

    for _, run in itertools.groupby(members, place):
        yield [*run]


def separate_rates(optimizer: Optimizer) -> None:
    """Give each group a tensor of its own where groups share one as their rate, as torch makes it of `lr=tensor`."""
    seen: set[int] = set()
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            if id(group["lr"]) in seen:
                group["lr"] = group["lr"].clone()
            seen.add(id(group["lr"]))


def whole(x: Tensor, p: Tensor) -> Tensor:
    """x, this rank's shard of p or of what belongs to it, as the full tensor; every rank of p's mesh must call it."""
    if not is_sharded(p) or x.is_meta:
        return x
    from torch.distributed.tensor import DTensor

    sharded = (
        x
        if is_sharded(x)
        else DTensor.from_local(x, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
    )
    full: Tensor = sharded.full_tensor()
    return full


def _own(ratio: Tensor) -> Tensor:
    return ratio


def _rate(group: dict[str, Any]) -> float:
    return float(group["lr"])


def _set_rate(group: dict[str, Any], lr: float | Tensor) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].copy_(torch.as_tensor(lr))
    else:
        group["lr"] = lr
