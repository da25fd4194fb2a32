"""Clean point prompts from a mask: where a careful person would click, slice by slice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from samsans.errors import InputError
from samsans.types import Points

SIDE = 512  # the side in pixels of the slices that the pixel constants below are meant for; they are scaled from it
SMALLEST = 9  # area of the smallest component that gets a point
LONG = 48  # skeletons with more pixels than this get more points
STEP = 24  # distance of these from each other
MOST = 3  # points of a component
EIGHT = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Centres:
    """Clean points of a volume and the length that noise is measured in.

    positions: ``(K, 3)`` int64 ``(z, y, x)``, by slice; in a slice the thickest component's first point comes first,
        then those of the other components, then the further points along skeletons.
    rho: mean over all components of all slices of the inscribed radius (the largest distance to the outside), pixels;
        0 where there is no component.
    """

    positions: np.ndarray
    rho: float


def clean_points(mask: np.ndarray, side: float | None = None, step: float = STEP) -> Points:
    """One point in the middle of each component of each slice, more along long ones: ``find_centres`` as prompts."""
    positions = find_centres(mask, side, step).positions.astype(np.float64)
    return Points(positions, np.ones(len(positions), np.int64), ("clean",) * len(positions))


def find_centres(mask: np.ndarray, side: float | None = None, step: float = STEP) -> Centres:
    """Clean points of a mask ``(T, H, W)`` bool, and its mean inscribed radius.

    Each 8-connected component of at least 9 px gets its pixel of largest distance to the outside (of equal ones the
    middle one in row-major order); one whose skeleton has more than 48 px also gets skeleton pixels, each the farthest
    from those it has, as long as they are ``step`` px away: at most 3 in all.  What lies beyond the border is outside.

    side: of a slice in pixels; the constants above are for 512 and scaled to it (areas by its square).  ``None``: the
    geometric mean of H and W (our decision).
    """
    mask = volume_of(mask)
    scale = (side_of(mask) if side is None else side) / SIDE
    positions: list[tuple[int, int, int]] = []
    radii: list[float] = []
    for t in np.flatnonzero(mask.any((1, 2))):
        components, found = ndimage.label(mask[t], EIGHT)
        firsts, others = [], []
        for index, box in enumerate(ndimage.find_objects(components, found), start=1):
            component = components[box] == index
            if component.sum() < SMALLEST * scale**2:
                continue
            distance = ndimage.distance_transform_edt(np.pad(component, 1))[1:-1, 1:-1]
            corner = np.array([b.start for b in box])
            points = [p + corner for p in _along(component, distance, scale, step * scale)]
            firsts.append((float(distance.max()), points[0]))
            others += points[1:]
        firsts.sort(key=lambda first: -first[0])  # stable: equal ones stay in row-major order
        radii += [r for r, _ in firsts]
        positions += [(int(t), int(y), int(x)) for y, x in [p for _, p in firsts] + others]
    return Centres(np.array(positions, np.int64).reshape(-1, 3), float(np.mean(radii)) if radii else 0.0)


def volume_of(mask: np.ndarray) -> np.ndarray:
    """``mask`` as ``(T, H, W)`` bool; InputError unless it has three axes."""
    mask = np.asarray(mask)
    if mask.ndim != 3:
        raise InputError(f"A mask of shape {mask.shape}", "(slices, height, width)", "Give a single image as one slice")
    return mask.astype(bool, copy=False)


def side_of(mask: np.ndarray) -> float:
    """Side in pixels of the square that is as large as a slice of ``(T, H, W)``."""
    return math.sqrt(mask.shape[1] * mask.shape[2])


def _along(component: np.ndarray, distance: np.ndarray, scale: float, step: float) -> list[np.ndarray]:
    """The points ``(y, x)`` of one component, the deepest first."""
    deepest = np.argwhere(distance == distance.max())
    points = [deepest[len(deepest) // 2]]
    if component.sum() <= LONG * scale:
        return points
    skeleton = np.argwhere(thin(component))
    if len(skeleton) <= LONG * scale:
        return points
    away = np.full(len(skeleton), np.inf)
    while len(points) < MOST:
        away = np.minimum(away, np.hypot(*(skeleton - points[-1]).T))
        if away.max() < step:
            break
        points.append(skeleton[away.argmax()])
    return points


RING = ((0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0))  # the eight neighbours, clockwise from above


def _tables() -> tuple[np.ndarray, np.ndarray]:
    """For each pattern of the eight neighbours, whether the pixel goes in the first and in the second half-pass."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    entries = ((bits == 0) & (np.roll(bits, -1, 1) == 1)).sum(1)  # runs of neighbours round the pixel
    border = (bits.sum(1) >= 2) & (bits.sum(1) <= 6) & (entries == 1)
    up, right, down, left = (bits[:, i] for i in (0, 2, 4, 6))
    first = border & (up * right * down == 0) & (right * down * left == 0)
    second = border & (up * right * left == 0) & (up * down * left == 0)
    return first, second


TABLES = _tables()
WEIGHTS = np.zeros((3, 3), np.uint8)
WEIGHTS[tuple(zip(*RING, strict=True))] = 1 << np.arange(8)


def thin(mask: np.ndarray) -> np.ndarray:
    """Skeleton ``(H, W)`` bool of a mask ``(H, W)`` bool: Zhang and Suen's parallel thinning (1984).

    As known of it, a component as small as 2 x 2 px vanishes; a ring stays a ring.
    """
    mask = np.asarray(mask, bool)
    while True:
        before = mask
        for table in TABLES:
            mask = mask & ~table[ndimage.correlate(mask.astype(np.uint8), WEIGHTS, mode="constant")]
        if np.array_equal(before, mask):
            return mask
