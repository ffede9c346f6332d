"""The spectral cap: how far one step may move the hidden matrices of a model.

Early gradients of hidden matrices have low rank, and a step made of signs, or divided by a root mean square, turns low
rank into a large spectral norm: up to `lr * sqrt(rows * columns)` where a full-rank step has about
`lr * (sqrt(rows) + sqrt(columns))`. Such steps overwrite the weights before the model has learned anything. The cap
holds them back by their size, not by a step count: warm-up comes about where there is cause for it, and ends by itself.

A step's size is its spectral norm over sqrt(outputs / inputs), the size that changes what a layer gives by about one
(the spectral condition for feature learning, arXiv 2310.17813). What was measured here is in docs/schedule.md.
"""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from warmgap._checks import check_count, check_positive, warn
from warmgap.rules import default_rho
from warmgap.rules.spectral import RANK, directions_of
from warmgap.torch.layout import matrices_of
from warmgap.torch.orthogonalize import as_matrix
from warmgap.torch.sharding import is_sharded, local, sharded_alike, sharding_of
from warmgap.torch.singular import TINY, Leading, leading
from warmgap.torch.split import role_of

STATE_VERSION = 2

_SMALL = 2**16  # entries of a matrix
_NEAR = 1.5  # a step by so much below the cap is far from it
_BUDGET = 2**24  # entries measured a step (28 matrices of 768 x 768); larger models are measured in turn
_EXPERTS = 8  # matrices of a stack that are measured

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


class SpectralCap:
    """Hold the steps of the hidden matrices W_i under a cap on their singular values.

    What the step changes W_i by may have no singular value above `rho * sqrt(outputs_i / inputs_i)`. Inputs and outputs
    of a convolution, a matrix of shape (outputs, inputs * taps), are its channels. Of each step the leading `rank`
    singular directions are followed, and cut down to the cap one by one. The rest is held by one factor,
    `min(1, rho / r)`, for all hidden matrices, so that their learning rates keep their ratios: `r` is the median over i
    of the smallest singular value followed, over sqrt(outputs_i / inputs_i). With `rank=1` whole steps are scaled by
    the factor, r is the median of their spectral norms, and only learning rates change.

    Embedding, head, norms and biases are left alone, with two exceptions: in a model without an embedding (MLP,
    convnet) all of them share the factor, and norms and biases share it with optimizers that make one step of all
    weights (SGD, NormalizedSGD).

    Works around any `torch.optim.Optimizer`. With the optimizers of `warmgap.torch` and lion_pytorch's Lion the
    directions are measured before each step is made, so that the cap is exact for that step but for what the followed
    directions miss (on CUDA the factor acts one step late, since the host does not wait for the device); how large an
    orthogonalized direction, Muon's and Scion's, can be is known, and nothing is measured. The steps of torch's Adam
    and AdamW are computed once more from their state, after the step: they are cut in that step, and the factor acts in
    the next; the first step is measured on the signs of the gradients. None of these takes a copy of the model. With
    any other optimizer the rank is 1, some matrices a step are copied to measure the step just made, and the next one
    is held back; with a `rank` above 1 all hidden matrices are copied.

    Far from the cap, models of more than 2^24 entries in hidden matrices are measured in turn, some matrices a step. No
    step waits for the device, but the first. Sharded matrices (DTensor) are gathered one at a time.

    Args:
        optimizer: Any optimizer whose groups have roles, as `split_parameters(model)` gives them.
        rho: The cap, above 0; `"auto"` takes `warmgap.rules.default_rho(total_iters)`.
        total_iters: Optimizer steps in the whole run; for `"auto"`.
        roles: The roles that are held: `"auto"`, as said above; some names; or None for all groups, whose roles are
            then not asked, and every parameter of two or more dimensions is measured.
        rank: Singular directions of a step that are cut one by one, at least 1; of a small matrix at most half of its
            smaller side. `"auto"` is 8 where the step is known without copies, and 1 elsewhere and for SGD and
            NormalizedSGD, whose steps have no large direction that their gradients have not.
        apply: Whether to set learning rates around each step; False leaves them to a scheduler, which calls `before`
            and `after`.

    Attributes:
        rho: The cap as a number.
        rank: The rank as a number.
        agree: Makes one of what each rank of a process group measured, entry by entry; called once a step, and must not
            wait for the device.

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
        rank: int | Literal["auto"] = "auto",
        apply: bool = True,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if total_iters is not None:
            check_count("total_iters", total_iters, minimum=1)
        self.rho = default_rho(total_iters) if rho == "auto" else check_positive("rho", rho)
        self.factor = 1.0
        self._optimizer = optimizer
        self._source = _source(optimizer)
        self.rank = self._default_rank() if rank == "auto" else check_count("rank", rank, minimum=1)
        self._roles = roles if roles is None or roles == "auto" else frozenset(roles)
        self._members: list[_Member] = []
        self._copies: list[tuple[_Member, Tensor]] = []
        self._followed: list[tuple[list[_Place], Leading]] = []  # in the step being made
        self._open = False  # whether a step's size is still to be made known: once a step, on every rank
        self._rates: list[tuple[dict[str, Any], float | Tensor]] = []
        self._scales = torch.empty(0)  # sqrt(outputs / inputs) of each matrix (of a convolution, its channels)
        self._ratios = torch.empty(2, 0)  # smallest and largest singular value followed, over it; NaN before
        self._indices: dict[tuple[int, ...], Tensor] = {}
        self._turn = 0
        self._warned = False
        self._ratio: float | None = None
        self._largest = 0.0  # median of the spectral norms over the scales, and
        self._peak = math.inf  # the highest of them
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
        """Median of what is held by the factor, at rate 1, over sqrt(outputs_i / inputs_i); None before it is measured.

        It is the smallest singular value followed of each matrix's step, its spectral norm where `rank` is 1.
        """
        return self._ratio

    @property
    def limit(self) -> float:
        """The largest rate of the first held group under the cap; infinite before the first measurement."""
        return self.rho / self._ratio if self._ratio else math.inf

    def factor_at(self, rate: float) -> float:
        """Return the factor in (0, 1] that brings steps at this rate of the first held group under the cap."""
        return min(1.0, self.limit / rate) if rate > 0.0 else 1.0

    @property
    def room(self) -> float:
        """The rate of the first held group at which the median of the spectral norms is at the cap."""
        return self.rho / self._largest if self._largest else math.inf

    def share_at(self, rate: float) -> float:
        """Return the share in (0, 1] of the median spectral norm that passes at this rate of the first held group."""
        return min(1.0, self.room / rate) if rate > 0.0 else 1.0

    @torch.no_grad()
    def before(self, *, closure: bool = False) -> None:
        """Measure the step that is about to be made, or get ready to measure it afterwards.

        Args:
            closure: Whether the gradients are yet to be computed, within the step.
        """
        first = self._ratio is None
        self._arrive()
        self._take_in()
        self._copies, self._followed, self._open = [], [], bool(self._members)  # and not of an earlier call
        if not self._members:
            self._warn_of_vectors()
            return
        if self._source == "state" and not first:
            return
        due = self._due(all_of_them=first or self._is_near())
        directions = None if closure and due else self._directions(due, first=first)
        if directions is not None:
            self._followed = self._measure(due, directions)
            self._publish(wait=first)
        elif self._source != "state":
            self._copies = [(member, local(member.param).clone()) for member in due]

    @torch.no_grad()
    def after(self) -> None:
        """Cut what is too large in the step just made, and measure it if it could not be measured before it."""
        first = self._ratio is None
        copies, self._copies = self._copies, []
        followed, self._followed = self._followed, []
        if copies and all(_rate(member.group) > 0.0 for member, _ in copies):
            steps: Iterable[Tensor] = ((old - local(m.param)) / _rate(m.group) for m, old in copies)
            followed = self._measure([member for member, _ in copies], steps)
        elif self._source == "state":
            due = self._due(all_of_them=first or self._is_near())
            steps, due = self._made(due)
            followed = self._measure(due, steps)
        if self._open:
            self._publish(wait=first)
        shrunk = self.factor_at(_rate(self.groups[0])) if first else 1.0
        if shrunk < 1.0:
            self._shrink(copies, shrunk)
        for places, found in followed:
            for (member, index), start in zip(places, found.start, strict=True):
                member.starts[index] = start
            if self.rank > 1:
                self._cut(places, found, shrunk)

    def _made(self, members: list[_Member]) -> tuple[Iterable[Tensor], list[_Member]]:
        """The steps that Adam or AdamW just made, and whose they are, at rate 1."""
        state = self._optimizer.state
        moved = [member for member in members if member.param.grad is not None and member.param in state]
        return (_adam_direction(self._optimizer, member.param, member.group) for member in moved), moved

    def _shrink(self, copies: list[tuple[_Member, Tensor]], factor: float) -> None:
        """Take back a share of the first step, where its size is known only after it."""
        for member, old in copies:
            local(member.param).lerp_(old, 1.0 - factor)
        if not copies:
            steps, moved = self._made(self._due(all_of_them=True))
            for member, step in zip(moved, steps, strict=True):
                local(member.param).add_(step * (member.group["lr"] * (1.0 - factor) * _not_skipped(self._optimizer)))

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain Python values; the directions followed are in base64."""
        self._arrive()
        return {
            "version": STATE_VERSION,
            "ratios": [self._ratios[:, member.span].tolist() for member in self._members],
            "starts": [member.packed() for member in self._members],
            "turn": self._turn,
            "published": None if self._ratio is None else [self._ratio, self._largest, self._peak],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state. One of version 1, which followed no directions, is measured anew at the first step.

        Raises:
            ValueError: If it is no such state, of another version, or of a model with other hidden matrices.
        """
        version = state_dict.get("version") if isinstance(state_dict, dict) else None
        if version not in (1, STATE_VERSION):
            raise ValueError(f"this is not the state of a SpectralCap of version {STATE_VERSION}: {state_dict!r:.80}")
        self._late, self._turn = None, state_dict["turn"]
        if version == 1:
            self._members, self._ratio = [], None
            return
        self._members = [self._member(p, group) for p, group in self._matrices()]
        ratios = state_dict["ratios"]
        if ratios and [[len(row) for row in ratio] for ratio in ratios] != [[len(m.shapes)] * 2 for m in self._members]:
            count, self._members = len(self._members), []
            raise ValueError(
                f"this state belongs to a model with {len(ratios)} measured parameters, and this one has {count} or "
                "others: give the optimizer the groups it had"
            )
        self._set_up()
        if ratios:
            self._ratios = torch.cat([torch.tensor(ratio) for ratio in ratios], dim=1).to(self._ratios)
        for member, starts in zip(self._members, state_dict["starts"], strict=False):
            member.unpack(starts, self.rank)
        self._ratio, self._largest, self._peak = state_dict["published"] or (None, 0.0, math.inf)

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
            self._set_up()

    def _set_up(self) -> None:
        """Lay out in a row what is known of every matrix."""
        device = local(self._members[0].param).device if self._members else torch.device("cpu")
        scales = [torch.tensor(member.scales, device=device) for member in self._members]
        empty = torch.empty(0, device=device)
        ratios = [
            (member.norm / scale).expand(2, -1) if member.place is None else self._ratios[:, member.span].to(device)
            for member, scale in zip(self._members, scales, strict=True)
        ]
        self._scales, self._ratios = torch.cat([*scales, empty]), torch.cat([*ratios, empty.expand(2, -1)], dim=1)
        count = 0
        for member in self._members:
            member.place, count = count, count + len(member.shapes)
        self._indices.clear()

    def _member(self, p: Tensor, group: dict[str, Any]) -> _Member:
        """A parameter, and the norm of its steps where the optimizer knows it."""
        optimizer: Any = self._optimizer
        norm = optimizer.direction_norm(group, p) if hasattr(optimizer, "direction_norm") else None
        return _Member(p, group, norm, sampled=self.rank == 1)

    def _default_rank(self) -> int:
        whole_step = type(self._optimizer).__name__ in WHOLE_STEP
        return 1 if self._source is None or whole_step else RANK

    def _is_near(self) -> bool:
        """Whether a step may come to the cap, so that every matrix is to be followed at every step."""
        return self.rank > 1 and self._peak * _rate(self.groups[0]) * _NEAR > self.rho

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
        members = [member for member in self._members if math.isnan(member.norm)]
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
        if self._source == "directions":
            if type(optimizer).__name__ == "Lion":  # ours too: it spares copies of averages
                return (_lion_direction(optimizer, member.param, member.group) for member in due)
            runs = _runs(due)
            return (d for some in runs for d in optimizer.directions(some[0].group, [m.param for m in some]))
        if not first:
            return None
        if self._source == "state" and optimizer.state:  # it was loaded: the step before is the best guess
            steps, moved = self._made(due)
            return steps if len(moved) == len(due) else None
        name = type(optimizer).__name__
        if optimizer.state or (name == "SGD" and getattr(optimizer, "grad_scale", None) is not None):
            return None
        gradients = (local(grad) for member in due if (grad := member.param.grad) is not None)
        if name in SIGN_FIRST:
            return (gradient.sign() for gradient in gradients)
        return gradients if name == "SGD" else None

    def _measure(self, members: list[_Member], directions: Iterable[Tensor]) -> list[tuple[list[_Place], Leading]]:
        """Measure directions at rate 1, and return the leading ones of the matrices, those of one shape together."""
        found: list[tuple[list[_Place], Leading]] = []
        waiting = iter(directions)
        for run in _runs(members):
            alike: dict[Any, list[tuple[_Place, Tensor]]] = {}
            for member, direction in zip(run, waiting, strict=False):
                for index, matrix in enumerate(member.matrices(direction)):
                    # Large ones each by itself on a CPU, where stacking costs more than it spares.
                    alone = matrix.device.type == "cpu" and matrix.numel() > _SMALL
                    key = (matrix.device, matrix.dtype, matrix.shape, member.starts[index] is None)
                    alike.setdefault((*key, member.place, index) if alone else key, []).append(
                        ((member, index), matrix)
                    )
            for some in alike.values():
                places = [place for place, _ in some]
                starts = [start for member, index in places if (start := member.starts[index]) is not None]
                batch = some[0][1].unsqueeze(0) if len(some) == 1 else torch.stack([matrix for _, matrix in some])
                parts = leading(batch, self.rank, torch.stack(starts) if starts else None)
                ratios = torch.stack(torch.aminmax(parts.values, dim=-1)).to(self._ratios)
                where = self._where(places)
                # A step that did not happen (an overflow skipped inside a fused kernel) measures nothing.
                fits = torch.isfinite(ratios).all(0) & (ratios[1] > 0.0)
                self._ratios[:, where] = torch.where(fits, ratios / self._scales[where], self._ratios[:, where])
                found.append((places, parts))
        return found

    def _where(self, places: list[_Place]) -> Tensor:
        """The matrices' indices, on the device; made once, as making it may wait for the device."""
        key = tuple(index + (member.place or 0) for member, index in places)
        if key not in self._indices:
            self._indices[key] = torch.tensor(key, device=self._scales.device)
        return self._indices[key]

    def _cut(self, places: list[_Place], parts: Leading, shrunk: float) -> None:
        """Cut the followed singular values of the step just made, whose directions were measured, down to the cap."""
        rate = places[0][0].group["lr"] * shrunk  # a run is of one group
        limits = (self.rho * self._scales[self._where(places)]).to(parts.values).unsqueeze(1)
        excess = (rate - limits / parts.values.clamp_min(TINY)).clamp_min(0.0) * _not_skipped(self._optimizer)
        if excess.device.type == "cpu" and not bool(excess.any()):
            return
        of_members: dict[_Member, dict[int, tuple[Tensor, Tensor]]] = {}
        for (member, index), *factors in zip(places, parts.left * excess.unsqueeze(-1), parts.right, strict=True):
            of_members.setdefault(member, {})[index] = (factors[0], factors[1])
        for member, of_member in of_members.items():
            member.add(of_member)

    def _publish(self, *, wait: bool) -> None:
        """Make the medians known to the host: at once on a CPU and after the first measurement, else one step late."""
        self._open = False
        base = _rate(self.groups[0])
        weights = {id(group): _rate(group) / base if base > 0.0 else 1.0 for group in self.groups}
        ratios, device = self._ratios, self._ratios.device
        if len(set(weights.values())) > 1:
            ratios = torch.cat([ratios[:, m.span] * weights[id(m.group)] for m in self._members], dim=1)
        medians = torch.nanquantile(ratios, 0.5, dim=1)
        found = self.agree(torch.stack([*medians.unbind(), ratios[1].nan_to_num(0.0).amax()]))
        if device.type != "cuda":
            self._set(found.tolist())
            return
        host = torch.empty((3,), dtype=found.dtype, pin_memory=True)
        host.copy_(found, non_blocking=True)
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
            self._set(host.tolist())

    def _set(self, found: list[float]) -> None:
        if all(map(math.isfinite, found)) and found[1] > 0.0:
            self._ratio, self._largest, self._peak = found


class _Member:
    """A parameter that is measured.

    Attributes:
        param: The parameter.
        group: Its group.
        shapes: Rows and columns of each of its matrices.
        scales: sqrt(outputs / inputs) of each (of a convolution, its channels).
        norm: The norm of its direction where that follows from its shape, else NaN.
        sampled: Whether only eight matrices of a large stack of experts are measured.
        place: The index of its first matrix among those of all members; None before they are laid out.
        starts: For each matrix, what the last measurement left for the next; None before.
    """

    def __init__(self, param: Tensor, group: dict[str, Any], norm: float | None, *, sampled: bool) -> None:
        self.param, self.group, self.sampled = param, group, sampled
        self.shapes = [tuple(matrix.shape) for matrix in self.matrices(torch.empty(param.shape, device="meta"))]
        taps = math.prod(param.shape[2:]) if group.get("kind") == "conv" else 1
        self.scales = [math.sqrt(taps * rows / columns) for rows, columns in self.shapes]
        self.norm = math.nan if norm is None else norm
        self.place: int | None = None
        self.starts: list[Tensor | None] = [None] * len(self.shapes)

    @property
    def span(self) -> slice:
        """The indices of its matrices."""
        return slice(self.place, (self.place or 0) + len(self.shapes))

    def matrices(self, x: Tensor) -> list[Tensor]:
        """The matrices of the parameter that are measured, or those of what belongs to it."""
        matrices = [as_matrix(matrix) for matrix in matrices_of(whole(x, self.param), self.group)]
        return matrices[:: max(1, len(matrices) // _EXPERTS)] if self.sampled else matrices

    def add(self, corrections: dict[int, tuple[Tensor, Tensor]]) -> None:
        """Add to some of its matrices, each the product of a flat matrix's transpose and of a flat one."""
        p = self.param.detach()
        full = next(iter(corrections.values()))[0].new_zeros(p.shape) if is_sharded(p) else p
        for index, matrix in enumerate(matrices_of(full, self.group)):
            if index not in corrections:
                continue
            left, right = corrections[index]
            if matrix.ndim == 2 and matrix.dtype == left.dtype:
                matrix.addmm_(left.mT, right)
            else:
                matrix += (left.mT @ right).view(matrix.shape)
        sharding = sharding_of(p)
        if sharding is not None:
            spans = [slice(*sharding.span(p.shape, sharding.here, dim)) for dim in range(p.ndim)]
            local(p).add_(full[tuple(spans)])

    def packed(self) -> str:
        """The starts as text."""
        flat = [start.detach().cpu().reshape(-1) for start in self.starts if start is not None]
        return base64.b64encode(torch.cat(flat).numpy().tobytes()).decode() if flat else ""

    def unpack(self, text: str, rank: int) -> None:
        """Take up the starts that a text holds, unless it was made with another rank."""
        kept = bytearray(base64.b64decode(text))
        sizes = [(directions_of((rows, columns), rank), columns) for rows, columns in self.shapes]
        width, rest = divmod(len(kept), sum(map(math.prod, sizes)))
        if rest == 0 and width in (4, 8):
            flat = torch.frombuffer(kept, dtype=torch.float32 if width == 4 else torch.float64)
            parts = flat.to(local(self.param).device).split([math.prod(size) for size in sizes])
            self.starts = [part.view(size) for part, size in zip(parts, sizes, strict=True)]


_Place = tuple[_Member, int]
"""A parameter, and the index of one of its matrices."""


def _source(optimizer: Optimizer) -> Literal["directions", "state"] | None:
    """Where the steps of an optimizer can be had without copies: before them, from its state after them, or nowhere."""
    if hasattr(optimizer, "directions") or type(optimizer).__module__.startswith("lion_pytorch"):
        return "directions"
    return "state" if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) else None


def _not_skipped(optimizer: Optimizer) -> float | Tensor:
    """0 where a fused kernel skipped the step because a GradScaler found an overflow, else 1."""
    found = getattr(optimizer, "found_inf", None)
    return 1.0 if found is None else (found == 0).float()


def _lion_direction(optimizer: Optimizer, p: Tensor, group: dict[str, Any]) -> Tensor:
    """What Lion's next step takes from p at rate 1."""
    gradient = local(sharded_alike(p.grad if p.grad is not None else torch.zeros_like(p), p))
    if p not in optimizer.state or "exp_avg" not in optimizer.state[p]:
        return gradient.sign()
    average = local(optimizer.state[p]["exp_avg"])
    return torch.lerp(average, gradient.to(average.dtype), 1.0 - group["betas"][0]).sign_()


def _adam_direction(optimizer: Optimizer, p: Tensor, group: dict[str, Any]) -> Tensor:
    """What the step of torch's Adam or AdamW just made took from p at rate 1."""
    state, (beta1, beta2) = optimizer.state[p], group["betas"]
    first, second = local(state["exp_avg"]), local(state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"])
    count = float(state["step"]) if state["step"].device.type == "cpu" else state["step"]
    root = (second / (1.0 - beta2**count)).sqrt_().add_(group["eps"])
    direction: Tensor = first / (1.0 - beta1**count) / root
    return direction


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
