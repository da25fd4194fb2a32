"""Masks, label maps and logits of classes that exclude each other, as tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def class_labels(masks: Tensor) -> Tensor:
    """``(B, N, H, W)`` bool masks that do not overlap as ``(B, H, W)`` int64: 0 background, k the k-th object."""
    count = masks.shape[1]
    dtype = torch.uint8 if count < 256 else torch.int32  # the product is the largest tensor of a training step's loss
    numbers = torch.arange(1, count + 1, dtype=dtype, device=masks.device).view(1, -1, 1, 1)
    return (masks * numbers).amax(1).long()


def shrink_labels(labels: Tensor, side: int) -> Tensor:
    """``(B, S, S)`` integers at ``(B, side, side)``: nearest neighbours with aligned corners.

    Source index ``round(i (S - 1) / (side - 1))``, halves up, as SciPy's zoom of order 0 has it in the code of SAMed
    and H-SAM.
    """
    index = corner_aligned(labels.shape[-1], side).to(labels.device)
    return labels[:, index[:, None], index]


def corner_aligned(size: int, wanted: int) -> Tensor:
    """Source index ``(wanted,)`` int64 of each of ``wanted`` samples along ``size``, first and last at the ends."""
    steps = torch.arange(wanted)
    return (2 * steps * (size - 1) + (wanted - 1)) // (2 * (wanted - 1)) if wanted > 1 else steps


def winners(logits: Tensor) -> Tensor:
    """Which object each pixel belongs to, ``(..., N, H, W)`` bool: the highest logit above 0, the background's.

    Of equal logits the first wins, and the background before all.
    """
    background = torch.zeros_like(logits[..., :1, :, :])
    best = torch.cat([background, logits], -3).argmax(-3, keepdim=True)
    numbers = torch.arange(1, logits.shape[-3] + 1, device=logits.device).view(-1, 1, 1)
    return best == numbers
