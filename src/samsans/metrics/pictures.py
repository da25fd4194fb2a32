"""Pictures of label maps over images, for reports, training snapshots and docs."""

from __future__ import annotations

import base64
import io as streams
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from samsans.io.overlay import check_planes, paint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHORT_SIDE, LONG_SIDE = 256, 2048


@dataclass(frozen=True)
class Plate:
    """A finished picture for a report: its file name, title, PNG content, and what to say below it."""

    file: str
    title: str
    png: bytes
    caption: str


def png(figure: Figure, dpi: int) -> bytes:
    """A figure as the content of a PNG file; the same figure gives the same bytes."""
    buffer = streams.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def png_uri(content: bytes) -> str:
    """The content of a PNG file as a ``data:`` address, for pages that need no other file."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def overlay(image: np.ndarray, labels: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """The labels over the image: a translucent fill with a thin contour in each label's colour.

    image: ``(H, W, 3)`` uint8.  labels: ``(H, W)`` integers, 0 background.
    reference: ``(H, W)`` integers or bool; its outline is drawn in white just outside the object, so that a perfect
    prediction shows both lines side by side.
    Returns ``(s H, s W, 3)`` uint8, ``s`` the smallest whole number that makes the short side at least 256 pixels.
    """
    check_planes(image, labels=labels, reference=reference)
    h, w = labels.shape
    scale = max(1, min(math.ceil(SHORT_SIDE / min(h, w)), LONG_SIDE // max(h, w)))
    if scale > 1:
        image = np.asarray(Image.fromarray(image).resize((w * scale, h * scale), Image.Resampling.BICUBIC))
    labels = _enlarge(labels, scale)
    reference = None if reference is None else _enlarge(reference, scale)
    return paint(image, labels, reference)


def to_rgb(image: np.ndarray, focus: np.ndarray | None = None) -> np.ndarray:
    """An image slice as ``(H, W, 3)`` uint8.

    image: ``(H, W, C)`` of any number type.  Three or four uint8 channels are taken as RGB(A), one uint8 channel as
    grey; anything else is its first channel, stretched from its 1st to its 99th percentile.
    focus: ``(H, W)`` bool; the stretch then looks at the box around it, enlarged by a quarter of its size on each
        side, which for a CT organ is close to a soft tissue window.
    """
    if image.dtype == np.uint8 and image.shape[2] in (3, 4):
        return np.ascontiguousarray(image[..., :3])
    grey = image[..., 0]
    if image.dtype != np.uint8:
        grey = np.nan_to_num(grey.astype(np.float32))
        low, high = np.percentile(_around(grey, focus), (1, 99))
        if high <= low:
            low, high = float(grey.min()), float(grey.max())
        grey = np.clip((grey - low) / max(float(high - low), 1e-12), 0, 1) * 255
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def square_pixels(plane: np.ndarray, spacing: tuple[float, float], smooth: bool) -> np.ndarray:
    """Resize a slice ``(H, W)`` or ``(H, W, 3)`` uint8 so that its pixels are square.

    spacing: (row, column) size of a pixel.  smooth: bicubic for images, nearest for labels.
    """
    h, w = plane.shape[:2]
    side = min(spacing)
    size = (round(w * spacing[1] / side), round(h * spacing[0] / side))
    if size == (w, h):
        return plane
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(plane).resize(size, how))


def _enlarge(plane: np.ndarray, scale: int) -> np.ndarray:
    return plane.astype(np.int32).repeat(scale, axis=0).repeat(scale, axis=1)


def _around(grey: np.ndarray, focus: np.ndarray | None) -> np.ndarray:
    if focus is None or not focus.any():
        return grey
    rows, columns = np.flatnonzero(focus.any(axis=1)), np.flatnonzero(focus.any(axis=0))
    box = []
    for hit, length in ((rows, grey.shape[0]), (columns, grey.shape[1])):
        margin = max(8, (int(hit[-1]) + 1 - int(hit[0])) // 4)
        box.append(slice(max(0, int(hit[0]) - margin), min(length, int(hit[-1]) + 1 + margin)))
    return grey[box[0], box[1]]
