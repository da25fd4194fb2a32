"""PerSAM-F: how SAM's three masks, of a part, a larger part and a whole, are mixed; two weights learned an object."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from samsans.ops.losses import dice_loss, focal_loss


def mix(logits: Tensor, weights: Tensor) -> Tensor:
    """``(P, h, w)``: ``w1 M1 + w2 M2 + (1 - w1 - w2) M3`` of logits ``(P, 3, h, w)`` and weights ``(P, 2)``."""
    every = torch.cat([weights, 1 - weights.sum(1, keepdim=True)], 1)
    return (logits * every[:, :, None, None]).sum(1)


def mixture_loss(logits: Tensor, weights: Tensor, truth: Tensor) -> Tensor:
    """``(P,)`` float32: Dice and focal loss of the mixed logits; ``truth`` is ``(P, h, w)`` bool, the rest as ``mix``.

    Equal parts, Dice with eps 1, focal with gamma 2 and no alpha: our decision.
    """
    mixed = mix(logits, weights)
    return dice_loss(mixed, truth) + focal_loss(mixed, truth)


def learn_mixture(logits: Tensor, masks: Tensor, steps: int, lr: float) -> Tensor:
    """``(P, 2)`` float32: the weights that fit masks best, each object's by itself, from a third each.

    AdamW with the rate falling to 0 along a cosine, as in the paper.  Logits are constants, so that the decoder runs
    once; the loss is that of the decoder's own side h (our decision).

    logits: ``(P, 3, h, h)`` of SAM's three masks.  masks: ``(P, S, S)`` bool.
    """
    truth = reduced(masks, logits.shape[-1])
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(logits.device.type, enabled=False):
        fixed, truth = logits.detach().float().clone(), truth.clone()
        weights = torch.full((len(fixed), 2), 1 / 3, device=fixed.device, requires_grad=True)
        optimizer = torch.optim.AdamW([weights], lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        for _ in range(steps):
            optimizer.zero_grad()
            mixture_loss(fixed, weights, truth).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return weights.detach()


def reduced(masks: Tensor, side: int) -> Tensor:
    """``(P, side, side)`` bool: cells half covered by masks ``(P, S, S)`` bool; of a tiny one those it covers most."""
    share = F.adaptive_avg_pool2d(masks[:, None].float(), side)[:, 0]
    return (share >= share.amax((1, 2), keepdim=True).clamp_max(0.5)) & (share > 0)
