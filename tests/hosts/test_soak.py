"""Random programs: whatever a loop does, the promises hold at every step, and bad input is a clear error.

2,000 steps by themselves; more by hand: `WARMGAP_SOAK=100000 pytest tests/hosts/test_soak.py --timeout 0`. And a
training that is killed at random moments: `python tests/hosts/kills_worker.py 500` kills 500 times.
"""

from __future__ import annotations

import copy
import io
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from torch import nn

from warmgap.torch import AdaptiveWarmup, Gluon, Lion, Muon, NormalizedSGD, Scion, Signum, split_parameters

STEPS = int(os.environ.get("WARMGAP_SOAK", "2000"))
LENGTH = 40  # of one program
PEAK = 1e-2
OPTIMIZERS: dict[str, Any] = {
    "Muon": Muon,
    "Lion": Lion,
    "Signum": Signum,
    "NormalizedSGD": NormalizedSGD,
    "Scion": Scion,
    "Gluon": Gluon,
    "AdamW": torch.optim.AdamW,
    "fused AdamW": lambda groups, lr: torch.optim.AdamW(groups, lr=lr, fused=True),
    "SGD, tensor rate": lambda groups, lr: torch.optim.SGD(groups, lr=torch.tensor(lr, dtype=torch.float64)),
}
RULES = ("auto", "loss-ratio", "power", "linear", "gap")
LOSSES = st.one_of(
    st.floats(0.1, 20.0), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -3.0, 1e30, 1e-30]), st.none()
)


class Run:
    """A model, its optimizer, its scheduler and a gradient scaler."""

    def __init__(self, name: str, rule: str, decay: str, cap: Any, total: int) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 7))
        self.optimizer = OPTIMIZERS[name](split_parameters(self.model), lr=PEAK)
        norm = "spectral" if rule == "gap" else "auto"
        self.scheduler = AdaptiveWarmup(
            self.optimizer, total, rule=rule, norm=norm, target_loss="auto", decay=decay, cap=cap
        )
        self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def parts(self) -> list[Any]:
        return [self.model, self.optimizer, self.scheduler, self.scaler]


class Programs(RuleBasedStateMachine):
    @initialize(
        name=st.sampled_from(list(OPTIMIZERS)),
        rule=st.sampled_from(RULES),
        decay=st.sampled_from(["cosine", "wsd", "linear", "inverse-sqrt", "constant"]),
        cap=st.sampled_from(["auto", None, 0.03]),
        total=st.integers(1, 60),
    )
    def start(self, name: str, rule: str, decay: str, cap: Any, total: int) -> None:
        self.made, self.asked, self.seen = 0, (name, rule, decay, cap, total), False
        self.run = Run(*self.asked)
        self.factors: list[float] = []
        self.peak = PEAK

    @rule(losses=st.lists(LOSSES, min_size=1, max_size=3), overflow=st.booleans(), weight=st.sampled_from([1, 5, 0.5]))
    def step(self, losses: list[float | None], overflow: bool, weight: float) -> None:
        run = self.run
        tokens = torch.arange(7)
        for loss in losses:
            run.scaler.scale(nn.functional.cross_entropy(run.model(tokens), tokens) / len(losses)).backward()
            if loss is not None:
                run.scheduler.observe(loss, weight=weight)
        skips = overflow and self.made % 3 == 1
        if skips:
            weights: Any = run.model[0].weight
            weights.grad.fill_(math.inf)
        before = run.scheduler.last_epoch
        try:
            run.scaler.step(run.optimizer)
            run.scaler.update()
            if not skips:
                self.factors.append(run.scheduler.factor)
            run.scheduler.step()
        except ValueError as error:  # a rule that needs a positive first loss says so, at the first finite one
            assert not self.seen
            assert "loss" in str(error)  # noqa: PT017
            self.start(*self.asked)
            return
        run.optimizer.zero_grad()
        self.made += not skips
        known = [loss for loss in losses if loss is not None]
        self.seen |= bool(known) and not skips and all(abs(loss) < 1e20 for loss in known)
        assert run.scheduler.last_epoch == before + (not skips)

    @rule()
    def resume(self) -> None:
        file = io.BytesIO()
        torch.save([part.state_dict() for part in self.run.parts()], file)
        file.seek(0)
        rates = [float(group["lr"]) for group in self.run.optimizer.param_groups]
        self.run = Run(*self.asked)
        for part, state in zip(self.run.parts(), torch.load(file, weights_only=True), strict=True):
            part.load_state_dict(state)
        assert [float(group["lr"]) for group in self.run.optimizer.param_groups] == rates

    @rule(more=st.integers(1, 40))
    def extend(self, more: int) -> None:
        if self.asked[1] == "linear":  # by name its length follows from that of the run
            return
        factor = self.run.scheduler.factor
        self.run.scheduler.extend(self.run.scheduler.last_epoch + more)
        self.asked = (*self.asked[:-1], self.run.scheduler.total_iters)
        assert self.run.scheduler.factor == pytest.approx(factor)

    @rule(steps=st.integers(1, 20))
    def decay_now(self, steps: int) -> None:
        if self.asked[1] == "linear":
            return
        factor = self.run.scheduler.factor
        self.run.scheduler.decay_now(steps)
        self.asked = (*self.asked[:-1], self.run.scheduler.total_iters)
        assert self.run.scheduler.factor == pytest.approx(factor)

    @rule(factor=st.sampled_from([0.5, 2.0]), outside=st.booleans())
    def scale(self, factor: float, outside: bool) -> None:
        if outside and self.made >= self.run.scheduler.total_iters:
            return
        if outside:
            for group in self.run.optimizer.param_groups:
                group["lr"] *= factor  # a tensor is changed in place
            self.run.scheduler.extend(self.run.scheduler.total_iters)  # takes note of it, as the next step would
        else:
            self.run.scheduler.scale_peak(factor)
        self.peak *= factor

    @rule()
    def copied(self) -> None:
        self.run = copy.deepcopy(self.run)

    @rule(bad=st.sampled_from(["two elements", "word", "weight", "total"]))
    def bad_input(self, bad: str) -> None:
        with pytest.raises((ValueError, TypeError)):  # noqa: PT012
            if bad == "two elements":
                self.run.scheduler.observe(torch.ones(2))
            elif bad == "word":
                self.run.scheduler.observe("loss")  # type: ignore[arg-type]
            elif bad == "weight":
                self.run.scheduler.observe(1.0, weight=-1.0)
            else:
                self.run.scheduler.extend(0)

    @invariant()
    def the_promises_hold(self) -> None:
        if not hasattr(self, "run"):
            return
        scheduler = self.run.scheduler
        assert 0.0 < scheduler.factor <= 1.0
        for group, rate in zip(self.run.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            assert 0.0 < float(group["lr"]) <= self.peak * (1.0 + 1e-9)
            assert float(group["lr"]) == float(rate)
        if len(self.factors) > 1:
            assert self.factors[-1] <= 2.0 * self.factors[-2] * (1.0 + 1e-12)
        assert scheduler.last_epoch == self.made
        if self.made > scheduler.total_iters >= 20:  # in shorter ones doubling takes longer than the run
            assert scheduler.phase == "decay" or not scheduler.schedule.rule.max_warmup
        assert all(math.isfinite(event.after) for event in scheduler.events)


def test_the_promises_hold_in_random_programs() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # programs as mad as these are warned of
        run_state_machine_as_test(
            Programs,
            settings=settings(
                max_examples=max(1, STEPS // LENGTH),
                stateful_step_count=LENGTH,
                deadline=None,
                derandomize="WARMGAP_SOAK" not in os.environ,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_promise_4_a_training_that_is_killed_at_random_moments_ends_with_the_same_bits() -> None:
    worker = Path(__file__).with_name("kills_worker.py")
    done = subprocess.run([sys.executable, str(worker), "8"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kills"] == 8
