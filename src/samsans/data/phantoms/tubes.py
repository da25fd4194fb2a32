"""MR-like volumes with a winding bright tube, look-alike tubes beside it, and the points of its exact centre line."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from samsans.data.phantoms.base import Phantom, Recipe, axes, oblique, radius, step, texture
from samsans.types import ClassInfo

CLASSES = (ClassInfo("tube", 1, (1,)),)
LOOK_ALIKES = 6


def draw(recipe: Recipe) -> Phantom:
    """``(max(12, size / 8), size, size, 1)`` int16 with an oblique affine.  Label values: 1 tube.

    The annotated part fills the inner slices, while the tube itself stays visible a few slices beyond both ends: a
    prompt that runs too far looks right and is wrong.  Look-alikes are as bright as the tube; hard cases have more.
    ``points["centreline"]`` has one ``(z, y, x)`` per annotated slice.
    """
    rng, size, mix = recipe.shape, recipe.size, recipe.mix
    depth = max(12, size // 8)
    shape = (depth, size, size)
    y, x = axes(size)
    t = np.linspace(0, 1, depth)

    image = surroundings(recipe, shape)
    contrast = np.float32(mix(430, 210))
    path, thick = _winding(rng, depth, rng.uniform(-0.28, 0.28, 2))
    ends = (0.5 - rng.uniform(0.20, 0.30), 0.5 + rng.uniform(0.20, 0.30))
    seen = (t > ends[0] - 0.15) & (t < ends[1] + 0.15)
    inner = (t > ends[0]) & (t < ends[1])

    others = round(mix(2, LOOK_ALIKES))
    spots = np.linspace(0, 2 * np.pi, LOOK_ALIKES, endpoint=False) + rng.uniform(0, 2 * np.pi)
    spots = rng.permutation(spots + rng.uniform(-0.2, 0.2, LOOK_ALIKES))
    for index, angle in enumerate(spots):
        offset = rng.uniform(0.30, 0.50)
        other, other_thick = _winding(rng, depth, path.mean(0) + offset * np.array((np.sin(angle), np.cos(angle))))
        first, last = np.sort(rng.uniform(-0.3, 1.3, 2))
        shown = (t > first) & (t < last + 0.3)
        if index < others:
            gap = np.hypot(*(other - path).T)
            other_thick = np.clip(np.minimum(other_thick, gap - thick - 0.05), 0, None)  # never touches the tube
            paint(image, y, x, other, other_thick, shown, contrast, size)
    paint(image, y, x, path, thick, seen, contrast, size)
    image += np.float32(mix(14, 70)) * recipe.noise.standard_normal(shape, dtype=np.float32)

    label = (distance(y, x, path) < thick[:, None, None]) & inner[:, None, None]
    line = np.column_stack([np.arange(depth), (path + 1) * (size / 2) - 0.5])[inner]
    spacing = (rng.uniform(4.0, 6.0), *(2 * [rng.uniform(230, 280) / size]))
    return Phantom(
        recipe.id,
        recipe.patient,
        image=np.clip(image, 0, 4095).astype(np.int16)[..., None],
        labels=(label.astype(np.uint8),),
        classes=CLASSES,
        affine=oblique(rng, shape, (spacing[0], spacing[1], spacing[2])),
        points={"centreline": line},
    )


def _winding(rng: Generator, depth: int, middle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre ``(depth, 2)`` = (y, x) of a tube in each slice, and its radius ``(depth,)``, in half image sides."""
    walk = np.stack([texture(rng, (depth,), 4) for _ in range(2)], axis=1).astype(np.float64)
    thick = 0.10 * (1 + 0.10 * texture(rng, (depth,), 5).astype(np.float64)) * rng.uniform(0.85, 1.15)
    return np.clip(middle + 0.09 * walk, -0.62, 0.62), np.clip(thick, 0.06, 0.13)


def distance(y: np.ndarray, x: np.ndarray, path: np.ndarray) -> np.ndarray:
    """In-plane distance ``(D, H, W)`` to the centre of a tube."""
    centre = path.astype(np.float32)[:, :, None, None]
    return np.hypot(y - centre[:, 0], x - centre[:, 1])


def paint(
    image: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    path: np.ndarray,
    thick: np.ndarray,
    shown: np.ndarray,
    contrast: np.float32,
    size: int,
) -> None:
    """Add to ``image``, in place, a bright lumen inside a thin dark wall, in the slices ``shown`` (bool per slice)."""
    chosen = shown & (thick > 0.02)
    inside = thick[chosen].astype(np.float32)[:, None, None] - distance(y, x, path[chosen])
    wall = np.exp(-((inside / np.float32(0.022)) ** 2))
    lumen = step(inside, 4.0 / size)
    image[chosen] += lumen * contrast * (np.float32(0.8) + 2 * np.clip(inside, 0, 0.1)) - wall * contrast * np.float32(
        0.3
    )


def surroundings(recipe: Recipe, shape: tuple[int, int, int]) -> np.ndarray:
    """Trunk with fat, muscle and mottled soft tissue, and a coil that shines from one side: ``(D, H, W)`` float32."""
    rng, size = recipe.shape, recipe.size
    y, x = axes(size)
    shell = radius(y, x, (0.0, 0.0), (0.80 * rng.uniform(0.95, 1.05), 0.94))
    tissue = 250 + 38 * texture(rng, shape, (4, 9, 9)) + 22 * texture(rng, shape, (8, 22, 22))
    fat = step(shell - np.float32(0.86), 0.03)
    image = tissue + fat * (480 - tissue)
    image = image * step(1 - shell, 0.02)
    coil = 1 + np.float32(recipe.mix(0.08, 0.35)) * (
        x * np.float32(rng.uniform(-1, 1)) + y * np.float32(rng.uniform(-1, 1))
    )
    return (image * coil).astype(np.float32)
