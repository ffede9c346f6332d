"""Warm-up rules: losses in, learning-rate factor out, and an end that the rule finds itself.

One published rule a file.
"""

from warmgap.rules._rule import Rule, RuleState
from warmgap.rules.gap import GapRule
from warmgap.rules.linear import LinearRule
from warmgap.rules.loss_ratio import LossRatioRule
from warmgap.rules.measured import MeasuredRule
from warmgap.rules.power import PowerRule
from warmgap.rules.ramp import RampRule

__all__ = ["GapRule", "LinearRule", "LossRatioRule", "MeasuredRule", "PowerRule", "RampRule", "Rule", "RuleState"]
