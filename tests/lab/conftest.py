"""A cache of tokens for the session, and a text of its own."""

from pathlib import Path

import pytest

from warmgap.lab.config import TrainConfig

LINES = [f"Line {n} tells of {n * 7919 % 1000} apples and {n * 104729 % 997} pears.\n" for n in range(1500)]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARMGAP_CACHE", str(cache))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(LINES))
    return path


@pytest.fixture
def small(text: Path) -> TrainConfig:
    """Fourteen steps of half a hundred tokens."""
    return TrainConfig(
        corpus=str(text),
        steps=14,
        batch_size=4,
        sequence_length=12,
        eval_every=5,
        eval_tokens=500,
        save_every=0,
        threads=1,
    )


@pytest.fixture
def images() -> TrainConfig:
    """Ten steps of a small model on images: the quickest run there is."""
    return TrainConfig(corpus="digits", model="mlp", optimizer="lion", steps=10, batch_size=8, eval_every=0, threads=1)
