"""Between the coordinates of the formats (LPS in DICOM, ITK and most NRRD files) and ours (RAS+ mm)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samsans.errors import InputError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse


def affine_of(steps: np.ndarray, origin: np.ndarray, to_ras: np.ndarray = LPS_TO_RAS) -> np.ndarray:
    """``(4, 4)`` affine of voxel ``(x, y, z)`` to RAS+ mm.

    steps: ``(3, 3)``, column ``i`` is the move in mm from one voxel to the next along file axis ``i``.
    origin: ``(3,)`` position of the first voxel's centre.  Both in the format's own coordinates, which ``to_ras``
    (``(4, 4)``, signs only) turns into RAS.
    """
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = steps, origin
    return to_ras @ affine + 0.0  # + 0.0 turns -0.0 into 0.0


def affine_of_spacing(spacing: Sequence[float]) -> np.ndarray:
    """Affine of an array shown as it lies: columns towards the patient's left, rows to the back (our decision).

    spacing: ``(z, y, x)`` mm.  Raises InputError unless these are three positive lengths.
    """
    if len(spacing) != 3 or min(spacing) <= 0:
        raise InputError(f"spacing {list(spacing)}", "three positive lengths (z, y, x) in mm")
    z, y, x = spacing
    return np.diag([-x, -y, z, 1.0])


def steps_and_origin(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of ``affine_of`` for LPS: steps ``(3, 3)`` by column and origin ``(3,)``."""
    lps = LPS_TO_RAS @ affine + 0.0
    return lps[:3, :3], lps[:3, 3]
