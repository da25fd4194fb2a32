"""Several plausible answers: seeds that depend on the slice alone, and the maps that the draws are gathered in."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samsans.errors import InputError
from samsans.inference.jobs import Job, Target
from samsans.types import Batch, ClassInfo

NATIVE_PIXELS = 4 * 1024**2  # of draws that exist as floating-point numbers at the size of the input (our decision)


def seed_of(seed: int, name: str) -> int:
    """The seed of a slice's draws, 63 bits of SHA-256 of ``seed:name``: no other slice and no batch changes it."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]) >> 1


def require_samples(method: Any, name: str, count: int, known: tuple[ClassInfo, ...], view: str | None) -> None:
    """InputError where ``count`` samples cannot be asked of the method ``name``; 0 asks for none."""
    if count == 0:
        return
    if count < 0:
        raise InputError(f"{count} samples", "at least 1")
    if not method.needs.samples:
        raise InputError(
            f"{count} samples of {name}",
            "no such option: it gives one answer",
            "Use a method that draws several, e.g. p2sam",
        )
    if view is not None:
        raise InputError(f"{count} samples of the view {view!r}", "one of the two", "Leave the view or the samples out")
    if len(known) != 1:
        raise InputError(
            f"{count} samples of {len(known)} objects", "one object", "Train for one object, chosen with data.classes"
        )


def draw(method: Any, batch: Batch, target: Target) -> Tensor | None:
    """``(B, K, S, S)`` float32 logits of the samples that ``target`` asks for; ``None`` where it asks for none."""
    if not target.samples:
        return None
    logits = method.sample(batch, [seed_of(target.seed, name) for name in batch.ids], target.samples)
    wanted = (len(batch.ids), target.samples, 1, *batch.images.shape[2:])
    if logits.shape != wanted:
        raise RuntimeError(f"{type(method).__name__}.sample gave {tuple(logits.shape)}, not {wanted}")
    return logits[:, :, 0].float()  # type: ignore[no-any-return]


def paint_samples(job: Job, index: int, logits: Tensor, restore: Callable[[Tensor], Tensor], target: Target) -> None:
    """Fill one slice of the samples, their mean probability and its entropy in bits.

    logits: ``(K, S, S)``; a pixel is the object where its logit is above 0.
    restore: brings maps ``(k, S, S)`` to the slice's own size ``(k, H, W)``.
    """
    assert job.samples is not None
    assert job.probabilities is not None
    assert job.entropy is not None
    place = job.orientation.view(np.moveaxis(job.samples, 0, -1))[index]  # (H, W, K)
    label = target.classes[0].label
    total = torch.zeros(place.shape[:2], device=logits.device)
    first = 0
    for some in logits.split(max(1, NATIVE_PIXELS // total.numel())):
        native = restore(some)
        total += native.sigmoid().sum(0)
        place[..., first : first + len(some)] = (native > 0).permute(1, 2, 0).cpu().numpy() * place.dtype.type(label)
        first += len(some)
    mean = total / len(logits)
    job.probabilities[0, index] = mean.cpu().numpy()
    job.entropy[0, index] = bits(mean).cpu().numpy()


def bits(probability: Tensor) -> Tensor:
    """Entropy of one who says yes with this probability, in bits: 0 to 1."""
    return (torch.special.entr(probability) + torch.special.entr(1 - probability)) / math.log(2)
