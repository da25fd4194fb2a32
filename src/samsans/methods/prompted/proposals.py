"""Everything mode: a grid of points, SAM's candidates for each, thinned out (arXiv 2304.02643, appendix B).

Written for one image at a time; masks are judged at the decoder's own resolution, ``4g`` (our decision; the authors'
code enlarges them first).  No crops of the image are taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from samsans.methods.prompted.prompts import point_grid
from samsans.types import Embedding

if TYPE_CHECKING:
    from samsans.backbones.sam import Sam
    from samsans.methods.prompted.config import PromptedConfig


def propose(backbone: Sam, embedding: Embedding, size: tuple[int, int], config: PromptedConfig) -> Tensor:
    """``(Q, 4g, 4g)`` float32 logits of the proposals for one image, best first; ``Q`` may be 0.

    embedding: of one image (B = 1).  size: height and width of the part of the model's square that is image.
    """
    grid = point_grid(config.grid_points, size).to(embedding.features.device)
    logits, scores = [], []
    for points in grid.split(config.point_batch):
        index = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        prompt = backbone.embed_prompts(index, points=points[:, None], point_labels=torch.ones_like(index)[:, None])
        masks = backbone.decode(embedding, prompt, multimask=True)
        some, iou = masks.logits.flatten(0, 1).float(), masks.iou.flatten().float()
        keep = (iou >= config.min_iou) & (stability(some, config.stability_offset) >= config.min_stability)
        keep &= (some > 0).flatten(1).any(1)
        logits.append(some[keep])
        scores.append(iou[keep])
    found, score = torch.cat(logits), torch.cat(scores)
    return found[suppress(boxes(found > 0), score, config.max_overlap)]


def stability(logits: Tensor, offset: float) -> Tensor:
    """``(Q,)``: IoU of the masks cut at ``+offset`` and ``-offset``, of logits ``(Q, h, w)``; 0 for empty masks."""
    inner = (logits > offset).flatten(1).sum(1)
    outer = (logits > -offset).flatten(1).sum(1)
    return inner / outer.clamp_min(1)


def boxes(masks: Tensor) -> Tensor:
    """``(Q, 4)`` int64 x0, y0, x1, y1 (last pixel + 1) of masks ``(Q, h, w)`` bool, none of them empty."""
    rows, columns = masks.any(2).int(), masks.any(1).int()
    x0, y0 = columns.argmax(1), rows.argmax(1)
    return torch.stack(
        [x0, y0, columns.shape[1] - columns.flip(1).argmax(1), rows.shape[1] - rows.flip(1).argmax(1)], 1
    )


def suppress(boxes: Tensor, scores: Tensor, max_overlap: float) -> Tensor:
    """Greedy non-maximum suppression: indices ``(kept,)`` of boxes ``(Q, 4)``, best score first."""
    order = scores.argsort(descending=True, stable=True)
    lower = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    upper = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (upper - lower).clamp_min(0).prod(2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    rival = (shared / (area[:, None] + area[None] - shared).clamp_min(1) > max_overlap).tolist()
    kept: list[int] = []
    for candidate in order.tolist():
        if not any(rival[candidate][better] for better in kept):
            kept.append(candidate)
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def overlap(logits: Tensor, truth: Tensor) -> Tensor:
    """IoU ``(N, Q)`` of proposals ``(Q, h, w)`` cut at 0 with masks ``(N, h, w)``; 0 where both are empty.

    truth: float in [0, 1], the share of each pixel that belongs to the object.
    """
    found, true = (logits > 0).flatten(1).float(), truth.flatten(1)
    shared = true @ found.T
    return shared / (true.sum(1)[:, None] + found.sum(1)[None] - shared).clamp_min(1)
