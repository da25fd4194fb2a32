"""Losses of P2SAM as plain functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from samsans.ops.losses import dice_loss

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss
DIVISOR = 5  # the constant that the released code divides sums by, whatever the batch
NORMS = 1e-5  # weight of the norms of what stage 2 trains, in the released code


def paper_terms(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Binary cross-entropy, focal and Dice loss of logits ``(B, S, S)``, each the mean over pixels, then images."""
    logits, truth = logits.float(), target.float()
    bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return bce.mean(), focal(bce, target).mean(), dice_loss(logits, target).mean()


def reference_terms(logits: Tensor, weighted: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the released code computes in the places of the three terms (section 8.2 of the specification).

    A softmax over the weighted maps ``(B, M, S, S)`` with the pixel's value as class; the focal loss summed over all
    pixels and the Dice loss of every *row* of pixels summed, both divided by 5.
    """
    logits, truth = logits.float(), target.float()
    ce = F.cross_entropy(weighted.float(), target.long())
    bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    rows = dice_loss(logits.unsqueeze(-2), target.unsqueeze(-2))
    return ce, focal(bce, target).sum() / DIVISOR, rows.sum() / DIVISOR


def focal(bce: Tensor, target: Tensor) -> Tensor:
    """``alpha_t (1 - p_t)^2 bce`` of every pixel, given its cross-entropy: ``p_t = exp(-bce)``."""
    alpha = torch.where(target, ALPHA, 1 - ALPHA)
    return alpha * (-torch.expm1(-bce)) ** GAMMA * bce


def norms(parameters: Sequence[Tensor]) -> Tensor:
    """Sum of the Euclidean norms of tensors, times the released code's weight."""
    return NORMS * torch.stack([p.norm() for p in parameters]).sum()


def energy_distance(logits: Tensor, annotations: Tensor, drawn: Tensor | None = None) -> Tensor:
    """Squared energy distance ``(B,)`` of soft masks and annotations, less what depends on the annotations alone.

    ``2 mean d(s, y) - mean d(s, s')`` over different draws s, s', without bias for draws of one distribution; ``d`` is
    one less the weighted Jaccard index, ``sum min / sum max``: on masks it is 1 - IoU, and on soft ones a metric too
    (our addition).

    logits: ``(B, K, S, S)``, K at least 2.  annotations: ``(B, A, S, S)`` bool.  drawn: ``(B, A)`` bool, which of them
    there are; default: all.
    """
    soft, truth = logits.float().sigmoid().flatten(2), annotations.float().flatten(2)
    count = soft.shape[1]
    there = truth.new_ones(truth.shape[:2]) if drawn is None else drawn.float()
    cross = (soft_distances(soft, truth) * there[:, None]).sum((1, 2)) / (count * there.sum(1).clamp_min(1))
    first, second = torch.triu_indices(count, count, 1, device=soft.device)
    among = jaccard_distance(soft[:, first], soft[:, second]).mean(1)
    return 2 * cross - among


def soft_distances(a: Tensor, b: Tensor) -> Tensor:
    """``(B, K, A)`` distances of ``(B, K, n)`` and ``(B, A, n)``."""
    return torch.stack([jaccard_distance(a, b[:, i : i + 1]) for i in range(b.shape[1])], 2)


def jaccard_distance(a: Tensor, b: Tensor, eps: float = 1.0) -> Tensor:
    """``1 - (sum min + eps) / (sum max + eps)`` over the last axis of values in [0, 1]; two empty masks are equal."""
    apart, sizes = (a - b).abs().sum(-1), a.sum(-1) + b.sum(-1)
    return 1 - (0.5 * (sizes - apart) + eps) / (0.5 * (sizes + apart) + eps)
