"""What a scheduler says about itself."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from warmgap.torch import AdaptiveWarmup, Lion, split_parameters
from warmgap.torch.explain import History


def run(losses: list[float], lr: float = 1e-3, total: int | None = None, **settings: Any) -> AdaptiveWarmup:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 16))
    optimizer = Lion(split_parameters(model), lr=lr)
    scheduler = AdaptiveWarmup(optimizer, total or len(losses), **settings)
    for t, loss in enumerate(losses):
        tokens = torch.randint(0, 16, (8, 4), generator=torch.Generator().manual_seed(t))
        nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        scheduler.observe(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return scheduler


FALLING = [5.0 * 0.99**t for t in range(150)]


def test_a_line_says_where_it_stands() -> None:
    scheduler = run(FALLING[:5], cap=None)
    assert repr(scheduler) == (
        "AdaptiveWarmup(step 5 of 5, decay, factor 0.5, lr 0.0005, rule 'spectral', decay 'cosine', 2 events)"
    )


LATE = [5.0 * 0.99**t for t in range(600)]


@pytest.mark.parametrize(
    ("losses", "settings", "verdict", "why"),
    [
        (FALLING, {"lr": 1e-5}, "unknown", "No step came near the spectral cap"),
        (FALLING, {"lr": 0.1}, "unknown", "cut the steps of the hidden matrices to 0.04 of their spectral norm"),
        (FALLING, {"lr": 0.01}, "unknown", "Whether a higher one would do better"),
        (FALLING, {"lr": 0.02}, "fine", "and the loss gave no cause to halve the rate"),
        (FALLING, {"cap": None}, "unknown", "There is no sign that it is too high. Whether a higher one would do"),
        (FALLING[:20], {}, "unknown", "There is no verdict before 50 steps at the peak"),
        ([*FALLING[:60], *[4.5] * 90], {}, "unknown", "halved the rate once, at step 6"),
        ([*LATE[:150], *[9.0] * 60, *[13.0] * 390], {}, "too high", "halved the rate 2 times, as the loss rose or was"),
        ([0.01 * t for t in range(600)], {}, "unknown", "The loss rose at any rate, so it says nothing"),
        ([*FALLING[:60], *[5.2] * 90], {}, "too high", "The loss stands at 5.2, above the 5 of the first step"),
    ],
)
@pytest.mark.filterwarnings("ignore:the loss (goes on|has) ris")
def test_the_verdict_claims_no_more_than_was_seen(
    losses: list[float], settings: dict[str, Any], verdict: str, why: str
) -> None:
    scheduler = run(losses, **settings)
    assert scheduler.verdict == verdict
    last = scheduler.summary().splitlines()[-1]
    assert last.startswith(f"Peak {settings.get('lr', 1e-3):.3g}: {verdict}. ")
    assert why in last
    assert "would do for them" not in last
    assert scheduler.summary().startswith(f"Step {len(losses)} of {len(losses)}, phase decay; next learning rate: hid")


def test_a_summary_tells_the_course_of_what_the_cap_held() -> None:
    scheduler = run(FALLING, lr=0.02)
    held = [row[2] for row in scheduler._history.rows]
    course = f"{held[0]:.2g} at step 0, {held[89]:.2g} at step 89, {scheduler.factor:.2g} now; of the others 1, 1, 0"
    assert f"Rate / peak of the largest directions of the hidden matrices: {course}" in scheduler.summary()
    assert "Rate / peak" not in run(FALLING[:60], lr=1e-5).summary()


def test_a_summary_tells_the_events_and_the_gap() -> None:
    summary = run(FALLING[:40], rule="gap", target_loss=0.0).summary()
    assert "The rule follows the gap" in summary
    assert "step 0, loss 5: first loss seen" in summary


def test_a_summary_tells_when_the_decay_begins_until_it_does() -> None:
    scheduler = run(FALLING[:13], total=20, cap=None)
    assert scheduler.phase == "decay"
    assert "The decay begins" not in scheduler.summary()
    assert "The decay begins at step 12." in run(FALLING[:11], total=20, cap=None).summary()


def test_a_summary_shows_the_last_eight_events() -> None:
    scheduler = run(FALLING[:2], total=20, cap=None)
    for _ in range(7):
        scheduler.scale_peak(1.0)
    assert len(scheduler.events) == 8
    assert "of which the last" not in scheduler.summary()
    scheduler.scale_peak(1.0)
    assert "9 events, of which the last:\n" in scheduler.summary()
    assert scheduler.summary().count(", loss ") == 8


def test_a_verdict_takes_fifty_steps_at_the_peak() -> None:
    short, long = run(FALLING[:81], cap=None), run(FALLING[:83], cap=None)
    assert "There is no verdict before 50 steps at the peak; this run had 49." in short.summary()
    assert "There is no sign that it is too high." in long.summary()


@pytest.mark.parametrize(
    ("share", "room", "verdict"),
    [
        (0.049, 0.01, "unknown"),
        (0.051, 0.01, "fine"),
        (0.299, 0.999, "fine"),
        (0.301, 0.01, "unknown"),
        (0.2, 1.0, "unknown"),
    ],
)
def test_a_peak_is_fine_where_the_cap_let_a_twentieth_to_three_tenths_pass(
    share: float, room: float, verdict: str
) -> None:
    scheduler = run(FALLING[:3], total=200)
    scheduler._history.peak_steps, scheduler._history.held, scheduler._history.room = 60, 60 * share, room
    assert scheduler.verdict == verdict
    assert ("No step came near" in scheduler.summary()) == (room == 1.0)


def test_a_loss_stands_above_the_first_ones_where_all_of_the_last_sixteen_do() -> None:
    scheduler = run(FALLING[:3], total=200, cap=None)
    losses = [5.0, 5.0, 5.3, 5.5, *[4.0] * 40, *[5.4] * 16]
    scheduler._history.rows = [(step, loss, 1.0, 1.0) for step, loss in enumerate(losses)]
    scheduler._history.peak_steps = len(losses)
    assert "nothing was learned" in scheduler.summary()
    scheduler._history.rows[-1] = (len(losses), 5.3, 1.0, 1.0)
    assert "nothing was learned" not in scheduler.summary()


def test_the_picture_shows_rate_loss_and_events() -> None:
    scheduler = run(FALLING, lr=0.1)
    losses, factors = scheduler.plot().axes
    assert list(losses.lines[0].get_ydata()) == FALLING
    hidden, others = (line.get_ydata() for line in factors.lines[:2])
    assert sum(a < b for a, b in zip(hidden[:60], others[:60], strict=True)) > 50
    events = {event.step for event in scheduler.events}
    assert {line.get_xdata()[0] for line in losses.lines[1:]} == events
    html = scheduler._repr_html_()
    assert "data:image/png;base64," in html
    assert "cut the steps" in html


def test_without_matplotlib_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = run(FALLING[:5])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"plot\(\) needs matplotlib \(pip install matplotlib\)"):
        scheduler.plot()
    assert "Step 5 of 5" in scheduler._repr_html_()
    assert "needs matplotlib" in scheduler._repr_html_()


def test_a_history_stays_small() -> None:
    history = History()
    for step in range(5000):
        history.add(step, 1.0 / (1 + step), 0.5, 1.0)
    assert 256 <= len(history.rows) <= 512
    assert {row[0] % 16 for row in history.rows} == {0}
    assert history.rows[-1][0] > 4900
    assert History.from_dict(history.to_dict()) == history
    with pytest.raises(ValueError, match="not the history"):
        History.from_dict({"rows": []} | {"lines": 3})
