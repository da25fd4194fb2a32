"""A bounded memory of what was computed."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

GIB = 1 << 30


class Cache:
    """The most recently used values, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._values: OrderedDict[Any, tuple[Any, int]] = OrderedDict()

    def get(self, key: Any) -> Any:
        """The value kept under ``key``; ``None`` where there is none."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Any, value: Any, size: int) -> None:
        """Keep a value of ``size`` bytes; those used longest ago make room."""
        if size > self.limit or key in self._values:
            return
        self._values[key] = value, size
        self.used += size
        while self.used > self.limit:
            _, (_, freed) = self._values.popitem(last=False)
            self.used -= freed
