"""Ctrl-C and SIGTERM as a request instead of an exception."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interruption:
    """While the block lasts (in the main thread), ctrl-C and SIGTERM ask to stop.

    Args:
        twice: Whether a second one is taken as well, as impatience; else it acts as if this were not here.

    Attributes:
        requested: Whether there was one.
        impatient: Whether there was a second.
    """

    def __init__(self, *, twice: bool = False) -> None:
        self.requested = False
        self.impatient = False
        self._twice = twice
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.impatient = self.requested
        self.requested = True
        if not self._twice:
            self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
