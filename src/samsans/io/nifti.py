"""NIfTI-1 and NIfTI-2, ``.nii`` and ``.nii.gz``, through nibabel.

The affine is the file's sform, else its qform, else (both codes 0) nibabel's guess from the voxel sizes.
"""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from samsans.errors import InputError
from samsans.io.arrays import single_channel
from samsans.io.files import reading
from samsans.types import Volume


def read(path: Path, labels: bool = False) -> Volume:
    """Read as ``(D, H, W, C)``; a fourth (or NIfTI-vector fifth) axis and RGB voxels become channels.

    Values are in the file's dtype, or in float32 or float64 where the header scales them.

    Warns where sform and qform place the voxels differently.  Raises InputError for damaged files, complex values and
    more than one axis beyond space.
    """
    import nibabel

    with reading(path, "NIfTI"):
        image: Any = nibabel.load(path, mmap=False)
        header, affine, proxy = image.header, image.affine, image.dataobj
        if not isinstance(header, nibabel.Nifti1Header):
            raise InputError(f"{path} holds {type(image).__name__}", "a NIfTI image", "Rename it to its own suffix")
        _warn_if_forms_differ(path, header)
        scaled = (proxy.slope, proxy.inter) != (1.0, 0.0)
        array = np.asarray(proxy, np.promote_types(proxy.dtype, np.float32) if scaled else proxy.dtype)
    if array.dtype.names:  # RGB24, RGBA32
        array = np.stack([array[name] for name in array.dtype.names], axis=-1)
    if array.dtype.kind == "c":
        raise InputError(f"{path} holds complex values", "real values", "Save its magnitude")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    array = array.reshape(array.shape + (1,) * (3 - array.ndim))
    shape: tuple[int, ...] = array.shape
    extra = [n for n in shape[3:] if n > 1]
    if len(extra) > 1:
        raise InputError(
            f"{path} has the shape {shape}", "three axes of space and at most one of channels", "Split the file"
        )
    array = array.reshape((*shape[:3], *(extra or [1])))
    return Volume(array.transpose(2, 1, 0, 3), np.asarray(affine, np.float64), path, header)


def _warn_if_forms_differ(path: Path, header: Any) -> None:
    """Warn where sform and qform put a corner voxel more than a tenth of the smallest voxel side apart."""
    sform, sform_code = header.get_sform(coded=True)
    qform, qform_code = header.get_qform(coded=True)
    if not (sform_code and qform_code):
        return
    size = (*header.get_data_shape(), 1, 1)[:3]
    corners = np.array([(*c, 1) for c in itertools.product(*[(0, n - 1) for n in size])]).T
    shift = np.linalg.norm((sform - qform)[:3] @ corners, axis=0).max()
    if shift > 0.1 * np.linalg.norm(sform[:3, :3], axis=0).min():
        warnings.warn(
            f"{path}: sform and qform differ by up to {shift:.3g} mm; the sform is used. "
            f"sform {sform[:3].round(4).tolist()}, qform {qform[:3].round(4).tolist()}",
            stacklevel=5,
        )


def write(file: BinaryIO, array: np.ndarray, like: Volume | None = None) -> None:
    """Write ``(D, H, W)`` or ``(D, H, W, C)`` on the grid of ``like``.

    From a NIfTI header both forms, their codes, the voxel sizes and units are kept as they are; scaling, display range,
    intent and extensions belong to the source's values and are reset.  From another format, sform and qform are both
    set (code 1, scanner).
    """
    import nibabel

    array = single_channel(array)
    values = array.transpose(2, 1, 0, *range(3, array.ndim))
    affine = np.eye(4) if like is None or like.affine is None else like.affine
    source = None if like is None else like.header
    kind: Any = nibabel.Nifti1Image
    if isinstance(source, nibabel.Nifti1Header) and np.array_equal(source.get_best_affine(), affine):
        kind = nibabel.Nifti2Image if isinstance(source, nibabel.Nifti2Header) else nibabel.Nifti1Image
        header = kind.header_class.from_header(source, check=False)
        header.extensions.clear()
        header.set_data_shape(values.shape)
        header["pixdim"] = source["pixdim"]  # set_data_shape resets those of unused axes
        header.set_data_dtype(values.dtype)
        header.set_intent("none")
        for field in ("scl_slope", "scl_inter"):
            header[field] = np.nan  # nibabel's sign for "none"; it writes 1 and 0
        for field in ("cal_min", "cal_max"):
            header[field] = 0
        image = kind(values, None, header)
    else:
        image = kind(values, affine, dtype=values.dtype)
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
    image.to_stream(file)
