"""SAM shown the points it is given, or the box around them: what a frozen model makes of prompts as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from samsans.errors import InputError
from samsans.methods.prompted.untrained import ABSENT, Untrained
from samsans.types import Batch, Embedding, Needs

if TYPE_CHECKING:
    pass

MARGIN = 10 / 512  # of the side, around the box of the points (decision D36)


class GivenPrompts(Untrained):
    """A SAM backbone prompted with ``batch.points``: all of an image's points, or the box around those inside.

    For one object.  Nothing is trained, and no point is weighed or turned down.
    """

    needs = Needs(points=True)

    @torch.no_grad()
    def predict(self, batch: Batch, support: Any = None) -> Tensor:
        """``(B, 1, S, S)`` float32 logits; ``ABSENT`` everywhere in images without a point inside the object.

        InputError: a batch without points.
        """
        if batch.points is None:
            raise InputError(f"no points for {', '.join(batch.ids[:3])}", "points of every image (none is fine)")
        with self.timer("encode"):
            features = self.backbone.encode(batch.images).features
        with self.timer("decode"):
            return self.decode(features, batch.points)

    @torch.no_grad()
    def decode(self, features: Tensor, points: Sequence[Tensor]) -> Tensor:
        """``(B, 1, S, S)`` float32 logits of features ``(B, C, g, g)``, each with its own points ``(K, 3)``.

        Images with equally many points are decoded together: padding with points that say nothing is not neutral.
        """
        side = self.backbone.input_size
        logits = torch.full((len(features), 1, side, side), ABSENT, device=features.device)
        buckets: dict[int, list[int]] = {}
        for i, own in enumerate(points):
            if (own[:, 2] == 1).any():
                buckets.setdefault(1 if self.config.prompt == "box" else len(own), []).append(i)
        for _, images in sorted(buckets.items()):
            index = torch.tensor(images, device=features.device)
            if self.config.prompt == "box":
                boxes = torch.stack([box_around(points[i], side) for i in images])
                prompt = self.backbone.embed_prompts(index, boxes=boxes)
            else:
                given = torch.stack([points[i] for i in images])
                prompt = self.backbone.embed_prompts(index, points=given[..., :2], point_labels=given[..., 2].long())
            masks = self.backbone.decode(Embedding(features), prompt, multimask=self.config.multimask)
            best = masks.logits[torch.arange(len(images), device=index.device), masks.iou.argmax(1)].float()
            logits[index] = F.interpolate(best[:, None], (side, side), mode="bilinear", align_corners=False)
        return logits


def box_around(points: Tensor, side: int) -> Tensor:
    """``(4,)`` float32 x0, y0, x1, y1 around the points ``(K, 3)`` that are inside, 10 px of 512 wider at each side.

    It stays in the square of ``side`` pixels.
    """
    inside = points[points[:, 2] == 1, :2].float()
    margin = MARGIN * side
    corners = torch.cat([inside.amin(0) - margin, inside.amax(0) + margin])
    return corners.clamp(0, side - 1)
