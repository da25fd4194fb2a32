"""Ctrl-C and SIGTERM end a training after the present step instead of in the middle of it."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

CAUGHT = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}  # and how they are called


class StopSignals:
    """A context in which the first SIGINT or SIGTERM only sets ``received``; a second one acts as usual."""

    def __init__(self) -> None:
        self.received = ""
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # only there Python lets handlers be set
            self._former = {number: signal.getsignal(number) for number in CAUGHT}
            self.arm()
        return self

    def arm(self) -> None:
        """Take the signals (again: Lightning installs handlers of its own when a fit begins)."""
        for number in self._former:
            signal.signal(number, self._handle)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = CAUGHT[signal.Signals(number)]
        for caught, handler in self._former.items():
            signal.signal(caught, handler)
