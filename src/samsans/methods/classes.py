"""What the methods share that segment all classes of a slice at once.

Where classes exclude each other they are K, background first, for N = K - 1 objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.errors import InputError
from samsans.ops.labels import class_labels
from samsans.types import Batch, ParamGroup, Stage

if TYPE_CHECKING:
    from samsans.config import RunConfig


def true_masks(batch: Batch) -> Tensor:
    """``(B, N, S, S)`` bool masks of a training batch.  InputError: it has none."""
    if batch.masks is None:
        raise InputError("a training batch without masks", "a mask of every object for every image")
    return batch.masks


def true_labels(batch: Batch) -> Tensor:
    """``(B, S, S)`` int64 truth of a training batch, 0 background (padding too).  InputError: it has no masks."""
    return class_labels(true_masks(batch))


def central_labels(masks: Tensor, side: int) -> Tensor:
    """``(B, side, side)`` int64: the class at the centre of each cell of masks ``(B, N, S, S)``, S a multiple of side.

    Nearest neighbours with half-pixel centres: at those points lie the positions of an embedding and of its maps.
    """
    step = masks.shape[-1] // side
    return class_labels(masks[..., step // 2 :: step, step // 2 :: step])


def object_logits(classes: Tensor, side: int) -> Tensor:
    """Class logits ``(B, K, h, w)`` relative to background: ``(B, K - 1, side, side)`` float32, enlarged bilinearly.

    Softmax and argmax over ``[0, logits]`` are those over the K classes.
    """
    relative = classes[:, 1:].float() - classes[:, :1].float()
    return F.interpolate(relative, (side, side), mode="bilinear", align_corners=False)


def foreground_dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over objects of ``1 - (2 sum(p y) + 1) / (sum(p^2) + sum(y^2) + 1)`` with ``p = softmax(logits)``.

    Sums run over batch and pixels; background has no term, and terms that are not above 0 do not count (AutoSAM of
    Hu, Xu and Shi; that 1 is added above and below is our reading).

    logits: ``(B, K, h, w)`` float of any precision.  labels: ``(B, h, w)`` int64.  Returns a float32 scalar.
    """
    p = logits.float().softmax(1)[:, 1:]
    truth = labels[:, None] == torch.arange(1, logits.shape[1], device=labels.device).view(-1, 1, 1)
    overlap, sizes = (p * truth).sum((0, 2, 3)), truth.sum((0, 2, 3))
    terms = 1 - (2 * overlap + 1) / (p.square().sum((0, 2, 3)) + sizes + 1)
    positive = terms > 0
    return (terms * positive).sum() / positive.sum().clamp_min(1)


def require_one_object(objects: Sequence[str], asked: str, why: str) -> None:
    """Raise ``InputError`` where a method of one object is asked about another number of them.

    asked: by what, e.g. ``for spd``.  why: e.g. ``points are of one object``.
    """
    if len(objects) != 1:
        raise InputError(
            f"{len(objects)} objects ({', '.join(objects)}) {asked}", f"one: {why}", "Choose one with data.classes"
        )


def refuse_decoder_adapters(config: RunConfig) -> None:
    """Raise ``InputError`` where adapters are asked for in a decoder that is trained as a whole."""
    if config.backbone.train == "lora" and config.lora.decoder:
        raise InputError(
            f"lora.decoder {config.lora.decoder} on a decoder that is trained as a whole",
            "no adapters in it",
            "Set lora.decoder []",
        )


def one_stage(method: nn.Module) -> Sequence[Stage]:
    """One stage, one group: everything that is not frozen, with weight decay on all of it as published."""
    return [Stage("train", (ParamGroup(tuple(p for p in method.parameters() if p.requires_grad)),))]
