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
import weakref
from collections.abc import Callable, Collection, Iterable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from warmgap._checks import check_count, check_positive, warn
from warmgap.rules import default_rho
from warmgap.rules.spectral import ABOVE_EDGE, RANK
from warmgap.torch.loss_mean import sent_to_host
from warmgap.torch.matrices import Batch, Member, Run, add_product, matrices_in, runs_of, settle
from warmgap.torch.sharding import local
from warmgap.torch.singular import TINY, Leading, leading
from warmgap.torch.split import role_of

STATE_VERSION = 2
_KEYS = {"version", "ratios", "starts", "turn", "published"}

_BUDGET = 2**24  # entries measured a step (28 matrices of 768 x 768); larger models are measured in turn

SIGN_FIRST = frozenset({
    "Adam", "AdamW", "Adam8bit", "AdamW8bit", "PagedAdam", "PagedAdamW", "PagedAdam8bit", "PagedAdamW8bit",
    "FusedAdam", "DeepSpeedCPUAdam", "Lion", "Lion8bit", "PagedLion", "PagedLion8bit", "SignSGD", "Signum",
})  # fmt: skip
"""Class names of optimizers, not ours, whose first step moves every entry by the sign of its gradient."""

WHOLE_STEP = frozenset({"SGD", "NormalizedSGD"})
"""Class names of optimizers whose step is one vector for the whole model: norms and biases take a large share of it."""


class Scheduling(Protocol):
    """What a cap asks of the scheduler that sets the rates."""

    def _rate_of(self, group: dict[str, Any]) -> float:
        """Return the rate of a group, without waiting for a device."""

    def _held(self) -> list[dict[str, Any]]:
        """Return the groups that the cap holds and the scheduler sets."""


class SpectralCap:
    """Hold the steps of the hidden matrices W_i under a cap on their singular values.

    What the step changes W_i by may have no singular value above the cap, `rho * sqrt(outputs_i / inputs_i)`. What is
    above half the cap may not stick out of the noise: it is cut to the edge, the largest singular value that
    independent entries of the same size would give (`warmgap.rules.noise_edge`), or to half the cap. Inputs and outputs
    of a convolution, a matrix of shape (outputs, inputs * taps), are its channels. Of each step the leading `rank`
    singular directions are followed, and cut one by one. The rest is held by one factor, `min(1, rho / r)`, for all
    hidden matrices, so that their learning rates keep their ratios: `r` is the median over i of the smallest singular
    value followed, over sqrt(outputs_i / inputs_i). With optimizers that make one step of all weights (SGD,
    NormalizedSGD) whole steps are scaled by the factor, r is the median of their spectral norms, and directions are cut
    only where they stick out; with `rank=1` none is cut, and only learning rates change.

    Embedding, head, norms and biases are left alone, with two exceptions: in a model without an embedding (MLP,
    convnet) all of them share the factor, and norms and biases share it with SGD and NormalizedSGD.

    Works around any `torch.optim.Optimizer`. With the optimizers of `warmgap.torch` and lion_pytorch's Lion the
    directions are measured before each step is made, so that the cap is exact for that step but for what the followed
    directions miss (on CUDA the factor acts one step late, since the host does not wait for the device); how large an
    orthogonalized direction, Muon's and Scion's, can be is known, and nothing is measured. The steps of torch's Adam
    and AdamW are computed once more from their state, after the step: they are cut in that step, and the factor acts in
    the next; the first step is measured on the signs of the gradients. None of these takes a copy of the model. With
    any other optimizer the rank is 1, some matrices a step are copied to measure the step just made, and the next one
    is held back; with a `rank` above 1 all hidden matrices are copied.

    With rank 1, models of more than 2^24 entries in hidden matrices are measured in turn, some matrices a step. No step
    waits for the device, but the first (and with `apply` those of a rate that lies there). Sharded matrices
    (DTensor) are gathered one at a time. A step within a CUDA graph can't be held, and is refused.

    Args:
        optimizer: Any optimizer whose groups have roles, as `split_parameters(model)` gives them.
        rho: The cap, above 0; `"auto"` takes `warmgap.rules.default_rho(total_iters)`.
        total_iters: Optimizer steps in the whole run; for `"auto"`.
        roles: The roles that are held: `"auto"`, as said above; some names; or None for all groups, whose roles are
            then not asked, and every parameter of two or more dimensions is measured.
        rank: Singular directions of a step that are cut one by one, at least 1; of a small matrix at most half of its
            smaller side. `"auto"` is 8 where the step is known without copies, and 1 elsewhere.
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
        >>> _ = torch.manual_seed(0)
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
        self._applies = apply
        self._source = _source(optimizer)
        self._whole = type(optimizer).__name__ in WHOLE_STEP
        if rank == "auto":
            rank = RANK if self._source else 1
        self.rank = check_count("rank", rank, minimum=1)
        self._roles: Collection[str] | None = roles if roles is None or roles == "auto" else frozenset(roles)
        self._members: list[Member] = []
        self._runs: list[Run] = []
        self._laid_out: list[Any] = []  # the groups and parameters that these are of
        self._copies: list[tuple[Run, list[Tensor]]] = []
        self._followed: list[_Followed] = []  # in the step being made
        self._begun = False
        self._open = False  # whether a step's size is still to be made known: once a step, on every rank
        self._rates: list[tuple[dict[str, Any], float | Tensor]] = []
        self._turn = 0
        self._warned = False
        self._ratio: float | None = None
        self._largest = 0.0  # median of the spectral norms over the scales
        self._late: tuple[list[Tensor], Any] | None = None
        self.agree: Callable[[Tensor], Tensor] = _own
        self._scheduler: weakref.ref[Scheduling] | None = None
        if not self._measured:
            raise ValueError(
                f"none of the groups of {type(optimizer).__name__} has a role of a matrix to hold (roles={roles!r}): "
                "give it split_parameters(model), or roles=None to hold every matrix"
            )
        if apply:
            separate_rates(optimizer)
            self._connect()

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups that are held."""
        groups = self._optimizer.param_groups
        if self._roles is None:
            return groups
        roles: list[Any] = [role_of(group) for group in groups]
        held = self._roles
        if held == "auto":
            if "embedding" not in roles:
                return groups
            held = {"hidden", "other"} if self._whole else {"hidden"}
        return [group for group, role in zip(groups, roles, strict=True) if role in held]

    def serve(self, scheduler: Scheduling) -> None:
        """Go by the rates that a scheduler knows; it is not kept alive."""
        self._scheduler = weakref.ref(scheduler)

    def rate(self, group: dict[str, Any]) -> float:
        """Return the rate of a group on the host; without a scheduler it is read, which waits where a device has it."""
        scheduler = None if self._scheduler is None else self._scheduler()
        return float(group["lr"]) if scheduler is None else scheduler._rate_of(group)

    @property
    def base(self) -> dict[str, Any]:
        """The group whose rate `ratio`, `limit` and `room` speak of: the first that is held and has a rate above 0."""
        scheduler = None if self._scheduler is None else self._scheduler()
        groups = (scheduler._held() if scheduler is not None else []) or self.groups
        return next((group for group in groups if self.rate(group) > 0.0), groups[0])

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

        It is the smallest singular value followed of each matrix's step, its spectral norm where `rank` is 1. Matrices
        that do not move have no part in it.
        """
        return self._ratio

    @property
    def limit(self) -> float:
        """The largest rate of the group `base` under the cap; infinite before the first measurement."""
        return self.rho / self._ratio if self._ratio else math.inf

    def factor_at(self, rate: float) -> float:
        """Return the factor in (0, 1] that brings steps at this rate of the group `base` under the cap."""
        return min(1.0, self.limit / rate) if rate > 0.0 else 1.0

    @property
    def room(self) -> float:
        """The rate of the group `base` at which the median of the spectral norms is at the cap."""
        return self.rho / self._largest if self._largest else math.inf

    def share_at(self, rate: float) -> float:
        """Return the share in (0, 1] of the median spectral norm that passes at this rate of the group `base`."""
        return min(1.0, self.room / rate) if rate > 0.0 else 1.0

    @torch.no_grad()
    def before(self, *, closure: bool = False) -> None:
        """Measure the step that is about to be made, or get ready to measure it afterwards.

        Args:
            closure: Whether the gradients are yet to be computed, within the step.

        Raises:
            RuntimeError: If a CUDA graph is being captured.
        """
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a CUDA graph repeats the step that it captured, and the spectral cap looks at each anew: leave "
                "optimizer.step() out of the graph, or go without the cap (AdaptiveWarmup(..., cap=None))"
            )
        first = self._ratio is None
        self._arrive()
        self._take_in()
        self._copies, self._followed = [], []  # and not of an earlier call
        self._begun = self._open = bool(self._members)
        if not self._members:
            self._warn_of_vectors()
            return
        if self._source == "state" and not first:
            return
        due = self._due(first=first)
        unseen = bool(due) and (closure or all(m.param.grad is None for run in due for m in run.members))
        directions = None if unseen else self._directions(first=first)
        if directions is not None:
            self._followed = self._measure((run, directions(run)) for run in due)
            self._publish(wait=first)
        elif self._source != "state":
            self._copies = [(run, [local(member.param).clone() for member in run.members]) for run in due]

    @torch.no_grad()
    def after(self) -> None:
        """Cut what is too large in the step just made, and measure it if it could not be measured before it."""
        if not self._begun:
            return
        first = self._ratio is None
        copies, followed = self._copies, self._followed
        self._copies, self._followed, self._begun = [], [], False
        if copies:
            followed = self._measure(
                (run, [(old - local(m.param)) / rate for m, old in zip(run.members, olds, strict=True)])
                for run, olds in copies
                if (rate := self.rate(run.group)) > 0.0
            )
        elif self._source == "state":
            followed = self._measure((run, self._adam(run)) for run in self._due(first=first))
        if self._open:
            self._publish(wait=first)
        shrunk = self.factor_at(self.rate(self.base)) if first else 1.0
        if shrunk < 1.0:
            self._shrink(copies, shrunk)
        overflow = self._overflow()
        for one in followed:
            if self._ratio is not None:  # else the next search begins afresh
                one[1].start = one[2].start
            if self.rank > 1:
                self._cut(*one, shrunk, overflow)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain Python values; the directions followed are in base64."""
        self._arrive()
        settle(self._runs)
        return {
            "version": STATE_VERSION,
            "ratios": [torch.stack([x.ratios for x in m.matrices], dim=1).tolist() for m in self._members],
            "starts": [member.packed() for member in self._members],
            "turn": self._turn,
            "published": None if self._ratio is None else [self._ratio, self._largest],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state. One of version 1, which followed no directions, is measured anew at the first step.

        Raises:
            ValueError: If it is no such state, of another version, or of a model with other hidden matrices; then
                nothing is changed.
        """
        version = state_dict.get("version") if isinstance(state_dict, dict) else None
        if version != 1 and not (version == STATE_VERSION and {*state_dict} == _KEYS):
            raise ValueError(f"this is not the state of a SpectralCap of version {STATE_VERSION}: {state_dict!r:.80}")
        members = [self._member(p, group) for group in self._measured for p in matrices_in(group)]
        if version == STATE_VERSION:
            ratios = state_dict["ratios"]
            if ratios and [[len(row) for row in of] for of in ratios] != [[len(m.matrices)] * 2 for m in members]:
                raise ValueError(
                    f"this state belongs to a model with {len(ratios)} measured parameters, and this one has "
                    f"{len(members)} or others: give the optimizer the groups it had"
                )
            for member, of_member, text in zip(members, ratios, state_dict["starts"], strict=False):
                member.load(of_member, text, self.rank)
        self._lay_out(members)
        self._late, self._begun, self._turn = None, False, state_dict.get("turn", 0)
        self._ratio, self._largest, *_ = state_dict.get("published") or (None, 0.0)  # there was a third number

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles; what is on its way from a device is read."""
        self._arrive()
        return self.__dict__ | {"_scheduler": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._applies:
            self._connect()  # a copied optimizer has lost its hooks

    # -------------------------------------------------------------------------------------------------------- by itself

    def _connect(self) -> None:
        # A compiled step leaves them out of its graphs.
        hold, release = (torch.compiler.disable(hook) for hook in (self._hold, self._release))
        self._optimizer.register_step_pre_hook(hold)
        self._optimizer.register_step_post_hook(release)

    def _hold(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._restore()  # after a step that raised
        self.before(closure=any(callable(value) for value in (*args, *kwargs.values())))
        self.factor = self.factor_at(self.rate(self.base))
        if self.factor < 1.0:
            for group in self.groups:
                lr = group["lr"]
                self._rates.append((group, lr.clone() if isinstance(lr, Tensor) else lr))
                _set_rate(group, lr * self.factor)

    def _release(self, *_: Any) -> None:
        self.after()
        self._restore()

    def _restore(self) -> None:
        for group, lr in self._rates:
            _set_rate(group, lr)
        self._rates.clear()

    # --------------------------------------------------------------------------------------------------- what there is

    def _take_in(self) -> None:
        """Take in what is new among the parameters and groups: loading an optimizer's state makes new groups."""
        if self._laid_out != self._layout():
            known = {(id(member.param), member.shape): member for member in self._members}
            members = []
            for group in self._measured:
                for p in matrices_in(group):
                    members.append(known.get((id(p), p.shape)) or self._member(p, group))
                    members[-1].group = group
            self._lay_out(members)

    def _lay_out(self, members: list[Member]) -> None:
        """Take these parameters, and decide which are measured together."""
        settle(self._runs)
        self._members, self._laid_out, self._runs = members, self._layout(), runs_of(members, _BUDGET)

    def _layout(self) -> list[Any]:
        return [(id(group), [(id(p), p.shape) for p in group["params"]]) for group in self._measured]

    def _member(self, p: Tensor, group: dict[str, Any]) -> Member:
        """A parameter, and the norm of its steps where the optimizer knows it."""
        optimizer: Any = self._optimizer
        norm = optimizer.direction_norm(group, p) if hasattr(optimizer, "direction_norm") else None
        return Member(p, group, norm, sampled=self.rank == 1)

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

    # --------------------------------------------------------------------------------------------------- directions

    def _directions(self, *, first: bool) -> Callable[[Run], list[Tensor]] | None:
        """What gives a step's directions at rate 1 before the step; None where they are not known then."""
        optimizer: Any = self._optimizer
        name = type(optimizer).__name__
        if self._source == "directions":
            if name == "Lion":  # ours too: it spares copies of averages
                return self._lion
            return lambda run: list(optimizer.directions(run.group, [member.param for member in run.members]))
        if not first:
            return None
        if self._source == "state" and optimizer.state:  # it was loaded: the step before is the best guess
            return self._adam
        if optimizer.state or (name == "SGD" and getattr(optimizer, "grad_scale", None) is not None):
            return None
        if name in SIGN_FIRST:
            return lambda run: [member.gradient().sign() for member in run.members]
        return (lambda run: [member.gradient() for member in run.members]) if name == "SGD" else None

    def _lion(self, run: Run) -> list[Tensor]:
        """What Lion's next step takes from these parameters at rate 1."""
        state, weight = self._optimizer.state, 1.0 - run.group["betas"][0]
        found = []
        for member in run.members:
            gradient, average = member.gradient(), state.get(member.param, {}).get("exp_avg")
            if average is None or member.param.grad is None:
                found.append(gradient.sign())
            else:
                average = local(average) if member.sharded else average
                found.append(torch.lerp(average, gradient.to(average.dtype), weight).sign_())
        return found

    def _adam(self, run: Run) -> list[Tensor]:
        """What the step of torch's Adam or AdamW just made took from these parameters at rate 1."""
        state, group = self._optimizer.state, run.group
        (beta1, beta2), eps = group["betas"], group["eps"]
        found = []
        for member in run.members:
            of_member = state.get(member.param)
            if member.param.grad is None or not of_member:
                found.append(torch.zeros_like(local(member.param)))
                continue
            first, second = of_member["exp_avg"], of_member["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
            if member.sharded:
                first, second = local(first), local(second)
            count = of_member["step"]
            count = float(count) if count.device.type == "cpu" else count
            root = (second / (1.0 - beta2**count)).sqrt_().add_(eps)
            found.append((first / (1.0 - beta1**count)).div_(root))
        return found

    # ------------------------------------------------------------------------------------------- measuring, cutting

    def _due(self, *, first: bool) -> list[Run]:
        """The parameters to measure: all where directions are followed, else, of a large model, those in turn."""
        runs = [run for run in self._runs if run.measured]
        if first or self.rank > 1:
            return runs
        due: list[Run] = []
        entries = 0
        while len(due) < len(runs) and (not due or entries + runs[self._turn % len(runs)].entries <= _BUDGET):
            due.append(runs[self._turn % len(runs)])
            entries += due[-1].entries
            self._turn = (self._turn + 1) % len(runs)
        return due

    def _measure(self, steps: Iterable[tuple[Run, list[Tensor]]]) -> list[_Followed]:
        """Measure directions at rate 1, and return the leading ones of the matrices."""
        followed = []
        for run, directions in steps:
            matrices = directions
            if not run.plain:
                of_members = zip(run.members, directions, strict=True)
                matrices = [matrix for member, direction in of_members for matrix in member.matrices_of(direction)]
            for batch in run.batches:
                some = [matrices[index] for index in batch.indices]
                found = leading(some[0].unsqueeze(0) if len(some) == 1 else torch.stack(some), self.rank, batch.start)
                extremes = torch.stack(torch.aminmax(found.values, dim=-1)).float()
                extremes = extremes[1].expand(2, -1) if self._whole else extremes
                # A matrix that stands still has no part in the median; one that is not finite keeps its ratios.
                fits = torch.isfinite(extremes).all(0)
                ratios = torch.where(extremes[1] > 0.0, extremes / batch.scale, torch.nan)
                batch.ratios = torch.where(fits, ratios, batch.ratios)
                followed.append((run, batch, found, fits))
        return followed

    def _cut(
        self, run: Run, batch: Batch, found: Leading, fits: Tensor, shrunk: float, overflow: Tensor | None
    ) -> None:
        """Cut the followed singular values of the step just made, whose directions were measured."""
        rate, values = run.group["lr"] * shrunk, found.values.clamp_min(TINY)
        edge = (rate * found.edge.unsqueeze(1)).clamp_min(ABOVE_EDGE * self.rho * batch.matrices[0].scale)
        # `rate - x` of a float and a tensor would be two Python calls more.
        excess = torch.rsub(edge / values, rate).clamp_min(0.0)
        if not self._whole:
            excess = torch.maximum(excess, torch.rsub(self.rho * batch.scale / values, rate))
        cuts = (excess > 0.0) & fits.unsqueeze(1)  # nothing of a step that is not finite
        if overflow is not None:
            cuts = cuts & (overflow.to(cuts.device) == 0)
        if cuts.device.type == "cpu" and not bool(cuts.any()):
            return
        cuts = cuts.unsqueeze(2)
        left = torch.where(cuts, found.left * excess.unsqueeze(2), 0.0)
        right = torch.where(cuts, found.right, 0.0)
        rows = zip(batch.matrices, left.unbind(), right.unbind(), strict=True)
        if run.plain:
            for matrix, one, other in rows:
                add_product(matrix.member.param.detach(), one, other)
            return
        for member, some in itertools.groupby(rows, lambda row: row[0].member):
            member.add({matrix.index: (one, other) for matrix, one, other in some})

    def _overflow(self) -> Tensor | None:
        """What tells, above 0, that a fused kernel skipped the step, as a GradScaler found an overflow."""
        found = getattr(self._optimizer, "found_inf", None)
        return found if isinstance(found, Tensor) else None

    def _shrink(self, copies: list[tuple[Run, list[Tensor]]], factor: float) -> None:
        """Take back a share of the first step, where its size is known only after it."""
        for run, olds in copies:
            for member, old in zip(run.members, olds, strict=True):
                local(member.param).lerp_(old, 1.0 - factor)
        for run in self._runs if not copies else ():
            for member, step in zip(run.members, self._adam(run), strict=True):
                overflow = self._overflow()
                made = 1.0 if overflow is None else (overflow.to(step.device) == 0).float()
                local(member.param).add_(step * (run.group["lr"] * (1.0 - factor) * made))

    def _publish(self, *, wait: bool) -> None:
        """Make the medians known to the host: at once on a CPU and after the first measurement, else one step late."""
        self._open = False
        base, device = self.rate(self.base), self._runs[0].batches[0].ratios.device
        parts = []
        for run in self._runs:
            rate = self.rate(run.group)
            weight = rate / base if rate > 0.0 else math.nan  # at rate 0 it stands still
            parts += [(batch.ratios if rate == base else batch.ratios * weight).to(device) for batch in run.batches]
        ratios = torch.cat(parts, dim=1)
        found = self.agree(torch.nanquantile(ratios, 0.5, dim=1))
        if found.device.type != "cuda":
            self._set(found.tolist())
            return
        self._late = sent_to_host([found], found.device)
        if wait:
            self._arrive()

    def _arrive(self) -> None:
        if self._late is not None:
            (host,), event = self._late
            event.synchronize()
            self._late = None
            self._set(host.tolist())

    def _set(self, found: list[float]) -> None:
        if all(map(math.isfinite, found)) and found[1] > 0.0:
            self._ratio, self._largest = found


_Followed = tuple[Run, Batch, Leading, Tensor]
"""What was found of a batch in the step being made, and of which matrices it is finite."""


def _source(optimizer: Optimizer) -> Literal["directions", "state"] | None:
    """Where the steps of an optimizer can be had without copies: before them, from its state after them, or nowhere."""
    if hasattr(optimizer, "directions"):
        return "directions"
    if type(optimizer).__module__ in ("lion_pytorch.lion_pytorch", "lion_pytorch.foreach"):  # not its cautious Lion
        return "directions"
    return "state" if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) else None


def separate_rates(optimizer: Optimizer) -> None:
    """Give each group a tensor of its own where groups share one as their rate, as torch makes it of `lr=tensor`."""
    seen: set[int] = set()
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            if id(group["lr"]) in seen:
                group["lr"] = group["lr"].clone()
            seen.add(id(group["lr"]))


def _own(ratio: Tensor) -> Tensor:
    return ratio


def _set_rate(group: dict[str, Any], lr: float | Tensor) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].copy_(torch.as_tensor(lr))
    else:
        group["lr"] = lr
