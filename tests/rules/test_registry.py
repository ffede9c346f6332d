from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from warmgap import Schedule, rules
from warmgap._ops import Floats, Ops
from warmgap.rules import NAMES, GapRule, LinearRule, LossRatioRule, PowerRule, Rule, RuleState, SpectralRule, by_name
from warmgap.rules._rule import RULES


def test_the_names() -> None:
    assert NAMES == ("auto", "gap", "linear", "loss-ratio", "power", "spectral")
    made = [by_name(name, 200, kappa=lambda: 9.0) for name in NAMES]
    assert made == [
        SpectralRule(), GapRule(kappa=9.0), LinearRule(0.1), LossRatioRule(), PowerRule(), SpectralRule()
    ]  # fmt: skip
    assert all(RULES[rule.name] is type(rule) and rule.title for rule in made)
    assert [sorted(rule.uses) for rule in made] == [
        ["loss"], ["loss", "norm", "target"], [], ["loss"], ["loss", "target"], ["loss"]
    ]  # fmt: skip


def test_a_name_with_settings() -> None:
    assert by_name("loss-ratio(level=4.0)", 100) == LossRatioRule(level=4.0)
    assert by_name("gap(kappa=9.0, sigma=0.1, max_warmup=None, roles='all')", 100, target_loss=1.0) == GapRule(
        kappa=9.0, sigma=0.1, max_warmup=None, roles="all", target_loss=1.0
    )
    assert by_name("linear(iters=3)", 100) == LinearRule(3)
    assert by_name("auto(hold=0.2)", 100, floor=0.1) == SpectralRule(hold=0.2, floor=0.1)
    assert by_name("measured(K0=4, K1=1, K2=1, target_loss=1.0)", 100).name == "measured"
    assert by_name("power", 100, floor=0.1, rho=3.0) == PowerRule(floor=0.1, rho=3.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cosine", "rule must be one of 'auto', 'gap', .* or a rule of warmgap.rules, got 'cosine'"),
        ("linear(", r"or one with settings such as 'loss-ratio\(level=4.0\)', got 'linear\('"),
        ("linear(3)", "or one with settings such as"),
        ("linear(iters=open('x'))", "or one with settings such as"),
        ("loss-ratio(C=4.0)", "the rule 'loss-ratio' has no C; its settings are deadlock_exit, floor, level"),
        ("gap", r"the gap rule needs the constant of a norm: GapRule\(kappa="),
        ("measured(K0=1.0)", r"the rule 'measured' needs K1, K2: 'measured\(K1=...\)'"),
    ],
)
def test_a_bad_name_is_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        by_name(name, 100)
    with pytest.raises(ValueError, match="total_iters must be at least 1"):
        by_name("auto", 0)


@pytest.mark.parametrize("name", ["auto", "linear", "loss-ratio"])
def test_a_target_loss_that_has_no_effect_is_named(name: str) -> None:
    with pytest.warns(UserWarning, match=r"target_loss=3.2 has no effect: the rule '.*' uses no target loss"):
        by_name(name, 100, target_loss=3.2)


def test_a_new_rule_is_known_by_its_name() -> None:
    @dataclass(frozen=True)
    class Half(Rule[RuleState]):
        name: ClassVar[str] = "half"
        title: ClassVar[str] = "half the peak until a loss below 1"

        def init(self, total_iters: int) -> RuleState:
            return RuleState(0.5)

        def step(self, state: RuleState, loss: float, ops: Ops = Floats) -> RuleState:
            done = state.done | (loss < 1.0)
            return RuleState(ops.where(done, 1.0, 0.5), done)

    try:
        schedule = Schedule(10, by_name("half", 10))
        state = schedule.step(schedule.step(schedule.init(), 3.0), 0.5)
        assert (state.handover, state.factor) == (2, 1.0)
        assert schedule.from_dict(schedule.to_dict(state)) == state
    finally:
        del RULES["half"]


def test_settings_are_plain_values() -> None:
    for rule in (SpectralRule(), GapRule(kappa=1.0), LinearRule(3)):
        config = rule.config()
        assert config.pop("name") == rule.name
        assert config == dataclasses.asdict(rule)


def test_pace_is_gone_and_says_so() -> None:
    gone: Any = rules
    with pytest.raises(ImportError, match=r"PaceRule is gone: the default is warmgap.rules.SpectralRule"):
        from warmgap.rules import PaceRule  # noqa: F401
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        gone.Nothing  # noqa: B018


def test_settings_that_all_rules_share_are_given_by_name() -> None:
    with pytest.raises(TypeError, match="positional argument"):
        PowerRule(0.01)  # type: ignore[call-arg]
