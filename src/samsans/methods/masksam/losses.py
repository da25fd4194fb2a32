"""Loss of set prediction: classes of all queries; masks and boxes of those that answer for a class of their slice."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.nn import functional

from samsans.methods.masksam.config import MatchingConfig
from samsans.methods.masksam.matching import Targets, auxiliary, draw, giou, identity, match, sample
from samsans.methods.masksam.outputs import Outputs


def set_loss(
    outputs: Outputs, wanted: Targets, config: MatchingConfig, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """The loss of a batch and its unweighted parts, float32 scalars whatever the autocast.

    Args:
        outputs: What the network gave.  Where prompts were made from the truth (``identity``), query j answers for the
            j-th class of its slice, and only the terms of class and final mask are there.
        wanted: Targets of the same slices.
        config: Weights; those of the matching costs are the same.
        generator: Of the random points; ``None``: the device's own.

    Returns:
        ``loss`` and ``classes``, ``mask``, ``dice``; unless ``identity`` also ``aux_mask``, ``aux_dice``, ``l1``,
        ``giou``.  All but ``classes`` are sums over pairs divided by the number of targets, averaged over processes.
    """
    device = outputs.class_logits.device
    with torch.autocast(device.type, enabled=False):
        if outputs.identity:
            pairs = identity(wanted, outputs.class_logits.shape[1])
        else:
            pairs = match(outputs, wanted, config, generator)
        number = instances(wanted.present)
        truth = wanted.masks[pairs.slices, pairs.targets][:, None]
        parts = {"classes": class_loss(outputs.class_logits, pairs.classes, config.no_object)}
        final = outputs.mask_logits[pairs.slices, pairs.queries][:, None]
        parts["mask"], parts["dice"] = mask_losses(final, truth, number, config, generator)
        loss = config.classes * parts["classes"] + config.mask * parts["mask"] + config.dice * parts["dice"]
        if not outputs.identity:
            assert outputs.auxiliary_logits is not None
            assert outputs.boxes is not None
            first = auxiliary(outputs.auxiliary_logits[pairs.slices, pairs.queries][:, None], config)
            parts["aux_mask"], parts["aux_dice"] = mask_losses(first, truth, number, config, generator)
            boxes = outputs.boxes[pairs.slices, pairs.queries].to(torch.float32)
            true = wanted.boxes[pairs.slices, pairs.targets]
            parts["l1"] = (boxes - true).abs().sum() / number
            parts["giou"] = (1 - giou(boxes, true)).sum() / number
            loss = loss + config.auxiliary * (parts["aux_mask"] + parts["aux_dice"])
            loss = loss + config.l1 * parts["l1"] + config.giou * parts["giou"]
    return {"loss": loss, **parts}


def class_loss(logits: Tensor, classes: Tensor, no_object: float) -> Tensor:
    """Cross-entropy of all queries, "no object" (the last class) weighted; a mean by the sum of the weights.

    logits: ``(R, Q, K + 1)`` float.  classes: ``(R, Q)`` int64.  Returns a float32 scalar.
    """
    weight = torch.ones(logits.shape[-1], device=logits.device)
    weight[-1] = no_object
    return functional.cross_entropy(logits.flatten(0, 1).to(torch.float32), classes.flatten(), weight)


def mask_losses(
    logits: Tensor, truth: Tensor, number: Tensor, config: MatchingConfig, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy (mean over points) and Dice (smoothed by 1) at uncertain points, summed over pairs / ``number``.

    logits: ``(P, 1, H, W)`` float.  truth: ``(P, 1, H, W)`` bool.  Returns two float32 scalars.
    """
    logits = logits.to(torch.float32)
    points = uncertain_points(logits.detach(), config, generator)
    x, t = sample(logits, points)[:, 0], sample(truth, points)[:, 0]
    entropy = functional.binary_cross_entropy_with_logits(x, t, reduction="none").mean(-1)
    p = x.sigmoid()
    dice = 1 - (2 * (p * t).sum(-1) + 1) / (p.sum(-1) + t.sum(-1) + 1)
    return entropy.sum() / number, dice.sum() / number


@torch.no_grad()
def uncertain_points(logits: Tensor, config: MatchingConfig, generator: torch.Generator | None = None) -> Tensor:
    """Points of each mask ``(P, 1, H, W)``, most of them where its logit is nearest to 0 (PointRend).

    Of ``oversample`` times as many uniform points the ``importance`` share most uncertain are kept; the rest are fresh
    uniform ones.  Returns ``(P, points, 2)`` float32 in [0, 1).
    """
    rows, kept = logits.shape[0], int(config.importance * config.points)
    drawn = draw(rows, int(config.oversample * config.points), logits.device, generator)
    best = sample(logits, drawn)[:, 0].abs().topk(kept, -1, largest=False, sorted=False).indices
    chosen = drawn.gather(1, best[..., None].expand(-1, -1, 2))
    return torch.cat([chosen, draw(rows, config.points - kept, logits.device, generator)], 1)


@torch.no_grad()
def instances(present: Tensor) -> Tensor:
    """Number of targets of the batch ``(R, K)`` bool, averaged over processes, at least 1: a float32 scalar."""
    number = present.sum(dtype=torch.float32)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(number)
        number = number / distributed.get_world_size()
    return number.clamp(min=1)
