"""From a data set to batches.  The sample order is a function of the step: a resumed run sees what it would have seen."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset

from samsans.types import Batch


class Source(Protocol):
    """Training batches without a state of their own."""

    steps_per_epoch: int

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of a step for one of ``world`` processes; always the same one."""
        ...


class Slices(Protocol):
    """Prepared slices with their masks."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """Those slices as one batch, unchanged by augmentation."""
        ...


@dataclass(frozen=True)
class TrainingData:
    """All that a run reads: batches to learn from, the slices they are drawn from, held-out slices, object names."""

    source: Source
    train: Slices
    val: Slices
    objects: tuple[str, ...]


class _Steps(Dataset[Batch]):
    def __init__(self, source: Source, rank: int, world: int) -> None:
        self.source, self.rank, self.world = source, rank, world

    def __getitem__(self, step: int) -> Batch:
        return self.source.batch(step, self.rank, self.world)


def _same(batch: Any) -> Any:
    return batch


def _leave_signals_to_the_trainer(worker: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def loader(source: Source, steps: range, rank: int, world: int, workers: int) -> DataLoader[Batch]:
    """A loader of the batches of ``steps``: equal, and in equal order, for any number of workers."""
    return DataLoader(
        _Steps(source, rank, world),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=_same,
        worker_init_fn=_leave_signals_to_the_trainer,
    )
