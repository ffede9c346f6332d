"""Ctrl-C and SIGTERM as a request instead of an exception."""

import contextlib
import signal
import threading
from typing import Any, Self


class Interruption(contextlib.ExitStack):
    """While the block lasts (in the main thread), ctrl-C and SIGTERM ask to stop.

    Args:
        twice: Whether a second one is taken as well, as impatience; else it acts as if this were not here.

    Attributes:
        requested: Whether there was one.
        impatient: Whether there was a second.
    """

    def __init__(self, *, twice: bool = False) -> None:
        super().__init__()
        self.requested = self.impatient = False
        self._twice = twice

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.callback(signal.signal, number, signal.signal(number, self._request))
        return self

    def _request(self, *_: Any) -> None:
        self.impatient = self.requested
        self.requested = True
        if not self._twice:
            self.close()
