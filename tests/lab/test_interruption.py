import os
import signal
import threading
from collections.abc import Iterator

import pytest

from warmgap.lab.interruption import Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_request_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interruption() as stop:
        asked = [stop.requested]
        os.kill(os.getpid(), number)
        assert [*asked, stop.requested] == [False, True]
        assert signal.getsignal(number) is before  # a second one acts as if this were not here
    assert signal.getsignal(number) is before


@pytest.fixture(autouse=True)
def _python_s_own_handler() -> Iterator[None]:
    """A test run started in the background ignores ctrl-C; here it shall not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_raises() -> None:
    with Interruption():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_nothing_is_changed() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def look() -> None:
        with Interruption() as stop:
            seen.extend([signal.getsignal(signal.SIGINT), stop.requested])

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before, False]
