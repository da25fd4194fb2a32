"""Volumes as canonical slices and back, without loss: axes are permuted and flipped, values are never resampled."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import get_args

import numpy as np

from samsans.config import SliceAxis
from samsans.errors import InputError
from samsans.types import Volume

CLEARLY_LARGER = 1.5  # a spacing this many times the next one makes its axis the slice axis (our decision)

# Anatomical axes: 0 right-left, 1 anterior-posterior, 2 superior-inferior.  Radiological convention: for each slice
# axis, the anatomical axes of slices, rows and columns with the sign of the direction (+1 towards right, anterior,
# superior) in which the index grows.  Columns, rows and slices form a right-handed frame in the patient.
CANONICAL = {
    2: ("axial", (2, 1, 0), (1, -1, -1)),  # feet to head; front of the patient up; patient's right on the left
    1: ("coronal", (1, 2, 0), (-1, -1, -1)),  # front to back; head up; patient's right on the left
    0: ("sagittal", (0, 2, 1), (1, -1, -1)),  # left to right; head up; front of the patient on the left
}

PLANES = {plane: axis for axis, (plane, _, _) in CANONICAL.items()}


@dataclass(frozen=True)
class Orientation:
    """How the array of a volume is turned into canonical slices.

    axes: the array axis that becomes slices, rows and columns.  flips: which of the three are then reversed.
    spacing: ``(z, y, x)`` of the canonical grid, in the unit of the volume.
    plane: ``axial``, ``coronal``, ``sagittal`` (the nearest, for oblique grids), or ``""`` without geometry.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    spacing: tuple[float, float, float]
    plane: str

    @classmethod
    def of(cls, volume: Volume, slice_axis: SliceAxis | int = "auto") -> Orientation:
        """The orientation of a volume from its affine.

        slice_axis: the array axis to slice along, as a number or its text; a plane of the patient, ``axial``,
            ``coronal`` or ``sagittal``: the axis nearest to its normal; or ``auto``: an axis of length 1 if it is the
            only one, else the axis whose spacing is more than 1.5 times the next largest, else the one nearest to
            superior-inferior.

        Within the slices the radiological convention holds (see ``CANONICAL``), whatever the storage order: the same
        volume with permuted or flipped axes gives the same slices.  Without an affine nothing is flipped, and
        ``auto`` keeps the axes as they are; InputError where a plane is asked for.
        """
        if str(slice_axis) not in get_args(SliceAxis):
            raise InputError(f"slice_axis is {slice_axis!r}", ", ".join(get_args(SliceAxis)), "Correct the option")
        if volume.affine is None:
            if slice_axis in PLANES:
                raise InputError(
                    f"{slice_axis} slices of {volume.path or 'an image'}, which states no place in the patient",
                    "an image with geometry, e.g. NIfTI or DICOM",
                    "Set data.slice_axis to 0, 1, 2 or auto",
                )
            chosen = 0 if slice_axis == "auto" else int(slice_axis)
            axes = ((0, 1, 2), (1, 0, 2), (2, 0, 1))[chosen]
            return cls(axes, (False, False, False), _permuted(volume.spacing, axes), "")
        directions = volume.affine[:3, 2::-1]  # (3 of RAS, 3 array axes) mm
        anatomy = _anatomy(directions)
        if slice_axis == "auto":
            chosen = _slice_axis(volume, anatomy)
        else:
            chosen = anatomy.index(PLANES[slice_axis]) if slice_axis in PLANES else int(slice_axis)
        plane, wanted, signs = CANONICAL[anatomy[chosen]]
        axes = (anatomy.index(wanted[0]), anatomy.index(wanted[1]), anatomy.index(wanted[2]))
        flips = tuple(bool(directions[w, a] * s < 0) for w, a, s in zip(wanted, axes, signs, strict=True))
        return cls(axes, (flips[0], flips[1], flips[2]), _permuted(volume.spacing, axes), plane)

    def to_slices(self, array: np.ndarray) -> np.ndarray:
        """``(D, H, W[, C])`` as stored to canonical ``(D', H', W'[, C])``, contiguous."""
        return np.ascontiguousarray(self.view(array))

    def view(self, array: np.ndarray) -> np.ndarray:
        """``to_slices`` without a copy: what is written into the slices is written into ``array``."""
        return array.transpose(*self.axes, *range(3, array.ndim))[self._reverse()]

    def from_slices(self, array: np.ndarray) -> np.ndarray:
        """The exact inverse of ``to_slices``."""
        inverse = np.argsort(self.axes)
        return np.ascontiguousarray(array[self._reverse()].transpose(*inverse, *range(3, array.ndim)))

    def _reverse(self) -> tuple[slice, slice, slice]:
        first, second, third = (slice(None, None, -1 if flip else 1) for flip in self.flips)
        return first, second, third


def _permuted(values: tuple[float, float, float], axes: tuple[int, ...]) -> tuple[float, float, float]:
    return values[axes[0]], values[axes[1]], values[axes[2]]


def _anatomy(directions: np.ndarray) -> tuple[int, ...]:
    """The anatomical axis nearest to each array axis: the assignment with the largest sum of cosines."""
    cosines = np.abs(directions / np.linalg.norm(directions, axis=0))
    return max(itertools.permutations(range(3)), key=lambda p: sum(cosines[p[axis], axis] for axis in range(3)))


def _slice_axis(volume: Volume, anatomy: tuple[int, ...]) -> int:
    single = [axis for axis, size in enumerate(volume.shape) if size == 1]
    if len(single) == 1:
        return single[0]
    largest, second = np.argsort(volume.spacing)[::-1][:2]
    if volume.spacing[largest] > CLEARLY_LARGER * volume.spacing[second]:
        return int(largest)
    return anatomy.index(2)
