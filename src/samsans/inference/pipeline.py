"""Reading ahead and writing behind: two background threads beside the one that computes; order is kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


def ahead(read: Callable[[T], U], items: Iterable[T], room: int, weight: Callable[[T], int]) -> Iterator[U]:
    """``read`` of every item in order, done by one background thread while the caller works.

    Items whose weights sum up to ``room`` are read ahead, at least one.
    """
    with ThreadPoolExecutor(1, "samsans-read") as pool:
        queue: deque[tuple[int, Future[U]]] = deque()
        try:
            for item in items:
                queue.append((weight(item), pool.submit(read, item)))
                while len(queue) > 1 and sum(w for w, _ in queue) > room:
                    yield queue.popleft()[1].result()
            while queue:
                yield queue.popleft()[1].result()
        finally:
            for _, future in queue:
                future.cancel()


class Behind(Generic[T, U]):
    """``write`` of every item in order, done by one background thread; at most ``room`` items wait for it.

    A context manager: leaving it waits for what has been handed over.
    """

    def __init__(self, write: Callable[[T], U], room: int) -> None:
        self._write, self._room, self._pool = write, room, ThreadPoolExecutor(1, "samsans-write")
        self._queue: deque[Future[U]] = deque()

    def __enter__(self) -> Behind[T, U]:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)

    def put(self, item: T) -> list[U]:
        """Hand over an item; what has been written by now, in order."""
        self._queue.append(self._pool.submit(self._write, item))
        written = []
        while self._queue and (len(self._queue) > self._room or self._queue[0].done()):
            written.append(self._queue.popleft().result())
        return written

    def rest(self) -> list[U]:
        """Wait for all that are left."""
        written = [future.result() for future in self._queue]
        self._queue.clear()
        return written
