"""States that the first version saved: read where the rule is still here, else refused with what to do."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tests.golden.courses import COURSES, TOTAL

from warmgap import Schedule
from warmgap.rules import GapRule, LinearRule, LossRatioRule, MeasuredRule, PowerRule, Rule, SpectralRule

SAVED: dict[str, Any] = json.loads((Path(__file__).parent / "version_1.json").read_text())
"""By rule: its states before some steps of a run, and the factors of the whole run."""

RULES: dict[str, Rule[Any]] = {
    "gap": GapRule(kappa=65280, target_loss=-9.0, roles="all"),
    "gap-auto": GapRule(kappa=300.0, roles="all"),
    "power": PowerRule(roles="all"),
    "loss-ratio": LossRatioRule(roles="all"),
    "measured": MeasuredRule(K0=9.0, K1=-1.0, K2=1.0, target_loss=-9.0, roles="all"),
    "linear": LinearRule(17),
}
LOSSES = COURSES["falls, noisy"]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("index", range(5))
def test_a_run_goes_on(name: str, index: int) -> None:
    data, factors = SAVED[name]["states"][index], SAVED[name]["factors"]
    schedule = Schedule(TOTAL, RULES[name])
    state = schedule.from_dict(data)
    step = data["step"]
    assert (state.step, state.handover) == (step, data["handover"])
    assert state.factor == state.base == pytest.approx(data["factor"], rel=1e-9)
    assert schedule.from_dict(schedule.to_dict(state)) == state
    for t in range(step, TOTAL):
        if data["handover"] is not None or name == "linear":
            assert state.factor == pytest.approx(factors[t], rel=1e-7)
        before, state = state, schedule.step(state, LOSSES[t])
        assert state.factor <= 2.0 * before.factor
    assert state.phase == "decay"


def test_the_rules_state_is_the_same() -> None:
    schedule = Schedule(TOTAL, RULES["gap"])
    for data in SAVED["gap"]["states"][:4]:
        mine = schedule.init()
        for loss in LOSSES[: data["step"]]:
            mine = schedule.step(mine, loss)
        read = schedule.from_dict(data)
        assert read.rule.losses.window == pytest.approx(mine.rule.losses.window)
        assert read.rule.losses[1:] == pytest.approx(mine.rule.losses[1:])
        assert read.rule.descent.best_loss == pytest.approx(mine.rule.descent.best_loss)
        assert read.rule.share == pytest.approx(mine.rule.share)
        assert read.seen == mine.seen


def test_a_warm_up_of_all_weights_is_not_made_one_of_the_hidden_matrices() -> None:
    schedule = Schedule(TOTAL, GapRule(kappa=65280, target_loss=-9.0))
    with pytest.raises(ValueError, match="give the rule roles='all' to go on with it"):
        schedule.from_dict(SAVED["gap"]["states"][2])
    data = SAVED["gap"]["states"][4]  # past its warm-up there is no difference
    assert schedule.from_dict(data).base == pytest.approx(data["factor"], rel=1e-9)


def test_another_length_is_an_extension() -> None:
    data = SAVED["gap"]["states"][4]
    state = Schedule(300, RULES["gap"]).from_dict(data)
    assert state.total_iters == 300
    assert state.factor == pytest.approx(data["factor"], rel=1e-9)


def test_what_does_not_fit_is_refused() -> None:
    data = SAVED["gap"]["states"][2]
    with pytest.raises(ValueError, match=r"other settings \(rule: saved .*65280"):
        Schedule(TOTAL, GapRule(kappa=9.0, target_loss=-9.0, roles="all")).from_dict(data)
    with pytest.raises(ValueError, match=r"its rule 'pace', which is no more: finish that run with warmgap 0.1, or"):
        Schedule(TOTAL, SpectralRule()).from_dict(SAVED["pace"]["states"][0])
    for key in ("rule", "step", "config"):
        broken = copy.deepcopy(data)
        del broken[key]
        with pytest.raises(ValueError, match="this state of version 1 is damaged or was edited"):
            Schedule(TOTAL, RULES["gap"]).from_dict(broken)


@pytest.mark.parametrize("index", range(5))
def test_a_line_by_name_is_read_where_it_has_the_same_length(index: int) -> None:
    data = SAVED["linear"]["states"][index]
    state = Schedule(TOTAL, LinearRule(17)).from_dict(data)
    share = Schedule(TOTAL, LinearRule(0.11)).from_dict(data)
    assert int(0.11 * TOTAL) == 17
    assert share == state
    with pytest.raises(ValueError, match="other settings"):
        Schedule(TOTAL, LinearRule(0.2)).from_dict(data)
