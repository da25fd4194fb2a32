"""Losses of SPD as plain functions, in float32 whatever the autocast."""

from __future__ import annotations

import torch
from torch import Tensor

from samsans.ops.losses import dice_loss, focal_loss

EPS = 1e-5  # pixels, in Dice and in pairwise consistency (decisions D14, D19)


def segmentation_terms(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Dice and focal loss, each the mean over images, of logits ``(B, S, S)`` and truth ``(B, S, S)`` bool."""
    return dice_loss(logits, target, EPS).mean(), focal_loss(logits, target).mean()


def pair_loss(a: Tensor, b: Tensor, eps: float = EPS) -> Tensor:
    """Pairwise slice consistency ``1 - (2 sum(a b) + eps) / (sum a + sum b + eps)`` of soft masks.

    Mind what it asks for: equal soft masks still cost (``1 - p`` for a constant p), so it hardens, and its trivial
    minimum is all object; a neighbour that is exactly empty costs 1 without any gradient on the current mask, and grows
    a false object in the neighbour; on two empty slices it pushes every pixel up.

    a, b: ``(P, S, S)`` probabilities.  Returns ``(P,)`` float32.
    """
    a, b = a.float(), b.float()
    overlap = (a * b).sum((-2, -1))
    return 1 - (2 * overlap + eps) / (a.sum((-2, -1)) + b.sum((-2, -1)) + eps)


def consistency(current: Tensor, following: Tensor, direction: str = "next", stop_grad: bool = False) -> Tensor:
    """``pair_loss`` of slices and those that follow them, ``(P, S, S)`` probabilities each; ``(P,)``.

    direction: whether each slice is drawn to the ``next``, to the ``prev``, or ``both`` (their mean).  That matters
    only with ``stop_grad``, where the mask a slice is drawn to is a constant.
    """
    towards = {"next": [(current, following)], "prev": [(following, current)]}
    towards["both"] = towards["next"] + towards["prev"]
    losses = [pair_loss(mask, other.detach() if stop_grad else other) for mask, other in towards[direction]]
    return torch.stack(losses).mean(0)


def pairs(following: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    """Indices ``(P,)`` of slices, and of those that follow them, where both are usable.

    following: ``(B,)`` int64, -1 for none.  usable: ``(B,)`` bool.
    """
    current = ((following >= 0) & usable & usable[following.clamp_min(0)]).nonzero()[:, 0]
    return current, following[current]
