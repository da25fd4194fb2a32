"""Paths, arrays and volumes as ``Volume``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samsans import io
from samsans.errors import InputError
from samsans.io.geometry import affine_of_spacing
from samsans.types import Volume


def as_image(given: Any, spacing: Sequence[float] | None = None) -> Volume:
    """A path, array or volume as an image ``(D, H, W, C)``.

    Arrays: ``(H, W)`` grey; ``(H, W, 3)`` or ``(H, W, 1)`` one image; other ``(D, H, W)`` a volume; ``(D, H, W, C)``.
    spacing: ``(z, y, x)`` mm of arrays, and of files that state none.
    """
    if isinstance(given, (str, Path)):
        volume = io.read_image(given)
    elif isinstance(given, Volume):
        volume = given
    else:
        array = np.asarray(given)
        if array.ndim == 2:
            array = array[None, ..., None]
        elif array.ndim == 3:
            array = array[None] if array.shape[2] in (1, 3) else array[..., None]
        if array.ndim != 4 or array.dtype.kind not in "biuf":
            raise InputError(
                f"an array of shape {np.shape(given)} and type {array.dtype}", "(H, W), (H, W, 3), (D, H, W) of numbers"
            )
        array = array.astype(np.uint8) if array.dtype == bool else array
        volume = Volume(array)
    if spacing is None or volume.affine is not None:
        return volume
    return Volume(volume.array, affine_of_spacing(spacing), volume.path, volume.header)


def as_labels(given: Any) -> Volume:
    """A path, array or volume as a label map ``(D, H, W)`` of integers; arrays ``(H, W)`` or ``(D, H, W)``."""
    if isinstance(given, (str, Path)):
        return io.read_labels(given)
    volume = given if isinstance(given, Volume) else Volume(np.asarray(given))
    array = volume.array[None] if volume.array.ndim == 2 else volume.array
    if array.ndim != 3 or array.dtype.kind not in "biu":
        raise InputError(
            f"a mask of shape {array.shape} and type {array.dtype}", "(H, W) or (D, H, W) of whole numbers or bool"
        )
    return Volume(array.astype(np.uint8) if array.dtype == bool else array, volume.affine, volume.path, volume.header)
