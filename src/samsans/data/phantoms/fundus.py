"""Colour fundus photographs: optic disc, cup and vessels; even cases are right eyes, odd ones left eyes."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from samsans.data.phantoms.base import (
    Phantom,
    Recipe,
    axes,
    flat,
    harmonics,
    radius,
    rgb,
    splat,
    step,
    texture,
    to_uint8,
)
from samsans.types import ClassInfo

# One label map holds the overlapping objects: vessels are painted first, then the disc's rim, then its cup.
CLASSES = (ClassInfo("disc", 1, (1, 2)), ClassInfo("cup", 2, (2,)), ClassInfo("vessel", 3, (3,)))
FIELD = 0.94  # radius of the circular field of view, in half image sides: the unit of every length below


def draw(recipe: Recipe) -> Phantom:
    """One eye, RGB uint8.  Label values: 1 rim of the disc, 2 cup, 3 vessels outside the disc."""
    rng, size, mix = recipe.shape, recipe.size, recipe.mix
    side = 1.0 if recipe.index % 2 == 0 else -1.0  # the disc lies on the right of a right eye's photograph
    y, x = (a / np.float32(FIELD) for a in axes(size))

    disc = (rng.uniform(-0.09, 0.07), side * rng.uniform(0.42, 0.54))
    fovea = (disc[0] + rng.uniform(0.02, 0.10), disc[1] - side * rng.uniform(0.74, 0.84))
    disc_radius = rng.uniform(0.160, 0.195)
    tilt, spread = rng.normal(0, 0.15), mix(0.5, 1.0)
    cup_ratio = 0.48 + spread * rng.uniform(-0.25, 0.27)
    cup = (disc[0] + rng.normal(0, 0.012), disc[1] - side * 0.1 * disc_radius + rng.normal(0, 0.008))
    rho_disc = radius(y, x, disc, (disc_radius * rng.uniform(1.0, 1.13), disc_radius), tilt, harmonics(rng, 3, 0.045))
    rho_cup = radius(
        y, x, cup, (disc_radius * cup_ratio * rng.uniform(1.0, 1.15), disc_radius * cup_ratio), tilt,
        harmonics(rng, 3, 0.08 * spread),
    )  # fmt: skip
    rho_cup = np.maximum(rho_cup, rho_disc / 0.93)  # the cup stays inside the disc
    inside = np.hypot(y, x) < 1

    root = (disc[0], disc[1] + side * 0.15 * disc_radius)
    veins, arteries, reflex = _vessels(rng, root, fovea, side, size)
    image = _background(recipe, y, x, side, disc, fovea)
    image = _paint_disc(recipe, image, rho_disc, rho_cup, side * (x - np.float32(disc[1])) / np.float32(disc_radius))
    strength = np.float32(mix(0.95, 0.36))
    for cover, dark in ((veins, (0.40, 0.60, 0.52)), (arteries, (0.24, 0.44, 0.40))):
        image *= 1 - strength * cover[..., None] * rgb(*dark)
    image += (strength * np.float32(0.10)) * reflex[..., None] * rgb(1.0, 0.75, 0.5)
    image = _lesions(recipe, image, y, x, disc, fovea)

    exposure = np.float32(1 + spread * rng.uniform(-0.10, 0.10))
    grain = recipe.noise.standard_normal((size, size, 3), dtype=np.float32) * np.float32(mix(0.006, 0.07))
    grain += recipe.noise.standard_normal((size, size, 1), dtype=np.float32) * np.float32(mix(0.004, 0.055))
    field = step(1 - np.hypot(y, x), 3.0 / size)[..., None]
    image = (image * exposure + grain * (0.3 + 0.7 * np.clip(image, 0, 1))) * field

    label = np.where(np.maximum(veins, arteries) > 0.5, 3, 0)
    label[rho_disc < 1] = 1
    label[rho_cup < 1] = 2
    label[~inside] = 0
    return Phantom(recipe.id, recipe.patient, **flat(to_uint8(image), label), classes=CLASSES)


def _background(
    recipe: Recipe, y: np.ndarray, x: np.ndarray, side: float, disc: tuple[float, float], fovea: tuple[float, float]
) -> np.ndarray:
    """Retina without disc and vessels ``(H, W, 3)``: pigment of the patient, choroid, macula, uneven light."""
    rng, size, mix = recipe.shape, recipe.size, recipe.mix
    pigment = np.float32(recipe.shared.beta(2, 2))
    colour = (1 - pigment) * rgb(0.90, 0.45, 0.22) + pigment * rgb(0.66, 0.27, 0.12)
    cloud = 0.6 * texture(rng, (size, size), 4) + 0.4 * texture(rng, (size, size), 10)
    choroid = np.abs(texture(rng, (size, size), 24))  # dark gaps between the deep vessels' ridges
    fine = texture(rng, (size, size), 90)
    far = np.clip(np.hypot(y, x), 0, 1.2)
    mottle = 0.05 * cloud + (0.05 * choroid - 0.04) * far + 0.016 * fine
    shade = 1 + np.float32(mix(0.8, 2.0)) * mottle
    light = (rng.normal(0, mix(0.08, 0.32)), rng.normal(0, mix(0.08, 0.32)))
    vignette = 1.10 - 0.42 * np.hypot(y - np.float32(light[0]), x - np.float32(light[1])) ** 2.2
    image = (shade * np.clip(vignette, 0.25, 1.15))[..., None] * colour
    image[..., 0] += 0.02 * cloud * far

    macula = np.exp(-(radius(y, x, fovea, (0.17, 0.19)) ** 2) / 2)
    core = np.exp(-(radius(y, x, fovea, (0.055, 0.055)) ** 2) / 2)
    image *= 1 - macula[..., None] * rgb(0.20, 0.30, 0.34) - core[..., None] * rgb(0.12, 0.16, 0.14)
    glow = np.exp(-radius(y, x, disc, (0.42, 0.26)) * 1.1)  # nerve fibres, thickest above and below the disc
    image += glow[..., None] * rgb(0.10, 0.11, 0.05)
    return image.astype(np.float32)


def _paint_disc(
    recipe: Recipe, image: np.ndarray, rho_disc: np.ndarray, rho_cup: np.ndarray, nasal: np.ndarray
) -> np.ndarray:
    """``image`` with disc, cup and, in hard cases, a pale crescent of atrophy beside the disc that is neither."""
    rng, mix = recipe.shape, recipe.mix
    atrophy, reach = np.float32(rng.uniform(0, 1) * recipe.difficulty), rng.uniform(1.25, 1.6)
    crescent = step(reach + 0.3 * np.clip(-nasal, -1, 1) - 0.3 - rho_disc, 0.25) * atrophy * 0.5
    image = image + crescent[..., None] * (rgb(0.88, 0.56, 0.32) - image)
    rim = rgb(0.97, 0.66, 0.36) - rgb(0.03, 0.07, 0.05) * np.clip(nasal, -1, 1)[..., None]
    pallor = np.float32(rng.uniform(-0.04, 0.04))
    alpha = step(1 - rho_disc, mix(0.14, 0.34))[..., None] * np.float32(mix(0.95, 0.40))
    image = image + alpha * (rim + pallor - image)
    alpha = step(1 - rho_cup, mix(0.22, 0.6))[..., None] * np.float32(mix(0.95, 0.40))
    return image + alpha * (rgb(1.0, 0.90, 0.66) + pallor - image)


def _lesions(
    recipe: Recipe,
    image: np.ndarray,
    y: np.ndarray,
    x: np.ndarray,
    disc: tuple[float, float],
    fovea: tuple[float, float],
) -> np.ndarray:
    """``image`` with distractors, more of them in hard cases: dark bleedings and bright exudates, never on the disc."""
    rng, size = recipe.shape, recipe.size
    bleed, exudate = rng.uniform(-0.85, 0.85, (40, 2)), np.array(fovea) + rng.normal(0, 0.2, (60, 2))
    bleed_r, exudate_r = rng.uniform(0.006, 0.020, 40), rng.uniform(0.005, 0.018, 60)
    counts = (rng.uniform(0, 1, 2) * recipe.difficulty * (22, 45)).astype(int)
    colours = ((-0.62, -0.62, -0.5), (0.25, 0.85, 0.9))
    for points, radii, count, colour in zip((bleed, exudate), (bleed_r, exudate_r), counts, colours, strict=True):
        keep = (np.hypot(*(points - disc).T) > 0.34)[:count].nonzero()[0]
        if keep.size:
            pixels = (points[keep] * FIELD + 1) * (size / 2)
            cover = splat(pixels, np.maximum(radii[keep] * FIELD * size / 2, 0.4), size)
            image = image * (1 + 0.6 * cover[..., None] * rgb(*colour))
    return image


def _vessels(
    rng: Generator, root: tuple[float, float], fovea: tuple[float, float], side: float, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coverage ``(H, W)`` of veins, arteries and the light streak on the larger arteries.

    Four pairs of trunks leave the disc: two arcades bend around the macula, two go to the nasal side.  Each level of
    the tree is drawn at once; daughters leave at 20 to 55 degrees and are thinner than their mother.
    """
    scale = FIELD * size / 2  # pixels
    steps = int(1.55 * scale) + 8  # about one a pixel
    # columns: first heading, last heading (radians, 0 = temporal, pi/2 = up), length of the bend, trunk radius
    trunk = np.array(
        [[1.75, -0.10, 0.42, 1.0], [-1.75, 0.10, 0.42, 1.0], [2.15, 2.75, 0.8, 0.7], [-2.2, -2.8, 0.8, 0.7]]
    )
    trunk = np.repeat(trunk, 2, axis=0)  # vein and artery run side by side
    vein = np.arange(8) % 2 == 0
    first = trunk[:, 0] + rng.normal(0, 0.12, 8) + np.where(vein, 0.10, -0.10) * np.sign(trunk[:, 0])
    last = trunk[:, 1] + rng.normal(0, 0.12, 8) + np.where(vein, -0.12, 0.12) * np.sign(trunk[:, 0])
    thick = trunk[:, 3] * np.where(vein, 0.0225, 0.0165) * rng.uniform(0.9, 1.1, 8)
    start = np.array(root) * (1.0, -side) + rng.normal(0, 0.012, (8, 2))  # drawn with the temporal side on the right
    path, heading, width = _grow(rng, start, first, last, trunk[:, 2], rng.uniform(1.25, 1.55, 8), thick, 0.74, steps)
    found = [(path, width, vein)]
    for children, bend in ((6, 0.32), (3, 0.18), (2, 0.10)):
        mothers = len(path)
        t = (np.linspace(0.10, 0.86, children) + rng.uniform(-0.05, 0.05, (mothers, children))) * (steps - 1)
        t = np.clip(t.astype(int), 3, steps - 2).ravel()
        m = np.repeat(np.arange(mothers), children)
        sign = np.tile(np.where(np.arange(children) % 2 == 0, 1.0, -1.0), mothers) * rng.choice([-1.0, 1.0], mothers)[m]
        here = heading[m, t]
        first = here + sign * rng.uniform(0.45, 0.95, len(m))
        last = here + sign * rng.uniform(0.05, 0.75, len(m))
        length = rng.uniform(0.25, 0.72, len(m)) * (1.0 if bend > 0.2 else 0.6)
        thin, vein = width[m, t] * rng.uniform(0.50, 0.74, len(m)), vein[m]
        origin = path[m, t]
        steps = int(length.max() * scale) + 4
        path, heading, width = _grow(rng, origin, first, last, np.full(len(m), bend), length, thin, 0.35, steps)
        found.append((path, width, vein))

    cover = []
    for which in (True, False):  # veins, then arteries
        points = np.concatenate([p[v == which].reshape(-1, 2) for p, _, v in found])
        radii = np.concatenate([w[v == which].ravel() for _, w, v in found])
        points = points * (1.0, -side)
        gap = np.hypot(*((points - fovea) / (0.8, 1.0)).T)
        radii = radii * np.clip((gap - 0.13) / 0.14, 0, 1)  # the fovea has no vessels
        keep = (radii * scale > min(0.33, 0.011 * scale)) & (
            np.hypot(*points.T) < 1.02
        )  # thinner than the pixels can show
        pixels, radii = (points[keep] * FIELD + 1) * (size / 2), radii[keep] * scale
        cover.append(splat(pixels, np.maximum(radii + 0.2, 0.62), size))
    large = radii > 0.008 * scale
    return cover[0], cover[1], splat(pixels[large], 0.34 * radii[large], size)


def _grow(
    rng: Generator,
    start: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    bend: np.ndarray,
    length: np.ndarray,
    thick: np.ndarray,
    taper: float,
    steps: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``V`` vessels at once: path ``(V, steps, 2)`` = (y, x), heading ``(V, steps)`` radians, radius ``(V, steps)``.

    The heading relaxes from ``first`` to ``last`` within the distance ``bend`` and meanders a little.
    """
    t = np.linspace(0, 1, steps)
    along = length[:, None] * t
    heading = last[:, None] + (first - last)[:, None] * np.exp(-along / bend[:, None])
    for period, amplitude in ((0.5, 0.16), (0.19, 0.16), (0.09, 0.10)):
        phase = rng.uniform(0, 2 * np.pi, (len(start), 1))
        heading += amplitude * rng.uniform(0.3, 1, (len(start), 1)) * np.sin(2 * np.pi * along / period + phase)
    move = np.stack([-np.sin(heading), np.cos(heading)], axis=-1) * (length / (steps - 1))[:, None, None]
    path = start[:, None] + np.cumsum(move, axis=1) - move
    return path, heading, thick[:, None] * (1 - taper * t)
