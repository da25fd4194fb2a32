"""Videos and volumes through a method that follows objects from frame to frame: in order, one at a time.

A volume is a video, too: its slices are frames, from a start slice outwards.  With labels shown that is the slice that
shows most of the wanted objects, of those the one where they are largest; otherwise the middle one (our decision).
What labels show is judged as the method sees them, in its own size: there a few pixels may vanish.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from samsans.data.classes import class_masks
from samsans.data.transforms import Preprocess
from samsans.inference.choosing import chooser
from samsans.inference.jobs import Target
from samsans.inference.slices import Runner, SliceJob
from samsans.types import Batch, ClassInfo


def start_slice(job: SliceJob, classes: Sequence[ClassInfo], preprocess: Preprocess) -> int | None:
    """The slice that following ``classes`` begins at; ``None`` where labels are shown and none of them shows any."""
    if job.truth is None:
        return job.depth // 2
    shown = (_seen(labels, classes, preprocess) for labels in job.truth)  # slice by slice: little memory
    sizes = [(int(masks.any((1, 2)).sum()), int(masks.sum())) for masks in shown]
    most = max(sizes)
    return sizes.index(most) if most[0] else None


def shows(labels: np.ndarray, classes: Sequence[ClassInfo], preprocess: Preprocess) -> bool:
    """Whether a label map ``(H, W)``, values as in the label files, shows any of the objects to the method."""
    return bool(_seen(labels, classes, preprocess).any())


def _seen(labels: np.ndarray, classes: Sequence[ClassInfo], preprocess: Preprocess) -> np.ndarray:
    """The masks ``(N, h, w)`` of ``Preprocess.labels`` without their padding."""
    return class_masks(preprocess.sample(labels), classes)


class FollowRunner(Runner):
    """Runs jobs through a method whose ``follows(view)`` is true; at most two followers are in memory, and one frame.

    From the start slice of a volume forwards to its last, then, as from the start slice alone, backwards to its first.
    Labels are shown with the start slice and no other; where they show no wanted object, all slices are empty.  Single
    images have nothing to follow: unless they need their label, they go through the method in batches.  Arguments are
    those of ``Runner``, whose batches hold one frame here.
    """

    _follower: Any = None
    _jobs: Sequence[SliceJob] = ()
    _chosen: frozenset[int] = frozenset()

    def run(self, jobs: Iterable[SliceJob], target: Target, *, probabilities: bool = False) -> Iterator[SliceJob]:
        """Yield every job when its last slice is done, in order."""
        single = Runner(self.method, self.preprocess, self.device, self.precision, self.batch_size)
        labelled = self.method.needs.first_label
        for alone, some in itertools.groupby(jobs, lambda job: job.depth == 1 and not labelled):
            if alone:
                yield from single.run(some, target, probabilities=probabilities)
            else:
                yield from self._volumes(some, target, probabilities)

    @property
    def begun(self) -> bool:
        """Whether ``frames`` have something to follow."""
        return self._follower is not None

    def frames(self, jobs: Iterable[SliceJob], target: Target) -> Iterator[SliceJob]:
        """Yield the frames of one video, each a job of one slice, as they are done; the next call goes on with it.

        Where a first label is needed, frames before one that shows a wanted object are empty.
        """
        for job in jobs:
            job.allocate(target.classes, False, target.samples)
            waits = not self.begun and self.method.needs.first_label
            if waits and (job.truth is None or not shows(job.truth[0], target.classes, self.preprocess)):
                job.done = 1
            else:
                self._segment([(job, 0)], target)
            yield job

    def _volumes(self, jobs: Iterable[SliceJob], target: Target, probabilities: bool) -> Iterator[SliceJob]:
        for job in jobs:
            job.allocate(target.classes, probabilities, target.samples)
            start = start_slice(job, target.classes, self.preprocess)
            if start is None:
                job.done = job.depth
            else:
                self._outwards(job, start, target)
            yield job

    def _outwards(self, job: SliceJob, start: int, target: Target) -> None:
        self._follower, self._chosen = None, frozenset()  # whatever an error left
        self._segment([(job, start)], target)
        back = self._follower.branch() if start else None
        for index in range(start + 1, job.depth):
            self._segment([(job, index)], target)
        self._follower = back
        for index in reversed(range(start)):
            self._segment([(job, index)], target)
        self._follower = None

    def _segment(self, waiting: Sequence[tuple[SliceJob, int]], target: Target) -> list[SliceJob]:
        finished = super()._segment(waiting, target)
        job, quality = waiting[0][0], getattr(self._follower, "quality", None)
        job.quality = None if quality is None else tuple(float(quality[n]) for n in target.keep)
        if target.choose:  # a frame for which nothing was chosen lives on memories of what was chosen last
            self._chosen = frozenset(job.chosen) or self._chosen
            job.chosen |= self._chosen
        return finished

    def _answer(self, batch: Batch, bank: Any, target: Target) -> Tensor:
        if self._follower is None:
            self._follower = self.method.follow(target.objects, bank, target.view)
        return self._follower.step(batch)  # type: ignore[no-any-return]

    def _truth(self, job: SliceJob, index: int) -> np.ndarray | None:
        return super()._truth(job, index) if self._follower is None else None

    def _shown(self, jobs: Sequence[SliceJob], target: Target) -> Any:
        """The supports of a new follower; what chooses them goes on choosing, for every frame it is asked about."""
        self._jobs = jobs
        if self._follower is not None:
            return None
        if target.choose:
            return lambda features: chooser(self._here(target.bank), target.choose, self._jobs)(features)
        return super()._shown(jobs, target)
