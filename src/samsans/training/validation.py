"""How good the method is on held-out slices while it trains."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samsans.data.transforms import inside
from samsans.ops.labels import winners
from samsans.training.data import Slices
from samsans.types import Batch


def support_indices(slices: Slices, count: int, seed: int) -> list[int]:
    """Up to ``count`` slices that show an object, drawn at random with ``seed``; those that show most objects first."""
    shown = slices.present.sum(1)
    order = np.random.default_rng(seed).permutation(len(slices))
    order = order[np.argsort(-shown[order], kind="stable")]
    return [int(i) for i in order[:count] if shown[i] > 0]


def dice(logits: Tensor, batch: Batch, exclusive: bool = False) -> Tensor:
    """Dice ``(B, N)`` of what is ``found`` in every slice, float32; NaN where an object is neither there nor predicted.

    Padding is left out.  Slices and patches are scored one by one: a guide while training, not the volume Dice of
    ``evaluate``.  Where there are several annotators, the mean over those who drew the object (our decision), NaN where
    none did.
    """
    assert batch.masks is not None
    pixels = found(logits, batch, exclusive).flatten(2)
    if batch.annotations is not None:
        drawn = batch.annotations.flatten(3)
        sizes = drawn.sum(3)
        scores = 2 * (pixels[:, None] & drawn).sum(3).float() / (pixels.sum(2)[:, None] + sizes)
        return scores.where(sizes > 0, torch.nan).nanmean(1)
    truth = batch.masks.flatten(2)
    return 2 * (pixels & truth).sum(2).float() / (pixels.sum(2) + truth.sum(2))


def found(logits: Tensor, batch: Batch, exclusive: bool = False) -> Tensor:
    """``(B, N, S, S)`` bool: the pixels of each object, none of them in padding.

    Those of a logit above 0; where objects are ``exclusive``, each pixel's highest logit above 0.  Of patches
    ``(B, N, T, H, W)``: the voxels where an object has the highest of the scores ``(B, N + 1, T, H, W)``.
    """
    if logits.ndim == 5:
        return logits.argmax(1, keepdim=True) == torch.arange(1, logits.shape[1], device=logits.device).view(
            -1, 1, 1, 1
        )
    pixels = winners(logits) if exclusive else logits > 0
    return pixels if batch.valid is None else pixels & inside(batch.valid, logits.shape[-1])[:, None]


def validate(
    method: Any, slices: Slices, bank: Any, objects: Sequence[str], batch_size: int, device: torch.device
) -> tuple[dict[str, float], bool]:
    """Mean Dice over slices or patches per object and, as ``val/dice``, over objects; and whether all was empty.

    An object that is in no slice and never predicted has no score and no entry.
    """
    rows, anything, exclusive = [], False, method.needs.exclusive
    for start in range(0, len(slices), batch_size):
        batch = slices.batch(range(start, min(start + batch_size, len(slices)))).to(device)
        logits = method.predict(batch, bank)
        anything = anything or bool(found(logits, batch, exclusive).any())
        rows.append(dice(logits, batch, exclusive).cpu())
    means = torch.cat(rows).nanmean(0).tolist()
    scores = {f"val/dice/{name}": mean for name, mean in zip(objects, means, strict=True) if not math.isnan(mean)}
    if scores:
        scores = {"val/dice": sum(scores.values()) / len(scores), **scores}
    return scores, not anything


def mean_loss(method: Any, batches: Iterable[Batch], device: torch.device) -> float:
    """Mean over the images of ``batches`` of the loss that training minimises."""
    total, images = 0.0, 0
    for batch in batches:
        here = batch.to(device)
        total += float(method.loss(method(here), here)["loss"]) * len(batch.ids)
        images += len(batch.ids)
    return total / max(images, 1)


def ambiguity(method: Any, slices: Slices, count: int, batch_size: int, device: torch.device) -> dict[str, float]:
    """How well ``count`` samples agree with the set of annotations: ``val/ged``, ``val/sample_diversity``,
    ``val/hm_iou``, means over slices and objects (see ``samsans.metrics.ambiguity``); slices that nobody looked at are
    passed over.

    The draws of a slice follow from its place among the ``slices``: every validation has the same.
    """
    from samsans.metrics import ambiguity as metrics

    images = []
    for start in range(0, len(slices), batch_size):
        seeds = range(start, min(start + batch_size, len(slices)))
        batch = slices.batch(seeds)
        samples = method.sample(batch.to(device), seeds, count).cpu() > 0  # (B, K, N, S, S)
        if batch.valid is not None:
            samples &= inside(batch.valid, samples.shape[-1])[:, None, None]
        for drawn, truth in zip(samples, _annotations(batch), strict=True):
            if len(truth):
                images += [metrics.compare(drawn[:, n].numpy(), truth[:, n].numpy()) for n in range(drawn.shape[1])]
    names = ("ged", "sample_diversity", "hm_iou")
    return {f"val/{name}": float(np.mean([getattr(i, name) for i in images])) for name in names} if images else {}


def _annotations(batch: Batch) -> list[Tensor]:
    """``(A, N, S, S)`` bool of every image: what its annotators drew; its mask where one alone is known."""
    assert batch.masks is not None
    if batch.annotations is None or batch.drawn is None:
        return list(batch.masks[:, None])
    return [image[known] for image, known in zip(batch.annotations, batch.drawn, strict=True)]


def told(scores: Mapping[str, float]) -> str:
    """A validation in one line, for people."""
    parts = [f"{name.removeprefix('val/dice/')} {value:.3f}" for name, value in scores.items() if "/dice/" in name]
    line = f"Dice {scores.get('val/dice', 0.0):.3f}" + (f" ({', '.join(parts)})" if parts else "")
    if "val/loss" in scores:
        line = f"loss {scores['val/loss']:.4f}, {line}"
    if "val/ged" in scores:
        ged, diversity, matched = (scores[f"val/{name}"] for name in ("ged", "sample_diversity", "hm_iou"))
        line = f"GED {ged:.3f}, sample diversity {diversity:.3f}, HM-IoU {matched:.3f}, {line}"
    return line
