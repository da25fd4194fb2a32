"""Scribbles as points: a mask of strokes on the grid of an image, thinned evenly to few points.

Values of a mask: 0 nothing, 1 inside the object, 2 outside it; one other value alone (255 of a picture) counts as
inside.  The array ``scribbles`` of a ``.npz`` or ``.h5`` may also hold strokes as MedScribble does: ``(2, ...)``, first
inside, then outside, drawn where above 0.5; or ``(people, 2, ...)``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from samsans.errors import InputError
from samsans.io import packed
from samsans.io.atomic import suffix
from samsans.io.files import PACKED_SUFFIXES
from samsans.io.orientation import Orientation
from samsans.io.read import read_labels
from samsans.types import Points, Volume

MOST = 16  # points that the strokes of one label become in a slice (our decision)
ROUNDS = 10  # of moving the points apart
MEANING = "0 nothing, 1 inside the object, 2 outside it"


def read_scribbles(path: Path, volume: Volume, member: int = 0, most: int = MOST) -> Points:
    """Points of the strokes at ``path``, at most ``most`` a slice and label, inside first.

    Volumes are thinned in each of their slices along the automatic axis.  member: whose, in a file of several people.
    Raises InputError where the mask is not of the size of ``volume`` or holds other values.
    """
    inside, outside = _strokes(path, volume, member)
    orientation = Orientation.of(volume)
    parts, labels = [], []
    for label, drawn in ((1, inside), (0, outside)):
        # canonical slices are views: their pixels are brought back as indices of the native grid
        native = np.moveaxis(np.indices(drawn.shape), 0, -1)
        for strokes, places in zip(orientation.view(drawn), orientation.view(native), strict=True):
            chosen = thin(strokes, most)
            parts.append(places[chosen[:, 0], chosen[:, 1]].reshape(-1, 3))
            labels += [label] * len(chosen)
    positions = np.concatenate([np.zeros((0, 3)), *parts]).astype(np.float64)
    return Points(positions, np.array(labels, np.int64), ("scribble",) * len(positions))


def thin(strokes: np.ndarray, most: int = MOST) -> np.ndarray:
    """``(K, 2)`` int64 pixels ``(row, column)`` of strokes ``(H, W)`` bool, ``K <= most``, evenly along them.

    Every 8-connected stroke has one point at least, while there are no more of them than ``most`` (then the largest
    have).  Points are two widths of the strokes apart or more: farthest points first, then each moves to the middle of
    the pixels that are nearest to it.
    """
    strokes = np.asarray(strokes, bool)
    if not strokes.any():
        return np.zeros((0, 2), np.int64)
    components, count = ndimage.label(strokes, np.ones((3, 3), bool))
    pixels = np.argwhere(strokes)
    of = components[pixels[:, 0], pixels[:, 1]] - 1
    sizes = np.bincount(of, minlength=count)
    firsts = [np.flatnonzero(of == c)[sizes[c] // 2] for c in np.argsort(-sizes, kind="stable")[:most]]
    width = 2 * ndimage.distance_transform_edt(np.pad(strokes, 1)).max() - 1
    apart = int(len(pixels) / (2 * width**2)) + 1  # points along strokes that are two widths from each other
    wanted = min(most, len(pixels), max(len(firsts), apart))
    chosen = _farthest(pixels, firsts, wanted)
    centres = pixels[chosen].astype(np.float64)
    for _ in range(ROUNDS):
        owner = cKDTree(centres).query(pixels)[1]
        weight = np.bincount(owner, minlength=len(centres))
        sums = np.stack([np.bincount(owner, pixels[:, i], minlength=len(centres)) for i in (0, 1)], 1)
        centres = np.where(weight[:, None] > 0, sums / np.maximum(weight, 1)[:, None], centres)
    return pixels[np.unique(cKDTree(pixels).query(centres)[1])]


def people(path: Path) -> int:
    """How many people's scribbles a file holds; 0 where it is a ``.npz`` or ``.h5`` without scribbles."""
    if suffix(path) not in PACKED_SUFFIXES:
        return 1
    shape = packed.scribbles_shape(path)
    if shape is None:
        return 0
    return shape[0] if len(shape) == 5 or (len(shape) == 4 and shape[1] == 2) else 1


def _farthest(pixels: np.ndarray, firsts: list[int], wanted: int) -> np.ndarray:
    """Indices of ``wanted`` pixels, each the farthest from those before."""
    chosen = list(firsts[:wanted])
    squared = np.min([((pixels - pixels[i]) ** 2).sum(1) for i in chosen], 0)
    while len(chosen) < wanted:
        chosen.append(int(squared.argmax()))
        squared = np.minimum(squared, ((pixels - pixels[chosen[-1]]) ** 2).sum(1))
    return np.array(chosen)


def _strokes(path: Path, volume: Volume, member: int) -> tuple[np.ndarray, np.ndarray]:
    """Strokes inside and outside the object, ``(D, H, W)`` bool each."""
    shape = volume.shape
    array = packed.scribbles(path) if suffix(path) in PACKED_SUFFIXES else read_labels(path).array
    ends = [shape, shape[1:]] if shape[0] == 1 else [shape]
    end = next((end for end in ends if array.shape[array.ndim - len(end) :] == end), None)
    if end is None:
        raise InputError(
            f"the scribbles {path} have the size {array.shape}, {volume.path or 'the image'} has {shape}",
            "a mask on the grid of its image",
        )
    lead = array.shape[: array.ndim - len(end)]
    if len(lead) == 2 and lead[1] == 2:
        if not 0 <= member < lead[0]:
            raise InputError(f"{path} holds scribbles of {lead[0]} people, not of number {member + 1}", "one of them")
        array, lead = array[member], (2,)
    if lead == (2,):
        inside, outside = (np.asarray(a > 0.5).reshape(shape) for a in array)
        return inside, outside
    if lead:
        raise InputError(f"{path} holds scribbles of shape {array.shape}", "(2, H, W) or (people, 2, H, W)")
    values = {float(v) for v in np.unique(array)} - {0.0}
    inside_value = values.pop() if len(values) == 1 and values != {2.0} else 1.0
    if values - {1.0, 2.0}:
        raise InputError(f"the scribbles {path} hold the values {sorted(values)[:8]}", MEANING)
    return (array == inside_value).reshape(shape), (array == 2).reshape(shape)
