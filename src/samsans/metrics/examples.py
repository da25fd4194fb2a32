"""Which cases to look at, and their telling slice: image, truth and prediction the way a reader looks at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samsans import io
from samsans.config import SliceAxis
from samsans.data.classes import painted
from samsans.io.orientation import Orientation
from samsans.metrics import conventions, matching, overlap, pictures
from samsans.types import ClassInfo


@dataclass(frozen=True)
class Example:
    """One slice of a case in the radiological orientation of ``samsans.io.orientation``, of square pixels.

    rgb: ``(H, W, 3)`` uint8.  truth: ``(H, W)`` int32, ``k`` where the k-th object is drawn, 0 elsewhere.
    found: the same of each label map that was given, by name.  where: slice number in words, empty for 2D images.
    note: why the image is black, where it is.
    dice: of each label map, mean over the objects that it or the truth shows in this slice; ``None`` without any.
    """

    rgb: np.ndarray
    truth: np.ndarray
    found: Mapping[str, np.ndarray]
    where: str
    note: str
    dice: Mapping[str, float | None]


def ranked(cases: Sequence[Mapping[str, Any]]) -> list[tuple[float, str]]:
    """Mean Dice over its rows and id of every case where it is defined, worst first."""
    scores: dict[str, list[float | None]] = {}
    for row in cases:
        scores.setdefault(row["id"], []).append(row["dice"])
    means = {case: conventions.mean(values) for case, values in scores.items()}
    return sorted((value, case) for case, value in means.items() if value is not None)


def spread(count: int, at_most: int) -> list[int]:
    """At most so many positions out of ``count``, from the last to the first, evenly: best, median, worst for three."""
    places = np.linspace(count - 1, 0, min(count, at_most))
    return [int(place) for place in places]


def masks(
    labels: np.ndarray, drawn: np.ndarray, objects: Sequence[ClassInfo]
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Name, predicted mask and reference mask of each object, bool, of the shape of the label maps.

    An object painted over another that holds it by definition (a cup in its disc) counts for both.
    """
    ours = painted(objects)
    return [(c.name, _member(labels, p.values), _member(drawn, c.values)) for c, p in zip(objects, ours, strict=True)]


def example(
    pair: matching.Pair,
    objects: Sequence[ClassInfo],
    label_maps: Mapping[str, np.ndarray],
    slice_axis: SliceAxis = "auto",
) -> Example:
    """The slice of a case that shows most of the truth, else most of the first label map.

    label_maps: ``(D, H, W)`` integers on the grid of the reference, by name, at least one.
    slice_axis: as in ``DataConfig``: a reader sees the planes that the model was shown.
    """
    reference = matching.read_reference(pair.case)
    orientation = Orientation.of(reference, slice_axis)
    drawn = orientation.to_slices(reference.array)
    both = {name: masks(orientation.to_slices(labels), drawn, objects) for name, labels in label_maps.items()}
    first = next(iter(both.values()))
    truth = _paint([mask for _, _, mask in first], objects)
    found = {name: _paint([made for _, made, _ in triples], objects) for name, triples in both.items()}
    shown = truth if truth.any() else next(iter(found.values()))
    z = int(np.argmax((shown > 0).sum(axis=(1, 2))))
    image, note = read_image(pair, reference.shape)
    focus = np.any([labels[z] > 0 for labels in (truth, *found.values())], axis=0)
    step = orientation.spacing[1:]
    return Example(
        rgb=pictures.square_pixels(pictures.to_rgb(orientation.to_slices(image)[z], focus=focus), step, smooth=True),
        truth=pictures.square_pixels(truth[z], step, smooth=False),
        found={name: pictures.square_pixels(labels[z], step, smooth=False) for name, labels in found.items()},
        where=f"slice {z + 1} of {len(drawn)}" if len(drawn) > 1 else "",
        note=note,
        dice={name: _dice([(made[z], mask[z]) for _, made, mask in triples]) for name, triples in both.items()},
    )


def _dice(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    sizes = [overlap.sizes(made, drawn) for made, drawn in pairs]
    return conventions.mean([2 * both / (p + r) for both, p, r in sizes if p + r])


def _member(array: np.ndarray, values: Sequence[int]) -> np.ndarray:
    return array == values[0] if len(values) == 1 else np.isin(array, values)


def _paint(objects_masks: Sequence[np.ndarray], objects: Sequence[ClassInfo]) -> np.ndarray:
    """One map of the masks, largest object first: an object inside another is painted over it."""
    out = np.zeros(objects_masks[0].shape, dtype=np.int32)
    for k in sorted(range(len(objects)), key=lambda k: -len(objects[k].values)):
        out[objects_masks[k]] = k + 1
    return out


def read_image(pair: matching.Pair, shape: tuple[int, int, int]) -> tuple[np.ndarray, str]:
    """Image ``(D, H, W, C)`` of a case, or black and the reason why."""
    black = np.zeros((*shape, 1), dtype=np.uint8)
    if not pair.case.images:
        return black, "no image given"
    files = pair.case.images if pair.case.stacked else pair.case.images[:1]
    arrays = [io.read_image(file).array for file in files]
    image = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    if image.shape[:3] != shape:
        return black, f"image of another size {image.shape[:3]} not shown"
    return image, ""
