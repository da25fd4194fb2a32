"""Image and mask as the arrays ``image`` and ``label`` of one file: ``.npz`` through NumPy, ``.h5`` through h5py.

So TransUNet, SAMed, H-SAM and the semi-supervised methods on LA store what they preprocessed; ``img`` and ``seg`` are
read as well, as ScribblePrompt has them, and ``scribbles`` beside them.  Axes are taken as stored; the files state no
geometry, ``affine`` is None.  Pickled objects are refused.  HDF5 needs the extra ``[h5]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from samsans.errors import InputError
from samsans.io.atomic import suffix
from samsans.io.files import HDF5_SUFFIXES, reading
from samsans.types import Volume

IMAGE, LABEL, SCRIBBLES = "image", "label", "scribbles"
ALSO = {IMAGE: "img", LABEL: "seg"}  # as in ScribblePrompt's data


def read(path: Path, labels: bool = False) -> Volume:
    """Read one of the two arrays as ``(D, H, W, C)`` in its own dtype (float16 as float32).

    ``(H, W)`` is one slice, ``(D, H, W)`` slices, ``(H, W, C)`` beside a label ``(H, W)`` one slice of C channels.
    Raises InputError for damaged files, arrays of another name, other shapes, and values that are no numbers.
    """
    with _opened(path) as arrays:
        name = LABEL if labels else IMAGE
        array = _array(arrays, name, path)
        if array.ndim == 3 and not labels and _flat_label(arrays):
            array = array[None]
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: the array {name} is of {array.dtype}", "numbers", "Save it as float32 or uint8")
    array = array.astype(np.float32 if array.dtype == np.float16 else array.dtype.newbyteorder("="), copy=False)
    if array.ndim not in (2, 3, 4) or (labels and array.ndim == 4):
        raise InputError(f"{path}: the array {name} has the shape {array.shape}", "(H, W) or (D, H, W)")
    array = array[None] if array.ndim == 2 else array
    return Volume(array if array.ndim == 4 else array[..., None], None, path)


def is_stack(path: Path) -> bool:
    """Whether a file holds slices ``(D, H, W)`` and not one picture, from the shapes in its headers."""
    with _opened(path) as arrays:
        shape = _shape(arrays, _require(arrays, IMAGE, path))
        return len(shape) > 2 and shape[0] > 1 and not _flat_label(arrays)


def holds_mask(path: Path) -> bool:
    """Whether the array ``label`` is there, from the file's list of arrays; true of a damaged file: reading says so."""
    try:
        with _opened(path) as arrays:
            return LABEL in arrays or ALSO[LABEL] in arrays
    except InputError:
        return True


def scribbles(path: Path) -> np.ndarray:
    """The array ``scribbles`` of a file as it is; InputError where there is none, or it is no numbers."""
    with _opened(path) as arrays:
        array = _array(arrays, SCRIBBLES, path)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: the array {SCRIBBLES} is of {array.dtype}", "numbers")
    return array


def scribbles_shape(path: Path) -> tuple[int, ...] | None:
    """The shape of ``scribbles``, of which no values are read; ``None`` where a file has none, or is damaged."""
    try:
        with _opened(path) as arrays:
            return _shape(arrays, SCRIBBLES) if SCRIBBLES in arrays else None
    except InputError:
        return None


def _array(arrays: Mapping[str, Any], name: str, path: Path) -> np.ndarray:
    return np.asarray(arrays[_require(arrays, name, path)][()])


def _flat_label(arrays: Mapping[str, Any]) -> bool:
    """Whether the mask is ``(H, W)``: three axes of its image are then rows, columns and channels."""
    name = next((name for name in (LABEL, ALSO[LABEL]) if name in arrays), None)
    return name is not None and len(_shape(arrays, name)) == 2


def _shape(arrays: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Shape of an array without its values: neither HDF5 nor the usual ``.npy`` headers need them."""
    if isinstance(arrays, np.lib.npyio.NpzFile) and arrays.zip is not None:
        with arrays.zip.open(f"{name}.npy") as file:
            version = np.lib.format.read_magic(file)
            if version == (1, 0):
                return np.lib.format.read_array_header_1_0(file)[0]
            if version == (2, 0):
                return np.lib.format.read_array_header_2_0(file)[0]
    return tuple(arrays[name].shape)


def _require(arrays: Mapping[str, Any], name: str, path: Path) -> str:
    """The name under which an array is there; InputError where it is not."""
    found = next((n for n in (name, ALSO.get(name, name)) if n in arrays), None)
    if found is None:
        raise InputError(
            f"{path} holds the arrays {', '.join(arrays) or '(none)'}, none is called {name}",
            f"the arrays {IMAGE} and {LABEL}",
            "Rename the array",
        )
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, Any]]:
    """The arrays of a file by name."""
    if suffix(path) in HDF5_SUFFIXES:
        h5py = _h5py(path)
        with reading(path, "HDF5"), h5py.File(path, "r") as file:
            yield file
    else:
        with reading(path, "NumPy .npz"), np.load(path, allow_pickle=False) as file:
            yield file


def _h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"{path} needs h5py, which is not installed", todo='pip install "samsans[h5]"') from error
    return h5py
