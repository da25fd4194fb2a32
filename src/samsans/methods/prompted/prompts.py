"""Prompts drawn from a true mask.  Coordinates are ``(x, y)`` in model pixels, pixel centres at whole numbers."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from samsans.errors import InputError
from samsans.methods.prompted.untrained import ABSENT
from samsans.types import Batch, Prompt

if TYPE_CHECKING:
    from samsans.backbones.sam import Sam


def generator(seed: int, name: str) -> np.random.Generator:
    """Random stream that depends on ``seed`` and ``name`` alone, on every machine and in every order."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def tight_box(mask: Tensor) -> Tensor:
    """``(4,)`` float32 x0, y0, x1, y1: the outermost pixels of a mask ``(H, W)`` bool that is not empty."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return torch.stack([columns[0], rows[0], columns[-1], rows[-1]]).float()


def jittered(box: Tensor, jitter: int, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """The box ``(4,)`` with each side moved by a whole number drawn from ``[-jitter, jitter]``.

    It stays inside the image of ``size`` (height, width) and keeps its corners in order.
    """
    if not jitter:
        return box
    height, width = size
    moved = box + torch.from_numpy(rng.integers(-jitter, jitter + 1, 4)).to(box)
    limits = moved.new_tensor([width - 1, height - 1, width - 1, height - 1])
    first, last = moved.clamp_min(0).minimum(limits).chunk(2)
    return torch.cat([torch.minimum(first, last), torch.maximum(first, last)])


def random_point(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """``(2,)`` float32 x, y: one pixel of a mask ``(H, W)`` bool that is not empty, all equally likely."""
    inside = mask.nonzero()
    return inside[int(rng.integers(len(inside)))].flip(0).float()


def point_grid(points: int, size: tuple[int, int]) -> Tensor:
    """``(points ** 2, 2)`` float32 x, y: centres of a ``points`` x ``points`` partition of ``size`` (height, width)."""
    share = (torch.arange(points) + 0.5) / points
    y, x = torch.meshgrid(share * size[0] - 0.5, share * size[1] - 0.5, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def present_objects(batch: Batch) -> Tensor:
    """``(P, 2)`` int64: image and number of every object that ``batch.masks`` shows.  InputError: it has no masks."""
    if batch.masks is None:
        raise InputError(
            "a prompted baseline was shown no true mask of the image",
            "the mask of every image it segments",
            "Give the labels, or use a method that needs no prompt",
        )
    return batch.masks.flatten(2).any(2).nonzero()


def truth_prompt(sam: Sam, batch: Batch, present: Tensor, kind: str, seed: int, jitter: int = 0) -> Prompt:
    """One prompt, a box or a point (``kind``), for each present (image, object), ``(P, 2)`` int64, of ``batch.masks``.

    seed: with the names of image and object it decides every draw, whatever else is in the batch.  jitter: each side
    of a box is moved by up to so many pixels.
    """
    assert batch.masks is not None
    drawn = []
    for image, item in present.tolist():
        mask, rng = batch.masks[image, item], generator(seed, f"{batch.ids[image]}:{batch.objects[item]}")
        if kind == "box":
            drawn.append(jittered(tight_box(mask), jitter, valid_size(batch, image), rng))
        else:
            drawn.append(random_point(mask, rng)[None])
    where, index = torch.stack(drawn), present[:, 0]
    if kind == "box":
        return sam.embed_prompts(index, boxes=where)
    return sam.embed_prompts(index, points=where, point_labels=torch.ones_like(index)[:, None])


def valid_size(batch: Batch, image: int) -> tuple[int, int]:
    """Height and width of the part of the square that is image."""
    if batch.valid is None:
        return batch.images.shape[-2], batch.images.shape[-1]
    height, width = batch.valid[image].tolist()
    return height, width


def enlarge(logits: Tensor, side: int) -> Tensor:
    """Logits ``(P, h, w)`` as ``(P, side, side)`` float32, bilinearly."""
    return F.interpolate(logits.float()[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]


def every_object(logits: Tensor, present: Tensor, batch: Batch) -> Tensor:
    """``(B, N, S, S)`` float32: the logits ``(P, S, S)`` of each present object, ``ABSENT`` for the others."""
    assert batch.masks is not None
    filled = torch.full(batch.masks.shape, ABSENT, dtype=torch.float32, device=logits.device)
    filled[present[:, 0], present[:, 1]] = logits.float()
    return filled
