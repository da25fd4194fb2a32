"""Prompts drawn from a true mask.  Coordinates are ``(x, y)`` in model pixels, pixel centres at whole numbers."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


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
