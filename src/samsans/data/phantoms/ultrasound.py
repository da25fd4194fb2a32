"""Transperineal ultrasound: fetal head and pubic symphysis in a fan of speckle, as single images and as videos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from samsans.data.phantoms.base import Phantom, Recipe, axes, flat, harmonics, radius, step, texture, to_uint8
from samsans.types import ClassInfo

CLASSES = (ClassInfo("pubic symphysis", 1, (1,)), ClassInfo("fetal head", 2, (2,)))
APEX, NEAR, FAR = -1.32, 0.34, 2.25  # where the beams meet (y) and the first and last depth, in half image sides
VIDEO_FRAMES = 12
_POLAR = (192, 96)  # depth x beam samples of the speckle: it gets coarser with depth, as in a real fan


@dataclass(frozen=True)
class _Scene:
    """What stays the same in all frames of a case: anatomy, tissue and machine settings."""

    head: tuple[float, float]
    head_radii: tuple[float, float]
    head_angle: float
    head_wobble: np.ndarray
    bone: tuple[float, float]
    bone_radii: tuple[float, float]
    bone_angle: float
    bone_wobble: np.ndarray
    half_angle: float
    bands: np.ndarray
    inner: np.ndarray
    lines: np.ndarray
    settings: Mapping[str, float]
    shadows: np.ndarray


def draw(recipe: Recipe) -> Phantom:
    """One image, grey uint8.  Label values: 1 pubic symphysis, 2 fetal head."""
    image, label = _render(recipe, _scene(recipe), _speckle(recipe), (0.0, 0.0), 0.0)
    return Phantom(recipe.id, recipe.patient, **flat(image, label), classes=CLASSES)


def draw_video(recipe: Recipe) -> Phantom:
    """``(D, H, W, 1)`` uint8: the head descends and turns while the probe sways; frames are dropped at random.

    ``frames`` holds the original numbers: motion and speckle advance with the number, so a gap is a real jump.
    """
    rng, scene = recipe.shape, _scene(recipe)
    gaps = np.where(rng.uniform(0, 1, VIDEO_FRAMES) < 0.25, rng.integers(2, 6, VIDEO_FRAMES), 1)
    gaps[1 + rng.integers(0, VIDEO_FRAMES - 1)] = 4  # at least one
    numbers = rng.integers(0, 40) + np.cumsum(gaps)
    course = (rng.uniform(0.006, 0.014), rng.uniform(0.004, 0.012))
    turn, sway, phase = rng.uniform(-0.012, 0.012), rng.uniform(0.01, 0.03), rng.uniform(0, 2 * np.pi)
    speckle, images, labels = _speckle(recipe), [], []
    for t, gap in zip(numbers - numbers[0], gaps, strict=True):
        if t:
            keep = np.float32(0.75**gap)
            speckle = keep * speckle + np.sqrt(1 - keep**2) * _speckle(recipe)
        swing = sway * np.sin(0.5 * t + phase)
        image, label = _render(recipe, scene, speckle, (course[0] * t + swing, course[1] * t - swing), turn * t)
        images.append(image)
        labels.append(label)
    return Phantom(
        recipe.id,
        recipe.patient,
        image=np.stack(images)[..., None],
        labels=(np.stack(labels).astype(np.uint8),),
        classes=CLASSES,
        frames=tuple(int(i) for i in numbers),
    )


def _scene(recipe: Recipe) -> _Scene:
    rng, size, mix = recipe.shape, recipe.size, recipe.mix
    spread = mix(0.6, 1.0)
    scale = 1 + 0.14 * spread * rng.uniform(-1, 1)
    head = (0.26 + 0.13 * spread * rng.uniform(-1, 1), 0.20 + 0.16 * spread * rng.uniform(-1, 1))
    bone = (-0.42 + 0.06 * spread * rng.uniform(-1, 1), -0.29 + 0.07 * spread * rng.uniform(-1, 1))
    return _Scene(
        head=head,
        head_radii=(0.40 * scale, 0.54 * scale * rng.uniform(0.94, 1.06)),
        head_angle=0.5 + spread * rng.uniform(-0.45, 0.45),
        head_wobble=harmonics(rng, 3, 0.05 * spread),
        bone=bone,
        bone_radii=(0.085 * rng.uniform(0.85, 1.15), 0.20 * rng.uniform(0.88, 1.15)),
        bone_angle=0.55 + spread * rng.uniform(-0.4, 0.4),
        bone_wobble=harmonics(rng, 3, 0.10 * spread),
        half_angle=rng.uniform(0.62, 0.70),
        bands=0.5 * texture(rng, (size, size), (9, 4)) + 0.4 * texture(rng, (size, size), 8),
        inner=texture(rng, (size, size), 9),
        lines=texture(rng, (size, size), (34, 7)),
        settings={
            "gain": 1 + mix(0.10, 0.35) * rng.uniform(-1, 1),
            "focus": rng.uniform(0.9, 1.5),
            "fade": rng.uniform(0.10, 0.22),
        },
        # angle, width, first depth, strength; how many of them are strong depends on the difficulty
        shadows=np.stack(
            [rng.uniform(-0.5, 0.5, 5), rng.uniform(0.02, 0.06, 5), rng.uniform(0.4, 1.3, 5), rng.uniform(0.3, 1, 5)], 1
        ),
    )


def _speckle(recipe: Recipe) -> np.ndarray:
    """Complex speckle ``(2, depth, beams)`` of unit power per part; its modulus is Rayleigh distributed."""
    noise = recipe.noise.standard_normal((2, *_POLAR), dtype=np.float32)
    noise = ndimage.gaussian_filter1d(ndimage.gaussian_filter1d(noise, 0.8, 1), 1.0, 2)
    return noise / noise.std()


def _render(
    recipe: Recipe, scene: _Scene, speckle: np.ndarray, shift: tuple[float, float], turn: float
) -> tuple[np.ndarray, np.ndarray]:
    """Image ``(H, W)`` uint8 and label map: tissue brightness x speckle x shadows, log-compressed, inside the fan."""
    size, mix = recipe.size, recipe.mix
    y, x = axes(size)
    depth, angle = np.hypot(y - np.float32(APEX), x), np.arctan2(x, y - np.float32(APEX))
    fan = (np.abs(angle) < scene.half_angle) & (depth > NEAR) & (depth < FAR)

    centre = (scene.head[0] + shift[0], scene.head[1] + shift[1])
    head = radius(y, x, centre, scene.head_radii, scene.head_angle + turn, scene.head_wobble)
    bone_at = (scene.bone[0] + 0.2 * shift[0], scene.bone[1] + 0.2 * shift[1])
    bone = radius(y, x, bone_at, scene.bone_radii, scene.bone_angle, scene.bone_wobble)

    tissue = 0.30 * np.exp(0.45 * scene.bands + 0.22 * scene.lines)
    tissue = tissue + 0.25 * step(NEAR + 0.16 - depth, 0.2)  # skin line
    inside = step(1 - head, 0.06)
    brain = mix(0.07, 0.21) * np.exp(0.30 * scene.inner)
    tissue = tissue + inside * (brain - tissue)
    # the skull shines where the beam meets it at a right angle and hardly shows on its flanks
    facing = np.abs(np.cos(np.arctan2(x - np.float32(centre[1]), y - np.float32(centre[0])) - angle))
    skull = np.exp(-(((head - 0.965) / np.float32(mix(0.030, 0.045))) ** 2))
    tissue = tissue + skull * (np.float32(mix(0.25, 0.06)) + np.float32(mix(1.15, 0.62)) * facing**1.6)
    body = step(1 - bone, 0.25)
    tissue = tissue + body * (np.float32(mix(0.10, 0.20)) - tissue)
    capsule = np.exp(-(((bone - 0.93) / np.float32(0.11)) ** 2))
    tissue = tissue + capsule * np.float32(mix(0.75, 0.30))

    light = np.exp(-np.float32(scene.settings["fade"]) * (depth - NEAR))
    light *= 1 + 0.25 * np.exp(-(((depth - np.float32(scene.settings["focus"])) / np.float32(0.35)) ** 2))
    far_side = step(depth - np.float32(np.hypot(centre[0] - APEX, centre[1])), 0.5)
    light *= 1 - 0.45 * inside * far_side  # the skull swallows sound
    bone_depth, bone_angle = np.hypot(bone_at[0] - APEX, bone_at[1]), np.arctan2(bone_at[1], bone_at[0] - APEX)
    light *= 1 - 0.35 * _beam(depth, angle, bone_angle, 0.10, bone_depth + 0.12)
    for where, width, first, strength in scene.shadows:
        light *= 1 - np.float32(mix(0.15, 0.85) * strength) * _beam(depth, angle, where, width, first)

    rows = (depth - NEAR) * np.float32(_POLAR[0] / (FAR - NEAR)) % (_POLAR[0] - 1)
    columns = (angle / np.float32(scene.half_angle) + 1) * np.float32(0.5 * (_POLAR[1] - 1))
    grain = np.hypot(*(ndimage.map_coordinates(part, (rows, columns), order=1, mode="nearest") for part in speckle))
    grain = 1 + np.float32(mix(0.40, 0.85)) * (grain * np.float32(0.8) - 1)
    echo = np.clip(tissue * light * grain, 0, None) * np.float32(scene.settings["gain"])
    image = np.log1p(12 * echo) * np.float32(1 / np.log(13.0)) - np.float32(0.10)
    image = to_uint8(image * 0.98 * step(np.float32(scene.half_angle) - np.abs(angle), 0.02) * fan)

    label = np.where(head < 1, 2, 0)
    label[bone < 1] = 1
    label[~fan] = 0
    return image, label


def _beam(depth: np.ndarray, angle: np.ndarray, where: float, width: float, first: float) -> np.ndarray:
    """Shadow weight in [0, 1] of beams within about ``width`` radians of ``where``, from depth ``first`` on."""
    return np.exp(-(((angle - np.float32(where)) / np.float32(width)) ** 2)) * step(depth - np.float32(first), 0.15)
