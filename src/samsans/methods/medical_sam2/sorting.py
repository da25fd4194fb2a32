"""A memory bank sorted by confidence, dissimilarity and likeness instead of time (Medical SAM 2, arXiv 2408.00874).

That such a bank holds frames the model was sure of and that are unlike each other, wherever they stand, and that those
like the frame at hand count most, is the paper's idea; the rules below are our decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from samsans.backbones import Sam2
from samsans.backbones.sam2_video import Found, Memory, Recalled, Tracker
from samsans.types import Embedding


@dataclass(frozen=True)
class Kept:
    """A frame that is remembered of one object: its memory, predicted IoU (scalar), and features ``(1, C, g, g)``."""

    memory: Memory
    iou: Tensor
    features: Tensor


class SortedTracker(Tracker):
    """Remembers of each object ``size`` frames.

    Which: those with a predicted IoU of at least ``min_confidence``; of more than ``size`` the one goes whose memory
    tells least, see ``least_telling``.  How they are read: in the order of their likeness to the frame at hand, the
    most alike in the place of the frame before, the next in that of the frame before that, pointers with them.  With
    ``gate_memories`` frames in which the score says that the object is not there are not remembered.
    """

    def __init__(
        self, sam2: Sam2, objects: int, *, size: int, min_confidence: float, gate: bool, gate_memories: bool
    ) -> None:
        super().__init__(sam2, objects, frames=size, multimask=False, gate=gate, gate_memories=gate_memories)
        self.size, self.min_confidence = size, min_confidence
        self.best: list[list[Kept]] = [[] for _ in range(objects)]

    def recall(self, n: int, embedding: Embedding) -> list[Recalled]:
        """What the frame at hand reads of object ``n``, the most alike frame first."""
        here = embedding.features.flatten().float()
        likeness = [float(F.cosine_similarity(one.features.flatten().float(), here, 0)) for one in self.best[n]]
        order = sorted(range(len(likeness)), key=lambda i: -likeness[i])
        return [Recalled(self.best[n][i].memory, rank, rank) for rank, i in enumerate(order, 1)]

    def keep(self, n: int, memory: Memory, found: Found, embedding: Embedding) -> None:
        """Remember the frame at hand of object ``n`` if it is sure enough, and another no longer if there are many."""
        if found.iou < self.min_confidence or (self.gate_memories and found.score <= 0):
            return
        kept = [*self.best[n], Kept(memory, found.iou, embedding.features)]
        if len(kept) > self.size:
            memories = torch.stack([one.memory.spatial.flatten() for one in kept if one.memory.spatial is not None])
            del kept[least_telling(memories, torch.stack([one.iou for one in kept]))]
        self.best[n] = kept

    def branch(self) -> Self:
        """Another tracker that goes on from here by itself."""
        other = super().branch()
        other.best = [list(kept) for kept in self.best]
        return other


def least_telling(memories: Tensor, iou: Tensor) -> int:
    """Which of ``n`` memories has the least predicted IoU times dissimilarity; the oldest of several.

    Dissimilarity is the sum of one minus the cosine to each of the others.

    memories: ``(n, D)``, oldest first.  iou: ``(n,)``.
    """
    unit = F.normalize(memories.float(), dim=1)
    return int((iou.float() * (1 - unit @ unit.T).sum(1)).argmin())
