"""Two small things about arrays that readers and writers share."""

from __future__ import annotations

import numpy as np

from samsans.errors import InputError


def smallest_integer(values: np.ndarray) -> np.dtype:
    """The smallest of uint8, uint16, uint32, or with negative values int16, int32, that holds the whole ``values``.

    Raises InputError where none does.
    """
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    kinds = (np.uint8, np.uint16, np.uint32) if low >= 0 else (np.int16, np.int32)
    for kind in kinds:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    raise InputError(f"labels from {low} to {high}", "values that fit 32 bits", "Renumber the classes")


def single_channel(array: np.ndarray) -> np.ndarray:
    """``(D, H, W, 1)`` without its last axis; other arrays as they are."""
    return array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array
