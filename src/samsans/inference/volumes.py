"""Volumes through a method that sees 3D patches: windows in, label maps out, memory bounded whatever the depth.

Scores leave the sliding windows slice by slice; each is brought to the volume's own rows and columns, and slices of the
volume are interpolated between the two of them that are nearest, and painted at once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samsans.config import PatchConfig, SliceAxis
from samsans.data.classes import disjoint_classes
from samsans.data.grids import Grid
from samsans.data.volumes import Channels, label_map, prepare
from samsans.errors import InputError
from samsans.inference.jobs import Job, Target, with_inner
from samsans.inference.slices import autocast
from samsans.inference.windows import Windows, mirrored
from samsans.ops.timing import Timer
from samsans.types import Batch, ClassInfo, Volume


@dataclass(kw_only=True)
class VolumeJob(Job):
    """A job that is done window by window.

    image: ``(C, d, h, w)`` float32, normalised, on the grid that the method sees.  grid: how that lies to the canonical
    slices.  truth: ``(N, d, h, w)`` bool, the true mask of each object on it, or ``None``.
    """

    image: Tensor
    grid: Grid
    truth: Tensor | None = None


def open_volume(
    id: str,
    volume: Volume,
    patches: PatchConfig,
    axis: SliceAxis = "auto",
    channels: Channels = "auto",
    *,
    truth: Volume | None = None,
    truth_classes: Sequence[ClassInfo] = (),
) -> VolumeJob:
    """Bring a volume to the planned grid, so that an unusable one is known before the method runs."""
    if 0 in volume.array.shape:
        raise InputError(f"{volume.path or id} has the shape {volume.array.shape}", "an image with pixels")
    start = time.perf_counter()
    try:
        image, grid, orientation = prepare(volume, patches, axis, channels)
    except InputError as error:
        raise InputError(f"{volume.path or id}: {error}") from error
    seconds = time.perf_counter() - start
    masks = None
    if truth is not None:
        drawn = label_map(orientation.to_slices(truth.array), disjoint_classes(truth_classes))
        numbers = torch.arange(1, len(truth_classes) + 1)[:, None, None, None]
        masks = torch.from_numpy(grid.labels_to_target(drawn)) == numbers
    job = VolumeJob(
        id=id, volume=volume, orientation=orientation, image=torch.from_numpy(image), grid=grid, truth=masks
    )
    job.add("prepare", seconds)
    return job


class VolumeRunner:
    """Runs jobs through a method of ``needs.volumes``, one after the other.

    Args:
        method: Follows ``samsans.methods.Method``, in evaluation mode, on ``device``.
        patches: Size and overlap of the windows, all planned.
        device: Where it computes.
        precision: ``fp32``, or ``bf16`` autocast.
        batch_size: Windows a batch.
        mirror: Take the mean over the eight mirrorings of every window.
    """

    def __init__(
        self, method: Any, patches: PatchConfig, device: torch.device, precision: str, batch_size: int, mirror: bool
    ) -> None:
        self.method, self.patches, self.device = method, patches, device
        self.precision, self.batch_size, self.mirror = precision, batch_size, mirror

    def run(self, jobs: Iterable[VolumeJob], target: Target, *, probabilities: bool = False) -> Iterator[VolumeJob]:
        """Yield every job when its last slice is done, in order."""
        assert self.patches.size is not None
        t, h, w = self.patches.size
        for job in jobs:
            start = time.perf_counter()
            job.allocate(target.classes, probabilities)
            depth, height, width = job.image.shape[1:]
            windows = Windows((depth, height, width), (t, h, w), self.patches.overlap, self.batch_size)
            scorer = _Scorer(self, job, target)
            finished = windows.slide(scorer.volume, mirrored(scorer) if self.mirror else scorer, self.device)
            for index, scores in enumerate(native_slices(finished, job.grid, job.depth)):
                paint(job, index, scores, target)
            job.add("model", scorer.seconds)
            job.add("restore", time.perf_counter() - start - scorer.seconds)
            timer = getattr(self.method, "timer", None)
            for part, seconds in (timer.reset() if isinstance(timer, Timer) else {}).items():
                job.add(part, seconds)
            yield job


class _Scorer:
    """The method as a function of windows, which counts the seconds it takes.

    volume: what windows are cut from: the channels of the image, then, for a method that is given the truth, its masks.
    """

    def __init__(self, runner: VolumeRunner, job: VolumeJob, target: Target) -> None:
        self.runner, self.job, self.target = runner, job, target
        self.volume = job.image if job.truth is None else torch.cat([job.image, job.truth.to(job.image)])
        self.seconds = 0.0

    def __call__(self, windows: Tensor) -> Tensor:
        """Scores ``(B, N + 1, T, H, W)`` float32 of windows ``(B, C, T, H, W)``."""
        start, runner, channels = time.perf_counter(), self.runner, len(self.job.image)
        batch = Batch(
            images=windows[:, :channels],
            masks=None if self.job.truth is None else windows[:, channels:] > 0,
            ids=(self.job.id,) * len(windows),
            objects=self.target.objects,
        )
        view = {} if self.target.view is None else {"view": self.target.view}
        with autocast(runner.device, runner.precision), torch.inference_mode():
            scores = runner.method.predict(batch, self.target.bank, **view)
        wanted = (len(windows), len(self.target.objects) + 1, *windows.shape[2:])
        if scores.shape != wanted:
            raise RuntimeError(f"{type(runner.method).__name__}.predict gave {tuple(scores.shape)}, not {wanted}")
        if runner.device.type == "cuda":
            torch.cuda.synchronize(runner.device)
        self.seconds += time.perf_counter() - start
        return scores.float()


def native_slices(finished: Iterator[Tensor], grid: Grid, depth: int) -> Iterator[Tensor]:
    """Scores ``(K, H, W)`` of each of ``depth`` canonical slices, in order, from those ``(K, h, w)`` of the grid.

    Only the slices of the grid that the next one lies between are held.
    """
    held: dict[int, Tensor] = {}
    arriving = enumerate(finished)
    last = -1
    for index in range(depth):
        lower, upper, weight = grid.depth(index)
        held = {place: scores for place, scores in held.items() if place >= lower}
        while last < upper:
            last, scores = next(arriving)
            if last >= lower:
                held[last] = grid.plane(scores)
        yield torch.lerp(held[lower], held[upper], weight) if weight else held[lower]


def paint(job: VolumeJob, index: int, scores: Tensor, target: Target) -> None:
    """Fill one slice of the label map (and of the probabilities) from scores ``(N + 1, H, W)``, background first.

    The highest score decides, background before all and the first object of equals; probabilities are the share of the
    sum of scores, 0 where that is 0.  Objects that others lie inside by definition come out whole.
    """
    keep = list(target.keep)
    numbers = torch.arange(1, len(scores), device=scores.device)[:, None, None]
    shown = with_inner((scores.argmax(0) == numbers).float(), target.known) > 0
    soft = None
    if job.probabilities is not None:
        total = scores.sum(0)
        soft = with_inner(scores[1:] / total.where(total > 0, 1), target.known)[keep]
    job.fill(index, shown[keep], soft, target.classes)
