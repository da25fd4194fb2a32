"""Segmentation losses as plain functions of logits and truth, computed in float32 whatever the autocast."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def dice_loss(logits: Tensor, target: Tensor, eps: float = 1.0) -> Tensor:
    """Soft Dice loss ``1 - (2 sum(p g) + eps) / (sum(p) + sum(g) + eps)`` with ``p = sigmoid(logit)`` (decision D-18).

    The sums run over the pixels of the truth; smaller logits are first enlarged bilinearly (``align_corners=False``).
    An object that is absent from the truth keeps its loss: it pushes false positives down.

    Args:
        logits: ``(..., h, w)`` float of any precision.
        target: ``(..., H, W)`` bool, or float in [0, 1]; leading dimensions as those of ``logits``.
        eps: Added to numerator and denominator, in pixels.

    Returns:
        ``(...)`` float32 in [0, 1): one loss an object.

    Raises:
        ValueError: the leading dimensions differ.
    """
    if logits.shape[:-2] != target.shape[:-2]:
        raise ValueError(f"logits are {tuple(logits.shape)} but the truth is {tuple(target.shape)}")
    logits = logits.to(torch.float32)
    size = target.shape[-2:]
    if logits.shape[-2:] != size:
        flat = logits.reshape(-1, 1, *logits.shape[-2:])
        logits = functional.interpolate(flat, size, mode="bilinear", align_corners=False).reshape(target.shape)
    p, g = logits.sigmoid(), target.to(torch.float32)
    overlap = (p * g).sum((-2, -1))
    return 1 - (2 * overlap + eps) / (p.sum((-2, -1)) + g.sum((-2, -1)) + eps)
