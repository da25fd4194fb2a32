"""Write label maps and images on the grid of their input; the suffix says the format; nothing is ever half written."""

from __future__ import annotations

import gzip
import importlib
from pathlib import Path

import numpy as np

from samsans.errors import InputError
from samsans.io import files
from samsans.io.arrays import smallest_integer
from samsans.io.atomic import atomic_path, suffix
from samsans.types import Volume

WRITERS = (
    ((".png",), "samsans.io.images"),
    (files.TIFF_SUFFIXES, "samsans.io.tiff"),
    (files.NIFTI_SUFFIXES, "samsans.io.nifti"),
    ((".nrrd",), "samsans.io.nrrd"),
    ((".mha",), "samsans.io.itk"),
)
WRITABLE_SUFFIXES = tuple(suffix for suffixes, _ in WRITERS for suffix in suffixes)


def write_labels(path: str | Path, labels: np.ndarray, like: Volume | None = None) -> Path:
    """Write a label map ``(D, H, W)`` of whole numbers on the grid of ``like``; returns the path.

    Stored in the smallest of uint8, uint16, uint32 (int16, int32 where negative) that holds the values.  PNG: a
    palette image whose indices are the labels, 16-bit grey above 255.  Where ``like`` came from the same format its
    geometry is kept bit for bit; otherwise the same grid is stated in the terms of the new format.

    Raises InputError for another shape than the grid's, values that are not integers, and unknown suffixes.
    """
    path, labels = Path(path), np.asarray(labels)
    if labels.ndim != 3:
        raise InputError(f"labels of shape {labels.shape}", "a label map (D, H, W)", "Add a slice axis to 2D masks")
    if labels.dtype.kind not in "biu":
        raise InputError(f"labels of dtype {labels.dtype}", "integers", "Use write_image for maps of real values")
    _write(path, labels.astype(smallest_integer(labels)), like)
    return path


def write_image(path: str | Path, array: np.ndarray, like: Volume | None = None) -> Path:
    """Write an image or a map ``(D, H, W)`` or ``(D, H, W, C)`` on the grid of ``like``; returns the path.

    float16 is stored as float32, bool as uint8.  PNG takes uint8 and uint16 grey and uint8 RGB only.
    """
    path, array = Path(path), np.asarray(array)
    if array.ndim not in (3, 4):
        raise InputError(f"an array of shape {array.shape}", "(D, H, W) or (D, H, W, C)", "Add a slice axis to 2D maps")
    if array.dtype.kind not in "biuf":
        raise InputError(f"an array of dtype {array.dtype}", "integers or reals", "Convert it first")
    small = {np.dtype(bool): np.uint8, np.dtype(np.float16): np.float32}
    array = array.astype(small.get(array.dtype, array.dtype), copy=False)
    _write(path, array[..., None] if array.ndim == 3 else array, like)
    return path


def _write(path: Path, array: np.ndarray, like: Volume | None) -> None:
    """``array``: labels ``(D, H, W)`` or an image ``(D, H, W, C)``, ``C`` at least 1, in a dtype fit to be stored."""
    ending = suffix(path)
    if ending not in WRITABLE_SUFFIXES:
        raise files.unknown_suffix(path, WRITABLE_SUFFIXES)
    if like is not None and array.shape[:3] != like.shape:
        raise InputError(
            f"{path.name}: an array on the grid {array.shape[:3]}",
            f"the grid {like.shape} of {like.path or 'the input'} (slices, rows, columns)",
            "Bring the array back onto the grid of its input before writing",
        )
    if ending == ".png":
        _check_png(path, array)
    writer = importlib.import_module(next(module for suffixes, module in WRITERS if ending in suffixes))
    with atomic_path(path) as temporary, open(temporary, "wb") as raw:
        if ending.endswith(".gz"):
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as file:
                writer.write(file, array, like)
        else:
            writer.write(raw, array, like)


def _check_png(path: Path, array: np.ndarray) -> None:
    channels = array.shape[3] if array.ndim == 4 else 1
    if array.shape[0] != 1:
        raise InputError(f"{array.shape[0]} slices for {path}", "one slice in a PNG", "Write .nii.gz, .nrrd or .tif")
    if (array.dtype, channels) not in ((np.uint8, 1), (np.uint16, 1), (np.uint8, 3)):
        raise InputError(
            f"{channels} channels of {array.dtype} for {path}",
            "uint8 or uint16 grey, or uint8 RGB in a PNG",
            "Write .tif, .nii.gz or .nrrd",
        )
