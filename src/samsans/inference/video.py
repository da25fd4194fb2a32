"""Videos frame by frame: ``VideoSegmenter``, for methods that segment single slices or follow objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from samsans.data import classes as named
from samsans.errors import InputError
from samsans.inference.arrays import as_image, as_labels
from samsans.inference.banks import Supports
from samsans.inference.choosing import Choose
from samsans.inference.jobs import Target
from samsans.types import ClassInfo

if TYPE_CHECKING:
    from samsans.inference.segmenter import Segmenter


@dataclass(frozen=True)
class FrameResult:
    """A segmented frame.

    labels: ``(H, W)`` uint8 (uint16 above label 255).  classes: the objects painted.  areas: of each in pixels, an
    object with those that lie inside it by definition; where others overlap, a pixel counts for the one painted.
    supports: ids of the pairs it was segmented with.  seconds: by part.  quality: the IoU that the method predicts for
    each object, NaN where it does not; ``None`` where it predicts none.
    """

    labels: np.ndarray
    classes: tuple[ClassInfo, ...]
    areas: tuple[int, ...]
    supports: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    quality: tuple[float, ...] | None = None


class VideoSegmenter:
    """Segments the frames of a video as they come; supports are encoded once.

    Of most methods nothing of a frame is kept: it is segmented as ``Segmenter.predict`` segments it as an image,
    whatever came before it.  Of one that follows objects (with this ``view``) the frames are those of one video, in
    order, from one ``step`` or ``run`` to the next: what it remembers of them does not grow, and ``reset`` forgets it.

    Args:
        segmenter: A method of single slices or one that follows objects; others are refused.
        support: As in ``Segmenter.predict``, or ``Supports`` that were found.
        task: As in ``Segmenter.predict``.
        objects: Names of the objects wanted; all by default.
        seed: Of the draw of supports; the run's by default.
        id: What the video is called: of more pairs than are shown at once, all its frames get one draw, which depends
            on this name and the seed.  The run's own training frames of this video (``id/...``) are left out of it.
        batch_size: Frames a batch, of ``run``.
        view: As in ``Segmenter.predict``.
        largest_component: As in ``Segmenter.predict``, in every frame.
        choose: As in ``Segmenter.predict``; chosen for every frame anew.

    Raises:
        InputError: the method needs points, true masks of all frames or volumes; the supports or an option cannot be
            used.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        support: Any = None,
        task: str | None = None,
        objects: Sequence[str] | None = None,
        seed: int | None = None,
        *,
        id: str = "image",
        batch_size: int | None = None,
        view: str | None = None,
        largest_component: bool = False,
        choose: Choose = "random",
    ) -> None:
        require_frames(segmenter)
        segmenter.require_view(view)
        self.segmenter, self.id = segmenter, id
        self._seed, self._view, self._choose, self._largest = seed, view, choose, largest_component
        self._size = batch_size
        self.reset()
        self._found, self._target, self._draw = self._prepared(support, task, objects)

    @property
    def follows(self) -> bool:
        """Whether what it says of a frame depends on those before."""
        return self.segmenter.follows(self._view)

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The objects that frames are segmented into."""
        return self._target.classes

    def switch(
        self, support: Any = None, task: str | None = None, objects: Sequence[str] | None = None
    ) -> tuple[ClassInfo, ...]:
        """Segment another task from the next frame on; nothing changes where this one cannot be used.

        support, task: one of them, as when it was made.  objects: names of those wanted; all by default.
        Returns the objects.  A ``run`` that has begun ends with what it began with.  What was remembered is forgotten:
        it was of other objects.
        """
        self._found, self._target, self._draw = self._prepared(support, task, objects)
        self.reset()
        return self.classes

    def reset(self) -> None:
        """Forget the frames so far: the next one begins another video.  A ``run`` that has begun keeps its memory."""
        self._runner = self.segmenter.runner(self._size, view=self._view)

    def step(self, frame: np.ndarray, labels: np.ndarray | None = None) -> FrameResult:
        """Segment one frame ``(H, W, 3)`` uint8.

        labels: its true label map ``(H, W)``, values as in the label files; of methods with ``needs.first_label``
        alone, and once: the first frame whose labels show a wanted object is what the frames after it follow, those
        before it are empty.
        """
        return next(self.run([frame], {} if labels is None else {0: labels}))

    def run(
        self, frames: Iterable[np.ndarray], labels: Mapping[int, np.ndarray] | None = None
    ) -> Iterator[FrameResult]:
        """Segment frames ``(H, W, 3)`` uint8 in batches, one result a frame in order; only one batch is in memory.

        labels: as of ``step``, by place among these ``frames``, counted from 0.
        """
        if labels and not self.segmenter.method.needs.first_label:
            raise InputError(f"true labels of a frame for {self.segmenter.config.method}", "no labels: it needs none")
        return self._run(frames, labels or {}, self._runner, self._found, self._target, self._draw)

    def _run(
        self,
        frames: Iterable[np.ndarray],
        labels: Mapping[int, np.ndarray],
        runner: Any,
        found: Supports,
        target: Target,
        draw: tuple[int, ...],
    ) -> Iterator[FrameResult]:
        shown = named.painted(target.classes)

        def jobs() -> Iterator[Any]:
            for place, frame in enumerate(frames):
                if place in labels and runner.begun:
                    raise InputError("labels of a second frame", "one labelled frame a video", "Call reset() before it")
                yield self._open(frame, labels.get(place), draw)

        for job in runner.frames(jobs(), target):
            made = job.prediction(target.classes, self._largest)
            painted = made.labels[0]
            areas = tuple(int(np.isin(painted, info.values).sum()) for info in shown)
            used = () if found.bank is None else tuple(found.bank.ids[i] for i in sorted(job.chosen) or draw)
            yield FrameResult(painted, target.classes, areas, used, made.seconds, job.quality)

    def _open(self, frame: np.ndarray, labels: np.ndarray | None, draw: tuple[int, ...]) -> Any:
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise InputError(f"a frame {frame.shape} of {frame.dtype}", "(H, W, 3) of uint8, as io.open_video gives")
        truth = None if labels is None else as_labels(labels)
        if truth is not None and truth.shape != (1, *frame.shape[:2]):
            raise InputError(f"labels of the size {truth.shape[1:]} for a frame of {frame.shape[:2]}", "the same size")
        return self.segmenter.open(self.id, as_image(frame, self.segmenter.config.data.spacing), truth, draw)

    def _prepared(
        self, support: Any, task: str | None, objects: Sequence[str] | None
    ) -> tuple[Supports, Target, tuple[int, ...]]:
        """Bank, what is asked of the method, and which pairs it is shown."""
        model = self.segmenter
        found = support if isinstance(support, Supports) else model.supports(support, task, self._size)
        if found.own:
            others = [i for i, id in enumerate(found.bank.ids) if not id.startswith(f"{self.id}/")]
            if 0 < len(others) < found.bank.K:
                found = replace(found, bank=found.bank.select(others))
        target = model.target(found, objects, self._view, seed=self._seed, choose=self._choose)
        return found, target, model.draw(found, self.id, self._seed, self._choose)


def require_frames(segmenter: Segmenter) -> None:
    """InputError for a method that cannot segment the frames of a video on its own."""
    needs, name = segmenter.method.needs, segmenter.config.method
    for needed, what in (
        (needs.points, "is prompted with points"),
        (needs.labels_at_predict, "draws its prompts from the true mask of every image"),
        (needs.volumes, "sees volumes"),
    ):
        if needed:
            raise InputError(
                f"a video for {name}, which {what}", "a method of single images or videos, e.g. proxy_prompt"
            )
