"""Images and volumes through a method, slice by slice: batches in, label maps out, memory bounded.

A volume is cut into canonical slices, its label map is filled slice by slice, and only the slices of one batch exist as
floating-point logits at a time.  A 2D image is a volume of one slice.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samsans.config import SliceAxis
from samsans.data import classes as objects
from samsans.data.transforms import Levels, Preprocess
from samsans.errors import InputError
from samsans.inference.choosing import chooser
from samsans.inference.jobs import Job, Target, with_inner
from samsans.inference.samples import draw, paint_samples
from samsans.io.orientation import Orientation
from samsans.ops.labels import winners
from samsans.ops.timing import Timer
from samsans.types import Batch, ClassInfo, Volume


@dataclass(kw_only=True)
class SliceJob(Job):
    """A job that is done slice by slice.

    slices: ``(D, H, W, C)`` canonical.  levels: shown as black and white.  first: the first slice, prepared.
    truth: ``(D, H, W)`` canonical values of the label file, or ``None``.  done: how many slices are.
    quality: predicted IoU of each wanted object in the slice done last, of methods that follow objects and tell it.
    """

    slices: np.ndarray
    levels: Levels | None
    first: Tensor
    truth: np.ndarray | None = None
    truth_classes: tuple[ClassInfo, ...] = ()
    done: int = 0
    quality: tuple[float, ...] | None = None

    def name(self, index: int) -> str:
        """Name of a slice: ``case``, or ``case#012`` of a volume."""
        return self.id if self.depth == 1 else f"{self.id}#{index:03d}"


def open_job(
    id: str,
    volume: Volume,
    preprocess: Preprocess,
    axis: SliceAxis = "auto",
    *,
    truth: Volume | None = None,
    truth_classes: tuple[ClassInfo, ...] = (),
    draw: tuple[int, ...] = (),
) -> SliceJob:
    """Cut a volume into slices and prepare the first, so that an unusable image is known before the method runs."""
    orientation = Orientation.of(volume, axis)
    slices = orientation.to_slices(volume.array)
    if 0 in slices.shape:
        raise InputError(f"{volume.path or id} has the shape {volume.array.shape}", "an image with pixels")
    levels = preprocess.levels(volume.array)
    try:
        first = preprocess.image(slices[0], levels)
    except InputError as error:
        raise InputError(f"{volume.path or id}: {error}") from error
    drawn = None if truth is None else orientation.to_slices(truth.array)
    return SliceJob(
        id=id,
        volume=volume,
        orientation=orientation,
        draw=draw,
        slices=slices,
        levels=levels,
        first=first,
        truth=drawn,
        truth_classes=truth_classes,
    )


class Runner:
    """Runs jobs through a method in batches of slices, over the borders of images.

    Args:
        method: Follows ``samsans.methods.Method``, in evaluation mode, on ``device``.
        preprocess: How slices are shown to it.
        device: Where it computes.
        precision: ``fp32``, or ``bf16`` autocast.
        batch_size: Slices a batch.
    """

    def __init__(
        self, method: Any, preprocess: Preprocess, device: torch.device, precision: str, batch_size: int
    ) -> None:
        self.method, self.preprocess, self.device = method, preprocess, device
        self.precision, self.batch_size = precision, batch_size
        self.mixes = bool(getattr(method, "bank_per_image", False))
        self._bank: tuple[Any, Any] = (None, None)

    def run(self, jobs: Iterable[SliceJob], target: Target, *, probabilities: bool = False) -> Iterator[SliceJob]:
        """Yield every job when its last slice is done, in order.

        A batch holds slices of one draw of supports, unless the method says with ``bank_per_image`` that it also takes
        a list with the bank of every image.
        """
        waiting: list[tuple[SliceJob, int]] = []
        for job in jobs:
            job.allocate(target.classes, probabilities, target.samples)
            for index in range(job.depth):
                other = waiting and not self.mixes and waiting[0][0].draw != job.draw
                if other or len(waiting) == self.batch_size:
                    yield from self._segment(waiting, target)
                    waiting = []
                waiting.append((job, index))
        if waiting:
            yield from self._segment(waiting, target)

    def frames(self, jobs: Iterable[SliceJob], target: Target) -> Iterator[SliceJob]:
        """``run`` of the frames of one video, each a job of one slice."""
        return self.run(jobs, target)

    def _segment(self, waiting: Sequence[tuple[SliceJob, int]], target: Target) -> list[SliceJob]:
        """Segment a batch of slices; the jobs that are finished by it."""
        start = time.perf_counter()
        batch = self._batch(waiting, target)
        bank = self._shown([job for job, _ in waiting], target)
        prepared = time.perf_counter()
        with autocast(self.device, self.precision), torch.inference_mode():
            logits = self._answer(batch, bank, target)
            draws = draw(self.method, batch, target)
        wanted = (len(waiting), len(target.objects), *batch.images.shape[2:])
        if logits.shape != wanted:
            raise RuntimeError(f"{type(self.method).__name__} gave logits {tuple(logits.shape)}, not {wanted}")
        logits = logits.float()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = {"prepare": prepared - start, "model": time.perf_counter() - prepared}
        timer = getattr(self.method, "timer", None)
        seconds |= timer.reset() if isinstance(timer, Timer) else {}
        assert batch.valid is not None
        finished = []
        for number, ((job, index), valid) in enumerate(zip(waiting, batch.valid.tolist(), strict=True)):
            start = time.perf_counter()
            self._paint(job, index, logits[number], valid, target)
            if draws is not None:
                restore = functools.partial(self.preprocess.restore, valid=valid, size=job.slices.shape[1:3])
                paint_samples(job, index, draws[number], restore, target)
            job.add("restore", time.perf_counter() - start)
            for part, value in seconds.items():
                job.add(part, value / len(waiting))
            job.done += 1
            finished += [job] if job.done == job.depth else []
        return finished

    def _answer(self, batch: Batch, bank: Any, target: Target) -> Tensor:
        """``(B, N, S, S)`` logits of a batch, shown the ``bank``."""
        view = {} if target.view is None else {"view": target.view}
        return self.method.predict(batch, bank, **view)  # type: ignore[no-any-return]

    def _truth(self, job: SliceJob, index: int) -> np.ndarray | None:
        """What the method is told is true of a slice: ``(H, W)`` values of the label file, or nothing."""
        return None if job.truth is None else job.truth[index]

    def _batch(self, waiting: Sequence[tuple[SliceJob, int]], target: Target) -> Batch:
        images, valid, masks = [], [], []
        for job, index in waiting:
            picture = job.slices[index]
            images.append(job.first if index == 0 else self.preprocess.image(picture, job.levels))
            valid.append(self.preprocess.valid(*picture.shape[:2]))
            truth = self._truth(job, index)
            if truth is not None:
                masks.append(self.preprocess.labels(objects.class_masks(truth, job.truth_classes)))
        where = torch.tensor(valid, dtype=torch.int64, device=self.device)
        return Batch(
            images=self.preprocess.normalize(torch.stack(images).to(self.device), where),
            masks=torch.stack(masks).to(self.device) if masks else None,
            ids=tuple(job.name(index) for job, index in waiting),
            objects=target.objects,
            valid=where,
        )

    def _here(self, bank: Any) -> Any:
        """The bank on the device."""
        if bank is not None and self._bank[0] is not bank:
            self._bank = (bank, bank.to(self.device))
        return None if bank is None else self._bank[1]

    def _shown(self, jobs: Sequence[SliceJob], target: Target) -> Any:
        """The supports shown with a batch: those drawn of the bank, or what chooses some for each slice."""
        here = self._here(target.bank)
        return chooser(here, target.choose, jobs) if target.choose else self._draw(here, [job.draw for job in jobs])

    def _draw(self, bank: Any, draws: Sequence[tuple[int, ...]]) -> Any:
        """The drawn pairs of a bank on the device; a list of one bank an image where the draws differ."""
        if bank is None:
            return None
        every = tuple(range(bank.K))
        chosen = {draw: bank if draw == every else bank.select(draw) for draw in dict.fromkeys(draws)}
        return chosen[draws[0]] if len(chosen) == 1 else [chosen[draw] for draw in draws]

    def _paint(self, job: SliceJob, index: int, logits: Tensor, valid: list[int], target: Target) -> None:
        """Fill one slice of the label map (and of the probabilities) from ``(N, S, S)`` logits."""
        size, keep = job.slices.shape[1:3], list(target.keep)
        if self.method.needs.exclusive:
            native = self.preprocess.restore(logits, valid, size)
            shown, soft = _exclusive(native, target.known, job.probabilities is not None)
            shown, soft = shown[keep], None if soft is None else soft[keep]
        else:
            shown = self.preprocess.restore(logits[keep], valid, size)
            soft = shown.sigmoid() if job.probabilities is not None and job.samples is None else None
        job.fill(index, shown, soft, target.classes)


def _exclusive(logits: Tensor, known: Sequence[ClassInfo], probabilities: bool) -> tuple[Tensor, Tensor | None]:
    """What each pixel is by the logits ``(N, H, W)`` of objects of which it has one, relative to background.

    Returns ``(N, H, W)`` bool, the object that wins the pixel and those it lies inside by definition (the disc around
    its cup: such methods learn the rim), and if asked for ``(N, H, W)`` float, probabilities of the softmax over
    background and objects, those of objects inside added.
    """
    won = with_inner(winners(logits).float(), known) > 0
    if not probabilities:
        return won, None
    background = torch.zeros_like(logits[:1])
    return won, with_inner(torch.cat([background, logits]).softmax(0)[1:], known)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """``bf16`` autocast where asked for, else nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
