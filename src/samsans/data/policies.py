"""Published recipes of random changes for training on slices: those of H-SAM, SAMed and AutoSAM.

A policy changes one image ``(C, S, S)`` uint8, where C is 1 or 3, and its masks ``(N, S, S)`` bool, by parameters drawn
once for both.  The publications change slices before they are resized, ours are of side S already: the same where
slices have that side anyway, as in H-SAM; SAMed enlarges from 224 pixels after the changes, AutoSAM from 256.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from samsans.config import AugmentConfig
from samsans.data.transforms import aligned, spline
from samsans.data.warps import bilinear, displacement, grid, inside, jittered, nearest, reflected, smoothing, turned
from samsans.errors import InputError

Pair = tuple[np.ndarray, np.ndarray]
Policy = Callable[[np.ndarray, np.ndarray, AugmentConfig, np.random.Generator], Pair]

HSAM_BRANCHES = {"rotate": 0.45, "scale": 0.4125, "elastic": 0.1169, "none": 0.0206}  # section 14.4, specification
CROP = (0.2, 0.8)  # side of H-SAM's window, share of S
JITTER = SIGMA = 0.08  # of H-SAM's elastic change, share of S
AMPLITUDE = 2.0  # the same
AUTOSAM_SIDE = 256  # pixels, the side of AutoSAM's slices


def apply(images: Tensor, masks: Tensor, config: AugmentConfig, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Change each of ``B`` images ``(B, 3, S, S)`` uint8 and its masks ``(B, N, S, S)`` bool by ``config.policy``.

    Masks that do not overlap never do afterwards.  Raises InputError where they overlap and ``elastic_labels`` is
    ``truncated``.
    """
    policy = POLICIES[config.policy]
    changed, moved = [], []
    for image, mask in zip(images.numpy(), masks.numpy(), strict=True):
        grey = bool((image == image[:1]).all())
        planes, parts = policy(image[:1] if grey else image, mask, config, rng)
        changed.append(np.broadcast_to(planes, image.shape))
        moved.append(parts)
    return torch.from_numpy(np.stack(changed)), torch.from_numpy(np.stack(moved))


def hsam(image: np.ndarray, masks: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> Pair:
    """One of four branches (section 14.4 of the specification): rotate, scale, elastic or none."""
    branch = hsam_branch(rng)
    if branch == "rotate":
        return rotate(image, masks, rng)
    if branch == "scale":
        return enlarge(image, masks, rng)
    if branch == "elastic":
        return elastic(image, masks, config.elastic_labels == "truncated", rng)
    return image, masks


def hsam_branch(rng: np.random.Generator) -> str:
    """A key of ``HSAM_BRANCHES``, drawn with its probability."""
    limits = np.cumsum(tuple(HSAM_BRANCHES.values()))[:-1]
    return tuple(HSAM_BRANCHES)[int(np.searchsorted(limits, rng.random(), side="right"))]


def samed(image: np.ndarray, masks: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> Pair:
    """Half of the time quarter turns and a mirror, else half of the time a rotation, else nothing (SAMed's code)."""
    if rng.random() < 0.5:
        quarters, axis = int(rng.integers(4)), 1 + int(rng.integers(2))
        image, masks = (np.flip(np.rot90(a, quarters, (1, 2)), axis) for a in (image, masks))
        return image, masks
    return rotate(image, masks, rng) if rng.random() < 0.5 else (image, masks)


def autosam(image: np.ndarray, masks: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> Pair:
    """Brightness, gamma, noise, mirror, elastic change, rotation and size, as AutoSAM's code lists them.

    Half of the images get each of the changes, and all the elastic one.  The source gives mean 1 and deviation 1 of the
    brightness: read as a factor, drawn again until it lies in [0.5, 1.5], else images turn black or white.  It gives no
    ranges of gamma (here 0.5 to 2, half of them below 1), of the noise (here a deviation of up to a tenth of the grey
    range) and of the mirror (here left and right), and no border (here zeros).  All this is our decision.
    """
    values = image / 255.0
    if rng.random() < 0.5:
        values = np.clip(values * _brightness(rng), 0, 1)
    if rng.random() < 0.5:
        values = values ** (rng.uniform(0.5, 1) if rng.random() < 0.5 else rng.uniform(1, 2))
    if rng.random() < 0.5:
        values = np.clip(values + rng.normal(0, rng.uniform(0, 0.1), values.shape), 0, 1)
    if rng.random() < 0.5:
        values, masks = values[..., ::-1], masks[..., ::-1]
    amplitude, sigma = rng.uniform(100, 350), rng.uniform(40, 60)
    angle = rng.uniform(-0.1, 0.1) if rng.random() < 0.5 else 0.0
    scale = rng.uniform(0.5, 1.9) if rng.random() < 0.5 else 1.0
    side = image.shape[-1]
    ratio = side / AUTOSAM_SIDE
    field = amplitude * displacement(smoothing(AUTOSAM_SIDE, sigma), rng)
    shift = np.stack([ndimage.zoom(f, ratio, order=1, mode="nearest") for f in field]) * ratio if ratio != 1 else field
    positions = turned(grid(side) + shift, angle, scale)
    return _grey(255 * bilinear(values, positions)), nearest(masks, positions)


def rotate(image: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> Pair:
    """Turned by a whole number of degrees from -20 to 19: nearest pixels of both, zeros outside."""
    positions = turned(grid(image.shape[-1]), math.radians(int(rng.integers(-20, 20))))
    return nearest(image, positions), nearest(masks, positions)


def enlarge(image: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> Pair:
    """A window of 0.2 to 0.8 of the side, anywhere, enlarged to the whole: image by splines, masks nearest."""
    side = image.shape[-1]
    window = max(1, int(rng.uniform(*CROP) * side))
    top, left = (int(v) for v in rng.integers(0, side - window + 1, 2))
    part = image[:, top : top + window, left : left + window].astype(np.float32)
    index = aligned(window, side)
    return _grey(spline(part, (side, side))), masks[:, (top + index)[:, None], left + index]


def elastic(image: np.ndarray, masks: np.ndarray, truncated: bool, rng: np.random.Generator) -> Pair:
    """Jittered corners with reflected border, then a smooth random displacement with zeros outside.

    Both at once, so that the image is interpolated once (our decision).  truncated: the numbers of the classes are
    interpolated and cut to whole ones, as H-SAM's released code does, which invents classes along borders.
    """
    side = image.shape[-1]
    jitter = JITTER * side
    shifted = grid(side) + AMPLITUDE * side * displacement(_hsam_smoothing(side), rng)
    there = inside(shifted)
    positions = reflected(jittered(shifted, jitter, rng))
    warped = _grey(bilinear(image, positions) * there)
    if not truncated:
        return warped, nearest(masks, positions) & there
    if masks.sum(0).max(initial=0) > 1:
        raise InputError(
            "masks that overlap, with augment.elastic_labels truncated",
            "classes that exclude each other",
            "Set augment.elastic_labels to nearest",
        )
    numbers = np.arange(1, len(masks) + 1)[:, None, None]
    labels = (masks * numbers).sum(0)
    drawn = np.floor(bilinear(labels[None].astype(np.float64), positions)[0] * there + 1e-6)  # 1e-6: rounding errors
    return warped, drawn == numbers


@lru_cache(maxsize=1)
def _hsam_smoothing(side: int) -> np.ndarray:
    """Always the same: kept, unlike AutoSAM's, whose width is random."""
    return smoothing(side, SIGMA * side)


def _brightness(rng: np.random.Generator) -> float:
    while True:
        factor = rng.normal(1, 1)
        if 0.5 <= factor <= 1.5:
            return float(factor)


def _grey(values: np.ndarray) -> np.ndarray:
    """Grey levels 0..255 as uint8."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


POLICIES: dict[str, Policy] = {"hsam": hsam, "samed": samed, "autosam": autosam}
