"""How far two surfaces lie apart: HD95, average surface distance and normalised surface Dice.

The *surface* of a mask is the set of its voxels that have a face neighbour outside the mask; outside the grid counts
as outside the mask.  Distances are Euclidean between voxel centres, in the unit of ``spacing`` (mm where the file says
so), exact, and computed between surface voxels only: nearest neighbours by a k-d tree, so that cost and memory follow
the surfaces and not the grid.  Axes of length one are dropped first: a volume of one slice is a 2D image, else every
one of its voxels would be surface.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.spatial import KDTree

from samsans.errors import InputError

Pooling = Literal["pooled", "max_directed"]
Distances = tuple[np.ndarray, np.ndarray]


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds all of a bool mask; empty slices where the mask is empty."""
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, 0))
    return tuple(box)


def surface(mask: np.ndarray) -> np.ndarray:
    """The surface of a bool mask (any shape), as a bool mask of the same shape.

    Equal to ``mask`` without its erosion by the cross of face neighbours.
    """
    inner = mask.copy()
    for axis in range(mask.ndim):
        core, whole = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        core[1:] &= whole[:-1]
        core[:-1] &= whole[1:]
        core[0] = False
        core[-1] = False
    return mask & ~inner


def surface_distances(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> Distances:
    """From every surface voxel of each mask, the distance to the nearest surface voxel of the other.

    prediction, reference: bool masks of one shape, neither empty.
    spacing: one length for each axis, e.g. (z, y, x) mm.
    Returns the distances prediction to reference and reference to prediction, float64, in no particular order.
    Raises InputError where shapes differ or a mask is empty (what that means is for a convention to say).
    """
    if prediction.shape != reference.shape or len(spacing) != prediction.ndim:
        raise InputError(
            f"prediction {prediction.shape}, reference {reference.shape} and spacing {tuple(spacing)}",
            "two masks of one shape and one spacing for each axis",
        )
    if not prediction.any() or not reference.any():
        raise InputError("an empty mask", "two masks that are not empty: an empty one has no surface")
    long = [axis for axis, length in enumerate(prediction.shape) if length > 1]
    box = bounding_box(prediction | reference)
    step = np.asarray(spacing, dtype=np.float64)[long]
    points = []
    for mask in (prediction, reference):
        part = mask[box].reshape([box[axis].stop - box[axis].start for axis in long])
        points.append(np.argwhere(surface(part.astype(bool, copy=False))) * step)
    return _nearest(points[0], points[1]), _nearest(points[1], points[0])


def _nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance of each point (n, axes) to the nearest of the others (m, axes)."""
    if points.shape[1] == 0:  # a grid of one voxel
        return np.zeros(1)
    tree = KDTree(others, leafsize=32, compact_nodes=False, balanced_tree=False)
    return np.asarray(tree.query(points)[0])


def hausdorff(distances: Distances, percentile: float = 95.0, pooling: Pooling = "pooled") -> float:
    """Percentile Hausdorff distance (HD95 by default) from ``surface_distances``.

    ``pooled``: the percentile of both directions together (MedPy's ``hd95``, hence the numbers of TransUNet, SAMed,
    H-SAM).  ``max_directed``: the larger of the percentiles of each direction (MONAI, the Metrics Reloaded text).
    At the 100th percentile both are the Hausdorff distance.  Percentiles interpolate linearly.
    """
    if pooling == "pooled":
        return float(np.percentile(np.concatenate(distances), percentile))
    return float(max(np.percentile(d, percentile) for d in distances))


def average_symmetric_distance(distances: Distances) -> float:
    """Average symmetric surface distance: the mean over the surface voxels of both masks together.

    This is MONAI's symmetric average and the ``assd`` of MedPy 0.5; some libraries take the mean of the two directed
    means instead, which differs where one surface has many more voxels than the other.
    """
    return float(np.concatenate(distances).mean())


def surface_dice(distances: Distances, tolerance: float) -> float:
    """Normalised surface Dice (NSD): the share of both surfaces that lies within ``tolerance`` of the other, in [0, 1].

    Surface voxels are counted, as MONAI does by default; weighting them by surface area (DeepMind's library) gives
    slightly different numbers.  tolerance: in the unit of the spacing, >= 0.
    """
    near = sum(int(np.count_nonzero(d <= tolerance)) for d in distances)
    total = sum(d.size for d in distances)
    return near / total if total else math.nan
