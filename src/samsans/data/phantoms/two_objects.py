"""A disc and a square on a textured ground: the toy that shows whether a support mask decides what is segmented."""

from __future__ import annotations

import numpy as np

from samsans.data.phantoms.base import Phantom, Recipe, axes, flat, step, texture, to_uint8
from samsans.types import ClassInfo

CLASSES = (ClassInfo("disc", 1, (1,)), ClassInfo("square", 2, (2,)))


def draw(recipe: Recipe) -> Phantom:
    """One image, grey uint8, with both objects apart from each other.  Label values: 1 disc, 2 square.

    Place, size, turn and contrast (brighter or darker than the ground) are drawn for each object on its own: nothing
    but its shape tells which is which.
    """
    rng, size, mix = recipe.shape, recipe.size, recipe.mix
    y, x = axes(size)
    half = rng.uniform(0.20, 0.32, 2)  # radius of the disc, half side of the square
    disc, square = _places(rng, half[0] + half[1] * np.sqrt(2) + 0.06)
    turn = mix(0.15, 0.6) * rng.uniform(-1, 1)
    contrast = rng.choice([-1.0, 1.0], 2) * rng.uniform(0.8, 1.2, 2) * mix(0.34, 0.12)

    dy, dx = y - np.float32(square[0]), x - np.float32(square[1])
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    signed = (
        half[0] - np.hypot(y - np.float32(disc[0]), x - np.float32(disc[1])),
        half[1] - np.maximum(np.abs(c * dx + s * dy), np.abs(c * dy - s * dx)),
    )
    image = 0.5 + mix(0.02, 0.05) * texture(rng, (size, size), 6) + mix(0.015, 0.04) * texture(rng, (size, size), 20)
    label = np.zeros((size, size), np.uint8)
    for value, (inside, change) in enumerate(zip(signed, contrast, strict=True), start=1):
        image += np.float32(change) * step(inside, 3.0 / size)
        label[inside > 0] = value
    image += np.float32(mix(0.01, 0.06)) * recipe.noise.standard_normal((size, size), dtype=np.float32)
    return Phantom(recipe.id, recipe.patient, **flat(to_uint8(image), label), classes=CLASSES)


def _places(rng: np.random.Generator, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """Two centres ``(y, x)`` in the image, at least ``apart`` from each other."""
    while True:
        first, second = rng.uniform(-0.62, 0.62, (2, 2))
        if np.hypot(*(first - second)) > apart:
            return first, second
