"""What methods share that follow objects with SAM 2's memory: a ``Follower`` on its ``Tracker``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor

from samsans.backbones.sam2_video import Tracker
from samsans.methods.episodes import upsample
from samsans.ops.timing import Timer
from samsans.types import Batch, Embedding

Tell = Callable[[Batch, Embedding, bool], Mapping[str, Any]]


class TrackedVideo:
    """Objects through one video.

    Args:
        tracker: A fresh one.
        tell: What the tracker is told of a frame beside its embedding: the options of ``Tracker.step``, given the
            batch of the frame, its embedding, and whether it is the first.
        timer: Of the method.
        judged: Whether the predicted IoU is one that was learnt, and may be told.
    """

    quality: Tensor | None = None
    """``(N,)`` predicted IoU in the frame seen last, NaN of objects that are not known; ``None``: not to be told."""

    def __init__(self, tracker: Tracker, tell: Tell, timer: Timer, judged: bool = True) -> None:
        self.tracker, self.tell, self.timer, self.judged = tracker, tell, timer, judged

    @torch.no_grad()
    def step(self, batch: Batch) -> Tensor:
        """``(1, N, S, S)`` float32 logits of the next frame, a batch of one."""
        with self.timer("encode"):
            embedding = self.tracker.sam2.encode(batch.images)
        return self.see(batch, embedding)

    @torch.no_grad()
    def see(self, batch: Batch, embedding: Embedding) -> Tensor:
        """``step`` of a frame that is encoded already."""
        with self.timer("prompt"):
            told = self.tell(batch, embedding, self.tracker.index == 0)
        with self.timer("decode"):
            found = self.tracker.step(embedding, **told)
            self.quality = found.iou if self.judged else None
            return upsample(found.logits[None], batch.images.shape[-1])

    def branch(self) -> Self:
        """Another that goes on from here by itself."""
        other = copy(self)
        other.tracker = self.tracker.branch()
        return other
