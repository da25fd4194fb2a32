"""DICOM images through pydicom: the folder of one series, one slice, or a multi-frame file.

Slices are ordered by geometry: their position projected on the normal of the slice plane, never by file name or
instance number.  Rescale slope and intercept are applied.  MONOCHROME1 (small is bright) is inverted where the values
have no physical scale (slope 1, intercept 0), so that larger is brighter; with a scale the numbers are the truth and
stay (our decision).  Without position the frames keep their order, and only the pixel spacing is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samsans.errors import InputError
from samsans.io.atomic import suffix
from samsans.io.files import DICOM_SUFFIXES, is_dicom, reading
from samsans.io.geometry import affine_of
from samsans.types import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"  # SOP class of DICOM-SEG
SAME_PLANE = 1e-3  # largest difference of direction cosines within a series
OFF_LINE = 0.1  # largest distance of a slice from its place on an even line, in slice steps


@dataclass(frozen=True)
class Series:
    """The image files of one series, in no order."""

    uid: str
    title: str
    files: list[Path]


@dataclass(frozen=True)
class Frame:
    """One slice as stored.

    pixels: ``(H, W, C)``.  position: ``(3,)`` LPS mm of the first pixel's centre, or None.
    plane: ``(6,)`` direction cosines of a row and of a column, or None.
    spacing: between rows and between columns, mm, or None.  thickness: mm, distance of slices where only one is known.
    """

    path: Path
    pixels: np.ndarray
    position: np.ndarray | None
    plane: np.ndarray | None
    spacing: tuple[float, float] | None
    thickness: float


def group_series(files: Iterable[Path]) -> list[Series]:
    """The image series among DICOM files; files that are no images (reports, structures, DICOM-SEG) are left out."""
    import pydicom

    groups: dict[str, Series] = {}
    for path in sorted(files):
        with reading(path, "DICOM"):
            ds = pydicom.dcmread(path, stop_before_pixels=True)
        if not is_picture(ds, path):
            continue
        uid = str(ds.get("SeriesInstanceUID", ""))
        title = f"{ds.get('Modality', '?')} {ds.get('SeriesDescription', '')}".strip()
        groups.setdefault(uid, Series(uid, title, [])).files.append(path)
    return list(groups.values())


def is_picture(ds: Dataset, path: Path) -> bool:
    """Whether the file is an image; raises where an image class, or no class at all, comes without a size."""
    kind = ds.file_meta.get("MediaStorageSOPClassUID") or ds.get("SOPClassUID")
    if "Rows" in ds:
        return kind != SEGMENTATION
    known = kind is not None and kind.name != kind and "Image Storage" not in kind.name
    if known or (kind is not None and kind.is_private):
        return False
    raise InputError(
        f"{path} ends before the size of its image (Rows)",
        "a whole DICOM file",
        "Copy it again from its source, or remove it if the series is whole without it",
    )


def read(path: Path, labels: bool = False, series: str = "") -> Volume:
    """Read a file, or the only series of a folder (or the one whose UID ends in ``series``), as ``(D, H, W, C)``.

    Raises InputError for several series, unequal sizes or planes, uneven or repeated positions, missing slices,
    compressions that no installed decoder knows, and DICOM objects that are no images.
    """
    files = [path] if path.is_file() else _choose(path, series).files
    frames = [frame for file in files for frame in _frames(file)]
    _same_shape(frames, path)
    affine: np.ndarray | None
    if all(frame.position is not None and frame.plane is not None for frame in frames):
        frames, affine = _place(frames, path)
    elif len(files) > 1:
        raise InputError(
            f"{path} is a series of {len(files)} files without positions (ImagePositionPatient)",
            "slices whose place in space is stated",
            "Read the files one by one",
        )
    else:
        affine = _flat_affine(frames[0])
    array = np.stack([frame.pixels for frame in frames])
    return Volume(array, affine, path, tuple(frame.path for frame in frames))


def _choose(folder: Path, wanted: str) -> Series:
    files = [f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".")]
    found = group_series(f for f in files if suffix(f) in DICOM_SUFFIXES or is_dicom(f))
    if not found:
        raise InputError(f"{folder} holds no DICOM image", "the files of one series directly in it", "Check the path")
    chosen = [s for s in found if s.uid.endswith(wanted)]
    if len(chosen) == 1:
        return chosen[0]
    listing = "; ".join(f"{s.uid} ({s.title}, {len(s.files)} files, {s.files[0].name} ...)" for s in found)
    raise InputError(
        f"{folder} holds {len(found)} series: {listing}",
        "one series",
        "Give each series a folder of its own, or choose one: read_image(folder, series=UID or its end)",
    )


def _frames(path: Path) -> list[Frame]:
    """Every frame of one file, scaled to its physical values."""
    import pydicom

    with reading(path, "DICOM"):
        ds = pydicom.dcmread(path)
        if not is_picture(ds, path):
            name = ds.file_meta.MediaStorageSOPClassUID.name
            raise InputError(f"{path} is a {name}, not an image", "an image", "Convert masks to NIfTI or NRRD first")
        if "PixelData" not in ds:
            raise InputError(f"{path} holds no pixels", "a whole DICOM image", "Copy it again from its source")
        pixels = rescaled(_decode(ds, path), ds)
        return [_frame(ds, i, pixels[i], path) for i in range(len(pixels))]


def _decode(ds: Dataset, path: Path) -> np.ndarray:
    """``(frames, H, W, C)`` stored values; YBR and palette colours as RGB."""
    from pydicom.pixels import apply_color_lut, pixel_array

    require_decoder(ds, path)
    array = pixel_array(ds)
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        array = apply_color_lut(array, ds)
    colour = ds.SamplesPerPixel > 1 or ds.PhotometricInterpretation == "PALETTE COLOR"
    array = array if colour else array[..., None]
    return array if array.ndim == 4 else array[None]


def require_decoder(ds: Dataset, path: Path) -> None:
    """InputError where the compression of the file is one that nothing installed can undo."""
    from pydicom.pixels import get_decoder

    syntax = ds.file_meta.TransferSyntaxUID
    if syntax.is_compressed and syntax.is_encapsulated and not get_decoder(syntax).is_available:
        raise InputError(
            f"{path} is compressed with {syntax.name}, which no installed decoder knows",
            todo='pip install "pylibjpeg[all]", or decompress the files, for instance with gdcmconv --raw',
        )


def rescaled(pixels: np.ndarray, ds: Dataset, first: int = 0) -> np.ndarray:
    """Physical values of the stored ones ``(frames, H, W, C)``, frame ``first`` of the file being the first of them."""
    frames = range(first, first + len(pixels))
    slopes = [float(_value(ds, i, "RescaleSlope", 1)) for i in frames]
    intercepts = [float(_value(ds, i, "RescaleIntercept", 0)) for i in frames]
    return _rescale(pixels, np.array(slopes), np.array(intercepts), ds)


def _value(ds: Any, frame: int, keyword: str, default: Any = None) -> Any:
    """An attribute of a frame: at the top, or in the functional groups of enhanced multi-frame files."""
    if ds.get(keyword) is not None:
        return ds.get(keyword)
    per_frame, shared = ds.get("PerFrameFunctionalGroupsSequence"), ds.get("SharedFunctionalGroupsSequence")
    for group in [per_frame[frame] if per_frame else None, shared[0] if shared else None]:
        for element in group or ():
            if element.VR == "SQ" and element.value and element.value[0].get(keyword) is not None:
                return element.value[0].get(keyword)
    return default


def _rescale(pixels: np.ndarray, slopes: np.ndarray, intercepts: np.ndarray, ds: Dataset) -> np.ndarray:
    """Apply ``value * slope + intercept``: int16 or int32 where both are whole, else float32."""
    bits, signed = int(ds.BitsStored), bool(ds.PixelRepresentation)
    if (slopes == 1).all() and (intercepts == 0).all():
        if ds.PhotometricInterpretation != "MONOCHROME1":
            return pixels
        return (-1 if signed else 2**bits - 1) - pixels
    if (slopes % 1 == 0).all() and (intercepts % 1 == 0).all():
        stored = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
        reach = np.abs(np.outer(stored, slopes) + intercepts).max()
        kind: Any = np.int16 if reach < 2**15 else np.int32
    else:
        kind = np.float32
    shape = (-1, 1, 1, 1)
    return pixels.astype(kind) * slopes.astype(kind).reshape(shape) + intercepts.astype(kind).reshape(shape)


def _frame(ds: Dataset, index: int, pixels: np.ndarray, path: Path) -> Frame:
    position, plane = _value(ds, index, "ImagePositionPatient"), _value(ds, index, "ImageOrientationPatient")
    spacing = _value(ds, index, "PixelSpacing") or ds.get("ImagerPixelSpacing")
    thickness = _value(ds, index, "SpacingBetweenSlices") or _value(ds, index, "SliceThickness") or 1
    return Frame(
        path,
        pixels,
        None if position is None else np.array(position, float),
        None if plane is None else np.array(plane, float),
        None if spacing is None else (float(spacing[0]), float(spacing[1])),
        float(thickness),
    )


def _same_shape(frames: list[Frame], path: Path) -> None:
    shapes = sorted({frame.pixels.shape for frame in frames})
    if len(shapes) > 1:
        raise InputError(
            f"{path} holds slices of several sizes: {shapes} (rows, columns, channels)",
            "slices of one size",
            "Move scouts and other views to a folder of their own",
        )


def _flat_affine(frame: Frame) -> np.ndarray | None:
    """Pixel spacing without position: the picture as an axial slice seen from the feet, so that it is not turned."""
    if frame.spacing is None:
        return None
    return affine_of(np.diag([frame.spacing[1], frame.spacing[0], frame.thickness]), np.zeros(3))


def _place(frames: list[Frame], path: Path) -> tuple[list[Frame], np.ndarray]:
    """Frames ordered along the normal of their plane, and the affine to RAS+ mm."""
    planes, positions = np.array([f.plane for f in frames]), np.array([f.position for f in frames])
    spacings = {frame.spacing for frame in frames}
    if np.abs(planes - planes[0]).max() > SAME_PLANE or len(spacings) > 1 or None in spacings:
        odd = next((f for f in frames if np.abs(f.plane - planes[0]).max() > SAME_PLANE), frames[-1])
        raise InputError(
            f"{path} holds slices of several planes or pixel sizes, {frames[0].path.name} and {odd.path.name} for two",
            "parallel slices of one pixel size",
            "Move scouts and other views to a folder of their own",
        )
    row, column = planes[0, :3], planes[0, 3:]
    normal = np.cross(row, column)
    order = np.argsort(positions @ normal, kind="stable")
    frames, positions = [frames[i] for i in order], positions[order]
    step = normal * frames[0].thickness
    if len(frames) > 1:
        step = (positions[-1] - positions[0]) / (len(frames) - 1)
        _check_even(frames, positions, normal, path)
    height, width = frames[0].spacing or (1.0, 1.0)
    return frames, affine_of(np.stack([row * width, column * height, step], axis=1), positions[0])


def _check_even(frames: list[Frame], positions: np.ndarray, normal: np.ndarray, path: Path) -> None:
    """Raise unless the slices lie at even steps on one line (which may be tilted against the normal)."""
    gaps = np.diff(positions @ normal)
    step = float(np.median(gaps))
    repeated = int((gaps < OFF_LINE * max(step, 1e-3)).sum())
    if repeated:
        raise InputError(
            f"{path} has {repeated} slices at the place of another (several time points, echoes or phases)",
            "one slice at each position",
            "Put each of them into a folder of its own",
        )
    line = positions[0] + np.linspace(0, 1, len(frames))[:, None] * (positions[-1] - positions[0])
    if np.linalg.norm(positions - line, axis=1).max() > OFF_LINE * step:
        worst = int(np.argmax(np.abs(gaps - step)))
        raise InputError(
            f"{path} has uneven slices: mostly {step:.4g} mm apart, but {gaps[worst]:.4g} mm between "
            f"{frames[worst].path.name} and {frames[worst + 1].path.name}",
            "slices at even steps",
            "Add the missing slices, or resample the series to an even grid",
        )
