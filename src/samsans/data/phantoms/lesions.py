"""Lung-like CT patches with one ambiguous nodule and four raters who disagree in the same way every time."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from samsans.data.phantoms.base import Phantom, Recipe, axes, harmonics, radius, splat, step, texture, to_uint8
from samsans.types import ClassInfo

CLASSES = (ClassInfo("nodule", 1, (1,)),)
# Each rater's outline (1 is the true half-density radius) and how conspicuous a nodule must be to be marked at all.
# The first rater is generous and marks everything, the last one is strict and tight.
RATERS = ((1.30, 0.0), (1.08, 0.25), (0.88, 0.5), (0.66, 0.75))


def draw(recipe: Recipe) -> Phantom:
    """One patch, grey uint8, lung window.  Label values: 1 nodule; one map per rater, empty where nothing was seen.

    Conspicuity is uniform in [0, 1] and sets the contrast of the nodule, so none to three of the four raters find
    nothing, each number in about a quarter of the cases.
    """
    rng, size, mix = recipe.shape, recipe.size, recipe.mix
    y, x = axes(size)
    seen = rng.uniform(0, 1)
    centre = tuple(rng.uniform(-0.35, 0.35, 2))
    extent = rng.uniform(0.17, 0.32)
    aspect, angle = rng.uniform(0.78, 1.0), rng.uniform(0, np.pi)
    wobble = harmonics(rng, 5, mix(0.12, 0.24))
    rho = radius(y, x, centre, (extent, extent * aspect), angle, wobble)

    mottle = 0.022 * texture(rng, (size, size), 7) + 0.015 * texture(rng, (size, size), 26)
    image = 0.17 + np.float32(mix(0.7, 1.9)) * mottle
    image = np.maximum(image, _vessels(rng, size, mix(0.45, 0.9)))
    soft = step(1 - rho, mix(0.45, 1.3))  # ground-glass edge: there is no one outline
    patchy = 1 + mix(0.05, 0.30) * texture(rng, (size, size), 11)
    image = image + soft * np.float32((0.22 + 0.5 * seen) * mix(1.0, 0.55)) * patchy
    side = rng.choice([-1.0, 1.0])
    lung = radius(y, x, (0.3 * rng.uniform(-1, 1), -0.9 * side), (2.0, rng.uniform(1.66, 1.78)))
    image = np.maximum(image, 0.70 * step(lung - 1, 0.04))  # chest wall at one side
    image += np.float32(mix(0.015, 0.06)) * recipe.noise.standard_normal((size, size), dtype=np.float32)

    labels = []
    for outline, needed in RATERS:
        drift = rng.normal(0, 0.05 * extent, 2)  # every hand slips a little
        own = radius(y, x, (centre[0] + drift[0], centre[1] + drift[1]), (extent, extent * aspect), angle, wobble)
        marked = (own < outline * rng.uniform(0.96, 1.04)) & (lung < 1) & (seen >= needed)
        labels.append(marked.astype(np.uint8)[None])
    return Phantom(recipe.id, recipe.patient, to_uint8(image)[None, ..., None], tuple(labels), CLASSES)


def _vessels(rng: np.random.Generator, size: int, bright: float) -> np.ndarray:
    """Brightness ``(size, size)`` of vessels: bent lines that taper, and round cross-sections that mimic nodules."""
    lines, steps = 7, 220
    t = np.linspace(0, 1, steps)
    start, heading = rng.uniform(-1.1, 1.1, (lines, 2)), rng.uniform(0, 2 * np.pi, lines)
    bend = heading[:, None] + rng.uniform(-1, 1, lines)[:, None] * t
    bend += 0.35 * np.sin(rng.uniform(6, 14, lines)[:, None] * t + heading[:, None])
    length = rng.uniform(0.6, 1.8, lines)[:, None] / steps
    path = start[:, None] + np.cumsum(np.stack([np.sin(bend), np.cos(bend)], -1) * length[..., None], axis=1)
    width = rng.uniform(0.010, 0.034, lines)[:, None] * (1 - t) ** 0.7
    dots, dot_radius = rng.uniform(-1, 1, (9, 2)), rng.uniform(0.012, 0.045, 9)
    points = np.concatenate([path.reshape(-1, 2), dots])
    radii = np.concatenate([width.ravel(), dot_radius]) * size / 2
    cover = splat((points + 1) * (size / 2), np.maximum(radii, 0.3), size)
    return ndimage.gaussian_filter(cover, size / 220) * np.float32(0.30 + 0.25 * bright)
