"""The grid that volumes are resampled to for networks that see patches, and the way back for their scores.

Third-order splines for images and linear for labels and scores, with the centres of the outermost voxels' cells
aligned (half-pixel convention), as nnU-Net does.  Where slices are much thicker than their pixels, nothing is
interpolated between slices: the nearest one is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

ANISOTROPIC = 3.0  # slices this many times as thick as their pixels are large are not interpolated between
ROWS = 16  # rows resampled along z together, to bound memory


@dataclass(frozen=True)
class Grid:
    """Two grids over one volume in canonical orientation, ``(slices, rows, columns)`` each.

    native: as the image came.  target: as the network sees it.
    order_z: of the splines between slices: 3 (labels and scores: linear), or 0, the nearest slice.
    """

    native: tuple[int, int, int]
    target: tuple[int, int, int]
    order_z: int = 3

    @classmethod
    def of(cls, shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]) -> Grid:
        """The grid of ``wanted`` voxel size (z, y, x) over a volume of ``shape`` and ``spacing``.

        Slices are apart (``order_z`` 0) where they are more than 3 times as thick as their pixels are large, before or
        after.  nnU-Net has the same rule for whichever axis is coarse, we for the slice axis only (our decision).
        """
        target = [max(1, round(n * old / new)) for n, old, new in zip(shape, spacing, wanted, strict=True)]
        apart = any(s[0] > ANISOTROPIC * max(s[1], s[2]) for s in (spacing, wanted))
        d, h, w = shape
        return cls((d, h, w), (target[0], target[1], target[2]), 0 if apart else 3)

    @property
    def identity(self) -> bool:
        """Whether both grids are one, so that nothing is resampled."""
        return self.native == self.target

    @property
    def zoom(self) -> tuple[float, float, float]:
        """Voxels of the target for one native voxel, along each axis."""
        z, y, x = (m / n for n, m in zip(self.native, self.target, strict=True))
        return z, y, x

    def to_target(self, image: np.ndarray) -> np.ndarray:
        """``(C, D, H, W)`` float32 on the target grid from float32 on the native one.

        Values that splines overshoot to are cut to the range of the image.  The very same array where grids are equal.
        """
        return image if self.identity else np.stack([self._resample(channel) for channel in image])

    def labels_to_target(self, labels: np.ndarray) -> np.ndarray:
        """``(D, H, W)`` label map on the target grid: the label with the most linear weight, the lowest if several."""
        if self.identity:
            return labels
        rows, columns = (weights(self.native[a], self.target[a], 1) for a in (1, 2))
        out = np.zeros(self.target, labels.dtype)
        for z in range(self.target[0]):
            below, above, share = self._source(z)
            best = np.full(self.target[1:], -1.0, np.float32)
            for value in np.union1d(labels[below], labels[above]):
                plane = (1 - share) * (labels[below] == value) + share * (labels[above] == value)
                weight = rows @ plane.astype(np.float32) @ columns.T
                wins = weight > best + 1e-6
                out[z][wins], best[wins] = value, weight[wins]
        return out

    def plane(self, scores: Tensor) -> Tensor:
        """Scores ``(K, h, w)`` of one slice of the target grid as ``(K, H, W)`` of the native one, bilinear."""
        if self.native[1:] == self.target[1:]:
            return scores
        return F.interpolate(scores[None], self.native[1:], mode="bilinear", align_corners=False)[0]

    def depth(self, z: int) -> tuple[int, int, float]:
        """Which two slices of the target make native slice ``z``, and the weight of the second, in [0, 1)."""
        return _between(z, self.target[0], self.native[0], nearest=self.order_z == 0)

    def _source(self, z: int) -> tuple[int, int, float]:
        """Which two native slices make slice ``z`` of the target, and the weight of the second."""
        return _between(z, self.native[0], self.target[0], nearest=self.order_z == 0)

    def _resample(self, channel: np.ndarray) -> np.ndarray:
        moved = channel
        if self.native[1:] != self.target[1:]:
            rows, columns = (weights(self.native[a], self.target[a], 3) for a in (1, 2))
            moved = np.stack([rows @ plane @ columns.T for plane in channel])
        if self.native[0] != self.target[0]:
            if self.order_z == 0:
                moved = moved[[self._source(z)[0] for z in range(self.target[0])]]
            else:
                slices = weights(self.native[0], self.target[0], 3)
                out = np.empty(self.target, np.float32)
                for row in range(0, self.target[1], ROWS):
                    out[:, row : row + ROWS] = np.tensordot(slices, moved[:, row : row + ROWS], 1)
                moved = out
        return np.clip(moved, channel.min(), channel.max())


def _between(index: int, size: int, wanted: int, *, nearest: bool) -> tuple[int, int, float]:
    """Neighbours among ``size`` samples of sample ``index`` of ``wanted``, and the weight of the second."""
    if nearest or size == wanted:
        source = (2 * index + 1) * size // (2 * wanted)
        return source, source, 0.0
    place = min(max((index + 0.5) * size / wanted - 0.5, 0.0), size - 1.0)
    below = int(place)
    return below, min(below + 1, size - 1), place - below


@lru_cache(maxsize=64)
def weights(size: int, wanted: int, order: Literal[1, 3]) -> np.ndarray:
    """``(wanted, size)`` float32: the matrix that resamples ``size`` values by splines of ``order``, read only.

    Resampling is linear and acts on each axis alone: this is what ``scipy.ndimage.zoom`` makes of single values.
    """
    made = ndimage.zoom(np.eye(size), [wanted / size, 1.0], np.float32, order=order, mode="nearest", grid_mode=True)
    made.flags.writeable = False
    return made
