import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from warmgap.lab.sampler import Sampler, cut


@given(
    windows=st.integers(1, 40),
    rest=st.integers(0, 4),
    length=st.integers(5, 9),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
def test_an_epoch_shows_every_window_once(windows: int, rest: int, length: int, batch_size: int, seed: int) -> None:
    tokens = (windows + 1) * length + rest
    sampler = Sampler(tokens, length, batch_size, seed)
    assert sampler.windows == windows
    steps = -(-2 * windows // batch_size)
    starts = np.concatenate([sampler.starts(step) for step in range(steps)])
    for epoch in range(2):
        part = np.sort(starts[epoch * windows : (epoch + 1) * windows])
        assert len(part) == windows
        assert set(np.diff(part)) <= {length}
        assert part[0] >= 0
        assert part[-1] + length + 1 <= tokens


def test_a_step_depends_on_the_seed_and_the_step_alone() -> None:
    sampler = Sampler(10_000, 16, 8, 0)
    forward = [sampler.starts(step) for step in range(200)]
    for step in reversed(range(200)):
        np.testing.assert_array_equal(Sampler(10_000, 16, 8, 0).starts(step), forward[step])
    assert not np.array_equal(Sampler(10_000, 16, 8, 1).starts(0), forward[0])


def test_a_text_shorter_than_a_sequence_has_no_window() -> None:
    assert Sampler(3, 16, 8, 0).windows == 0


def test_cut_takes_one_token_more_than_it_predicts() -> None:
    tokens = np.arange(100, dtype=np.uint16)
    windows = cut(tokens, np.array([0, 40]), 4)
    np.testing.assert_array_equal(windows, [[0, 1, 2, 3, 4], [40, 41, 42, 43, 44]])
    assert windows.dtype == np.int64
