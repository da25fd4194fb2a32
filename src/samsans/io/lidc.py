"""Read the pickle in which crops of LIDC-IDRI with four outlines each are passed on, without running what it holds.

A pickle is a program.  Here it may build lists, dictionaries, strings, numbers and arrays of numbers, by functions of
our own; every other name it asks for is refused, and nothing of it is imported.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from samsans.errors import InputError

EXPECTED = "a dictionary of {image: 128 x 128 in [0, 1], masks: four arrays of 0 and 1, series_uid: text}"
NUMBERS = "?bhilqBHILQefd"  # letters of the plain numbers of C
CORE = ("numpy.core", "numpy._core")  # numpy 1 and numpy 2


@dataclass(frozen=True)
class Crop:
    """One slice around a nodule.

    key: its name in the pickle.  image: ``(H, W)`` float32 in [0, 1].  masks: ``(A, H, W)`` bool, one an annotator,
    empty where he saw nothing.  series: UID of the scan, the nearest to a patient that is known.
    """

    key: str
    image: np.ndarray
    masks: np.ndarray
    series: str


class _Refused(Exception):
    """The pickle asks for something else than containers and numbers."""


class _Dtype:
    """What pickles call ``numpy.dtype``: a plain number and its byte order."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.value = _number(np.dtype(name)) if isinstance(name, str) and len(name) < 8 else _refuse("a dtype")

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "=") or any(state[2:5]):
            _refuse("a dtype of several fields")
        self.value = self.value.newbyteorder(state[1])


class _Array:
    """What pickles call ``numpy.ndarray``; its values are the bytes in the pickle, not copied."""

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            _refuse("an array of another kind")
        _, shape, dtype, fortran, raw = state
        self.value = _values(raw, dtype, shape, "F" if fortran else "C")


def _number(dtype: np.dtype) -> np.dtype:
    return dtype if dtype.char in NUMBERS else _refuse(f"values of type {dtype}")


def _refuse(what: str) -> NoReturn:
    raise _Refused(what)


def _values(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """The array that ``raw`` bytes are; refused unless they are exactly as many as it needs."""
    raw = raw.encode("latin1") if isinstance(raw, str) else raw  # the bytes of Python 2
    whole = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes | bytearray) or not whole or order not in ("C", "F"):
        _refuse("an array of other things than numbers")
    if len(raw) != math.prod(shape) * dtype.value.itemsize:
        _refuse(f"an array of shape {shape} with {len(raw)} bytes")
    return np.frombuffer(raw, dtype.value).reshape(shape, order=order)


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
    made = _Array()
    made.value = _values(raw, dtype, shape, order)
    return made


def _scalar(dtype: Any, raw: Any) -> Any:
    return _values(raw, dtype, (), "C").item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How pickles of protocol 2 write bytes."""
    return text.encode("latin1") if isinstance(text, str) and encoding == "latin1" else _refuse("text as bytes")


def _bytes(*given: Any) -> bytes:
    return b"" if not given else _refuse("bytes made of something")


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _bytes,
    ("__builtin__", "bytes"): _bytes,
    ("collections", "OrderedDict"): dict,
    **{(f"{core}.multiarray", "_reconstruct"): _reconstruct for core in CORE},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in CORE},
    **{(f"{core}.numeric", "_frombuffer"): _frombuffer for core in CORE},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("something outside the file")


def _load(file: BinaryIO, path: Path) -> Any:
    try:
        return _Unpickler(file, encoding="latin1").load()
    except _Refused as error:
        raise InputError(
            f"{path} asks for {error}, which is not read from a pickle: it may run anything",
            "plain containers, text, numbers and arrays of numbers",
            "Take the file from its authors, or save its arrays as images and give a CSV",
        ) from error
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        RecursionError,
        OverflowError,
        MemoryError,
    ) as error:
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{path} is no pickle that can be read ({reason})", EXPECTED, "Fetch the file again"
        ) from error


def read_crops(path: str | Path) -> tuple[int, Iterator[Crop]]:
    """How many crops the pickle at ``path`` holds, and the crops in its order.

    The layout is that of S. Knegt's file: a dictionary of ``{image, masks, series_uid}``.  The whole file is in memory
    until the last crop is taken.  Raises InputError where the file is missing or damaged, asks for anything but
    containers and numbers, or holds something else; at the crop that is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file at {path}", "a .pickle file", "Check the path")
    with open(path, "rb") as file:
        found = _load(file, path)
    if not isinstance(found, dict) or not found:
        raise InputError(f"{path} holds {type(found).__name__.strip('_')}", EXPECTED)
    return len(found), (_crop(path, str(key), value) for key, value in found.items())


def _crop(path: Path, key: str, value: Any) -> Crop:
    def wrong(what: str) -> InputError:
        return InputError(f"{key!r} of {path} {what}", EXPECTED)

    if not isinstance(value, dict) or not {"image", "masks", "series_uid"} <= set(value):
        raise wrong("is not of these three parts")
    image, series = _array(value["image"]), value["series_uid"]
    if image is None or image.ndim != 2:
        raise wrong("has no image of two axes")
    image = image.astype(np.float32)
    if not (np.isfinite(image).all() and image.min(initial=0) >= 0 and image.max(initial=0) <= 1):
        raise wrong(f"has an image from {image.min():g} to {image.max():g}")
    drawn = value["masks"]
    masks = [_array(mask) for mask in (drawn if isinstance(drawn, list | tuple) else [])]
    if not masks or any(m is None or m.shape != image.shape or not np.isin(m, (0, 1)).all() for m in masks):
        raise wrong(f"has no list of masks of 0 and 1 on the {image.shape[0]} x {image.shape[1]} pixels of its image")
    if not isinstance(series, str) or not series:
        raise wrong("names no series")
    return Crop(key, image, np.stack([m.astype(bool) for m in masks if m is not None]), series)


def _array(value: Any) -> np.ndarray | None:
    return getattr(value, "value", None) if isinstance(value, _Array) else None
