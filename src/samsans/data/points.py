"""Points from voxels of a volume to pixels of the model and back.

A volume's points are ``types.Points``, native voxels ``(z, y, x)``.  Those of canonical slices are one array ``(K, 3)``
float64 a slice: x (column), y (row) and the label, in pixels whose centres are whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samsans.data.transforms import Preprocess
from samsans.io.orientation import Orientation
from samsans.types import Points

IDENTITY = Orientation((0, 1, 2), (False, False, False), (1.0, 1.0, 1.0), "")  # slices that are canonical already


def to_slices(points: Points, orientation: Orientation, shape: Sequence[int]) -> list[np.ndarray]:
    """One array ``(K, 3)`` for each canonical slice of a volume of ``shape`` ``(D, H, W)``, in the order of the points.

    A point between two slices belongs to the nearest, halves up.
    """
    sizes = np.array([shape[axis] for axis in orientation.axes])
    canonical = points.positions[:, orientation.axes]
    flipped = np.array(orientation.flips)
    canonical = np.where(flipped, sizes - 1 - canonical, canonical)
    slices = np.floor(canonical[:, 0] + 0.5).astype(int).clip(0, sizes[0] - 1)
    flat = np.column_stack([canonical[:, 2], canonical[:, 1], points.labels]).astype(np.float64)
    return [flat[slices == i] for i in range(sizes[0])]


def from_slices(slices: Sequence[np.ndarray], orientation: Orientation, shape: Sequence[int]) -> Points:
    """The inverse of ``to_slices``, for points in the middle of their slices; slice by slice."""
    sizes = np.array([shape[axis] for axis in orientation.axes])
    counts = [len(s) for s in slices]
    flat = np.concatenate([np.zeros((0, 3)), *slices])
    canonical = np.column_stack([np.repeat(np.arange(len(slices)), counts), flat[:, 1], flat[:, 0]])
    canonical = np.where(np.array(orientation.flips), sizes - 1 - canonical, canonical)
    native = canonical[:, np.argsort(orientation.axes)].astype(np.float64)
    return Points(native, flat[:, 2].astype(np.int64))


def by_slice(points: Points, depth: int) -> list[np.ndarray]:
    """``to_slices`` of a volume that is canonical already, of ``depth`` slices."""
    return to_slices(points, IDENTITY, (depth, 0, 0))


def of_volume(slices: Sequence[np.ndarray]) -> Points:
    """``from_slices`` to a volume that is canonical already."""
    return from_slices(slices, IDENTITY, (len(slices), 0, 0))


def to_model(points: np.ndarray, size: tuple[int, int], preprocess: Preprocess) -> np.ndarray:
    """Points ``(K, 2)`` or ``(K, 3)`` of a slice of ``size`` (H, W) in pixels of the square a model sees.

    Pixel centres map as those of the resized slice: ``x' = (x + 0.5) w / W - 0.5``, and with cubic splines, which align
    the corners, ``x' = x (w - 1) / (W - 1)``.
    """
    return _scaled(points, size, preprocess.valid(*size), preprocess)


def to_native(points: np.ndarray, size: tuple[int, int], preprocess: Preprocess) -> np.ndarray:
    """The inverse of ``to_model``."""
    return _scaled(points, preprocess.valid(*size), size, preprocess)


def _scaled(points: np.ndarray, here: tuple[int, int], there: tuple[int, int], preprocess: Preprocess) -> np.ndarray:
    out = np.array(points, np.float64)
    before, after = (np.array(size[::-1], np.float64) for size in (here, there))  # (width, height)
    if preprocess.resampling == "spline":
        out[:, :2] *= np.maximum(after - 1, 0) / np.maximum(before - 1, 1)
    else:
        out[:, :2] = (out[:, :2] + 0.5) * (after / before) - 0.5
    return out
