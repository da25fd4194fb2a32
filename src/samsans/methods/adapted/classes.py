"""Between a decoder's K classes, background first, and the N = K - 1 objects of a batch whose masks do not overlap."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from samsans.errors import InputError
from samsans.ops.labels import class_labels
from samsans.types import Batch


def true_labels(batch: Batch) -> Tensor:
    """``(B, S, S)`` int64 truth of a training batch, 0 background (padding too).  InputError: it has no masks."""
    if batch.masks is None:
        raise InputError("a training batch without masks", "a mask of every object for every image")
    return class_labels(batch.masks)


def object_logits(classes: Tensor, side: int) -> Tensor:
    """Class logits ``(B, K, h, w)`` relative to background: ``(B, K - 1, side, side)`` float32, enlarged bilinearly.

    Softmax and argmax over ``[0, logits]`` are those over the K classes.
    """
    relative = classes[:, 1:].float() - classes[:, :1].float()
    return F.interpolate(relative, (side, side), mode="bilinear", align_corners=False)
