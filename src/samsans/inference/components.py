"""The largest connected piece of every object in a label map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from samsans.data.classes import inner_objects, painted
from samsans.types import ClassInfo


def largest_components(labels: np.ndarray, classes: Sequence[ClassInfo]) -> np.ndarray:
    """The label map ``(D, H, W)`` with each object's largest connected piece alone, in voxels, a copy of its type.

    Voxels that touch at a face, an edge or a corner are connected (our decision); of pieces of equal size the first in
    the array stays.  An object that others lie inside by definition is judged with them filled in, so that a cup does
    not cut its disc, and before them, so that a cup goes with the piece of disc around it.  What is taken off becomes
    the object that it lies inside by definition (a stray piece of cup: disc), else background.
    """
    out = labels.copy()
    inner = inner_objects(classes)
    filled = [info.values for info in painted(classes)]
    for i in sorted(range(len(classes)), key=lambda i: -len(classes[i].values)):
        around = [info for info, holds in zip(classes, inner[:, i], strict=True) if holds]
        below = min(around, key=lambda info: len(info.values)).label if around else 0
        _take_off_strays(out, np.isin(out, filled[i]), below)
    return out


def _take_off_strays(labels: np.ndarray, region: np.ndarray, below: int) -> None:
    """Set all pieces of ``region`` but the largest to ``below``, in place."""
    boxes = ndimage.find_objects(region.view(np.uint8))
    if not boxes:
        return
    pieces, count = ndimage.label(region[boxes[0]], np.ones((3,) * region.ndim))
    if count > 1:
        sizes = np.zeros(count + 1, np.int64)
        for part in pieces:  # slice by slice: counting copies what it counts
            sizes += np.bincount(part.ravel(), minlength=count + 1)
        largest = 1 + sizes[1:].argmax()
        labels[boxes[0]][(pieces > 0) & (pieces != largest)] = below
