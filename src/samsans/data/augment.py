"""Random changes of place and brightness, drawn once and applied alike to an image and its masks."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samsans.config import AugmentConfig
from samsans.data import policies


def moves(config: AugmentConfig) -> bool:
    """Whether the changes move pixels."""
    return any((config.flip, config.rotate, config.scale, config.shift))


def changes(config: AugmentConfig) -> bool:
    """Whether images are changed at all."""
    return config.policy != "affine" or moves(config) or bool(config.intensity)


def draw_affine(config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """``(2, 3)`` float32: output to input coordinates in [-1, 1] (x, y): flip, rotation, size and shift."""
    flip = -1.0 if rng.random() < config.flip else 1.0
    angle = math.radians(rng.uniform(-config.rotate, config.rotate))
    size = 1 + rng.uniform(-config.scale, config.scale)
    shift = 2 * rng.uniform(-config.shift, config.shift, 2)
    cos, sin = math.cos(angle) / size, math.sin(angle) / size
    return np.array([[flip * cos, -flip * sin, shift[0]], [sin, cos, shift[1]]], np.float32)


def augment(images: Tensor, masks: Tensor, config: AugmentConfig, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Change each of ``B`` images and its masks at random; what comes from outside the image is black and no object.

    images: ``(B, 3, S, S)`` uint8.  masks: ``(B, N, S, S)`` bool.  Same shapes and types are returned; the very same
    tensors where ``config`` asks for nothing.  Images are sampled bilinearly, masks at the nearest pixel, save where
    a published ``policy`` (see ``policies``) has it otherwise.
    """
    if config.policy != "affine":
        return policies.apply(images, masks, config, rng)
    if moves(config):
        theta = torch.from_numpy(np.stack([draw_affine(config, rng) for _ in range(len(images))]))
        grid = F.affine_grid(theta, [len(images), 1, *images.shape[-2:]], align_corners=False)
        moved = F.grid_sample(images.float(), grid, mode="bilinear", align_corners=False)
        images = moved.round().clamp_(0, 255).to(torch.uint8)
        if masks.shape[1]:
            masks = F.grid_sample(masks.float(), grid, mode="nearest", align_corners=False) > 0.5
    if config.intensity:
        gains = 1 + rng.uniform(-config.intensity, config.intensity, (2, len(images), 1, 1, 1))
        contrast, brightness = torch.from_numpy(gains.astype(np.float32))
        values = images.float()
        mean = values.mean((1, 2, 3), keepdim=True)
        changed = ((values - mean) * contrast + mean) * brightness
        images = changed.round().clamp_(0, 255).to(torch.uint8)
    return images, masks
