"""Random changes of 3D patches: where their planes are read from, and their intensities.

All slices of a patch are moved alike and in their planes only, whatever the patch's shape (nnU-Net does so where slices
are few, and turns them in space else).  Depth is mirrored at most.  ``affine`` has the options of ``AugmentConfig``;
``nnunet`` the list of nnU-Net (section 14 of MaskSAM's specification), its intensities changed by MONAI.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samsans.config import AugmentConfig
from samsans.data.augment import draw_affine, moves
from samsans.errors import InputError

POLICIES = ("affine", "nnunet")
TURN, ZOOM = 0.2, 0.2  # probabilities of nnU-Net's changes
NOISE, BLUR, BRIGHTNESS, CONTRAST, COARSE = 0.1, 0.2, 0.15, 0.15, 0.25
INVERTED_GAMMA, GAMMA = 0.1, 0.3
CHANNEL = 0.5  # of blur and low resolution, for each channel of an image that gets them


def require_policy(config: AugmentConfig) -> None:
    """InputError where the policy is none of patches, or needs MONAI and there is none."""
    if config.policy not in POLICIES:
        raise InputError(
            f"augment.policy {config.policy!r} for 3D patches", f"one of {', '.join(POLICIES)}", "It changes 2D slices"
        )
    if config.policy == "nnunet":
        _monai()


def place(config: AugmentConfig, rng: np.random.Generator) -> np.ndarray | None:
    """``(2, 3)`` float32: where a plane is read, from (x, y) in [-1, 1] of the patch; ``None``: where it lies."""
    if config.policy == "affine":
        return draw_affine(config, rng) if moves(config) else None
    turned, zoomed = rng.random() < TURN, rng.random() < ZOOM
    angle = rng.uniform(-math.pi, math.pi) if turned else 0.0
    size = rng.uniform(0.7, 1.4) if zoomed else 1.0
    if not (turned or zoomed):
        return None
    cos, sin = math.cos(angle) * size, math.sin(angle) * size
    return np.array([[cos, -sin, 0], [sin, cos, 0]], np.float32)


def mirrored(config: AugmentConfig, rng: np.random.Generator) -> list[int]:
    """Which axes of the patch ``(T, H, W)`` are mirrored: each with probability 1/2 (nnunet)."""
    return np.flatnonzero(rng.random(3) < 0.5).tolist() if config.policy == "nnunet" else []


def intensities(image: Tensor, config: AugmentConfig, rng: np.random.Generator) -> Tensor:
    """Change the values of ``(C, T, H, W)`` float32, normalised; the very same tensor where nothing is drawn.

    affine: contrast about the patch's mean, and brightness by up to ``intensity`` deviations, since normalised values
    have no black of their own (our decision).
    """
    if config.policy == "nnunet":
        return _nnunet(image, rng)
    if not config.intensity:
        return image
    contrast, brightness = rng.uniform(-config.intensity, config.intensity, 2)
    return (image - image.mean()) * float(1 + contrast) + image.mean() + float(brightness)


def _nnunet(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Noise, blur, brightness, contrast, low resolution, gamma of the inverted image, gamma; in nnU-Net's order."""
    monai = _monai()
    if rng.random() < NOISE:
        noise = rng.standard_normal(tuple(image.shape), np.float32) * np.float32(math.sqrt(rng.uniform(0, 0.1)))
        image = image + torch.from_numpy(noise)
    if rng.random() < BLUR:
        image = _some(image, rng, lambda c: monai.GaussianSmooth(rng.uniform(0.5, 1, 3).tolist())(c))
    if rng.random() < BRIGHTNESS:
        factors = rng.uniform(0.75, 1.25, (len(image), 1, 1, 1)).astype(np.float32)
        image = image * torch.from_numpy(factors)
    if rng.random() < CONTRAST:
        image = _each(image, lambda c: monai.ScaleIntensityFixedMean(_factor(rng, 0.75, 1.25) - 1, True)(c))
    if rng.random() < COARSE:
        image = _some(image, rng, lambda c: _coarse(c, rng.uniform(0.5, 1), monai))
    for chance, inverted in ((INVERTED_GAMMA, True), (GAMMA, False)):
        if rng.random() < chance:
            image = _each(image, lambda c, i=inverted: monai.AdjustContrast(_factor(rng, 0.7, 1.5), i, True)(c))
    return image


def _coarse(channel: Tensor, zoom: float, monai: Any) -> Tensor:
    """``(1, T, H, W)`` read at ``zoom`` times its rows and columns and enlarged again: slices as channels."""
    lower = monai.RandSimulateLowResolution(1.0, upsample_mode="bicubic", zoom_range=(zoom, zoom))
    return lower(channel[0])[None]


def _each(image: Tensor, change: Any) -> Tensor:
    return torch.cat([change(channel[None]).as_subclass(Tensor) for channel in image])


def _some(image: Tensor, rng: np.random.Generator, change: Any) -> Tensor:
    return _each(image, lambda c: change(c) if rng.random() < CHANNEL else c)


def _factor(rng: np.random.Generator, low: float, high: float) -> float:
    """Below 1 as often as above, uniform on either side (nnU-Net, for contrast and gamma)."""
    return float(rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high))


def _monai() -> Any:
    """MONAI's transforms."""
    try:
        from monai import transforms
    except ImportError as error:
        raise InputError(
            "augment.policy nnunet without MONAI",
            "the package monai",
            "Install it: pip install 'samsans[volumes]', or set augment.policy to affine",
        ) from error
    return transforms
