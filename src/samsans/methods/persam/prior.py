"""Where an image resembles an object: the likeness of its features, two points, and what guides the attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_means(features: Tensor, masks: Tensor) -> Tensor:
    """``(K, N, C)`` float32: mean feature under each mask, every token weighing as much of it as the mask covers.

    Weighing by the share, so that an object smaller than a token counts, is our decision.  Empty masks give 0.

    features: ``(K, C, g, g)``.  masks: ``(K, N, S, S)`` bool.
    """
    share = F.adaptive_avg_pool2d(masks.float(), features.shape[-1])
    with torch.autocast(features.device.type, enabled=False):
        total = torch.einsum("kchw,knhw->knc", features.float(), share)
    return total / share.sum((2, 3)).clamp_min(torch.finfo(torch.float32).tiny)[..., None]


def likeness(features: Tensor, direction: Tensor) -> Tensor:
    """``(B, N, g, g)`` float32: cosine of every feature ``(B, C, g, g)`` and the objects' directions ``(B, N, C)``.

    Where a direction is the mean of several unit vectors, it is the mean of their cosines.
    """
    with torch.autocast(features.device.type, enabled=False):
        return torch.einsum("bchw,bnc->bnhw", F.normalize(features.float(), dim=1), direction)


def extremes(similarity: Tensor, visible: Tensor, patch: int) -> Tensor:
    """``(P, 2, 2)`` float32 x, y in model pixels: centres of the tokens that are most and least alike.

    Of equals the first, row by row.

    similarity: ``(P, g, g)``.  visible: ``(P, g, g)`` bool, tokens that may be chosen.  patch: pixels a token side.
    """
    side = similarity.shape[-1]
    most = similarity.masked_fill(~visible, -torch.inf).flatten(1).argmax(1)
    least = similarity.masked_fill(~visible, torch.inf).flatten(1).argmin(1)
    tokens = torch.stack([most, least], 1)
    return (torch.stack([tokens % side, tokens // side], -1) + 0.5) * patch - 0.5


def guidance(similarity: Tensor, visible: Tensor) -> Tensor:
    """``(P, g, g)`` float32 in [0, 1]: what the decoder's attention to the image is raised by, 0 in padding.

    The likeness, standardised over the visible tokens of the image, through a sigmoid, added with a weight of 1 (our
    decision).
    """
    count = visible.sum((1, 2), keepdim=True).clamp_min(1)
    centred = (similarity - (similarity * visible).sum((1, 2), keepdim=True) / count) * visible
    deviation = (centred.square().sum((1, 2), keepdim=True) / count).sqrt()
    return (centred / deviation.clamp_min(1e-6)).sigmoid() * visible
