"""Random changes of place and brightness, drawn once and applied alike to an image, its masks and its points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samsans.config import AugmentConfig
from samsans.data import policies
from samsans.errors import InputError

OWN = ("affine", "spd")  # policies that turn and move images as a whole, by an affine map
TURNED = 0.5  # share of the images that spd rotates (decision D7)


def moves(config: AugmentConfig) -> bool:
    """Whether the changes move pixels, by the policies ``affine`` and ``spd``."""
    by = (config.flip, config.rotate)
    return any(by if config.policy == "spd" else (*by, config.scale, config.shift))


def changes(config: AugmentConfig) -> bool:
    """Whether images are changed at all."""
    return config.policy not in OWN or moves(config) or bool(config.intensity and config.policy == "affine")


def draw_affine(config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """``(2, 3)`` float32: output to input coordinates in [-1, 1] (x, y): flip, rotation, size and shift."""
    flip = -1.0 if rng.random() < config.flip else 1.0
    angle = math.radians(rng.uniform(-config.rotate, config.rotate))
    size = 1 + rng.uniform(-config.scale, config.scale)
    shift = 2 * rng.uniform(-config.shift, config.shift, 2)
    cos, sin = math.cos(angle) / size, math.sin(angle) / size
    return np.array([[flip * cos, -flip * sin, shift[0]], [sin, cos, shift[1]]], np.float32)


def draw_spd(config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """As ``draw_affine``, by SPD's policy: a flip with probability ``flip``; then, half of the time, a rotation by up
    to ``rotate`` degrees either way (decision D7; the order is ours)."""
    flip = -1.0 if rng.random() < config.flip else 1.0
    angle = math.radians(rng.uniform(-config.rotate, config.rotate)) * (rng.random() < TURNED)
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[flip * cos, -flip * sin, 0], [sin, cos, 0]], np.float32)


def move_points(points: Tensor, theta: np.ndarray, side: int) -> Tensor:
    """Points ``(K, 3)`` (x, y, label) of a square of ``side`` pixels where the map ``theta`` (see ``draw_affine``)
    takes what they lie on; those that leave the square are dropped.

    For rotations by ``a`` counter-clockwise about ``c = (side - 1) / 2`` this is ``x' = c + cos a (x - c) + sin a (y -
    c)``, ``y' = c - sin a (x - c) + cos a (y - c)``; for a flip ``x' = side - 1 - x``.
    """
    matrix, shift = theta[:, :2].astype(np.float64), theta[:, 2].astype(np.float64)
    centred = (2 * points[:, :2].double().numpy() + 1) / side - 1
    moved = ((np.linalg.solve(matrix, (centred - shift).T).T + 1) * side - 1) / 2
    out = torch.cat([torch.from_numpy(moved).to(points.dtype), points[:, 2:]], 1)
    return out[torch.from_numpy(((moved >= -0.5) & (moved < side - 0.5)).all(1))]


def augment_together(
    images: Tensor,
    masks: Tensor,
    points: Sequence[Tensor],
    groups: Sequence[int],
    config: AugmentConfig,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """``augment`` with points ``(K, 3)`` of each of the B images in model pixels; images of one group (``groups``, a
    number an image) share their draw of place, such as slices that are compared.

    Raises InputError for published policies that bend images, and where brightness is to change.
    """
    if config.policy not in OWN or (config.policy == "affine" and config.intensity):
        raise InputError(
            f"augment.policy {config.policy} with intensity {config.intensity:g}, for images with points",
            "policy spd, or affine without intensity",
            "Set augment.policy to spd",
        )
    if not moves(config):
        return images, masks, tuple(points)
    draws = {group: _draw(config, rng) for group in dict.fromkeys(groups)}
    theta = [draws[group] for group in groups]
    images, masks = _moved(images, masks, theta)
    side = images.shape[-1]
    return images, masks, tuple(move_points(p, t, side) for p, t in zip(points, theta, strict=True))


def _draw(config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    return draw_spd(config, rng) if config.policy == "spd" else draw_affine(config, rng)


def _moved(images: Tensor, masks: Tensor, theta: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Images bilinear, masks nearest, by one map each; black and no object from outside."""
    shape = [len(images), 1, *images.shape[-2:]]
    grid = F.affine_grid(torch.from_numpy(np.stack(theta)), shape, align_corners=False)
    moved = F.grid_sample(images.float(), grid, mode="bilinear", align_corners=False)
    if masks.shape[1]:
        masks = F.grid_sample(masks.float(), grid, mode="nearest", align_corners=False) > 0.5
    return moved.round().clamp_(0, 255).to(torch.uint8), masks


def augment(images: Tensor, masks: Tensor, config: AugmentConfig, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Change each of ``B`` images and its masks at random; what comes from outside the image is black and no object.

    images: ``(B, 3, S, S)`` uint8.  masks: ``(B, N, S, S)`` bool.  Same shapes and types are returned; the very same
    tensors where ``config`` asks for nothing.  Images are sampled bilinearly, masks at the nearest pixel, save where
    a published ``policy`` (see ``policies``) has it otherwise.  Points are moved by ``augment_together``.
    """
    if config.policy not in OWN:
        return policies.apply(images, masks, config, rng)
    if moves(config):
        images, masks = _moved(images, masks, [_draw(config, rng) for _ in range(len(images))])
    if config.intensity and config.policy == "affine":
        gains = 1 + rng.uniform(-config.intensity, config.intensity, (2, len(images), 1, 1, 1))
        contrast, brightness = torch.from_numpy(gains.astype(np.float32))
        values = images.float()
        mean = values.mean((1, 2, 3), keepdim=True)
        changed = ((values - mean) * contrast + mean) * brightness
        images = changed.round().clamp_(0, 255).to(torch.uint8)
    return images, masks
