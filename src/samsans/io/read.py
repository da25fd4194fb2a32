"""Read any image or label map with its geometry; the suffix says the format."""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

from samsans.errors import InputError
from samsans.io import files
from samsans.io.arrays import smallest_integer
from samsans.types import Volume

READERS = (
    (files.TIFF_SUFFIXES, "samsans.io.tiff"),
    (files.IMAGE_SUFFIXES, "samsans.io.images"),
    (files.NIFTI_SUFFIXES, "samsans.io.nifti"),
    (files.NRRD_SUFFIXES, "samsans.io.nrrd"),
    (files.DICOM_SUFFIXES, "samsans.io.dicom"),
    (files.ITK_SUFFIXES, "samsans.io.itk"),
    (files.PACKED_SUFFIXES, "samsans.io.packed"),
)


def _reader(path: Path) -> ModuleType:
    if not path.exists():
        raise InputError(f"{path} does not exist", "an image file or a folder of DICOM slices", "Check the path")
    ending = files.suffix(path)
    name = next((module for suffixes, module in READERS if ending in suffixes), None)
    if path.is_dir() or (name is None and files.is_dicom(path)):
        name = "samsans.io.dicom"
    if name is None:
        raise files.unknown_suffix(path, files.KNOWN_SUFFIXES)
    return importlib.import_module(name)


def read_image(path: str | Path, series: str = "") -> Volume:
    """Read an image or volume: ``(D, H, W, C)`` in its native dtype, affine in RAS+ mm, axes as stored (reversed).

    PNG, JPEG, BMP, TIFF; NIfTI, NRRD, DICOM (a file, or the folder of one series), MHA and MHD (extra ``[itk]``);
    the array ``image`` of a ``.npz`` or ``.h5`` (extra ``[h5]``), of which ``read_labels`` takes ``label``.
    series: for a DICOM folder of several series, the UID of one of them or its last figures.

    Raises InputError for missing, unknown and damaged files, and for NaN or infinite values.
    """
    path = Path(path)
    if series and not path.is_dir():
        raise InputError(f"{path} is one file and has no series to choose", "a DICOM folder", "Leave out series")
    volume = _reader(path).read(path, series=series) if series else _reader(path).read(path)
    _refuse_flat_grid(volume)
    _refuse_non_finite(volume.array, path, "replace them by the value of air or background")
    return volume


def read_labels(path: str | Path, *, fractions: bool = False) -> Volume:
    """Read a label map: ``(D, H, W)`` integers, the raw values of the file.

    Palette indices, 0/1 of 1-bit files, one channel of an RGB mask whose channels are equal, whole numbers stored as
    float.  Which value means which class is decided by the data set, not here.
    fractions: values need not be whole, and stay as they are (soft masks, of which ``data.threshold`` makes masks).

    Raises InputError as ``read_image`` does, and for colours, several channels and values that are not whole.
    """
    path = Path(path)
    volume = _reader(path).read(path, labels=True)
    _refuse_flat_grid(volume)
    array = _one_channel(volume.array, path)
    if fractions:
        _refuse_non_finite(array, path, "replace them by 0, the background")
    return replace(volume, array=array if fractions else _whole(array, path))


def _one_channel(array: np.ndarray, path: Path) -> np.ndarray:
    first = array[..., 0]
    if array.shape[3] > 1 and not all(np.array_equal(first, array[..., c]) for c in range(1, array.shape[3])):
        raise InputError(
            f"{path} has {array.shape[3]} channels that differ (colours?)",
            "one label value per pixel: grey, palette, or RGB with equal channels",
            "Save the classes as grey values or palette indices, or as one file per class",
        )
    return np.ascontiguousarray(first)


def _whole(array: np.ndarray, path: Path) -> np.ndarray:
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind in "iu":
        return array
    _refuse_non_finite(array, path, "replace them by 0, the background")
    fractions = int(np.count_nonzero(array != np.rint(array)))
    if fractions:
        raise InputError(
            f"{path} holds {fractions} values that are not whole numbers",
            "label values 0, 1, 2, ...",
            "Resample masks with nearest neighbours; of a soft mask or probability map data.threshold makes a mask",
        )
    return array.astype(smallest_integer(array))


def _refuse_flat_grid(volume: Volume) -> None:
    if volume.affine is None:
        return
    affine, spacing = volume.affine, np.array(volume.spacing)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * spacing.prod():
        raise InputError(
            f"{volume.path} states a grid whose voxels have no volume: {affine[:3].tolist()}",
            "three independent directions with finite steps",
            "Correct the voxel sizes and directions in its header",
        )


def _refuse_non_finite(array: np.ndarray, path: Path, mend: str) -> None:
    if array.dtype.kind != "f":
        return
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise InputError(
            f"{path} holds {bad} NaN or infinite values of {array.size}",
            "finite values",
            f"Mend the file: {mend}, for instance with numpy.nan_to_num",
        )


def content_hash(path: str | Path) -> str:
    """SHA-256 of the decoded image (values, shape and dtype), in hexadecimal: equal for the same picture re-encoded."""
    array = read_image(path).array
    digest = hashlib.sha256(f"{array.shape} {array.dtype.name}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
