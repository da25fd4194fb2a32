"""Which cases to look at, and their telling slice: image, truth and prediction the way a reader looks at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samsans import io
from samsans.data.classes import painted
from samsans.metrics import conventions, matching, overlap, pictures
from samsans.types import ClassInfo, Volume


@dataclass(frozen=True)
class Example:
    """One slice of a case, upright, of square pixels.

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


def example(pair: matching.Pair, objects: Sequence[ClassInfo], label_maps: Mapping[str, np.ndarray]) -> Example:
    """The slice of a case that shows most of the truth, else most of the first label map.

    label_maps: ``(D, H, W)`` integers on the grid of the reference, by name, at least one.
    """
    reference = matching.read_reference(pair.case)
    both = {name: masks(labels, reference.array, objects) for name, labels in label_maps.items()}
    first = next(iter(both.values()))
    truth = _paint([drawn for _, _, drawn in first], objects)
    found = {name: _paint([made for _, made, _ in triples], objects) for name, triples in both.items()}
    shown = truth if truth.any() else next(iter(found.values()))
    z = int(np.argmax((shown > 0).sum(axis=(1, 2))))
    image, note = _image_slice(pair, z, reference.shape)
    focus = np.any([labels[z] > 0 for labels in (truth, *found.values())], axis=0)
    return Example(
        rgb=_turn(pictures.to_rgb(image, focus=focus), reference, smooth=True),
        truth=_turn(truth[z], reference),
        found={name: _turn(labels[z], reference) for name, labels in found.items()},
        where=f"slice {z + 1} of {reference.shape[0]}" if reference.shape[0] > 1 else "",
        note=note,
        dice={name: _dice([(made[z], drawn[z]) for _, made, drawn in triples]) for name, triples in both.items()},
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


def _turn(plane: np.ndarray, reference: Volume, smooth: bool = False) -> np.ndarray:
    return pictures.square_pixels(pictures.upright(plane, reference.affine), reference.spacing[1:], smooth)


def _image_slice(pair: matching.Pair, z: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, str]:
    """Slice ``(H, W, C)`` of the case's image, or black and the reason why."""
    black = np.zeros((*shape[1:], 1), dtype=np.uint8)
    if not pair.case.images:
        return black, "no image given"
    image = io.read_image(pair.case.images[z if pair.case.stacked else 0]).array
    z = 0 if pair.case.stacked else z
    if image.shape[1:3] != shape[1:] or z >= len(image):
        return black, f"image of another size {image.shape[:3]} not shown"
    return image[z], ""
