from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmgap.lab.errors import UserError
from warmgap.lab.methods import DECAYS, RULES, Length, Method, decay_by_name, varied

NAMES = [
    "auto", "gap@all", "gap,sigma=0.01", "none", "linear:10%", "linear:400", "hold:40%", "geometric:40%@hidden",
    "linear:10%+hold:60%/linear", "hold:40%/1-sqrt", "loss-ratio,level=4@all",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_read_and_written(name: str) -> None:
    method = Method.parse(name)
    assert str(method) == name
    assert Method.parse(str(method)) == method
    assert method.adaptive == (name.partition("@")[0].partition(",")[0] in RULES)
    assert method.label


@given(
    st.sampled_from(["linear", "geometric"]),
    st.integers(1, 100).map(lambda share: f"{share}%") | st.integers(1, 10_000).map(str),
    st.sampled_from(["", "@hidden", "@all"]),
    st.sampled_from(["", "+hold:40%", "+hold:500"]),
    st.sampled_from(["", *(f"/{name}" for name in DECAYS)]),
)
def test_every_clock_schedule_has_one_name(shape: str, length: str, roles: str, hold: str, decay: str) -> None:
    name = f"{shape}:{length}{roles}{hold}{decay}"
    assert str(Method.parse(name)) == name


@pytest.mark.parametrize(
    "name",
    ["", "foo", "linear:x", "linear:-3", "linear:200%", "linear:nan%", "hold", "auto:3", "gap,level=1", "gap,sigma=x",
    "gap,sigma=1=2", "gap@head", "none:3", "linear:3,sigma=1", "gap+hold:40%", "hold:40%/foo"],
)  # fmt: skip
def test_what_is_no_method_is_told_in_a_sentence(name: str) -> None:
    with pytest.raises(UserError, match=r"^[A-Z].*[.]$"):
        Method.parse(name)


def test_a_method_must_end_within_the_run() -> None:
    Method.parse("linear:99").check(100)
    for name in ("linear:100", "hold:100%"):
        with pytest.raises(UserError, match="does not end within a run of 100 steps"):
            Method.parse(name).check(100)


def test_the_factors_of_a_clock_schedule() -> None:
    linear = Method.parse("linear:10%")
    assert linear.clock(0, 100, "cosine") == (0.01, 0.01)
    assert linear.clock(5, 100, "cosine") == pytest.approx((0.505, 0.505))
    assert linear.clock(10, 100, "cosine") == (1.0, 1.0)
    assert linear.clock(55, 100, "linear") == pytest.approx((0.5, 0.5))
    hidden = Method.parse("geometric:40%@hidden")
    assert hidden.clock(0, 100, "cosine") == (0.25, 1.0)
    assert hidden.clock(20, 100, "cosine") == (0.5, 1.0)
    held = Method.parse("linear:10%+hold:60%/1-sqrt")
    assert held.clock(59, 100, "cosine") == (1.0, 1.0)
    assert held.clock(70, 100, "cosine") == pytest.approx((0.5, 0.5))
    assert Method.parse("none").clock(0, 100, "cosine") == (1.0, 1.0)


def test_options_come_from_settings_too() -> None:
    assert str(Method.parse("gap").with_options(sigma=0.1, level=None)) == "gap,sigma=0.1"
    assert Method.parse("gap,sigma=0.1@all").rule_name == "gap(sigma=0.1, roles='all')"
    with pytest.raises(UserError, match="no use for level"):
        Method.parse("linear:10%").with_options(level=4.0)


def test_lengths_and_decays() -> None:
    assert [Length.parse(name).steps(300) for name in ("10%", "40", "0")] == [30, 40, 0]
    assert all(decay_by_name(name)(0.0) == 1.0 for name in DECAYS)


def test_options_are_varied_for_the_methods_that_have_them() -> None:
    assert varied(("gap@all", "none"), {"target": (1, 2), "sigma": (0.1,), "level": ()}) == (
        "gap,sigma=0.1,target=1@all", "gap,sigma=0.1,target=2@all", "none",
    )  # fmt: skip
    assert varied(("gap", "auto"), {}) == ("gap", "auto")
    with pytest.raises(UserError, match="No method of the sweep has a level"):
        varied(("gap", "none"), {"level": (4.0,)})
