"""Synthetic tasks: masks computed from the images by one random rule, the same in supports and target.

Our addition, not in the paper.  With one annotated object a model can learn to ignore the support masks: the object is
the answer whatever they show, and the prompt carries nothing (the plateau of decision D-35).  A rule that changes with
every episode leaves the support masks as the only place where the answer stands.  Rules start from the image (a band of
colours, edges, blobs, ridges such as vessels), from the real objects (around, inside, beside, without, outlines copied
or exchanged between images), or say that there is nothing to find.

Everything is computed at a side of at most 256 pixels and enlarged.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

SIDE = 256  # largest working side, in pixels
DISTANCE_SIDE = 128  # largest side of distance maps, in pixels
EMPTY = 0.1  # share of tasks with nothing to find
EXCHANGED = 0.5  # share of tasks in which the real masks change places
FROM_OBJECTS = 0.5  # share of the other tasks that start from the real objects


def synthetic_masks(images: Tensor, masks: Tensor, rng: np.random.Generator) -> Tensor:
    """Masks ``(B, n, S, S)`` bool of ``n`` synthetic objects, ``1 <= n <= max(N, 1)`` drawn from ``rng``.

    images: ``(B, 3, S, S)`` uint8.  masks: ``(B, N, S, S)`` bool, the real objects.  Each synthetic object follows one
    rule in all ``B`` images.
    """
    side = images.shape[-1]
    working = min(side, SIDE)
    pixels, real = images.float() / 255, masks.float()
    if working < side:
        pixels = F.interpolate(pixels, (working, working), mode="bilinear", antialias=True)
        real = F.interpolate(real, (working, working), mode="nearest-exact") if masks.shape[1] else real
    count = int(rng.integers(1, max(masks.shape[1], 1) + 1))
    drawn = torch.stack([_one(pixels, real > 0.5, rng) for _ in range(count)], 1)
    if working < side:
        drawn = F.interpolate(drawn.float(), (side, side), mode="bilinear", align_corners=False) > 0.5
    return drawn


def _one(pixels: Tensor, real: Tensor, rng: np.random.Generator) -> Tensor:
    """``(B, s, s)`` bool by one random rule."""
    kind = rng.random()
    if kind < EMPTY:
        return torch.zeros(len(pixels), *pixels.shape[-2:], dtype=torch.bool)
    exchange = kind < EMPTY + EXCHANGED
    if real.any() and (exchange or rng.random() < FROM_OBJECTS):
        rule = exchanged if exchange else OBJECT_RULES[rng.integers(len(OBJECT_RULES))]
        chosen = rng.integers(real.shape[1] + 1)  # one object, or all of them together
        return rule(real.any(1) if chosen == real.shape[1] else real[:, chosen], rng)
    return IMAGE_RULES[rng.integers(len(IMAGE_RULES))](_tint(pixels, rng), rng)


# Rules that start from the image.  grey: (B, s, s) float, a random combination of the colours; result (B, s, s) bool.


def band(grey: Tensor, rng: np.random.Generator) -> Tensor:
    """Pixels whose smoothed grey value lies between two quantiles."""
    width = rng.uniform(0.05, 0.4)
    low = rng.uniform(0, 1 - width)
    return _between(_blur(grey, _sigma(grey, rng, 0.004, 0.03)), low, low + width, rng)


def edges(grey: Tensor, rng: np.random.Generator) -> Tensor:
    """Pixels with a steep slope of the smoothed image."""
    smooth = _blur(grey, _sigma(grey, rng, 0.004, 0.015))
    down, right = _slope(smooth, 1), _slope(smooth, 2)
    return _between(down.square() + right.square(), 1 - rng.uniform(0.05, 0.25), 1.0, rng)


def blobs(grey: Tensor, rng: np.random.Generator) -> Tensor:
    """Bright or dark spots: the difference of two blurs."""
    sigma = _sigma(grey, rng, 0.008, 0.04)
    spots = (_blur(grey, sigma) - _blur(grey, 1.6 * sigma)) * rng.choice([-1, 1])
    return _between(spots, 1 - rng.uniform(0.05, 0.25), 1.0, rng)


def ridges(grey: Tensor, rng: np.random.Generator) -> Tensor:
    """Bright or dark lines, such as vessels: the larger principal curvature of the smoothed image."""
    smooth = _blur(grey * rng.choice([-1, 1]), _sigma(grey, rng, 0.004, 0.015))
    down, right = _slope(smooth, 1), _slope(smooth, 2)
    yy, xx, xy = _slope(down, 1), _slope(right, 2), _slope(down, 2)
    curvature = (yy + xx) / 2 + torch.sqrt(((yy - xx) / 2).square() + xy.square())
    return _between(curvature, 1 - rng.uniform(0.05, 0.2), 1.0, rng)


def place(grey: Tensor, rng: np.random.Generator) -> Tensor:
    """A blob at the same place in every image, whatever they show.

    It looks like a real object's mask: that a mask has the shape of an organ says nothing, only what lies under it.
    """
    index = (torch.arange(grey.shape[-1], dtype=torch.float32) + 0.5) / grey.shape[-1]
    centre, radii = rng.uniform(0.2, 0.8, 2), rng.uniform(0.05, 0.3, 2)
    down, right = (index - centre[0]) / radii[0], (index - centre[1]) / radii[1]
    return (down[:, None].square() + right.square() < 1).expand_as(grey).clone()


# Rules that start from a real object.  mask: (B, s, s) bool; an image without the object has no place near it.


def same(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """The object itself."""
    return mask


def complement(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """Everything but the object."""
    return ~mask


def dilated(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """The object and what is near it."""
    return _distance(mask) <= rng.uniform(0.01, 0.08)


def eroded(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """The inner part of the object."""
    return mask & (_distance(~mask) > rng.uniform(0.005, 0.04))


def boundary(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """A stripe along the object's edge, on both sides."""
    width = rng.uniform(0.01, 0.03)
    return (_distance(mask) <= width) & (_distance(~mask) <= width)


def ring(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """What lies at some distance around the object."""
    near = rng.uniform(0.01, 0.1)
    distance = _distance(mask)
    return (distance > near) & (distance <= near + rng.uniform(0.03, 0.15))


def beside(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """What lies beyond the object on one side of its centre, not the object."""
    return _half_plane(mask, rng) & ~mask & (_distance(mask) <= rng.uniform(0.1, 0.4))


def copied(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """The mask of one image at the same place in all of them: that a mask looks like an object says nothing."""
    showing = torch.nonzero(mask.flatten(1).any(1)).flatten()
    if not len(showing):
        return mask
    return mask[showing[rng.integers(len(showing))]].expand_as(mask).clone()


def exchanged(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """Every image gets the mask of another: a task without sense, of which only the usual place can be learned."""
    return mask.roll(1 + int(rng.integers(max(1, len(mask) - 1))), 0)


def half(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """The part of the object on one side of its centre."""
    return mask & _half_plane(mask, rng)


Rule = Callable[[Tensor, np.random.Generator], Tensor]
IMAGE_RULES: tuple[Rule, ...] = (band, band, edges, blobs, ridges, place)
OBJECT_RULES: tuple[Rule, ...] = (same, complement, dilated, eroded, boundary, ring, beside, half, copied)


def _tint(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """A random combination of the colours, ``(B, s, s)``; of either sign: bright and dark are both asked for."""
    weights = rng.normal(size=3)
    return torch.einsum("bchw,c->bhw", pixels, torch.from_numpy((weights / np.linalg.norm(weights)).astype(np.float32)))


def _sigma(grey: Tensor, rng: np.random.Generator, low: float, high: float) -> float:
    """Log-uniform width of a blur in pixels, from shares of the side."""
    return max(0.6, grey.shape[-1] * math.exp(rng.uniform(math.log(low), math.log(high))))


def _blur(field: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of ``(B, s, s)``, edges repeated; wide blurs are computed on a coarser grid."""
    side = field.shape[-1]
    step = int(min(max(sigma / 1.5, 1), side // 8 or 1))
    coarse = F.avg_pool2d(field[:, None], step) if step > 1 else field[:, None]
    width = sigma / step
    smooth = ndimage.gaussian_filter(coarse.numpy(), (0, 0, width, width), mode="nearest", truncate=3)
    coarse = torch.from_numpy(smooth)
    if step > 1:
        coarse = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
    return coarse[:, 0]


def _slope(field: Tensor, axis: int) -> Tensor:
    """Central difference along an axis, zero at the edges."""
    slope = (torch.roll(field, -1, axis) - torch.roll(field, 1, axis)) / 2
    slope.narrow(axis, 0, 1).zero_()
    slope.narrow(axis, field.shape[axis] - 1, 1).zero_()
    return slope


def _between(field: Tensor, low: float, high: float, rng: np.random.Generator) -> Tensor:
    """Pixels between two quantiles, of each image by itself or of all images together; none where all are equal."""
    step = max(1, field.shape[-1] // 64)
    sample = field[:, ::step, ::step].flatten(1)
    sample = sample if rng.random() < 0.5 else sample.reshape(1, -1)
    limits = torch.quantile(sample, torch.tensor([low, min(high, 1.0)], dtype=field.dtype), dim=1)
    below = field <= limits[1].view(-1, 1, 1) if high < 1 else True
    return (field > limits[0].view(-1, 1, 1)) & below


def _distance(mask: Tensor) -> Tensor:
    """Distance of every pixel to the mask, ``(B, s, s)`` in shares of the side; infinite where the mask is empty."""
    side = mask.shape[-1]
    working = min(side, DISTANCE_SIDE)
    small = F.interpolate(mask[:, None].float(), (working, working), mode="area")[:, 0] >= 0.5
    maps = [
        ndimage.distance_transform_edt(~m.numpy()) if m.any() else np.full((working, working), np.inf) for m in small
    ]
    distance = torch.from_numpy(np.stack(maps).astype(np.float32))[:, None] / working
    empty = torch.isinf(distance)
    distance = F.interpolate(distance.masked_fill(empty, 9.0), (side, side), mode="bilinear", align_corners=False)[:, 0]
    return distance.masked_fill(distance > 8, math.inf).masked_fill(mask, 0.0)


def _half_plane(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """One side of a line through the object's centre, at one random angle; empty where there is no object."""
    angle = rng.uniform(0, 2 * math.pi)
    index = torch.arange(mask.shape[-1], dtype=torch.float32)
    mass = mask.sum((1, 2)).float()
    row = (mask.sum(2) * index).sum(1) / mass.clamp(min=1)
    column = (mask.sum(1) * index).sum(1) / mass.clamp(min=1)
    down = (index - row[:, None])[:, :, None] * math.sin(angle)
    right = (index - column[:, None])[:, None, :] * math.cos(angle)
    return (down + right > 0) & (mass > 0)[:, None, None]
