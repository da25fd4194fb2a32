"""Where pixels of a warped square come from: turns, jittered corners and smooth random displacements.

Positions are ``(2, S, S)`` float64: row and column in the square that is warped, in pixels, for every pixel of the
result.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def grid(side: int) -> np.ndarray:
    """The positions that change nothing."""
    return np.indices((side, side)).astype(np.float64)


def turned(positions: np.ndarray, angle: float, scale: float = 1.0) -> np.ndarray:
    """Positions turned about the middle of the square by ``angle`` radians and moved ``scale`` times as far from it.

    Pictures turn counter-clockwise, as by ``scipy.ndimage.rotate``, and show more where ``scale`` is above 1.
    """
    middle = (positions.shape[-1] - 1) / 2
    rows, columns = scale * (positions - middle)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos * rows + sin * columns, cos * columns - sin * rows]) + middle


def jittered(positions: np.ndarray, reach: float, rng: np.random.Generator) -> np.ndarray:
    """Positions under the affine map that moves three corners of a central square by up to ``reach`` pixels each way.

    The square has two thirds of the side, so that its corners lie well inside (our decision).
    """
    side = positions.shape[-1]
    middle, third = (side - 1) / 2, side / 3
    corners = middle + third * np.array([[-1, -1], [-1, 1], [1, -1]])
    moved = corners + rng.uniform(-reach, reach, corners.shape)
    matrix = np.linalg.solve(np.column_stack([corners, np.ones(3)]), moved)  # (row, column, 1) @ matrix
    return np.einsum("dij,de->eij", positions, matrix[:2]) + matrix[2][:, None, None]


def reflected(positions: np.ndarray) -> np.ndarray:
    """Positions beyond the border folded back into the square, about the outermost pixels."""
    last = positions.shape[-1] - 1
    if last == 0:
        return np.zeros_like(positions)
    folded = np.abs(positions) % (2 * last)
    return np.minimum(folded, 2 * last - folded)


def smoothing(side: int, sigma: float) -> np.ndarray:
    """``(S, S)``: the Gaussian filter of ``sigma`` pixels along one axis, borders reflected, as a matrix.

    With large ``sigma`` products with it are much faster than filtering.
    """
    return ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0, mode="reflect")


def displacement(blur: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``(2, S, S)``: noise uniform in [-1, 1], smoothed along both axes by ``blur`` (see ``smoothing``)."""
    noise = rng.uniform(-1, 1, (2, *blur.shape))
    return blur @ noise @ blur.T


def inside(positions: np.ndarray) -> np.ndarray:
    """``(S, S)`` bool: which positions lie on a pixel of the square."""
    side = positions.shape[-1]
    return ((positions >= -0.5) & (positions < side - 0.5)).all(0)


def nearest(pixels: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """``(C, S, S)`` from pixels ``(C, S, S)`` of any type: the nearest pixel, halves up; zero outside."""
    index = np.floor(positions + 0.5).astype(np.int64)
    rows, columns = index.clip(0, pixels.shape[-1] - 1)
    return pixels[:, rows, columns] * inside(positions).astype(pixels.dtype)


def bilinear(pixels: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """``(C, S, S)`` float64 from pixels ``(C, S, S)``, bilinear; zero outside."""
    values = [ndimage.map_coordinates(p, positions, np.float64, order=1, mode="nearest") for p in pixels]
    return np.stack(values) * inside(positions)
