"""MR-like volumes with a bright tube that is annotated in part, and four tubes beside it that look the same."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from samsans.data.phantoms.base import Phantom, Recipe, axes, oblique
from samsans.data.phantoms.tubes import distance, paint, surroundings
from samsans.types import ClassInfo

CLASSES = (ClassInfo("tube", 1, (1,)),)
DISTRACTORS = 4
STEPS = 24  # of the random walk from the first slice to the last
RADIUS = (7 / 96, 12 / 96)  # thinnest and thickest tube, in half image sides: 7 and 12 px of 192


def draw(recipe: Recipe) -> Phantom:
    """``(max(12, size / 8), size, size, 1)`` int16 with an oblique affine.  Label values: 1 tube.

    Meant to be made at ``size=192`` (24 slices): a prompt on a distractor, or on the tube itself beyond its annotation,
    which ends a few slices before the visible tube does, looks right and is wrong.  Every case has all four
    distractors, around the tube in every slice, just as bright; they never touch it, and nothing but its place among
    them tells it apart.  Of all voxels about 0.28 % are tube.
    ``points["centreline"]`` has one ``(z, y, x)`` per annotated slice, ``points["distractor1"]`` to ``4`` one a slice.
    """
    rng, size, mix = recipe.shape, recipe.size, recipe.mix
    depth = max(12, size // 8)
    shape = (depth, size, size)
    y, x = axes(size)
    t = (np.arange(depth) + 0.5) / depth

    path, thick = _walk(rng, t), _thickness(rng)
    middle, half = rng.uniform(0.45, 0.55), rng.uniform(0.21, 0.29)
    inner = np.abs(t - middle) < half
    seen = np.abs(t - middle) < half + rng.uniform(0.09, 0.17)

    image = surroundings(recipe, shape)
    contrast = np.float32(mix(430, 210))
    paint(image, y, x, path, np.full(depth, thick), seen, contrast, size)
    spots = rng.uniform(0, 2 * np.pi) + np.arange(DISTRACTORS) * (2 * np.pi / DISTRACTORS)
    lines = {"centreline": _points(path, size)[inner]}
    for number, angle in enumerate(rng.permutation(spots + rng.uniform(-0.15, 0.15, DISTRACTORS)), start=1):
        apart = rng.uniform(0.32, 0.45)
        sway = np.clip(0.5 * (_walk(rng, t) - _walk(rng, t)), -0.03, 0.03)
        other = path + apart * np.array((np.sin(angle), np.cos(angle))) + sway
        paint(image, y, x, other, np.full(depth, _thickness(rng)), np.ones(depth, bool), contrast, size)
        lines[f"distractor{number}"] = _points(other, size)
    image += np.float32(mix(14, 70)) * recipe.noise.standard_normal(shape, dtype=np.float32)

    label = (distance(y, x, path) < thick) & inner[:, None, None]
    spacing = (rng.uniform(4.0, 6.0), *(2 * [rng.uniform(230, 280) / size]))
    return Phantom(
        recipe.id,
        recipe.patient,
        image=np.clip(image, 0, 4095).astype(np.int16)[..., None],
        labels=(label.astype(np.uint8),),
        classes=CLASSES,
        affine=oblique(rng, shape, (spacing[0], spacing[1], spacing[2])),
        points=lines,
    )


def _walk(rng: Generator, t: np.ndarray) -> np.ndarray:
    """Random walk ``(depth, 2)`` = (y, x) in half image sides, at heights ``t`` in [0, 1]."""
    start, steps = rng.uniform(-0.15, 0.15, 2), 0.018 * rng.standard_normal((STEPS, 2))
    walk = np.clip(start + np.cumsum(steps, 0), -0.3, 0.3)
    return np.stack([np.interp(t, (np.arange(STEPS) + 0.5) / STEPS, walk[:, axis]) for axis in range(2)], axis=1)


def _thickness(rng: Generator) -> float:
    """Radius of a tube in half image sides; thin ones are more common."""
    thin, wide = RADIUS
    return thin + (wide - thin) * rng.uniform() ** 4


def _points(path: np.ndarray, size: int) -> np.ndarray:
    """Voxel positions ``(depth, 3)`` float64 = (z, y, x) of a path in half image sides."""
    return np.column_stack([np.arange(len(path)), (path + 1) * (size / 2) - 0.5])
