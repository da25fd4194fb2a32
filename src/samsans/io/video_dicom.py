"""DICOM files of several frames as videos: stored frame by frame through pydicom, or as MPEG inside through PyAV."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samsans.errors import InputError
from samsans.io import dicom
from samsans.io.files import reading
from samsans.io.video import Frame, Video, levels, shown

if TYPE_CHECKING:
    from pydicom import Dataset

MPEG = tuple(f"1.2.840.10008.1.2.4.{number}" for number in range(100, 109))  # transfer syntaxes, also fragmentable
ITEM, END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
UNDEFINED = 0xFFFFFFFF
STORAGE = "1.2.840.10008.5.1.4.1.1."
CINE = tuple(  # ultrasound, angiography and fluoroscopy, endoscopy, microscopy, photography
    STORAGE + kind for kind in ("3", "3.1", "12.1", "12.1.1", "12.2", "12.2.1", "77.1.1.1", "77.1.2.1", "77.1.4.1")
)


def is_cine(path: Path) -> bool:
    """Whether the DICOM file holds several frames that are moments, by its kind of image or since it holds MPEG."""
    import pydicom

    with reading(path, "DICOM"):
        ds = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID", "NumberOfFrames"])
        syntax = str(ds.file_meta.get("TransferSyntaxUID", "")).removesuffix(".1")
        return int(ds.get("NumberOfFrames") or 1) > 1 and (ds.get("SOPClassUID") in CINE or syntax in MPEG)


def open_dicom(path: Path, fps: float | None, window: tuple[float, float] | None) -> Video:
    """The video in a DICOM file; frames are counted from 0 here."""
    import pydicom

    with reading(path, "DICOM"):
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        if not dicom.is_picture(ds, path):
            raise InputError(f"{path} is no DICOM image", "a DICOM image of several frames")
        syntax = str(ds.file_meta.TransferSyntaxUID).removesuffix(".1")
        fps = _rate(ds) or fps
    if syntax in MPEG or str(ds.file_meta.TransferSyntaxUID) in MPEG:
        from samsans.io.video_file import VideoFile

        with reading(path, "DICOM"):
            parts = fragments(path)
        return VideoFile(path, fps=fps, open_stream=lambda: io.BufferedReader(Parts(path, parts), 1 << 16))
    return DicomFrames(path, ds, fps, window)


def _rate(ds: Dataset) -> float | None:
    """Frames a second by the attributes of the cine and multi-frame modules; ``None`` where none is there."""
    if ds.get("FrameTimeVector") and len(ds.FrameTimeVector) > 1:
        length = float(np.mean([float(t) for t in ds.FrameTimeVector[1:]]))
    else:
        length = float(ds.get("FrameTime") or 0)
    rate = 1000 / length if length > 0 else float(ds.get("CineRate") or ds.get("RecommendedDisplayFrameRate") or 0)
    return rate if rate > 0 else None


class DicomFrames(Video):
    """Frames stored one by one, raw or compressed; only the one asked for is read."""

    def __init__(self, path: Path, ds: Dataset, fps: float | None, window: tuple[float, float] | None) -> None:
        self.path, self.fps, self._ds = path, fps, ds
        self.size = (int(ds.Rows), int(ds.Columns))
        self.numbers = range(int(ds.get("NumberOfFrames") or 1))
        with reading(path, "DICOM"):
            dicom.require_decoder(ds, path)
        self._levels = levels(self._stored(0).dtype, self.numbers, self._stored, window)

    def frames(self, begin: int = 0) -> Iterator[Frame]:
        """The frames from number ``begin`` on."""
        from pydicom.pixels import iter_pixels

        wanted = self.numbers[max(begin, 0) :]
        stored = iter_pixels(self.path, indices=None if wanted == self.numbers else wanted)
        for number in wanted:
            with reading(self.path, "DICOM"):
                array = self._physical(next(stored), number)
            yield Frame(number, shown(array, self._levels, self.path))

    def frame(self, number: int) -> np.ndarray:
        """Frame ``number``, ``(H, W, 3)`` uint8."""
        if number not in self.numbers:
            raise self._no_frame(number)
        return shown(self._stored(number), self._levels, self.path)

    def _stored(self, number: int) -> np.ndarray:
        """Physical values ``(H, W, C)`` of one frame."""
        from pydicom.pixels import iter_pixels

        with reading(self.path, "DICOM"):
            return self._physical(next(iter_pixels(self.path, indices=[number])), number)

    def _physical(self, array: np.ndarray, number: int) -> np.ndarray:
        """Physical values ``(H, W, C)`` of stored ones ``(H, W)`` or ``(H, W, C)``; palettes as RGB."""
        from pydicom.pixels import apply_color_lut

        if self._ds.PhotometricInterpretation == "PALETTE COLOR":
            array = apply_color_lut(array, self._ds)
        return dicom.rescaled((array if array.ndim == 3 else array[..., None])[None], self._ds, number)[0]


# -- MPEG inside --------------------------------------------------------------------------------------------------


def fragments(path: Path) -> list[tuple[int, int]]:
    """Where in the file the pieces of the encapsulated stream lie: first byte and length of each.  Nothing is read."""
    import pydicom

    with open(path, "rb") as file:
        pydicom.dcmread(file, stop_before_pixels=True)
        tag, _, length = struct.unpack("<I4sI", file.read(12))  # explicit little endian, as all encapsulated ones are
        if tag != 0x00107FE0 or length != UNDEFINED:
            raise InputError(f"{path} holds no encapsulated pixels", "an MPEG stream in items")
        found = []
        while (head := file.read(8))[:4] == ITEM:
            (length,) = struct.unpack("<I", head[4:])
            found.append((file.tell(), length))
            file.seek(length, io.SEEK_CUR)
        if head[:4] != END or len(found) < 2:
            raise InputError(f"{path} ends within its video", "a whole file", "Copy it again from its source")
    return found[1:]  # the first is the table of offsets


class Parts(io.RawIOBase):
    """Pieces of a file as one stream of bytes."""

    def __init__(self, path: Path, parts: list[tuple[int, int]]) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close
        self._parts = parts
        self._at, self._length = 0, sum(length for _, length in parts)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The place in the stream."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place in the stream."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read within the piece at hand; 0 at the end."""
        before = 0
        for first, length in self._parts:
            if self._at < before + length:
                inside = self._at - before
                self._file.seek(first + inside)
                read = self._file.readinto(memoryview(buffer)[: length - inside])
                self._at += read
                return read
            before += length
        return 0

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
        super().close()
