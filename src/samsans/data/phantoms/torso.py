"""Abdominal CT volumes in Hounsfield units: eight organs between fat, muscle, bone, lung and bowel."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from samsans.data.phantoms.base import Phantom, Recipe, axes, oblique, texture
from samsans.types import ClassInfo

ORGANS = ("spleen", "right kidney", "left kidney", "gallbladder", "liver", "stomach", "aorta", "pancreas")
CLASSES = tuple(ClassInfo(name, label, (label,)) for label, name in enumerate(ORGANS, start=1))
# (x, y, z) centre and half axes of ellipsoids, in half extents of the volume: x to the left, y to the back, z up.
_BLOBS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "liver": ((-0.40, -0.06, 0.24), (0.37, 0.42, 0.56)),
    "left lobe": ((-0.06, -0.28, 0.34), (0.34, 0.17, 0.30)),
    "stomach": ((0.36, -0.20, 0.30), (0.25, 0.23, 0.38)),
    "spleen": ((0.58, 0.20, 0.32), (0.14, 0.25, 0.38)),
    "right kidney": ((-0.38, 0.28, -0.42), (0.14, 0.15, 0.36)),
    "left kidney": ((0.38, 0.29, -0.30), (0.14, 0.15, 0.36)),
    "gallbladder": ((-0.28, -0.30, -0.22), (0.09, 0.12, 0.20)),
}
_HU = {  # portal venous phase
    "spleen": 125.0,
    "right kidney": 185.0,
    "left kidney": 185.0,
    "gallbladder": 8.0,
    "liver": 108.0,
    "stomach": 30.0,
    "aorta": 165.0,
    "pancreas": 88.0,
}


def draw(recipe: Recipe) -> Phantom:
    """``(size / 2, size, size, 1)`` int16 HU with an oblique affine and slices thicker than pixels.

    Label values 1 .. 8: spleen, right kidney, left kidney, gallbladder, liver, stomach, aorta, pancreas.
    """
    rng, size, mix = recipe.shape, recipe.size, recipe.mix
    depth = size // 2
    shape = (depth, size, size)
    spread = mix(0.5, 1.0)
    row, column = axes(size)
    slices = ((np.arange(depth, dtype=np.float32) + 0.5) * np.float32(2.0 / depth) - 1)[:, None, None]
    bend = np.float32(0.045 * spread)
    x, y, z = (a + bend * texture(rng, shape, 3) for a in (column[None], row[None], slices))

    hu, shell = _body(recipe, x, y, z)
    dome = np.float32(0.66) - 0.5 * ((np.abs(x) - np.float32(0.36)) ** 2 + (y - np.float32(0.1)) ** 2)
    below = (z < dome) & (shell < 0.80)
    lung = (z >= dome) & (shell < 0.78) & (np.abs(x) > 0.07 + 0.10 * (y < 0.1))
    hu[lung] = -840 + 45 * texture(rng, shape, (8, 16, 16))[lung]

    # everything a scanner of another hospital changes: contrast agent and its timing
    dose = 1 + spread * rng.uniform(-0.12, 0.12)
    level = {n: 60 + (h * dose + spread * rng.normal(0, 5) - 60) * mix(1.0, 0.55) for n, h in _HU.items()}
    label = np.zeros(shape, np.uint8)
    masks = {name: _ellipsoid(rng, spread, x, y, z, *_BLOBS[name]) for name in _BLOBS}
    masks["liver"] |= masks.pop("left lobe")
    masks["pancreas"] = _pancreas(rng, spread, x, y, z)
    cava = np.hypot(x - np.float32(-0.13 + 0.02 * rng.normal()), y - np.float32(0.20)) < 0.068
    masks["aorta"] = np.hypot(x - np.float32(0.05 + 0.02 * rng.normal()), y - np.float32(0.215)) < rng.uniform(
        0.05, 0.066
    )
    hu[cava & below] = level["aorta"] - 35  # a vessel without label
    for name in ("liver", "spleen", "stomach", "pancreas", "right kidney", "left kidney", "gallbladder", "aorta"):
        mask = masks[name] & below if name != "aorta" else masks[name]
        hu[mask] = level[name]
        label[mask] = ORGANS.index(name) + 1
    gas = (label == 6) & (y < -0.30 + 0.06 * rng.normal())  # rises to the front of the lying patient
    hu[gas] = -850
    vessels = (np.abs(texture(rng, shape, (7, 14, 14))) < 0.13) & (label == 5)
    hu[vessels] += np.float32(mix(26, 14))
    pelvis = np.isin(label, (2, 3)) & (
        ((np.abs(x) - np.float32(0.33)) / 0.045) ** 2 + ((y - np.float32(0.28)) / 0.07) ** 2 + ((z + 0.36) / 0.24) ** 2
        < 1
    )
    hu[pelvis] = -60  # fat of the renal sinus: belongs to the kidney

    hu = ndimage.gaussian_filter(hu, (0.35, 0.45, 0.45), truncate=2.5)  # partial volume
    noise = recipe.noise.standard_normal(shape, dtype=np.float32)
    noise = noise + 0.5 * (np.roll(noise, 1, 1) + np.roll(noise, 1, 2))  # neighbouring pixels share noise, as after CT
    hu += np.float32(mix(6, 34)) * noise
    field = rng.uniform(330, 400)
    spacing = (rng.uniform(230, 260) / depth, field / size, field / size)
    return Phantom(
        recipe.id,
        recipe.patient,
        image=np.clip(hu, -1024, 3071).astype(np.int16)[..., None],
        labels=(label,),
        classes=CLASSES,
        affine=oblique(rng, shape, spacing),
    )


def _body(recipe: Recipe, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """HU of all that has no label, and the elliptic radius of the trunk, 1 at the skin; both ``(D, H, W)``."""
    rng, shape = recipe.shape, x.shape
    wide, thick = 0.90 * rng.uniform(0.95, 1.03), 0.70 * rng.uniform(0.94, 1.05)
    shell = np.hypot(x / np.float32(wide), (y - np.float32(0.05)) / np.float32(thick))
    hu = np.full(shape, -1000, np.float32)
    hu[shell < 1] = 10  # skin
    hu[shell < 0.985] = -105  # fat
    hu[shell < 0.90] = 55  # muscle
    hu[shell < 0.80] = -95  # fat around the organs
    # gut: a smooth field cut at two levels gives loops with a wall, a second field fills them
    loops, filling = texture(rng, shape, (9, 13, 13)), texture(rng, shape, (5, 6, 6))
    gut = (loops > -0.05) & (shell < 0.76) & (y < 0.22) & (z < 0.1)
    content = np.where(filling > 1.2, np.float32(-700), 25 + 12 * filling)
    hu[gut] = np.where(loops > 0.3, content, np.float32(78))[gut]

    angle = np.arctan2(y, np.abs(x))
    ribs = (shell > 0.83) & (shell < 0.89) & (np.cos(21 * z + 4.5 * angle) > 0.55) & (z > -0.25) & (angle > -1.0)
    hu[ribs] = 420
    spine = np.hypot(x, (y - np.float32(0.40)) / np.float32(0.85)) < 0.135
    hu[spine] = np.where(np.cos(14 * z) > -0.75, 260, 90)[spine]  # vertebrae and discs
    arch = np.hypot(x / np.float32(1.6), y - np.float32(0.60)) < 0.085
    hu[arch] = 330
    back = (np.abs(np.abs(x) - np.float32(0.19)) < 0.12) & (np.abs(y - np.float32(0.53)) < 0.08) & ~arch & ~spine
    hu[back] = 58
    hu[np.hypot(x, y - np.float32(0.575)) < 0.045] = 25  # spinal canal
    return hu, shell


def _ellipsoid(
    rng: Generator,
    spread: float,
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    centre: tuple[float, float, float],
    half_axes: tuple[float, float, float],
) -> np.ndarray:
    """Mask of an ellipsoid, moved and stretched at random by ``spread``."""
    moved = np.array(centre) + spread * rng.uniform(-0.05, 0.05, 3)
    scaled = np.array(half_axes) * (1 + spread * rng.uniform(-0.14, 0.14, 3))
    total = ((x - np.float32(moved[0])) * np.float32(1 / scaled[0])) ** 2
    total += ((y - np.float32(moved[1])) * np.float32(1 / scaled[1])) ** 2
    total += ((z - np.float32(moved[2])) * np.float32(1 / scaled[2])) ** 2
    return total < 1


def _pancreas(rng: Generator, spread: float, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Mask of a bent tube across the midline: thick head on the right and low, thin tail on the left and high."""
    t = (x + np.float32(0.20)) * np.float32(1 / 0.62)  # 0 at the head, 1 at the tail
    lift, depth = 0.24 * (1 + 0.4 * spread * rng.normal()), 0.01 + 0.03 * spread * rng.normal()
    dy = y - np.float32(depth) - np.float32(0.16) * (t - np.float32(0.4)) ** 2
    dz = (z + np.float32(0.18) - np.float32(lift) * t) * np.float32(0.6)
    end = np.clip(np.abs(t - np.float32(0.5)) - np.float32(0.42), 0, None) * np.float32(0.62)
    thick = np.float32(0.085) - np.float32(0.03) * t
    return dy * dy + dz * dz + end * end < thick * thick
