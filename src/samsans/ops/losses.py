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


def area_loss(shares: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of the share of every cell that is object, in [0, 1], clamped to 1e-4 ... 1 - 1e-4.

    shares: ``(B, N, c, c)`` float of any precision.  target: ``(B, N, H, W)`` bool.  Returns a float32 scalar.
    """
    cells = functional.adaptive_avg_pool2d(target.float(), shares.shape[-1])
    with torch.autocast(shares.device.type, enabled=False):  # CUDA refuses probabilities under autocast
        return functional.binary_cross_entropy(shares.float().clamp(1e-4, 1 - 1e-4), cells)


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """``(1 - p_t)^2 (-log p_t)``, mean over the pixels of each image: gamma 2 and no alpha (SPD, decision D14).

    logits: ``(..., h, w)`` float of any precision.  target: ``(..., h, w)`` bool.  Returns ``(...)`` float32.
    """
    bce = functional.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    return (torch.expm1(-bce).square() * bce).mean((-2, -1))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over batch and pixels of ``-log softmax(logits)[label]``, background included, unweighted.

    logits: ``(B, K, h, w)`` float of any precision.  labels: ``(B, h, w)`` int64.  Returns a float32 scalar.
    """
    return functional.cross_entropy(logits.to(torch.float32), labels)


def softmax_dice_loss(logits: Tensor, labels: Tensor, eps: float = 1e-5) -> Tensor:
    """``(1/K) sum_k [1 - (2 sum(p_k y_k) + eps) / (sum(p_k^2) + sum(y_k^2) + eps)]`` with ``p = softmax(logits)``.

    Sums run over batch and pixels, background included: the Dice loss of TransUNet, SAMed and H-SAM.

    logits: ``(B, K, h, w)`` float of any precision.  labels: ``(B, h, w)`` int64.  Returns a float32 scalar.
    """
    p = logits.to(torch.float32).softmax(1)
    chosen = p.gather(1, labels[:, None])[:, 0]
    overlap, truth = _by_class(chosen, labels, p.shape[1]), _by_class(torch.ones_like(chosen), labels, p.shape[1])
    return (1 - (2 * overlap + eps) / (p.square().sum((0, 2, 3)) + truth + eps)).mean()


def _by_class(values: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Sum ``(K,)`` of the values ``(B, h, w)`` of each label; row by row first, since millions of float32 values added
    one after the other would lose the small ones."""
    rows = values.new_zeros(*values.shape[:2], classes)
    return rows.scatter_add(2, labels, values).sum((0, 1))
