"""How good point prompts are, measured against the mask they were meant for."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from samsans.data.clean_points import volume_of
from samsans.types import Points


@dataclass(frozen=True)
class PromptStatistics:
    """Counts of one volume, or with ``+`` of several, and the shares they give; a share of nothing is NaN.

    points: positive points.  on_target: those on the object.  slices: all slices.  object_slices: slices with object;
    reached: those with a point on it.  empty_slices: slices without object; misled: those with a point.
    unprompted: slices without any point.
    """

    points: int
    on_target: int
    slices: int
    object_slices: int
    reached: int
    misled: int
    unprompted: int

    @property
    def empty_slices(self) -> int:
        """Slices without object."""
        return self.slices - self.object_slices

    @property
    def on_target_share(self) -> float:
        """Share of the points that lie on the object."""
        return _share(self.on_target, self.points)

    @property
    def reached_share(self) -> float:
        """Share of the object's slices that have at least one point on it."""
        return _share(self.reached, self.object_slices)

    @property
    def misled_share(self) -> float:
        """Share of the empty slices that have at least one point."""
        return _share(self.misled, self.empty_slices)

    @property
    def points_per_slice(self) -> float:
        """Points of a slice, over all slices."""
        return _share(self.points, self.slices)

    def __add__(self, other: PromptStatistics) -> PromptStatistics:
        return PromptStatistics(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def statistics(points: Points, mask: np.ndarray) -> PromptStatistics:
    """Counts of the positive ``points`` on a mask ``(T, H, W)`` bool.

    A point belongs to the voxel nearest to it; one outside the grid is off target, and in no slice if its slice is too.
    """
    mask = volume_of(mask)
    voxels = np.floor(points.positions[points.labels == 1] + 0.5).astype(np.int64).reshape(-1, 3)
    inside = ((voxels >= 0) & (voxels < mask.shape)).all(1)
    hit = np.zeros(len(voxels), bool)
    hit[inside] = mask[tuple(voxels[inside].T)]
    slices = len(mask)
    per_slice = np.bincount(voxels[(voxels[:, 0] >= 0) & (voxels[:, 0] < slices), 0], minlength=slices)
    reached = np.bincount(voxels[hit, 0], minlength=slices) > 0
    full = mask.any((1, 2))
    return PromptStatistics(
        points=len(voxels),
        on_target=int(hit.sum()),
        slices=slices,
        object_slices=int(full.sum()),
        reached=int(reached.sum()),
        misled=int(((per_slice > 0) & ~full).sum()),
        unprompted=int((per_slice == 0).sum()),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
