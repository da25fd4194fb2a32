"""Volumes through a method that is prompted with points: slices stream, each is encoded once.

Where the method judges points by a saliency of its own, a slice is decoded as soon as the slices within its reach have
been judged; until then its features wait.  So there are never more of them than ``2 reach + 1`` and a batch, however
deep the volume.  Maps and distilled points can be kept on disk: then neither is made again.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import samsans
from samsans.data.neighbours import stretches
from samsans.data.points import of_volume
from samsans.data.prompt_statistics import statistics
from samsans.data.transforms import Preprocess
from samsans.inference.jobs import Target
from samsans.inference.manifest import hash_values
from samsans.inference.prompt_cache import PromptCache
from samsans.inference.slices import Runner, SliceJob, autocast
from samsans.ops.timing import Timer
from samsans.types import Batch


@dataclass(kw_only=True)
class PointJob(SliceJob):
    """A job with points.

    points: of each canonical slice ``(K, 3)`` float64, x, y in model pixels and label, as given.
    places: where slices lie, where that is known (``Case.positions``): points do not pass a gap.
    content: hash of the pixels; empty where nothing is kept on disk.
    shown: the points that slices are decoded with, of the first so many of them; all of them when the job is done.
    saliency: ``(T, 4g, 4g)`` float32 logits, of which the first ``judged`` are known.
    prompts: what is told of the points in the manifest.  mask: ``(T, h, w)`` bool, the object as the model sees it, of
    points that were simulated from it: so much is told of those shown.
    """

    points: list[np.ndarray]
    places: tuple[float, ...] = ()
    content: str = ""
    shown: list[np.ndarray] = field(default_factory=list)
    saliency: np.ndarray | None = None
    judged: int = 0
    prompts: dict[str, Any] = field(default_factory=dict)
    mask: np.ndarray | None = None

    def told(self) -> dict[str, Any]:
        """``prompts``, how many slices were given points, how many of them lost all, how many were decoded with some,
        and how many or how good these were."""
        given, shown = ([len(p) > 0 for p in some] for some in (self.points, self.shown))
        lost = sum(g and not s for g, s in zip(given, shown, strict=True))
        counts = {"slices_given": sum(given), "slices_silenced": lost, "slices_prompted": sum(shown)}
        if self.mask is None:
            return self.prompts | counts | {"points_shown": sum(map(len, self.shown))}
        return self.prompts | counts | {"shown": asdict(statistics(of_volume(self.shown), self.mask))}


def prompted(job: SliceJob, points: Sequence[np.ndarray], hashed: bool, **told: Any) -> PointJob:
    """The job with the points ``(K, 3)`` of each slice; ``hashed``: what is made of it may be kept on disk.

    told: ``prompts``, ``mask`` and ``places`` of the ``PointJob``.
    """
    content = ""
    if hashed:
        array = np.ascontiguousarray(job.volume.array)
        digest = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
        digest.update(array.view(np.uint8).data)
        content = digest.hexdigest()
    known = {f.name: getattr(job, f.name) for f in fields(job)}
    return PointJob(**known, points=list(points), content=content, **told)


class PointRunner(Runner):
    """Runs jobs with points through a method.

    Every batch is of the slices that follow, whatever is known of them already, and every slice is decoded alone: so a
    slice's mask does not depend on what was kept, nor on the points of slices out of reach.

    Args:
        method: Of ``needs.points``, in evaluation mode, on ``device``.  See ``samsans.methods.Method`` for how it may
            judge points.
        preprocess: How slices are shown to it.
        device: Where it computes.
        precision: ``fp32``, or ``bf16`` autocast.
        batch_size: Slices a batch.
        cache: Where maps and distilled points are kept; ``None``: nowhere.
        made_by: Hash of the weights, part of the keys.
    """

    def __init__(
        self,
        method: Any,
        preprocess: Preprocess,
        device: torch.device,
        precision: str,
        batch_size: int,
        cache: PromptCache | None = None,
        made_by: str = "",
    ) -> None:
        super().__init__(method, preprocess, device, precision, batch_size)
        self.cache = cache if cache is not None and cache.current else None
        self.made_by = made_by
        self.judges = bool(getattr(method, "frozen_prior", False))
        self.reach = int(method.reach) if self.judges else 0
        timer = getattr(method, "timer", None)
        self.timer = timer if isinstance(timer, Timer) else Timer(device)
        self._waiting: deque[_Waiting] = deque()

    def run(self, jobs: Iterable[SliceJob], target: Target, *, probabilities: bool = False) -> Iterator[SliceJob]:
        """Yield every job when its last slice is done, in order; the jobs are ``PointJob``."""
        self._waiting.clear()
        return super().run((self._begun(job) for job in jobs), target, probabilities=probabilities)

    def _begun(self, job: SliceJob) -> PointJob:
        """The job with what is known of its points without looking at its slices."""
        assert isinstance(job, PointJob)
        if self.judges:
            self._recall(job)
        elif hasattr(self.method, "distil") and self.method.prompted:
            job.shown = self.method.distil(None, job.points)
        else:
            job.shown = job.points
        return job

    # -- what is kept -------------------------------------------------------------------------------------------------

    def keys(self, job: PointJob) -> tuple[str, str]:
        """Names of the maps of a volume, and of what they and its points are distilled to."""
        maps = hash_values(
            "saliency",
            samsans.__version__,
            (job.content, job.orientation.axes, job.orientation.flips),
            (self.made_by, getattr(self.method.backbone, "base_hash", "")),
            (repr(self.preprocess), self.precision, self.device.type),
        )
        points = [p.tolist() for p in job.points]
        return maps, hash_values("consensus", maps, points, job.places, asdict(self.method.config))

    def _recall(self, job: PointJob) -> None:
        if self.cache is None or not job.content:
            return
        maps, consensus = self.keys(job)
        shown = self.cache.consensus(consensus, job.depth)
        if shown is not None:
            job.shown, job.prompts["kept"] = shown, "consensus"
            return
        job.saliency = self.cache.saliency(maps, (job.depth, *(4 * self.method.backbone.grid,) * 2))
        if job.saliency is not None:
            job.judged, job.prompts["kept"] = job.depth, "saliency"
            self._distil(job)

    def _keep(self, job: PointJob) -> None:
        """Keep what was made of a job; maps that were read are there already."""
        if self.cache is None or not job.content:
            return
        maps, consensus = self.keys(job)
        if "kept" not in job.prompts and job.saliency is not None:
            self.cache.keep_saliency(maps, job.saliency)
        self.cache.keep_consensus(consensus, job.shown)

    # -- slices -------------------------------------------------------------------------------------------------------

    def _batch(self, waiting: Sequence[tuple[SliceJob, int]], target: Target) -> Batch:
        batch = super()._batch(waiting, target)
        if self.judges:
            return batch
        shown = [job.shown[index] for job, index in waiting if isinstance(job, PointJob)]
        return replace(batch, points=tuple(self._tensor(points) for points in shown))

    def _tensor(self, points: np.ndarray) -> Tensor:
        return torch.from_numpy(points).to(self.device, torch.float32)

    def _segment(self, waiting: Sequence[tuple[SliceJob, int]], target: Target) -> list[SliceJob]:
        """Encode and judge a batch of slices, decode those that can be; the jobs that are finished by it."""
        if not self.judges:
            return super()._segment(waiting, target)
        start = time.perf_counter()
        entries = [_Waiting(job, index) for job, index in waiting if isinstance(job, PointJob)]
        if any(not entry.known or self._decodes(entry) for entry in entries):
            batch = self._batch(waiting, target)
            prepared = time.perf_counter()
            self._look(entries, batch)
        else:
            prepared = time.perf_counter()
        self._waiting += entries
        finished: list[SliceJob] = []
        while self._waiting and self._waiting[0].known:
            finished += self._finish(self._waiting.popleft(), target)
        for entry in self._waiting:
            entry.let_go()
        parts = self.timer.reset()
        model = time.perf_counter() - prepared - parts.get("restore", 0.0)
        seconds = {"prepare": prepared - start, "model": model} | parts
        for job, _ in waiting:
            for part, value in seconds.items():
                job.add(part, value / len(waiting))
        return finished

    def _look(self, entries: Sequence[_Waiting], batch: Batch) -> None:
        """Encode the slices of a batch, judge those of jobs whose points are not all known, and distil what can be."""
        with autocast(self.device, self.precision), torch.inference_mode():
            with self.timer("encode"):
                features = self.method.features(batch.images)
            maps = None
            if any(not entry.known for entry in entries):
                with self.timer("prompt"):
                    maps = self.method.judge(features).float().cpu().numpy()
        assert batch.valid is not None
        for number, (entry, valid) in enumerate(zip(entries, batch.valid.tolist(), strict=True)):
            entry.features, entry.valid = features[number : number + 1], valid
            job = entry.job
            if maps is not None and not entry.known:
                if job.saliency is None:
                    job.saliency = np.empty((job.depth, *maps.shape[1:]), np.float32)
                job.saliency[entry.index] = maps[number]
                job.judged += 1
        for job in {id(entry.job): entry.job for entry in entries}.values():
            self._distil(job)

    def _distil(self, job: PointJob) -> None:
        """Distil the points of the slices whose neighbours have all been judged; keep them when they are complete."""
        first, last = len(job.shown), job.depth if job.judged == job.depth else max(0, job.judged - self.reach)
        if first >= last or job.saliency is None:
            return
        with self.timer("prompt"):
            lower, upper = max(0, first - self.reach), min(job.depth, last + self.reach)
            around: list[np.ndarray] = []
            for run in stretches(job.places, job.depth):
                part = slice(max(lower, run.start), min(upper, run.stop))
                if part.start < part.stop:
                    around += self.method.distil(job.saliency[part], job.points[part])
            job.shown = [*job.shown, *around[first - lower : last - lower]]
        if len(job.shown) == job.depth:
            self._keep(job)
            job.saliency = None

    def _decodes(self, entry: _Waiting) -> bool:
        return len(entry.job.shown[entry.index]) > 0 or self.method.config.empty == "no_prompt"

    def _finish(self, entry: _Waiting, target: Target) -> list[SliceJob]:
        """Decode a slice and paint it; its job, if that was the last one.  Without points there is nothing to paint."""
        job = entry.job
        if self._decodes(entry):
            assert entry.features is not None
            points = self._tensor(job.shown[entry.index])
            with autocast(self.device, self.precision), torch.inference_mode(), self.timer("decode"):
                logits = self.method.answer(entry.features, (points,))
            with self.timer("restore"):
                self._paint(job, entry.index, logits[0].float(), entry.valid, target)
        job.done += 1
        return [job] if job.done == job.depth else []


@dataclass(eq=False)
class _Waiting:
    """A slice that is to be decoded: its features ``(1, C, g, g)`` and the part of the square that is image."""

    job: PointJob
    index: int
    features: Tensor | None = None
    valid: list[int] = field(default_factory=list)
    alone: bool = False

    @property
    def known(self) -> bool:
        """Whether its points have been distilled."""
        return self.index < len(self.job.shown)

    def let_go(self) -> None:
        """Keep its own features alone, not those of its whole batch."""
        if self.features is not None and not self.alone:
            self.features, self.alone = self.features.clone(), True
