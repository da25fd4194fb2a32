"""What methods that learn from support pairs share: episodes, tokens that hold an image, the identity of weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samsans.errors import InputError
from samsans.types import Batch


def episode(batch: Batch) -> tuple[Tensor, Tensor]:
    """Masks ``(B, N, S, S)`` of a leave-one-out episode and its targets ``(T,)``, by default every image.

    The supports of a target are all other images of the batch.  Raises InputError without masks, or with one image.
    """
    if batch.masks is None:
        raise InputError("a training batch without masks", "masks for every image of an episode")
    if len(batch.images) < 2:
        raise InputError("an episode of one image", "at least two: one target and one support", "Add images")
    if batch.targets is None:
        return batch.masks, torch.arange(len(batch.images), device=batch.images.device)
    return batch.masks, batch.targets


def other_masks(masks: Tensor) -> Tensor | None:
    """Masks ``(B, N, S, S)`` that ask for something else, to see whether a method listens: swapped between objects.

    A single object's masks are emptied.  ``None`` where that would change nothing.
    """
    swapped = masks.roll(1, dims=1) if masks.shape[1] > 1 else torch.zeros_like(masks)
    return None if torch.equal(swapped, masks) else swapped


def visible_tokens(batch: Batch, grid: int) -> Tensor:
    """``(B, grid^2)`` bool, row by row: tokens that hold any image, all of them unless images were padded."""
    images = batch.images
    if batch.valid is None:
        return torch.ones(len(images), grid * grid, dtype=torch.bool, device=images.device)
    start = torch.arange(grid, device=images.device) * (images.shape[-1] / grid)
    rows, columns = (start < batch.valid[:, axis, None] for axis in (0, 1))
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)


def to_tokens(features: Tensor) -> Tensor:
    """``(B, C, g, g)`` to ``(B, g^2, C)``, row by row."""
    return features.flatten(2).transpose(1, 2)


def upsample(logits: Tensor, size: int) -> Tensor:
    """``(B, N, g, g)`` to ``(B, N, size, size)``, bilinearly."""
    return F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)


AFTER_BANKS = ("k_test", "gate_by_object_score", "memory_mode", "bank", "size", "min_confidence", "scan", "resnet")
"""Options of methods that no support bank depends on; ``resnet`` is where weights are, whose hash says more."""


def fingerprint(method: nn.Module, *bases: str, options: Mapping[str, Any] | None = None) -> str:
    """SHA-256 of what support banks of a method depend on.

    Its parameters that are not frozen, the hashes ``bases`` of the frozen weights under it, and ``options``, by default
    all of ``method.config``, a dataclass, but ``AFTER_BANKS``.
    """
    if options is None:
        every = asdict(cast(Any, method.config))
        options = {name: value for name, value in every.items() if name not in AFTER_BANKS}
    digest = hashlib.sha256("".join([*bases, json.dumps(options, sort_keys=True)]).encode())
    for name, parameter in sorted(method.named_parameters()):
        if parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
