"""Label maps painted over images, at the image's own size; the one place where this is done."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samsans.errors import InputError
from samsans.palette import color
from samsans.types import ClassInfo

FILL = 0.32  # share of the colour inside an object
MARGIN = 4  # pixels around the names of the objects


def overlay(
    frame: np.ndarray, labels: np.ndarray, classes: Sequence[ClassInfo] = (), reference: np.ndarray | None = None
) -> np.ndarray:
    """The labels over a frame of the same size, with the names of ``classes`` in their colours in the top left corner.

    frame: ``(H, W, 3)`` uint8.  labels: ``(H, W)`` integers, 0 background.  classes: whose names are written; none
    where the frame is too small.  reference: as in ``paint``.  Returns ``(H, W, 3)`` uint8.
    """
    check_planes(frame, labels=labels, reference=reference)
    painted = paint(frame, labels, reference)
    return _with_names(painted, classes) if classes else painted


def paint(image: np.ndarray, labels: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """A translucent fill with a thin contour in each label's colour; arguments and result as of ``overlay``.

    reference: ``(H, W)`` integers or bool; its outline is drawn in white just outside the object, so that a perfect
    prediction shows both lines side by side.
    """
    from scipy import ndimage

    width = 2 * max(1, round(min(image.shape[:2]) / 300)) + 1  # filter side for a line of (width - 1) / 2 pixels
    colors = np.array([color(int(v)) for v in range(int(labels.max(initial=0)) + 1)], dtype=np.float32)
    inside = labels > 0
    result = image.copy()
    result[inside] = np.rint((1 - FILL) * image[inside].astype(np.float32) + FILL * colors[labels[inside]])
    line = ndimage.minimum_filter(labels, width, mode="nearest") != labels
    result[line] = colors[labels[line]]
    if reference is not None:
        result[ndimage.maximum_filter(reference, width, mode="nearest") != reference] = 255
    return result


def check_planes(image: np.ndarray, **others: np.ndarray | None) -> None:
    """InputError unless ``image`` is ``(H, W, 3)`` uint8 and the others, by name, have its rows and columns."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(f"an image of shape {image.shape} and type {image.dtype}", "(H, W, 3) uint8", "use to_rgb")
    for name, other in others.items():
        if other is not None and other.shape != image.shape[:2]:
            raise InputError(f"{name} of shape {other.shape} for an image of {image.shape[:2]}", "one grid")


def _with_names(image: np.ndarray, classes: Sequence[ClassInfo]) -> np.ndarray:
    """The names of the objects on a darkened corner, one a line."""
    from PIL import Image, ImageDraw, ImageFont

    size = max(10, min(image.shape[:2]) // 24)
    font = ImageFont.load_default(size)
    boxes = [font.getbbox(info.name) for info in classes]
    step = size + MARGIN
    width = round(max(box[2] for box in boxes)) + 2 * MARGIN
    height = step * len(classes) + MARGIN
    if width > image.shape[1] or height > image.shape[0] // 2:
        return image
    image = image.copy()
    image[:height, :width] //= 3
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    for line, info in enumerate(classes):
        draw.text((MARGIN, MARGIN // 2 + line * step), info.name, color(info.label), font)
    return np.asarray(canvas)
