"""TIFF of any depth, pages and channels through tifffile, and through Pillow for codecs that tifffile lacks.

Pages, depth and time are slices; samples and channels are channels.  Resolution tags are too often wrong to be
trusted: ``affine`` is None.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from samsans.errors import InputError
from samsans.io import images
from samsans.io.files import reading
from samsans.types import Volume

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

CHANNEL_AXES = "SC"
PLAIN_PHOTOMETRICS = (0, 1, 2, 3)  # white is zero, black is zero, RGB, palette
WHITE_IS_ZERO, PALETTE_COLOUR = 0, 3
ALPHA_SAMPLES = (1, 2)  # associated and unassociated alpha


def read(path: Path, labels: bool = False) -> Volume:
    """Read as ``(D, H, W, C)`` in the file's dtype; palettes, 1-bit files and alpha as ``images.read`` does.

    Images in which white is zero are inverted, so that larger is brighter; label values are never changed.
    Raises InputError for damaged files, pages of several sizes, and more axes than slices, rows, columns, channels.
    """
    import tifffile

    with reading(path, "TIFF"), tifffile.TiffFile(path) as tif:
        series, page = _only_series(tif, path)
        if int(page.photometric) not in PLAIN_PHOTOMETRICS or not _decodable(page):
            return Volume(_through_pillow(path, page, labels), path=path)
        array, axes = series.asarray(), series.axes
        photometric, extra, colours = int(page.photometric), page.extrasamples, page.colormap
    array = _arrange(array, axes, path)
    if photometric == WHITE_IS_ZERO and not labels and array.dtype.kind in "bu":
        array = ~array
    if array.dtype == bool:
        array = array.astype(np.uint8) * (1 if labels else 255)
    if photometric == PALETTE_COLOUR and colours is not None and not labels:
        array = (colours[:, array[..., 0]] >> 8).astype(np.uint8).transpose(1, 2, 3, 0)
    if extra and int(extra[-1]) in ALPHA_SAMPLES and array.shape[3] in (2, 4):
        array = np.stack([images.drop_alpha(part, path) for part in array])
    return Volume(array, path=path)


def is_stack(path: Path) -> bool:
    """Whether the file holds more than one slice."""
    import tifffile

    with reading(path, "TIFF"), tifffile.TiffFile(path) as tif:
        series, _ = _only_series(tif, path)
        slices = [n for axis, n in zip(series.axes, series.shape, strict=True) if axis not in "YX" + CHANNEL_AXES]
        return int(np.prod(slices)) > 1


def _only_series(tif: TiffFile, path: Path) -> tuple[TiffPageSeries, TiffPage]:
    if len(tif.series) != 1:
        sizes = ", ".join(str(series.shape) for series in tif.series)
        raise InputError(f"{path} holds images of several sizes: {sizes}", "pages of one size", "Split the file")
    return tif.series[0], tif.pages.first


def _decodable(page: TiffPage) -> bool:
    import tifffile

    return page.compression in tifffile.TIFF.DECOMPRESSORS and page.predictor in tifffile.TIFF.UNPREDICTORS


def _arrange(array: np.ndarray, axes: str, path: Path) -> np.ndarray:
    """``(D, H, W, C)`` from tifffile's axes letters: Y, X, S and C (channels), all others slices."""
    kept = [i for i, axis in enumerate(axes) if axis in "YX" or array.shape[i] > 1]
    array, axes = array.reshape([array.shape[i] for i in kept]), "".join(axes[i] for i in kept)
    channels = [i for i, axis in enumerate(axes) if axis in CHANNEL_AXES]
    slices = [i for i, axis in enumerate(axes) if axis not in "YX" + CHANNEL_AXES]
    if len(channels) > 1 or len(slices) > 1 or not {"Y", "X"} <= set(axes):
        raise InputError(
            f"{path} has the shape {array.shape} with axes {axes}",
            "slices, rows, columns and channels",
            "Split the file",
        )
    array = array.transpose(*slices, axes.index("Y"), axes.index("X"), *channels)
    array = array if slices else array[None]
    return array if channels else array[..., None]


def _through_pillow(path: Path, page: TiffPage, labels: bool) -> np.ndarray:
    import tifffile
    from PIL import Image, ImageSequence

    if page.bitspersample > 8 and page.samplesperpixel > 1:
        raise InputError(
            f"{path} holds colour of {page.bitspersample} bits under {tifffile.COMPRESSION(page.compression).name}",
            "a compression that can be read here without loss",
            "pip install imagecodecs, or save the file with Deflate compression",
        )
    with Image.open(path) as image:
        array = np.stack([images.pixels(frame, path, labels) for frame in ImageSequence.Iterator(image)])
    inverted = page.bitspersample <= 8  # by Pillow, where white is zero
    if page.photometric == WHITE_IS_ZERO and inverted == labels:
        array = (1 if labels and page.bitspersample == 1 else np.iinfo(array.dtype).max) - array
    return array


def write(file: BinaryIO, array: np.ndarray, like: Volume | None = None) -> None:
    """Write ``(D, H, W)`` or ``(D, H, W, C)``: one page a slice, Deflate; RGB where C is 3 and values are unsigned.

    ``like`` is not used: no grid is stated.
    """
    import tifffile

    if array.ndim == 3:
        axes = "ZYX"
    elif array.shape[3] == 3 and array.dtype in (np.uint8, np.uint16):
        axes = "ZYXS"
    else:
        array, axes = array.transpose(0, 3, 1, 2), "ZCYX"
    photometric = "rgb" if axes == "ZYXS" else "minisblack"
    tifffile.imwrite(file, array, photometric=photometric, compression="zlib", metadata={"axes": axes})
