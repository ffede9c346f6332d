"""`AdaptiveWarmup`: the schedule as a PyTorch learning-rate scheduler."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from warmgap._checks import check_finite, check_fraction, check_positive, warn
from warmgap._version_1 import scheduler_of_version_1
from warmgap.geometry import check_norm
from warmgap.rules import Rule, by_name
from warmgap.rules.spectral import LARGEST_ENTRY, LOW
from warmgap.schedule import Event, Schedule, ScheduleState
from warmgap.torch import misuse
from warmgap.torch.cap_share import CapShare
from warmgap.torch.explain import History, RoleTable, Verdict, judged, picture, picture_html, role_table, sentences
from warmgap.torch.group_schedules import GroupSchedules, find_roles
from warmgap.torch.joining import check_joined, shadow_of
from warmgap.torch.loss_mean import Exchanged, LossMean
from warmgap.torch.rates import GroupRates
from warmgap.torch.recognition import optimizer_kappa
from warmgap.torch.spectral_cap import SpectralCap
from warmgap.torch.steps import StepCount, watch

STATE_VERSION = 2

IN_CHARGE = "_scheduled_by"
"""The attribute of an optimizer that refers to its scheduler; of several to the one that was used last."""

_PATIENCE = 10  # steps without any loss before a warning
_IN_A_ROW = 3  # steps whose rate something else changed before a warning


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
        more = {} if max_warmup is None else {"max_warmup": max_warmup}
        rule = by_name(rule, total_iters, floor=floor, target_loss=target_loss, kappa=kappa, **more)
        guess = not groups and (rule.roles == "hidden" or (cap == "auto" and rule.name == "spectral"))
        has_roles = find_roles(optimizer, model, roles, guess)
        capped = _cap_of(cap, optimizer, total_iters, rule)
        schedule = Schedule(total_iters, rule, decay)
        self._groups = GroupSchedules(optimizer, schedule, groups, model, capped=capped is not None)
        if not has_roles and (capped is not None or rule.roles == "hidden"):
            warn(
                f"the groups of {type(optimizer).__name__} have no roles, so that embedding, head, norms and biases "
                "are held back like the hidden matrices, which alone need it: make the groups by "
                "split_parameters(model), or give AdaptiveWarmup model=model"
            )
        misuse.take_own_peaks(optimizer)
        self._rates = GroupRates(optimizer)
        self._loss = LossMean(process_group)
        self._share = CapShare(capped, self._rates, self._loss.highest)
        self._share.regroup(self._groups.plans)
        self._steps = StepCount()
        self._history = History()
        self._calibrated = False
        self._without_loss = 0
        self._warned: set[str] = set()
        _connect(optimizer, self)
        super().__init__(optimizer, last_epoch)

    # What it says

    @property
    def schedule(self) -> Schedule:
        """The schedule, of which the scheduler keeps the state."""
        return self._groups.schedule

    @property
    def cap(self) -> SpectralCap | None:
        """The spectral cap; None where there is none."""
        return self._share.cap

    @property
    def base_lrs(self) -> list[float | Tensor]:
        """The peak learning rate of each group."""
        return self._rates.peaks

    @base_lrs.setter
    def base_lrs(self, peaks: list[float | Tensor]) -> None:
        self._rates.peaks = peaks

    @property
    def _last_lr(self) -> list[float | Tensor]:  # type: ignore[override]  # scripts read it here, as torch's own have it
        return self._rates.last

    @property
    def phase(self) -> Literal["warmup", "stable", "decay"]:
        """`"warmup"` while the factor is on its way up, `"stable"` while it stays, `"decay"` from then on."""
        return self._groups.state.phase

    @property
    def total_iters(self) -> int:
        """The number of optimizer steps in the whole run, as last set."""
        return self._groups.state.total_iters

    @property
    def warmup_iters(self) -> int | None:
        """The number of steps that warm-up took; None until it ended."""
        return self._groups.state.handover

    @property
    def factor(self) -> float:
        """Learning rate / peak learning rate of the next step, in (0, 1]: of the hidden matrices, where it differs."""
        return self._groups.state.factor * self._share.factor

    @property
    def gap(self) -> float | None:
        """The loss gap that the rule follows; None before the first loss, or where it follows none."""
        return self.schedule.reading(self._groups.state)[0]

    @property
    def target_loss(self) -> float | None:
        """The target loss in use, given or estimated; None before the first loss, or where the rule has none."""
        return self.schedule.reading(self._groups.state)[1]

    @property
    def events(self) -> tuple[Event, ...]:
        """What the schedule did to the rate, when and why, oldest first."""
        return tuple(sorted((*self._groups.state.events, *self._history.events), key=lambda event: event.step))

    @property
    def roles(self) -> RoleTable:
        """The table of peak, factor, decay and phase of each role; print it."""
        return role_table(self)

    @property
    def verdict(self) -> Verdict:
        """Whether the peak looks `"too high"` or `"fine"`; `"unknown"` where this run shows neither.

        `summary` says why. It is too high where the guard acted more than once, or once and the loss stands above its
        first; fine where the spectral cap cut the hidden matrices' steps to 0.05 to 0.3 of their norm, on average over
        the steps before the decay, and the guard never acted: 42 of 45 such runs ended within 0.1 of the best of all
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
        state, held = self._groups.state, " (held)" if self._share.active else ""
        rates = sorted({f"{float(lr):.3g}" for lr in self._rates.last}, key=float)
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
        self._steps.trains = self._steps.trains or (isinstance(loss, Tensor) and loss.requires_grad)
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
        if self._groups.state.step > 0:
            raise ValueError(
                f"calibrate looks before the first step, and {self._groups.state.step} were made; call it first"
            )
        with torch.no_grad():
            self._loss.add(closure())
        loss = self._loss.take().result()
        self._start(check_finite("the loss to calibrate on", math.nan if loss is None else loss))
        self._calibrated = True

    def discard(self) -> None:
        """Forget what was observed since the last `step`: its optimizer step was skipped.

        Only for hosts that then don't call `step` at all; `step` itself drops the loss of a skipped step.
        """
        self._loss.clear()
        if self._may_start and self._has_its_turn():  # what it started on is forgotten too
            self._start(None, shown=True)

    def before_step(self, closure: bool = False) -> None:
        """Set the rates of the step that is about to be made: the optimizer's hook calls it as `step` begins.

        For hosts whose loss or gradients are made inside `optimizer.step(closure)`: call it as soon as they are there.

        Args:
            closure: Whether the gradients are yet to be computed, within the step.
        """
        if not self._has_its_turn() or self._another() is not None or self._rates.put_to_0:
            return
        if self._groups.state.step == 0 and self._loss.ranks > 1:
            check_joined(self)
        starts = self._may_start
        if self.cap is None and not starts:
            return
        self._join()
        # First: under Join a rank without batches can measure its step only after it, and ranks exchange in one order.
        loss = self._loss.peek().result() if starts and self.schedule.rule.needs_loss else None
        self._share.before(closure=closure)
        if starts:
            self._start(loss if loss is not None and math.isfinite(loss) else None)
        else:
            self._set_rates()

    def after_step(self, skipped: float | Tensor = 0.0) -> None:
        """Count a step: the optimizer's hook calls it as `step` ends.

        For hosts that move the weights without calling the optimizer's `step`.

        Args:
            skipped: Above 0 where the step was skipped after all; a tensor on a device is read one step late.
        """
        self._share.after()
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
            self._restart()
            return
        self._join()
        other = self._another()
        if loss is not None:
            if (said := misuse.not_a_loss(loss)) is None:
                self.observe(loss)
            else:
                self._warn_once("epoch", said)
        made = self._steps.made
        skipped = self._steps.called(self.optimizer)
        if skipped is None:
            self.discard()
            return
        if other is not None and other._groups.state.step > 0 and other._steps.made == 0 < made:
            self._warn_once(
                "another",
                f"two AdaptiveWarmup schedulers step for one {type(self.optimizer).__name__}, and the later one has "
                "the last word: call step() of one of them only",
            )
        self._take_charge()
        exchanged = self._loss.exchange(skipped, alone=not self._groups.needs_loss)
        self._warn_without_losses(exchanged.loss)
        if exchanged.skipped:  # on a device the step before the one just made, which the last call has counted
            return
        self._step_count += 1
        self.last_epoch += 1
        self._advance(exchanged.loss)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rates of the next step, one a group; nothing is changed."""
        self._join()
        return self._rates.scaled(self._share.applied(self._groups.rates(self.base_lrs)))

    def get_last_lr(self) -> list[float | Tensor]:
        """Return the learning rates of the groups, as last set; before the first step, those that it will be made at.

        These can change until then with the loss that is observed. (Of several ranks each sees its own loss here.)
        """
        if self._may_start and not self._loss.empty and self._has_its_turn():
            self._join()
            # Nothing is kept of it: another rank has another loss, or is not asked.
            kept, loss = (self._groups.state, self._groups.own), self._loss.local()
            self._begin(loss if math.isfinite(loss) else None)
            rates = self.get_lr()
            self._groups.state, self._groups.own = kept
            return rates
        return self._rates.last

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
        self._join()
        groups = zip(self._groups.plans, self.base_lrs, strict=True)
        self.base_lrs = [float(base) * factor if plan.scheduled else base for plan, base in groups]
        self._note(f"peak scaled by {factor:.4g}", self.factor, self.factor)
        self._set_rates()

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the scheduler's state: plain Python values (and the cap's tensors), no reference to the optimizer."""
        self._join()
        late = self._loss.settled()
        history = self._history.to_dict()
        return {
            "version": STATE_VERSION,
            **self._groups.to_dict(),
            **self._rates.to_dict(),
            **self._share.to_dict(),
            "late": None if late is None else list(late),
            "events": history.pop("events"),
            "history": history,
            "calibrated": self._calibrated,
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
        saved = self._current_form(state_dict)
        peaks, scales = self._rates.read(saved)
        plans, state, own = self._groups.read(self.optimizer, saved)
        late = None if saved["late"] is None else Exchanged(*saved["late"])
        history = History.from_dict({**saved["history"], "events": saved["events"]})
        self._share.load(saved)
        misuse.warn_of_peaks(saved["base_lrs"], self.base_lrs)
        self._rates.peaks, self._rates.scales = peaks, scales
        self._groups.plans, self._groups.state, self._groups.own = plans, state, own
        self._share.regroup(plans)
        self._history = history
        self._calibrated = saved["calibrated"]
        self.last_epoch = saved["last_epoch"]
        self._step_count = saved["_step_count"]
        self._loss.restore(late)
        self._steps.reset()
        self._take_charge()
        if self._has_its_turn():
            self._write()

    def _current_form(self, state: Any) -> dict[str, Any]:
        """Return a state in the form of this version; one of version 1 is turned into it."""
        if not isinstance(state, dict) or "version" not in state:
            raise ValueError("this is not the state of an AdaptiveWarmup: it has no version")
        saved = scheduler_of_version_1(state) if state["version"] == 1 else state
        if saved["version"] != STATE_VERSION:
            raise ValueError(
                f"this scheduler state has version {saved['version']!r}, this warmgap reads {STATE_VERSION} and 1: "
                "load it with the warmgap that saved it"
            )
        if saved.keys() != (keys := self.state_dict().keys()):
            raise ValueError(
                f"this is not the state of an AdaptiveWarmup: it needs {sorted(keys)}, got {sorted(saved)}"
            )
        return saved

    def _go_on_at(self, steps: int) -> None:
        """Move on to where this is after so many steps without a loss."""
        self._groups.go_on_at(steps)
        self.last_epoch, self._step_count = steps, steps + 1
        self._write()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles; the losses on their way are read."""
        self._loss.settled()
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _connect(self.optimizer, self)  # a copied optimizer has lost its hooks

    # Rates

    def _update_lr(self, epoch: int | None = None) -> None:
        """Set the rates without a step: what `SequentialLR` asks for when it hands over to this scheduler."""
        if epoch is not None:
            self.last_epoch = epoch
        self._take_charge()
        self._loss.clear()  # those of the other scheduler's steps
        self._steps.reset()
        self._restart()

    def _restart(self) -> None:
        """Start over: the peaks are the groups', and the first rates are shown as they will be with evidence."""
        self._rates.restart()
        if self._may_start:
            self._begin(None, shown=True)
        self._write()

    @property
    def _may_start(self) -> bool:
        """Whether the first step is still to be made, and what it starts on is open."""
        return self._groups.state.step == 0 and not self._calibrated

    def _begin(self, loss: float | None, shown: bool = False) -> None:
        """Make the state before the first step from what is known then: the loss, or the size of the step."""
        self._groups.start(loss, known=loss is not None or shown or self._share.knows_size)

    def _start(self, loss: float | None, shown: bool = False) -> None:
        """Begin, and set the rates."""
        self._begin(loss, shown)
        self._set_rates()

    def _write(self) -> None:
        self._rates.write(self._share.applied(self._groups.rates(self.base_lrs)))

    def _set_rates(self) -> None:
        """Carry on what others did to the rates, hold the hidden matrices under their cap, and write the rates."""
        self._take_charge()
        self._join()
        self._carry()
        self._hold()

    def _hold(self) -> None:
        """Hold the hidden matrices of the next step under their cap, and write the rates."""
        rates = self._groups.rates(self.base_lrs)
        if (event := self._share.update(self._groups.state.factor, rates)) is not None:
            self._note(*event)
        self._rates.write(self._share.applied(rates))

    def _carry(self) -> None:
        """Keep what others have multiplied the rates by since they were written."""
        if (scales := self._rates.carry()) is None:
            return
        before, after = scales
        self._history.note_outside(self._groups.state.step, self.factor * before, self.factor * after)
        if self._history.outside == _IN_A_ROW and self.schedule.decay != "constant":
            self._warn_once(
                "outside",
                "something else (another scheduler?) changes the rate at every step too, and both multiply: "
                "take it away, or give decay='constant' where the decay is to be its own",
            )

    # Steps

    def _advance(self, loss: float | None) -> None:
        self._carry()
        before, plans = self._groups.state, self._groups.plans
        if before.step == 0:
            if (share := self._groups.limited(self.base_lrs)) < 1.0:
                self._note(f"peak limited to {LARGEST_ENTRY} beside Muon's matrices", 1.0, share, "other")
            groups = zip(plans, self.optimizer.param_groups, strict=True)
            misuse.warn_of_sum(loss, (group for plan, group in groups if plan.role == "head"))
        self._history.add(before.step, loss, self._share.largest(before.factor), before.base)
        if before.phase != "decay":
            self._history.at_peak(min(1.0, self._share.room), self._share.room)
            due = before.step + 1 == before.decay_start == self._history.peak_steps  # and all steps were seen
            if due and self._share.groups and self._history.share > LOW:
                self._groups.change(lambda schedule, state: schedule.hold_on(state))
        self._share.made = before.factor * self._share.factor
        self._groups.change(lambda schedule, state: schedule.step(state, loss))
        self._history.log(before, self._groups.state)
        self._hold()

    def _change(self, change: Callable[[Schedule, ScheduleState], ScheduleState]) -> None:
        before = self._groups.state
        self._groups.change(change)
        self._history.log(before, self._groups.state)
        self._set_rates()

    def _join(self) -> None:
        """Take in groups that were added since the scheduler was made, at the factor of the moment."""
        groups, known = self.optimizer.param_groups, len(self.base_lrs)
        if len(groups) == known:
            return
        if len(groups) < known:
            raise ValueError(
                f"the optimizer has {len(groups)} parameter groups, and had {known} when this scheduler was made: make "
                "a new scheduler for it"
            )
        self._groups.plan(self.optimizer)
        self._share.regroup(self._groups.plans)
        self._rates.join()
        for index, plan in enumerate(self._groups.plans[known:], known):
            self._note(f"parameter group {index} joined ({plan.label})", self.factor, self.factor)

    def _has_its_turn(self) -> bool:
        """Return whether the rates are this scheduler's to set: a `SequentialLR` leaves those that wait at -1."""
        return bool(self.last_epoch >= 0)

    def _another(self) -> AdaptiveWarmup | None:
        """Return the scheduler that sets the optimizer's rates in place of this one."""
        one: AdaptiveWarmup | None = getattr(self.optimizer, IN_CHARGE)()
        return None if one is self else one

    def _take_charge(self) -> None:
        """Set the optimizer's rates from now on: of several schedulers the one that was used last does."""
        if getattr(self.optimizer, IN_CHARGE)() is not self and self._has_its_turn():
            setattr(self.optimizer, IN_CHARGE, weakref.ref(self))
            self._rates.accept()  # what the other set is nothing to carry on

    def _optimizer_loaded(self) -> None:
        """Take the rates that an optimizer's state has brought; a fresh schedule keeps its own peak."""
        if not self._has_its_turn() or self._another() is not None:
            return
        self._join()  # a host gave it back the groups that were added in the saved run
        if self._groups.state.step == 0:
            self._write()
            for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
                group["initial_lr"] = float(base) / group.get("lr_scale", 1.0)
        self._rates.accept()

    # Events and warnings

    def _note(self, reason: str, before: float, after: float, role: str | None = None) -> None:
        self._history.note(self._groups.state.step, reason, before, after, role)

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
    """Have the optimizer call its scheduler, which it does not keep alive."""
    watch(optimizer, scheduler)
    owner = weakref.ref(scheduler)
    setattr(optimizer, IN_CHARGE, owner)

    def loaded(_: Optimizer) -> None:
        if (alive := owner()) is not None:
            alive._optimizer_loaded()

    optimizer.register_load_state_dict_post_hook(loaded)
