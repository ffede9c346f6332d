"""`AdaptiveWarmup`: the schedule as a PyTorch learning-rate scheduler."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from warmgap._checks import check_finite, check_fraction, check_positive, warn
from warmgap.geometry import check_norm
from warmgap.rules import Rule, SpectralRule, rule_for
from warmgap.rules.spectral import LARGEST_ENTRY, LOW
from warmgap.schedule import MOST_EVENTS, Event, Schedule, ScheduleState
from warmgap.torch import misuse
from warmgap.torch.explain import History, Verdict, judged, picture, picture_html, role_table, sentences
from warmgap.torch.group_schedules import GroupPlan, RoleTable, find_roles, give_rest_roles, peak_of, plan_groups
from warmgap.torch.joining import check_joined, shadow_of
from warmgap.torch.loss_mean import Exchanged, LossMean
from warmgap.torch.optimizers.muon import SECOND_RULES, Muon
from warmgap.torch.recognition import optimizer_kappa
from warmgap.torch.spectral_cap import SpectralCap, separate_rates
from warmgap.torch.steps import StepCount, watch

STATE_VERSION = 2

IN_CHARGE = "_scheduled_by"
"""The attribute of an optimizer that refers to its scheduler; of several to the one that was used last."""

_PATIENCE = 10  # steps without any loss before a warning
_IN_A_ROW = 3  # steps whose rate something else changed before a warning
_CAPPED = 0.95  # an event says so where the cap takes away more than a twentieth
_RELEASED = 1.1  # and where it leaves a tenth of room again

_LOG = logging.getLogger(__name__)


class AdaptiveWarmup(LRScheduler):
    """A schedule without a warm-up to tune: call `observe(loss)` before every `optimizer.step()`, `step()` after.

    The loss is the mean training loss of that optimizer step, unscaled; of micro-batches, `observe(loss, weight)` each.
    Ranks are averaged here, so that all of them set the same learning rate. The first step may be made above the floor
    only on evidence: on its own loss, observed before it, or on the size of the step, where the spectral cap knows it.
    `step(loss)` alone will do where there is neither: the first step is then made at the floor.

    On a CUDA device a loss takes effect one step late: it is copied while the next step runs, and neither host nor
    device waits for the other. Only the first step waits, once, for the loss that it may start on.

    A step that an AMP scaler skipped does not count, and its loss is dropped, also where a fused kernel skips it.

    Each group's rate is its own peak (times its `lr_scale`, where it has one) times the factor of its role. A group may
    have a schedule of its own: see `groups`. A group that is added later takes the factor of that moment; without a
    role, where the others have theirs, it is held back like the hidden matrices, unless the model says what it is.

    Where something else multiplies a group's rate between the steps (a chained scheduler, `ReduceLROnPlateau`, a
    callback), the multiplication is carried on: groups keep the ratios that it left, and where it has ended, as a
    `LinearLR` does, the rates are this schedule's own. One that sets rates outright, such as a `LambdaLR`, has the last
    word while it is stepped later. Of several `AdaptiveWarmup` on one optimizer the one used last sets the rates.

    `print(scheduler)` is one line, `print(scheduler.roles)` a table, `print(scheduler.summary())` says what the rate
    did and why.

    Args:
        optimizer: Any optimizer; the `lr` of each group is taken as its peak (its `initial_lr`, where an earlier
            scheduler left one, as in torch).
        total_iters: Optimizer steps in the whole run.
        model: The model, to tell hidden matrices from embeddings and the head where the groups don't say it by the key
            `"role"` (those of `split_parameters` do).
        rule: `"auto"` (the best there is here), `"gap"`, `"loss-ratio"`, `"power"`, `"linear"` (the usual tenth of the
            run), one of these with settings such as `"loss-ratio(level=4.0)"`, or a rule of `warmgap.rules`.
        target_loss: The loss taken as optimal, or `"auto"`: an estimate from the run. For rules given by name that
            follow the gap.
        floor: Starting learning rate / peak learning rate where nothing is known before the first step, in (0, 1). For
            rules given by name.
        decay: A name of `warmgap.decay.NAMES` or a callable from progress to factor. `"constant"` stays at the peak
            until `decay_now`, which then decays by a cosine.
        norm: The norm that bounds a step: `"spectral"`, `"max"`, `"frobenius"`, or `"auto"` to infer it from the
            optimizer. For the gap rule given by name, which needs it.
        process_group: The ranks to average the loss over; None for the default group where `torch.distributed` is
            initialised.
        last_epoch: Only -1: an adaptive schedule can't be resumed from a step number; use `load_state_dict`.
        roles: The role of each parameter group (`"hidden"`, `"embedding"`, `"head"`, `"other"`): a sequence, or a
            mapping by index or name. Goes before what the groups or the model say.
        max_warmup: Share of the run within which warm-up ends, in (0, 1). For rules given by name that have one.
        groups: Schedules of their own for some groups, by index, name or role: a mapping with any of `"warmup"` (whole
            steps, or a share of the run), `"decay"` and `"decay_start"` (a share of the run); `"constant"` or None
            leaves the group's rate alone. The same under the key `"schedule"` in a group.
        cap: The spectral cap on the size of steps: `"auto"` (with the default rule only), None for none, a
            number (rho), or a `SpectralCap` of this optimizer, made with `apply=False`.

    Raises:
        ValueError: If an argument lies outside its range, or the norm is needed and can't be inferred.
        TypeError: If `optimizer` is not an optimizer.

    Example:
        >>> import torch
        >>> from warmgap.torch import AdaptiveWarmup, Lion
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = Lion(model.parameters(), lr=1e-3)
        >>> scheduler = AdaptiveWarmup(optimizer, total_iters=100, cap=None)
        >>> for _ in range(3):
        ...     loss = model(torch.ones(8, 4)).square().mean()
        ...     loss.backward()
        ...     scheduler.observe(loss)
        ...     optimizer.step()
        ...     scheduler.step()
        ...     optimizer.zero_grad()
        >>> scheduler.phase, scheduler.get_last_lr()
        ('stable', [0.001])
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: int,
        *,
        model: nn.Module | None = None,
        rule: str | Rule[Any] = "auto",
        target_loss: float | Literal["auto"] = "auto",
        floor: float = 0.01,
        decay: str | Callable[[float], float] = "cosine",
        norm: str = "auto",
        process_group: dist.ProcessGroup | None = None,
        last_epoch: int = -1,
        roles: Sequence[str] | Mapping[int | str, str] | None = None,
        max_warmup: float | None = None,
        groups: Mapping[int | str, Any] | None = None,
        cap: Any = "auto",
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if last_epoch != -1:
            raise ValueError(
                f"last_epoch must be -1, got {last_epoch!r}: resume an adaptive schedule with load_state_dict"
            )
        if not hasattr(optimizer, "_optimizer_step_post_hooks"):
            raise ValueError(
                f"{type(optimizer).__name__} only wraps an optimizer and runs no step hooks; make the scheduler on the "
                "optimizer itself, before it is prepared"
            )
        check_fraction("floor", floor, "it is starting learning rate / peak learning rate")
        check_norm(norm)
        kappa = partial(optimizer_kappa, optimizer, norm)
        rule = rule_for(rule, total_iters, floor=floor, target_loss=target_loss, kappa=kappa, max_warmup=max_warmup)
        self.schedule = Schedule(total_iters, rule, decay)
        self.optimizer = optimizer
        self._asked = dict(groups or {})
        self._model = None if model is None else weakref.ref(model)
        guess = not self._asked and (rule.roles == "hidden" or (cap == "auto" and rule.name == "spectral"))
        has_roles = find_roles(optimizer, model, roles, guess)
        self.cap = _cap_of(cap, optimizer, total_iters, rule)
        self._plans = self._planned()
        self._loss = LossMean(process_group)
        self._capped: list[int] = []  # the groups that the cap holds, in its order
        if not has_roles and (self.cap is not None or rule.roles == "hidden"):
            warn(
                f"the groups of {type(optimizer).__name__} have no roles, so that embedding, head, norms and biases "
                "are held back like the hidden matrices, which alone need it: make the groups by "
                "split_parameters(model), or give AdaptiveWarmup model=model"
            )
        misuse.take_own_peaks(optimizer)
        self._room = math.inf
        self._state = self.schedule.init()
        self._own = {i: (plan.own, plan.own.init()) for i, plan in enumerate(self._plans) if plan.own is not None}
        self._calibrated = False
        self._without_loss = 0
        self._trains = False
        self._warned: set[str] = set()
        self._steps = StepCount()
        self._cap_factor = 1.0
        self._capping = False
        self._measuring = False  # whether the cap has been shown the beginning of a step
        self._made: float | None = None  # the hidden matrices' factor in the last step
        self._events: tuple[Event, ...] = ()
        self._in_a_row = 0  # steps whose rate something else changed
        self._history = History()
        self._scales: list[float] = []  # what others have multiplied the rates by
        self._plain: list[float] = []  # the rates as set here, before that
        _connect(optimizer, self)
        if self.cap is not None:
            self.cap.agree = self._loss.highest
            self.cap.serve(self)
            self._capped = self._find_capped()
        super().__init__(optimizer, last_epoch)

    # What it says

    @property
    def phase(self) -> Literal["warmup", "stable", "decay"]:
        """`"warmup"` while the factor is on its way up, `"stable"` while it stays, `"decay"` from then on."""
        return self._state.phase

    @property
    def total_iters(self) -> int:
        """The number of optimizer steps in the whole run, as last set."""
        return self._state.total_iters

    @property
    def warmup_iters(self) -> int | None:
        """The number of steps that warm-up took; None until it ended."""
        return self._state.handover

    @property
    def factor(self) -> float:
        """Learning rate / peak learning rate of the next step, in (0, 1]: of the hidden matrices, where it differs."""
        return self._state.factor * self._cap_factor

    @property
    def _largest_factor(self) -> float:
        """The hidden matrices' factor times the share of their steps' spectral norm that passes the cap."""
        return self._state.factor * min(1.0, self._cap_factor, self._room)

    @property
    def gap(self) -> float | None:
        """The loss gap that the rule follows; None before the first loss, or where it follows none."""
        return self.schedule.reading(self._state)[0]

    @property
    def target_loss(self) -> float | None:
        """The target loss in use, given or estimated; None before the first loss, or where the rule has none."""
        return self.schedule.reading(self._state)[1]

    @property
    def events(self) -> tuple[Event, ...]:
        """What the schedule did to the rate, when and why, oldest first."""
        return tuple(sorted((*self._state.events, *self._events), key=lambda event: event.step))

    @property
    def roles(self) -> RoleTable:
        """The table of peak, factor, decay and phase of each role; print it."""
        return role_table(self)

    @property
    def verdict(self) -> Verdict:
        """Whether the peak looks `"too high"` or `"fine"`; `"unknown"` where this run shows neither.

        `summary` says why. It is too high where the guard acted more than once, or once and the loss stands above its
        first; fine where the spectral cap cut the hidden matrices' steps to 0.05 to 0.3 of their norm, on average over
        the steps before the decay, and the guard never acted: 28 of 29 such runs ended within 0.1 of the best of all
        peaks tried (docs/results.md).
        """
        return judged(self)[0]

    def summary(self) -> str:
        """Return some sentences: where the run stands, what the rate did and why, and whether the peak looks right."""
        return sentences(self)

    def plot(self) -> Any:
        """Return a picture of rate and loss with the events on it, a `matplotlib.figure.Figure`.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        return picture(self)

    def __repr__(self) -> str:
        state, held = self._state, " (held)" if self._capping else ""
        rates = sorted({f"{float(lr):.3g}" for lr in self._last_lr}, key=float)
        lr = rates[0] if len(rates) == 1 else f"{rates[0]} to {rates[-1]}"
        return (
            f"AdaptiveWarmup(step {state.step} of {state.total_iters}, {state.phase}, factor {self.factor:.3g}{held}, "
            f"lr {lr}, rule {self.schedule.rule.name!r}, decay {self.schedule.decay!r}, {len(self.events)} events)"
        )

    def _repr_html_(self) -> str:
        return picture_html(self)

    # The loop

    def observe(self, loss: float | Tensor, weight: float | Tensor = 1.0) -> None:
        """Add one micro-batch's loss to the mean of the current optimizer step.

        Args:
            loss: Its mean loss, not divided by the number of micro-batches, nor scaled: a number or a tensor with one
                element.
            weight: Its share in the step's mean: its number of tokens, where micro-batches differ in it.

        Raises:
            ValueError: If a tensor has more than one element, or a weight that is a number is negative.
            TypeError: If the loss is neither a number nor a tensor.
        """
        self._take_charge()
        self._trains = self._trains or (isinstance(loss, Tensor) and loss.requires_grad)
        self._loss.add(loss, weight)

    def calibrate(self, closure: Callable[[], float | Tensor]) -> None:
        """Measure the loss before the first step: on it the first step may start above the floor.

        For loops that show the loss after the step; one observed before the first step does the same. Every rank must
        call it.

        Args:
            closure: Returns the mean loss of a batch, of this rank; called once, without gradients.

        Raises:
            ValueError: If a step was made already, or the loss is not finite.
            TypeError: If `closure` can't be called.
        """
        if not callable(closure):
            raise TypeError(
                f"calibrate needs a function that returns the loss, got {closure!r:.80}: give lambda: model(batch)"
            )
        if self._state.step > 0:
            raise ValueError(f"calibrate looks before the first step, and {self._state.step} were made; call it first")
        with torch.no_grad():
            self._loss.add(closure())
        loss = self._loss.take().result()
        self._start(check_finite("the loss to calibrate on", math.nan if loss is None else loss))
        self._calibrated = True
        self._set_lrs()

    def discard(self) -> None:
        """Forget what was observed since the last `step`: its optimizer step was skipped.

        Only for hosts that then don't call `step` at all; `step` itself drops the loss of a skipped step.
        """
        self._loss.clear()
        if self._may_start and self._has_its_turn():  # what it started on is forgotten too
            self._start(None, shown=True)
            self._set_lrs()

    def before_step(self, closure: bool = False) -> None:
        """Set the rates of the step that is about to be made: the optimizer's hook calls it as `step` begins.

        For hosts whose loss or gradients are made inside `optimizer.step(closure)`: call it as soon as they are there.

        Args:
            closure: Whether the gradients are yet to be computed, within the step.
        """
        if not self._has_its_turn() or self._another() is not None or self._rates_are_anothers():
            return
        if self._state.step == 0 and self._loss.ranks > 1:
            check_joined(self)
        starts = self._may_start
        if self.cap is None and not starts:
            return
        if len(self.optimizer.param_groups) != len(self.base_lrs):
            self._join()
        # First: under Join a rank without batches can measure its step only after it, and ranks exchange in one order.
        loss = self._loss.peek().result() if starts and self.schedule.rule.needs_loss else None
        if self.cap is not None:
            self.cap.before(closure=closure)
            self._measuring = True
        if starts:
            self._start(loss if loss is not None and math.isfinite(loss) else None)
        self._set_lrs()

    def after_step(self, skipped: float | Tensor = 0.0) -> None:
        """Count a step: the optimizer's hook calls it as `step` ends.

        For hosts that move the weights without calling the optimizer's `step`.

        Args:
            skipped: Above 0 where the step was skipped after all; a tensor on a device is read one step late.
        """
        if self.cap is not None and self._measuring:
            self._measuring = False
            unknown = self.cap.ratio is None
            self.cap.after()
            if unknown and self._capped:  # the first step, measured only now, was cut down to the cap
                self._cap_factor *= self.cap.factor_at(self._rate_of(self.cap.base))
        self._steps.add(skipped)

    def step(self, loss: float | Tensor | None = None) -> None:
        """Move on by one optimizer step and set the learning rates of the next.

        Every rank must call it at the same step.

        Args:
            loss: The mean training loss of the step just made, if it was not observed before: a number or a tensor with
                one element. A whole number is an epoch or a step count, not a loss: it is ignored, with a warning.

        Raises:
            ValueError: If the loss has more than one element, or the rule refuses the first one; the optimizer's first
                `step` raises it too, on a loss observed before.
            TypeError: If the loss is neither a number nor a tensor.
        """
        if self._is_initial:  # the base class's constructor, or a host that starts over: no step was made
            self._step_count += 1
            self.last_epoch += 1
            self._set_peaks()
            return
        if len(self.optimizer.param_groups) != len(self.base_lrs):
            self._join()
        other = self._another()
        if loss is not None:
            if (said := misuse.not_a_loss(loss)) is None:
                self.observe(loss)
            else:
                self._warn_once("epoch", said)
        made = self._steps.made
        # Without gradients, as where only rates are looked at, no step is waited for.
        waits = made == 0 and (self._steps.any or self._trains or self._has_gradients())
        skipped = self._steps.called(self.optimizer, waits)
        if waits:
            self.discard()
            return
        if other is not None and other._state.step > 0 and other._steps.made == 0 < made:
            self._warn_once(
                "another",
                f"two AdaptiveWarmup schedulers step for one {type(self.optimizer).__name__}, and the later one has "
                "the last word: call step() of one of them only",
            )
        self._take_charge()
        needs_loss = self.schedule.rule.needs_loss or any(s.rule.needs_loss for s, _ in self._own.values())
        exchanged = self._loss.exchange(skipped, alone=not needs_loss)
        self._warn_without_losses(exchanged.loss)
        if exchanged.skipped:  # on a device the step before the one just made, which the last call has counted
            return
        self._step_count += 1
        self.last_epoch += 1
        self._advance(exchanged.loss)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rates of the next step, one a group; nothing is changed."""
        return [
            self._plain_lr(i) * self._scales[i] if self._plans[i].scheduled else group["lr"]
            for i, group in enumerate(self.optimizer.param_groups)
        ]

    def get_last_lr(self) -> list[float | Tensor]:
        """Return the learning rates of the groups, as last set; before the first step, those that it will be made at.

        These can change until then with the loss that is observed. (Of several ranks each sees its own loss here.)
        """
        if self._may_start and not self._loss.empty and self._has_its_turn():
            # Nothing is kept of it: another rank has another loss, or is not asked.
            kept, loss = (self._state, self._own), self._loss.local()
            self._start(loss if math.isfinite(loss) else None)
            rates = self.get_lr()
            self._state, self._own = kept
            return rates
        return self._last_lr

    # Ranks with different numbers of batches: what `torch.distributed.algorithms.Join` asks of its parts

    def join_hook(self, **_: Any) -> Any:
        """Return what `Join([model, scheduler])` calls for a rank that has no more batches: it goes along."""
        return shadow_of(self)

    @property
    def join_device(self) -> torch.device:
        """The device on which `Join` counts the ranks, where the scheduler comes first."""
        return torch.device("cpu")

    @property
    def join_process_group(self) -> Any:
        """The ranks that the loss is averaged over."""
        return self._loss.group

    # Longer, shorter, higher

    def extend(self, total_iters: int) -> None:
        """Let the run end after `total_iters` optimizer steps instead; the factor goes on from where it is.

        Raises:
            ValueError: If so many steps were made already.
        """
        self._change(lambda schedule, state: schedule.extend(state, total_iters))

    def decay_now(self, steps: int) -> None:
        """Decay from the present factor over the next `steps` optimizer steps; the run then ends there.

        Raises:
            ValueError: If `steps` is no whole number of at least 1.
        """
        self._change(lambda schedule, state: schedule.decay_now(state, steps))

    def scale_peak(self, factor: float) -> None:
        """Multiply the peak of every scheduled group by `factor`, from the next step on.

        Raises:
            ValueError: If `factor` is not above 0.
        """
        factor = check_positive("factor", factor, "2.0 doubles the peak learning rate")
        self.base_lrs = [
            float(base) * factor if plan.scheduled else base
            for base, plan in zip(self.base_lrs, self._plans, strict=True)
        ]
        self._note(f"peak scaled by {factor:.4g}", self.factor, self.factor)
        self._set_lrs()

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state: plain Python values (and the cap's tensors), no reference to the optimizer."""
        late = self._loss.settled()
        own = {str(i): schedule.to_dict(state) for i, (schedule, state) in self._own.items()}
        return {
            "version": STATE_VERSION,
            "schedule": self.schedule.to_dict(self._state),
            "own": own,
            "calibrated": self._calibrated,
            "late": None if late is None else list(late),
            "held": [self._cap_factor, self._capping, self._made],
            "cap": None if self.cap is None else self.cap.state_dict(),
            "base_lrs": [float(base) for base in self.base_lrs],
            "scales": list(self._scales),
            "events": [list(event) for event in self._events],
            "history": self._history.to_dict(),
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of `state_dict` and set the optimizer's learning rates to it.

        A state of a run of another length goes on over this scheduler's length; one with another peak keeps its own.

        Raises:
            ValueError: If it is no such state, of another version, or of a scheduler with other settings or groups;
                then nothing is changed.
        """
        saved = _current_form(state_dict, self.state_dict().keys())
        count = len(saved["base_lrs"])
        if count != len(self.optimizer.param_groups):
            raise ValueError(
                f"this state belongs to an optimizer with {count} parameter groups, "
                f"and this one has {len(self.optimizer.param_groups)}: build the optimizer as it was"
            )
        hint = "this state is damaged or was edited"
        base_lrs: list[float | Tensor] = [check_finite("base_lrs", lr, hint) for lr in saved["base_lrs"]]
        scales = [check_finite("scales", scale, hint) for scale in saved["scales"]]
        plans = plan_groups(self.optimizer, self.schedule, self._asked)
        own = {i: plan.own for i, plan in enumerate(plans) if plan.own is not None}
        if sorted(map(str, own)) != sorted(saved["own"]):
            raise ValueError(
                f"this state has schedules of their own for the groups {sorted(saved['own'])}, and this scheduler for "
                f"{sorted(map(str, own))}: give the same groups=, or start afresh"
            )
        if (saved["cap"] is None) != (self.cap is None):
            raise ValueError(
                f"this state comes from a scheduler with{'out' if saved['cap'] is None else ''} a spectral cap, and "
                f"this one has {'none' if self.cap is None else 'one'}: give the same cap="
            )
        state = self.schedule.from_dict(saved["schedule"])
        own_states = {i: (schedule, schedule.from_dict(saved["own"][str(i)])) for i, schedule in own.items()}
        late = None if saved["late"] is None else Exchanged(*saved["late"])
        events = tuple(Event(*event) for event in saved["events"])
        history = History.from_dict(saved["history"])
        if self.cap is not None:
            self.cap.load_state_dict(saved["cap"])
        misuse.warn_of_peaks(saved["base_lrs"], self.base_lrs)
        self._state, self._own, self._plans = state, own_states, plans
        self._capped = self._find_capped()
        self._calibrated = saved["calibrated"]
        self._cap_factor, self._capping, self._made = saved["held"]
        self.base_lrs, self._scales = base_lrs, scales
        self._events, self._history = events, history
        self.last_epoch = saved["last_epoch"]
        self._step_count = saved["_step_count"]
        self._loss.restore(late)
        self._steps.reset()
        self._take_charge()
        if self._has_its_turn():
            self._write()

    def _go_on_at(self, steps: int) -> None:
        """Move on to where this is after so many steps without a loss."""
        self._each(lambda schedule, _: _caught_up(schedule, steps))
        self.last_epoch, self._step_count = steps, steps + 1
        self._write()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles; the losses on their way are read."""
        self._loss.settled()
        return self.__dict__ | {"_model": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _connect(self.optimizer, self)  # a copied optimizer has lost its hooks
        if self.cap is not None:
            self.cap.serve(self)

    # Rates

    def _update_lr(self, epoch: int | None = None) -> None:
        """Set the rates without a step: what `SequentialLR` asks for when it hands over to this scheduler."""
        if epoch is not None:
            self.last_epoch = epoch
        self._take_charge()
        self._loss.clear()  # those of the other scheduler's steps
        self._steps.reset()
        self._set_peaks()

    def _set_peaks(self) -> None:
        """Start over: the peaks are the groups', and the first rates are shown as they will be with evidence."""
        groups = self.optimizer.param_groups
        self.base_lrs = [peak_of(group) for group in groups]
        self._scales = [1.0] * len(groups)
        if self._may_start:
            self._start(None, shown=True)
        self._write()

    @property
    def _may_start(self) -> bool:
        """Whether the first step is still to be made, and what it starts on is open."""
        return self._state.step == 0 and not self._calibrated

    def _start(self, loss: float | None, shown: bool = False) -> None:
        """Make the state before the first step from what is known then: the loss, or the size of the step."""
        known = loss is not None or shown or (self.cap is not None and self.cap.ratio is not None)
        self._each(lambda schedule, state: _first(schedule, state, loss, known))

    def _plain_lr(self, index: int) -> float:
        """Return the rate of a group before what others multiply it by."""
        if index in self._own:
            factor = self._own[index][1].factor
        else:
            factor = self.schedule.factor_of(self._state, self._plans[index].role)
        return self._peak_of(index) * factor * (self._cap_factor if index in self._capped else 1.0)

    def _peak_of(self, index: int) -> float:
        """Return the peak rate of a group; beside Muon's matrices, which bear higher rates, a limited one."""
        peak = float(self.base_lrs[index])
        beside = isinstance(self.optimizer, Muon) and self.optimizer.param_groups[index]["rule"] in SECOND_RULES
        return min(peak, LARGEST_ENTRY) if beside and self.cap is not None else peak

    @property
    def _share_beside(self) -> float:
        """The share of their peak that groups get where that is limited; the least."""
        peaks = ((self._peak_of(index), float(peak)) for index, peak in enumerate(self.base_lrs))
        return min((limited / peak for limited, peak in peaks if peak > 0.0), default=1.0)

    def _set_lrs(self) -> None:
        """Carry on what others did to the rates, hold the hidden matrices under their cap, and write the rates."""
        self._take_charge()
        self._carry()
        self._hold()
        self._write()

    def _held(self) -> list[dict[str, Any]]:
        """Return the groups that the cap holds and that are scheduled."""
        return [self.optimizer.param_groups[index] for index in self._capped]

    def _rate_of(self, group: dict[str, Any]) -> float:
        """Return the rate of a group, without waiting for a device where it lies there and was set here."""
        if (lr := _on_host(group["lr"])) is not None:
            return lr
        groups = zip(self.optimizer.param_groups, self._plain, self._scales, self._plans, strict=False)
        rates = (plain * scale for one, plain, scale, plan in groups if one is group and plan.scheduled)
        rate = next(rates, None)
        return float(group["lr"]) if rate is None else rate

    def _write(self) -> None:
        self._plain, self._last_lr = [], []
        for index, group in enumerate(self.optimizer.param_groups):
            plain = self._plain_lr(index)
            lr = plain * self._scales[index] if self._plans[index].scheduled else group["lr"]
            tensor = group["lr"]
            if not isinstance(tensor, Tensor):
                group["lr"] = lr
            elif lr is not tensor:
                tensor.fill_(lr)
            self._plain.append(plain)
            self._last_lr.append(_copied(group["lr"]))

    def _carry(self) -> None:
        """Keep what others have multiplied the rates by since they were written."""
        for index, group in enumerate(self.optimizer.param_groups):
            if group["lr"] is (last := self._last_lr[index]) or not self._plans[index].scheduled:
                continue
            lr = _on_host(group["lr"])
            if lr is None or lr == _on_host(last):
                continue
            before, self._scales[index] = self._scales[index], lr / self._plain[index]
            self._note_outside(before, self._scales[index])

    def _hold(self) -> None:
        """Set by how much the spectral cap holds the hidden matrices back in the next step."""
        if self.cap is None or not self._capped:
            return
        self._cap_factor = 1.0
        base = self.cap.base
        first = next(index for index, group in enumerate(self.optimizer.param_groups) if group is base)
        at = max(self._plain_lr(first) * self._scales[first], 1e-300)
        factor, self._room, most = self._state.factor, self.cap.room / at, min(1.0, self.cap.limit / at)
        if self._made is not None and factor > 0.0:
            most = min(most, 2.0 * self._made / factor)
        self._cap_factor = most
        if self._room < _CAPPED and not self._capping:
            reason, after = "step too large: held by the spectral cap", self._largest_factor
        elif self._capping and most == 1.0 and self._room > _RELEASED:
            reason, after = "released by the spectral cap", factor
        else:
            return
        self._capping = not self._capping
        self._note(reason, factor, after, None if self.cap.scope == "all weights" else "hidden")

    # Steps

    def _advance(self, loss: float | None) -> None:
        self._carry()
        before, made, groups = self._state, self.factor, self.optimizer.param_groups
        if before.step == 0:
            if (share := self._share_beside) < 1.0:
                self._note(f"peak limited to {LARGEST_ENTRY} beside Muon's matrices", 1.0, share, "other")
            misuse.warn_of_sum(loss, (g for p, g in zip(self._plans, groups, strict=True) if p.role == "head"))
        self._history.add(before.step, loss, self._largest_factor, before.base)
        if before.phase != "decay":
            self._history.at_peak(min(1.0, self._room), self._room)
            if self._capped and before.step + 1 == before.decay_start and self._history.share > LOW:
                self._each(lambda schedule, state: schedule.hold_on(state))
        self._made = made
        self._each(lambda schedule, state: schedule.step(state, loss))
        self._log_new(before)
        self._hold()
        self._write()

    def _each(self, change: Callable[[Schedule, ScheduleState], ScheduleState]) -> None:
        """Change the state of every schedule: the optimizer's, and those that groups have of their own."""
        state = change(self.schedule, self._state)
        self._own = {i: (schedule, change(schedule, own)) for i, (schedule, own) in self._own.items()}
        self._state = state

    def _change(self, change: Callable[[Schedule, ScheduleState], ScheduleState]) -> None:
        before = self._state
        self._each(change)
        self._log_new(before)
        self._set_lrs()

    def _planned(self) -> list[GroupPlan]:
        """Return the plan of each group; one without a role gets one, where others have theirs and it matters."""
        separate_rates(self.optimizer)
        if self.cap is not None or self.schedule.rule.roles == "hidden":
            give_rest_roles(self.optimizer, None if self._model is None else self._model())
        return plan_groups(self.optimizer, self.schedule, self._asked)

    def _find_capped(self) -> list[int]:
        held = set() if self.cap is None else {id(group) for group in self.cap.groups}
        groups = enumerate(self.optimizer.param_groups)
        return [index for index, group in groups if id(group) in held and self._plans[index].scheduled]

    def _join(self) -> None:
        """Take in groups that were added since the scheduler was made, at the factor of the moment."""
        groups = self.optimizer.param_groups
        if len(groups) < len(self.base_lrs):
            raise ValueError(
                f"the optimizer has {len(groups)} parameter groups, and had {len(self.base_lrs)} when this scheduler "
                "was made: make a new scheduler for it"
            )
        self._plans = self._planned()
        self._capped = self._find_capped()
        for index in range(len(self.base_lrs), len(groups)):
            group = groups[index]
            group.setdefault("initial_lr", float(group["lr"]))
            self.base_lrs = [*self.base_lrs, peak_of(group)]
            self._scales.append(1.0)
            plan = self._plans[index]
            if plan.own is not None:
                self._own[index] = plan.own, _caught_up(plan.own, self._state.step)
            self._plain.append(0.0)
            self._last_lr.append(group["lr"])
            self._note(f"parameter group {index} joined ({plan.label})", self.factor, self.factor)

    def _has_its_turn(self) -> bool:
        """Return whether the rates are this scheduler's to set: a `SequentialLR` leaves those that wait at -1."""
        return bool(self.last_epoch >= 0)

    def _another(self) -> AdaptiveWarmup | None:
        """Return the scheduler that sets the optimizer's rates in place of this one."""
        owner: Callable[[], AdaptiveWarmup | None] = getattr(self.optimizer, IN_CHARGE, lambda: None)
        return None if (one := owner()) is self else one

    def _take_charge(self) -> None:
        """Set the optimizer's rates from now on: of several schedulers the one that was used last does."""
        if self._another() is not None and self._has_its_turn():
            setattr(self.optimizer, IN_CHARGE, weakref.ref(self))
            groups = zip(self.optimizer.param_groups, self.base_lrs)  # noqa: B905 # some may have been added
            self._last_lr = [_copied(group["lr"]) for group, _ in groups]  # what the other set is nothing to carry on

    def _rates_are_anothers(self) -> bool:
        """Return whether somebody has put 0 for the rates for a moment, as to have the optimizer make its state."""
        pairs = zip(self.optimizer.param_groups, self._last_lr)  # noqa: B905 # groups may have been added
        return any(_on_host(group["lr"]) == 0.0 != _on_host(last) for group, last in pairs)

    def _has_gradients(self) -> bool:
        return any(p.grad is not None for group in self.optimizer.param_groups for p in group["params"])

    def _warn_without_losses(self, loss: float | None) -> None:
        if loss is not None and math.isfinite(loss):
            self._without_loss = 0
            return
        self._without_loss += 1
        if self._without_loss == _PATIENCE and self.phase != "decay" and self.schedule.rule.needs_loss:
            self._warn_once(
                "no loss",
                f"AdaptiveWarmup has seen no finite loss for {_PATIENCE} steps and can only go by the step count: "
                "call scheduler.observe(loss) before step(), or step(loss)",
            )

    # Events and warnings

    def _note(self, reason: str, before: float, after: float, role: str | None = None) -> None:
        loss = self._history.last_loss
        event = Event(step=self._state.step, loss=loss, before=before, after=after, reason=reason, role=role)
        self._events = (*self._events, event)[-MOST_EVENTS:]
        _LOG.info("%s", event)

    def _note_outside(self, before: float, after: float) -> None:
        reason = "rate changed from outside, carried on"
        last = self._events[-1] if self._events else None
        if last is not None and last.reason == reason and last.step >= self._state.step - 1:
            moved = last._replace(step=self._state.step, after=self.factor * after)
            self._events = (*self._events[:-1], moved)  # one that changes it at every step is one event
            self._in_a_row += last.step < self._state.step
            if self._in_a_row == _IN_A_ROW and self.schedule.decay != "constant":
                self._warn_once(
                    "outside",
                    "something else (another scheduler?) changes the rate at every step too, and both multiply: "
                    "take it away, or give decay='constant' where the decay is to be its own",
                )
            return
        self._in_a_row = 0
        self._note(reason, self.factor * before, self.factor * after)

    def _log_new(self, before: ScheduleState) -> None:
        if self._state.events is not before.events or before.step == 0:
            known = before.events if before.step > 0 else ()  # those of a start are final with the first step
            for event in self._state.events:
                if event not in known:
                    _LOG.info("%s", event)

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warn(message)


def _cap_of(cap: Any, optimizer: Optimizer, total_iters: int, rule: Rule[Any]) -> SpectralCap | None:
    if isinstance(cap, SpectralCap):
        if cap._applies or cap._optimizer is not optimizer:
            fault = "sets rates by itself" if cap._applies else f"holds another {type(cap._optimizer).__name__}"
            raise ValueError(f"this SpectralCap {fault}: make it with SpectralCap(optimizer, ..., apply=False)")
        return cap
    if cap is None or (cap == "auto" and rule.name != "spectral"):
        return None
    if cap != "auto" and (isinstance(cap, (bool, str)) or not isinstance(cap, (int, float))):
        raise ValueError(f"cap must be 'auto', None, a number or a SpectralCap made with apply=False, got {cap!r}")
    groups = optimizer.param_groups
    if not any(p.ndim >= 2 for group in groups for p in group["params"]):
        return None  # no matrix to hold
    roles = {group.get("role") for group in groups}
    if "hidden" not in roles and roles != {None}:
        return None  # a head alone, say
    held: Any = "auto" if "hidden" in roles else None
    return SpectralCap(optimizer, rho=cap, total_iters=total_iters, roles=held, apply=False)


def _connect(optimizer: Optimizer, scheduler: AdaptiveWarmup) -> None:
    watch(optimizer, scheduler)
    owner = weakref.ref(scheduler)
    setattr(optimizer, IN_CHARGE, owner)

    def loaded(_: Optimizer) -> None:
        if (alive := owner()) is None or not alive._has_its_turn() or alive._another() is not None:
            return
        if len(optimizer.param_groups) > len(alive.base_lrs):
            alive._join()  # a host gave it back the groups that were added in the saved run
        if alive._state.step == 0:  # a fresh schedule on a loaded optimizer keeps its own peak
            alive._write()
            for group, base in zip(optimizer.param_groups, alive.base_lrs, strict=True):
                group["initial_lr"] = float(base) / group.get("lr_scale", 1.0)
        alive._last_lr = [_copied(group["lr"]) for group in optimizer.param_groups]

    optimizer.register_load_state_dict_post_hook(loaded)


def _first(schedule: Schedule, before: ScheduleState, loss: float | None, known: bool) -> ScheduleState:
    """Return the state before the first step from what is known then, with the length and decay that were asked for."""
    state = schedule.init()
    if before.phase == "decay" and schedule.rule.hold != 0.0:
        state = schedule.decay_now(state, before.total_iters)
    elif before.total_iters != state.total_iters:
        state = schedule.extend(state, before.total_iters)
    if loss is not None:
        return schedule.first(state, loss)
    return schedule.first(state) if known and isinstance(schedule.rule, SpectralRule) else state


def _caught_up(schedule: Schedule, steps: int) -> ScheduleState:
    """Return the state of a schedule that has made so many steps without a loss."""
    state = _first(schedule, schedule.init(), None, known=True)
    for _ in range(steps):
        state = schedule.step(state, None)
    return state


def _copied(lr: float | Tensor) -> float | Tensor:
    return lr.clone() if isinstance(lr, Tensor) else lr


def _on_host(lr: float | Tensor) -> float | None:
    """Return a rate; None where reading it would wait for a device."""
    if isinstance(lr, Tensor):
        return lr.item() if lr.device.type == "cpu" else None
    return lr


def _current_form(state: Any, keys: Set[str]) -> dict[str, Any]:
    """Return a state in the form of this version, with these keys; those of version 1 are turned into it."""
    if not isinstance(state, dict) or "version" not in state:
        raise ValueError("this is not the state of an AdaptiveWarmup: it has no version")
    saved = dict(state)
    if saved["version"] == 1:
        late = saved.pop("late_loss", None)
        saved |= {
            "version": STATE_VERSION,
            "late": None if late is None else [late, False],
            "own": {},
            "calibrated": True,
            "held": [1.0, False, None],
            "cap": None,
            "scales": [1.0] * len(saved.get("base_lrs", ())),
            "events": [],
            "history": History().to_dict(),
        }
    if saved["version"] != STATE_VERSION:
        raise ValueError(
            f"this scheduler state has version {saved['version']!r}, this warmgap reads {STATE_VERSION} and 1: "
            "load it with the warmgap that saved it"
        )
    if saved.keys() != keys:
        raise ValueError(f"this is not the state of an AdaptiveWarmup: it needs {sorted(keys)}, got {sorted(saved)}")
    return saved
