"""Reading saliency maps at points: numpy alone, and no map is enlarged for a few points."""

from __future__ import annotations

import numpy as np

from samsans.methods.spd.cpd import Lookup


def dense(saliency: np.ndarray) -> Lookup:
    """Reads maps ``(T, S, S)`` at the nearest pixel; places outside count as the border."""

    def lookup(t: int, xy: np.ndarray) -> np.ndarray:
        column, row = pixels(xy, saliency.shape[-1])
        return saliency[t, row, column]

    return lookup


def enlarged(logits: np.ndarray, side: int) -> Lookup:
    """Reads ``sigmoid`` of logits ``(T, h, h)`` enlarged bilinearly to ``side``, at the nearest pixel of that size.

    The enlargement has half-pixel centres (``align_corners`` false); only the pixels asked for are computed.
    """

    def lookup(t: int, xy: np.ndarray) -> np.ndarray:
        column, row = pixels(xy, side)
        return sigmoid(interpolated(logits[t], row, column, side))

    return lookup


def pixels(xy: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Column and row ``(K,)`` int64 of the pixel nearest to each place."""
    nearest = np.clip(np.rint(xy), 0, side - 1).astype(np.int64)
    return nearest[:, 0], nearest[:, 1]


def interpolated(small: np.ndarray, row: np.ndarray, column: np.ndarray, side: int) -> np.ndarray:
    """Float64 values at pixels of a map ``(h, h)`` that is enlarged bilinearly to ``side``."""
    (top, bottom, down), (left, right, across) = (_between(at, small.shape[0], side) for at in (row, column))
    map64 = small.astype(np.float64, copy=False)
    upper = map64[top, left] * (1 - across) + map64[top, right] * across
    lower = map64[bottom, left] * (1 - across) + map64[bottom, right] * across
    return np.asarray(upper * (1 - down) + lower * down)


def _between(at: np.ndarray, length: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The two cells that each pixel lies between, and the weight of the second."""
    place = np.maximum((at + 0.5) * (length / side) - 0.5, 0)
    first = place.astype(np.int64)
    return first, np.minimum(first + 1, length - 1), place - first


def peak(small: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """The most salient pixel ``(2,)`` x, y of logits ``(h, h)`` enlarged to ``side``, and its saliency."""
    row, column = np.indices((side, side)).reshape(2, -1)
    values = interpolated(small, row, column, side)
    best = int(values.argmax())
    return np.array([column[best], row[best]], np.float64), float(sigmoid(values[best]))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """``1 / (1 + exp(-x))`` without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * logits))
