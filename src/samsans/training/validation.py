"""How good the method is on held-out slices while it trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from samsans.training.data import Slices
from samsans.types import Batch


def support_indices(slices: Slices, count: int, seed: int) -> list[int]:
    """Up to ``count`` slices that show an object, drawn without replacement in an order fixed by ``seed``."""
    order = torch.randperm(len(slices), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen: list[int] = []
    for index in order:
        masks = slices.batch([index]).masks
        if masks is not None and bool(masks.any()):
            chosen.append(index)
        if len(chosen) == count:
            break
    return sorted(chosen)


def dice(logits: Tensor, batch: Batch) -> Tensor:
    """Dice ``(B, N)`` of ``logits > 0`` in every slice, float64; NaN where an object is neither there nor predicted.

    Padding is left out.  Slices are scored one by one: a guide while training, not the volume Dice of ``evaluate``.
    """
    assert batch.masks is not None
    found = (logits > 0) & inside(batch)
    overlap = (found & batch.masks).sum((2, 3)).double()
    return 2 * overlap / (found.sum((2, 3)) + batch.masks.sum((2, 3)))


def inside(batch: Batch) -> Tensor:
    """``(B, 1, S, S)`` bool: image, not padding."""
    side = batch.images.shape[-1]
    if batch.valid is None:
        return torch.ones(1, 1, side, side, dtype=torch.bool, device=batch.images.device)
    pixel = torch.arange(side, device=batch.images.device)
    rows, columns = (pixel < batch.valid[:, i, None] for i in (0, 1))
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def validate(
    method: Any, slices: Slices, bank: Any, objects: Sequence[str], batch_size: int, device: torch.device
) -> tuple[dict[str, float], bool]:
    """Mean Dice over slices per object and, as ``val/dice``, over objects; and whether no prediction held a pixel.

    An object that is in no slice and never predicted has no score and no entry.
    """
    rows, anything = [], False
    for start in range(0, len(slices), batch_size):
        batch = slices.batch(range(start, min(start + batch_size, len(slices)))).to(device)
        logits = method.predict(batch, bank)
        anything = anything or bool(((logits > 0) & inside(batch)).any())
        rows.append(dice(logits, batch).cpu())
    means = torch.cat(rows).nanmean(0).tolist()
    scores = {f"val/dice/{name}": mean for name, mean in zip(objects, means, strict=True) if not math.isnan(mean)}
    if scores:
        scores = {"val/dice": sum(scores.values()) / len(scores), **scores}
    return scores, not anything
