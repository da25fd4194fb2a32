"""PNG, JPEG and BMP through Pillow.

Pixels are read as stored: an EXIF orientation is *not* applied, so that the mask of a photograph lies on the pixels of
its file (our decision); a warning says so.  These formats state no geometry that can be trusted: ``affine`` is None.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from samsans.errors import InputError
from samsans.io.files import reading
from samsans.types import Volume

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION_TAG = 0x0112  # EXIF
AS_STORED = ("L", "LA", "RGB", "RGBA", "I", "F")  # Pillow modes whose values are the file's


def read(path: Path, labels: bool = False) -> Volume:
    """Read a 2D image as ``(1, H, W, C)``, C 1 or 3, in uint8, uint16, int32 or float32.

    Images: palettes, CMYK and other colour spaces become RGB, 1-bit becomes 0 and 255, an alpha channel is dropped
    where it is the same everywhere.  With ``labels`` the values are the raw ones: palette indices, 0 and 1 of 1-bit
    files, unscaled values of 2- and 4-bit files.

    Raises InputError for damaged files, a varying alpha channel and colour of 16 bits (Pillow would keep only 8).
    """
    from PIL import Image

    with reading(path, path.suffix[1:].upper()):
        depth, colour = _png_depth(path)
        if depth == 16 and colour != 0:
            raise InputError(
                f"{path} is a PNG with {'alpha' if colour == 4 else 'colour'} of 16 bits per channel",
                "grey of 16 bits, or colour of 8 bits (the decoder would drop half of the bits)",
                "Save it as TIFF, which is read in full, or with 8 bits per channel",
            )
        with Image.open(path) as image:
            if image.getexif().get(ORIENTATION_TAG, 1) != 1:
                warnings.warn(
                    f"{path} asks viewers to turn it (EXIF orientation); samsans reads the pixels as stored, and so "
                    "must its mask be. Turn the pixels themselves if masks were drawn on the turned view.",
                    stacklevel=4,
                )
            array = pixels(image, path, labels)
    if labels and depth in (2, 4) and colour == 0:
        array //= 255 // (2**depth - 1)  # Pillow stretches small depths to 0..255
    return Volume(array[None], path=path)


def pixels(image: Image, path: Path, labels: bool) -> np.ndarray:
    """``(H, W, C)`` of one decoded Pillow image; see ``read``."""
    mode = image.mode
    if mode == "1":
        array = np.asarray(image).astype(np.uint8) * (1 if labels else 255)
    elif mode in AS_STORED or mode.startswith("I;16") or (mode == "P" and labels):
        array = np.asarray(image)
    else:
        alpha = mode in ("PA", "La", "RGBa") or "transparency" in image.info
        array = np.asarray(image.convert("RGBA" if alpha else "RGB"))
    array = array.astype(array.dtype.newbyteorder("="))
    array = array[:, :, None] if array.ndim == 2 else array
    return drop_alpha(array, path) if array.shape[2] in (2, 4) else array


def drop_alpha(array: np.ndarray, path: Path) -> np.ndarray:
    """``(H, W, C)`` without its last channel, alpha, which must be the same everywhere."""
    alpha = array[:, :, -1]
    if alpha.min() != alpha.max():
        raise InputError(
            f"{path} is transparent in places: its alpha channel goes from {alpha.min()} to {alpha.max()}",
            "an opaque image",
            "Flatten it onto a background, or save it without alpha",
        )
    return np.ascontiguousarray(array[:, :, :-1])


def _png_depth(path: Path) -> tuple[int, int]:
    """Bits per channel and colour type (0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6 RGBA) of a PNG, else ``(8, 0)``."""
    with open(path, "rb") as file:
        head = file.read(26)
    return (head[24], head[25]) if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 26 else (8, 0)


def write(file: BinaryIO, array: np.ndarray, like: Volume | None = None) -> None:
    """Write one slice as PNG.

    Labels ``(1, H, W)``: uint8 as a palette image whose indices are the labels, uint16 as grey.
    Images ``(1, H, W, C)``: uint8 or uint16 grey, uint8 RGB.  ``like`` is not used: PNG states no grid.
    """
    from PIL import Image

    from samsans.palette import color

    grey = array.ndim == 3 or array.shape[3] == 1
    image = Image.fromarray(array.reshape(array.shape[1:3]) if grey else array[0])
    if array.ndim == 3 and array.dtype == np.uint8:
        image.putpalette([channel for label in range(256) for channel in color(label)])
    image.save(file, "PNG")
