"""Ctrl-C and SIGTERM as a request instead of an exception."""

import contextlib
import signal
import threading
from typing import Any, Self


class Interruption(contextlib.ExitStack):
    """While the block lasts (in the main thread), ctrl-C and SIGTERM set `requested`; a second one acts as usual."""

    requested = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.callback(signal.signal, number, signal.signal(number, self._request))
        return self

    def _request(self, *_: Any) -> None:
        self.requested = True
        self.close()
