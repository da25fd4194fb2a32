"""What every family of phantoms is built from: the case, its random streams, smooth textures and blobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from scipy.spatial.transform import Rotation

from samsans.types import ClassInfo


@dataclass(frozen=True)
class Phantom:
    """One generated case with its exact truth.

    id: unique in its family.  patient: what a split must never separate (both eyes of a fundus patient share one).
    image: ``(D, H, W, C)``, uint8 (photographs, ultrasound) or int16 (Hounsfield or MR units); 2D has ``D = 1``.
    labels: one ``(D, H, W)`` uint8 map per rater; a class covers the values in its ``ClassInfo.values``.
    affine: ``(4, 4)`` float64, voxel ``(x, y, z, 1)`` to RAS+ mm, or ``None`` for images without geometry.
    points: named ``(P, 3)`` float64 arrays of exact voxel coordinates ``(z, y, x)``, for tubes: ``centreline``.
    frames: the original number of each of the ``D`` frames of a video, rising, with gaps.
    """

    id: str
    patient: str
    image: np.ndarray
    labels: tuple[np.ndarray, ...]
    classes: tuple[ClassInfo, ...]
    affine: np.ndarray | None = None
    points: Mapping[str, np.ndarray] | None = None
    frames: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Recipe:
    """What a family is given to draw one case.

    size: side of a slice in pixels.  difficulty: 0 easy .. 1 hard.  index: number of the case.
    shared: stream equal for all cases of a patient.  shape: stream for everything that is anatomy and contrast; its
    draws do not depend on ``size`` or ``difficulty``.  noise: stream for pixel noise.
    """

    id: str
    patient: str
    size: int
    difficulty: float
    index: int
    shared: Generator
    shape: Generator
    noise: Generator

    def mix(self, easy: float, hard: float) -> float:
        """Value between ``easy`` and ``hard`` at this difficulty."""
        return easy + (hard - easy) * self.difficulty


def axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres ``(y, x)`` of a square image, float32 in [-1, 1], as a column and a row that broadcast."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0).astype(np.float32)
    return line[:, None], line[None, :]


def _spline_matrix(length: int, cells: int) -> np.ndarray:
    """Cubic B-spline weights ``(length, cells + 3)`` of ``length`` points over ``cells`` equal cells."""
    position = (np.arange(length) + 0.5) * (cells / length)
    cell = np.minimum(position.astype(int), cells - 1)
    t = position - cell
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    matrix = np.zeros((length, cells + 3), np.float32)
    np.put_along_axis(matrix, cell[:, None] + np.arange(4), weights.astype(np.float32), axis=1)
    return matrix


def texture(rng: Generator, shape: Sequence[int], cells: int | Sequence[int]) -> np.ndarray:
    """Smooth random field ``shape`` float32, mean 0 and standard deviation about 1.

    cells: random cells along each axis.  The field is the same picture at every ``shape``: only its sampling changes.
    """
    cells = (cells,) * len(shape) if isinstance(cells, int) else tuple(cells)
    field = rng.standard_normal([c + 3 for c in cells], dtype=np.float32)
    for length, count in zip(shape, cells, strict=True):  # each step moves the finished axis to the end
        field = np.tensordot(field, _spline_matrix(length, count), axes=(0, 1)) * np.float32(1.445)
    return field


def radius(
    y: np.ndarray,
    x: np.ndarray,
    centre: tuple[float, float],
    radii: tuple[float, float],
    angle: float = 0.0,
    wobble: np.ndarray | None = None,
) -> np.ndarray:
    """Elliptic radius of ``(y, x)`` about ``centre = (y, x)``: 1 on the outline, below 1 inside.

    radii: half axes ``(y, x)`` before the turn by ``angle`` radians (from x towards y).
    wobble: ``(k, 2)`` amplitude and phase of the outline's harmonics 2, 3, ...
    """
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    dy, dx = y - np.float32(centre[0]), x - np.float32(centre[1])
    b, a = (c * dy - s * dx) / np.float32(radii[0]), (c * dx + s * dy) / np.float32(radii[1])
    rho = np.sqrt(a * a + b * b)
    if wobble is None:
        return rho
    theta = np.arctan2(b, a)
    edge = np.ones_like(theta)
    for order, (amplitude, phase) in enumerate(wobble, start=2):
        edge += np.float32(amplitude) * np.cos(order * theta + np.float32(phase))
    return rho / edge


def harmonics(rng: Generator, count: int, amplitude: float) -> np.ndarray:
    """``(count, 2)`` random amplitudes, falling with the order, and phases: see ``radius``."""
    size = amplitude * rng.uniform(-1, 1, count) / np.arange(1, count + 1)
    return np.stack([size, rng.uniform(0, 2 * np.pi, count)], axis=1)


def step(signed: np.ndarray, width: float) -> np.ndarray:
    """Smooth step from 0 to 1 around ``signed = 0``, over ``width``."""
    t = np.clip(signed / np.float32(width) + np.float32(0.5), 0, 1)
    return t * t * (3 - 2 * t)


def splat(points: np.ndarray, radii: np.ndarray, size: int) -> np.ndarray:
    """Coverage ``(size, size)`` float32 in [0, 1] of the union of discs at ``points`` ``(P, 2)`` = (y, x) in pixels.

    A pixel at distance d from a disc of radius r is covered by ``clip(r - d + 1/2, 0, 1)``: antialiased edges.
    """
    out = np.zeros(size * size, np.float32)
    reach = np.ceil(radii + 0.5).astype(int)
    for r in np.unique(reach):
        chosen = reach == r
        centre, radius_ = points[chosen].astype(np.float32), radii[chosen].astype(np.float32)
        offset = np.arange(-r, r + 1)
        dy, dx = (o.ravel() for o in np.meshgrid(offset, offset, indexing="ij"))
        corner = np.floor(centre).astype(np.int64)
        py, px = corner[:, :1] + dy, corner[:, 1:] + dx
        distance = np.hypot(py + np.float32(0.5) - centre[:, :1], px + np.float32(0.5) - centre[:, 1:])
        cover = np.clip(radius_[:, None] - distance + np.float32(0.5), 0, 1)
        keep = (cover > 0) & (py >= 0) & (py < size) & (px >= 0) & (px < size)
        np.maximum.at(out, (py * size + px)[keep], cover[keep])
    return out.reshape(size, size)


def rgb(red: float, green: float, blue: float) -> np.ndarray:
    """A colour that broadcasts over ``(H, W, 3)``, float32."""
    return np.array((red, green, blue), np.float32)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Image in [0, 1] as uint8 in [0, 255], clipped and rounded."""
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def flat(image: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """``image`` and ``labels`` of a 2D case with one rater: ``(H, W[, C])`` and ``(H, W)`` get their missing axes."""
    image = image[..., None] if image.ndim == 2 else image
    return {"image": image[None], "labels": (label.astype(np.uint8)[None],)}


def oblique(rng: Generator, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> np.ndarray:
    """``(4, 4)`` float64 affine of a tilted scan: voxel ``(x, y, z, 1)`` to RAS+ mm.

    shape, spacing: ``(z, y, x)``, voxels and mm.  x runs to the patient's left, y to the back, z to the head, as in
    axial CT, then the whole grid is turned by up to 12 degrees about each axis; its centre lies within 40 mm of 0.
    """
    turn = Rotation.from_euler("xyz", rng.uniform(-12, 12, 3), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag((-spacing[2], -spacing[1], spacing[0]))
    middle = (np.array(shape[::-1]) - 1) / 2
    affine[:3, 3] = rng.uniform(-40, 40, 3) - affine[:3, :3] @ middle
    return affine
