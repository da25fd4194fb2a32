"""What the terminal shows of a long job: one bar and a few short lines."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from samsans.types import Progress


class Display:
    """A progress bar on standard error, or, where ``on_progress`` is given, calls of it and no output.

    Args:
        label: What is being done, shown until a step names its own item.
        on_progress: Receives every step, and every line as a ``message``.
        silent: Say nothing at all (the helper processes of a distributed run).
    """

    def __init__(
        self, label: str, on_progress: Callable[[Progress], None] | None = None, *, silent: bool = False
    ) -> None:
        self._call = None if silent else on_progress
        console = Console(stderr=True)
        self._quiet = silent or on_progress is not None
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}"),
            console=console,
            transient=True,
            disable=self._quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task(label, total=None, message="")
        self._last = Progress(0, 0)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, progress: Progress) -> None:
        """Show how far the run is."""
        self._last = progress
        if self._call is not None:
            self._call(progress)
        self._bar.update(
            self._task,
            description=progress.item,
            completed=progress.done,
            total=progress.total,
            message=progress.message,
        )

    def say(self, line: str) -> None:
        """Print one line above the bar."""
        if self._call is not None:
            self._call(Progress(self._last.done, self._last.total, self._last.item, line))
        elif not self._quiet:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
