"""SAM 2 prompted from the true mask of a video's first frame, then left alone: a yardstick, not a way to segment.

Prompts follow section 6 of the supplement of arXiv 2502.03501: the mask itself, its tight box, or its centre.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from samsans.backbones import load_backbone
from samsans.backbones.sam2_video import ObjectPrompt, Tracker
from samsans.errors import InputError
from samsans.methods.followers import TrackedVideo
from samsans.methods.prompted.prompts import tight_box
from samsans.methods.prompted.untrained import Untrained
from samsans.types import Batch, Embedding, Needs

if TYPE_CHECKING:
    from samsans.config import RunConfig


class Tracked(Untrained):
    """A SAM 2 that is shown ``batch.masks`` of the first frame.  Nothing is trained.

    Objects that the first frame does not show are never found.  On frames without prompts SAM 2 takes the best of its
    three masks, as published.
    """

    needs = Needs(first_label=True)

    def follows(self, view: str | None = None) -> bool:
        """True: every frame but the first rests on the ones before."""
        return True

    def follow(self, objects: Sequence[str], support: Any = None, view: str | None = None) -> TrackedVideo:
        """A video of so many objects, not yet begun."""
        frames = 0 if self.config.memories == "none" else None
        tracker = Tracker(self.backbone, len(objects), frames=frames, gate=self.config.gate_by_object_score)
        return TrackedVideo(tracker, self._tell, self.timer)

    def _tell(self, batch: Batch, embedding: Embedding, first: bool) -> Mapping[str, Any]:
        if not first:
            return {}
        if batch.masks is None:
            raise InputError(
                f"{batch.ids[0]} has no true mask, and SAM 2 is prompted from that of the first frame",
                "the mask of the first frame of a video",
                "Give the labels, or use a method that needs no prompt",
            )
        masks = batch.masks[0]
        return {"prompts": {n: prompt_of(masks[n], self.config.prompt) for n in range(len(masks)) if masks[n].any()}}

    @torch.no_grad()
    def predict(self, batch: Batch, support: Any = None, view: str | None = None) -> Tensor:
        """``(B, N, S, S)`` float32 logits: every image is a video of one frame, prompted from its own true mask."""
        with self.timer("encode"):
            embedding = self.backbone.encode(batch.images)
        logits = []
        for i, id in enumerate(batch.ids):
            own = slice(i, i + 1)
            masks = None if batch.masks is None else batch.masks[own]
            frame = replace(batch, images=batch.images[own], masks=masks, ids=(id,))
            seen = Embedding(embedding.features[own], tuple(part[own] for part in embedding.high_res))
            logits.append(self.follow(batch.objects).see(frame, seen))
        return torch.cat(logits)


def prompt_of(mask: Tensor, kind: str) -> ObjectPrompt:
    """What SAM 2 is told of an object ``(S, S)`` bool that is not empty: mask, box, or point."""
    if kind == "mask":
        return ObjectPrompt(mask=mask)
    if kind == "box":
        return ObjectPrompt(box=tight_box(mask))
    return ObjectPrompt(points=centre_point(mask)[None], labels=torch.ones(1, dtype=torch.int64, device=mask.device))


def centre_point(mask: Tensor) -> Tensor:
    """``(2,)`` float32 x, y: the pixel of a mask ``(H, W)`` bool that is farthest from all pixels outside.

    What lies beyond the image is outside; of several the one nearest to the mean of all these, and of several such the
    first, row by row (our decision).
    """
    depth = ndimage.distance_transform_edt(np.pad(mask.cpu().numpy(), 1))[1:-1, 1:-1]
    farthest = np.argwhere(depth == depth.max())
    row, column = farthest[np.square(farthest - farthest.mean(0)).sum(1).argmin()]
    return torch.tensor([float(column), float(row)], device=mask.device)


def build(config: RunConfig, objects: tuple[str, ...]) -> Tracked:
    """SAM 2 as a run's configuration describes it; the base stays as it was published.

    Raises:
        InputError: the backbone is no SAM 2.
    """
    backbone = load_backbone(config.backbone, seed=config.seed, family="sam2")
    backbone.freeze()
    return Tracked(backbone, config.model).eval()
