"""NRRD, ``.nrrd`` and ``.nhdr``, through pynrrd."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from samsans.errors import InputError
from samsans.io.arrays import single_channel
from samsans.io.files import reading
from samsans.io.geometry import LPS_TO_RAS, affine_of, steps_and_origin
from samsans.types import Volume

SPATIAL_KINDS = ("domain", "space")
# Fields of the grid, kept when a label map is written from a NRRD header; the second group has one entry per axis.
GRID_FIELDS = ("space", "space dimension", "space origin", "space units", "measurement frame")
AXIS_FIELDS = ("space directions", "kinds", "spacings", "thicknesses", "centerings", "units", "axis mins", "axis maxs")
# Sign changes to RAS.  Other spaces name no side of the patient: they are taken as LPS, as ITK does (our decision).
TO_RAS = {
    "right-anterior-superior": np.eye(4),
    "ras": np.eye(4),
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "las": np.diag([-1.0, 1.0, 1.0, 1.0]),
}


def read(path: Path, labels: bool = False) -> Volume:
    """Read as ``(D, H, W, C)`` in the file's dtype; one axis that is not space becomes the channels.

    ``affine`` is None where the header states neither directions nor spacings.
    Raises InputError for damaged files and for more than one axis beyond space.
    """
    import nrrd

    with reading(path, "NRRD"):
        array, header = nrrd.read(str(path))
    array = np.asarray(array).astype(array.dtype.newbyteorder("="), copy=False)
    spatial = _spatial_axes(header, array.ndim)
    others = [axis for axis in range(array.ndim) if axis not in spatial]
    if not 1 <= len(spatial) <= 3 or len(others) > 1:
        raise InputError(
            f"{path} has the shape {array.shape} with kinds {header.get('kinds')}",
            "two or three axes of space and at most one of channels",
            "Split the file into one per time point or channel",
        )
    array = array.transpose(*reversed(spatial), *others)
    array = array.reshape((1,) * (3 - len(spatial)) + array.shape + (() if others else (1,)))
    return Volume(array, _affine(header, spatial), path, header)


def _spatial_axes(header: dict[str, Any], ndim: int) -> list[int]:
    directions, kinds = header.get("space directions"), header.get("kinds")
    if directions is not None:
        return [i for i, row in enumerate(directions) if row is not None and np.isfinite(row).all()]
    if kinds is not None:
        return [i for i, kind in enumerate(kinds) if kind in SPATIAL_KINDS]
    return list(range(min(ndim, 3)))


def _affine(header: dict[str, Any], spatial: list[int]) -> np.ndarray | None:
    steps, origin = np.eye(3), np.zeros(3)
    if "space directions" in header:
        for column, axis in enumerate(spatial):
            row = np.asarray(header["space directions"][axis], float)
            steps[: len(row), column] = row
        if len(spatial) == 3 and "space origin" in header:
            origin = np.asarray(header["space origin"], float)
    elif "spacings" in header and np.isfinite(np.asarray(header["spacings"], float)[spatial]).all():
        spacings = np.asarray(header["spacings"], float)[spatial]
        steps[range(len(spatial)), range(len(spatial))] = spacings
    else:
        return None
    return affine_of(steps, origin, TO_RAS.get(str(header.get("space", "")).lower(), LPS_TO_RAS))


def write(file: BinaryIO, array: np.ndarray, like: Volume | None = None) -> None:
    """Write ``(D, H, W)`` or ``(D, H, W, C)``, gzip-coded, on the grid of ``like``.

    A NRRD header's fields of the grid are kept as they are; from other formats the grid is stated in LPS.  Channels
    become a first axis of kind ``vector``.
    """
    import nrrd

    header: dict[str, Any] = {"encoding": "gzip"}
    array = single_channel(array)
    values = array.transpose(*([3] if array.ndim == 4 else []), 2, 1, 0)
    affine = None if like is None else like.affine
    source = None if like is None else like.header
    spatial = _spatial_axes(source, int(source["dimension"])) if isinstance(source, dict) else []
    if isinstance(source, dict) and len(spatial) == 3 and _same(_affine(source, spatial), affine):
        header |= {field: source[field] for field in GRID_FIELDS if field in source}
        header |= {field: _pick(source[field], spatial) for field in AXIS_FIELDS if field in source}
    elif affine is not None:
        steps, origin = steps_and_origin(affine)
        header |= {"space": "left-posterior-superior", "space directions": steps.T, "space origin": origin}
    header.setdefault("kinds", ["domain"] * 3)
    if array.ndim == 4:
        header |= {field: _with_channels(field, header[field]) for field in AXIS_FIELDS if field in header}
    nrrd.write(file, values, header, compression_level=4)


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)


def _pick(values: Any, axes: list[int]) -> Any:
    return values[axes] if isinstance(values, np.ndarray) else [values[axis] for axis in axes]


def _with_channels(field: str, values: Any) -> Any:
    """The entries of three axes, with one put before them for the channel axis."""
    if field == "kinds":
        return ["vector", *values]
    if isinstance(values, np.ndarray):
        return np.concatenate([np.full((1, *values.shape[1:]), np.nan), values])
    return ["none" if field == "centerings" else "", *values]
