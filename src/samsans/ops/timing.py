"""Where the seconds go: a clock that methods, reading and writing share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Timer:
    """Adds up the seconds spent in named parts: ``with timer("encode"): ...``.

    A method keeps one as its attribute ``timer``; inference reads and resets it.  Parts do not nest.

    Args:
        device: Work queued on this CUDA device is waited for at both ends of a part, so that it is counted where it
            belongs; ``None`` or any other device: nothing is waited for.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = None if device is None else torch.device(device)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count the block's seconds as ``part``."""
        self._wait()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            self.add(part, time.perf_counter() - start)

    def add(self, part: str, seconds: float) -> None:
        """Count ``seconds`` measured elsewhere as ``part``."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def reset(self) -> dict[str, float]:
        """The seconds by part so far; counting starts again at nothing."""
        seconds, self.seconds = self.seconds, {}
        return seconds

    def _wait(self) -> None:
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
