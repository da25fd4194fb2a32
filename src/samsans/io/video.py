"""Videos as streams of frames with their own numbers: files, DICOM of several frames, folders of pictures.

However long a video is, only a few of its frames are in memory.  Frames are ``(H, W, 3)`` uint8: grey is repeated, and
where a format holds more than 8 bits, the levels between two intensities of the whole video are shown.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from samsans.errors import InputError
from samsans.io.atomic import suffix
from samsans.io.files import DICOM_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_dicom, stem
from samsans.io.read import read_image

SAMPLED = 16  # frames looked at for the levels of a video of more than 8 bits
LEVELS = (1, 99)  # percentiles shown from black to white, as of images
DIGITS = re.compile(r"\d+")


class Frame(NamedTuple):
    """One frame: its ``number`` in the video and its ``image``, ``(H, W, 3)`` uint8."""

    number: int
    image: np.ndarray


class Video(ABC):
    """Frames in order of their numbers; made by ``open_video``.  Iterating reads the whole video, each time anew.

    path: the file or folder.  size: rows and columns.  fps: frames a second; ``None`` where nobody says.
    numbers: of all frames, ascending.  Files count from 0 without gaps, DICOM too; pictures keep the numbers of their
    names, with their gaps.
    """

    path: Path
    size: tuple[int, int]
    fps: float | None
    numbers: Sequence[int]

    @property
    def count(self) -> int:
        """How many frames there are."""
        return len(self.numbers)

    @abstractmethod
    def frames(self, begin: int = 0) -> Iterator[Frame]:
        """The frames whose number is at least ``begin``, in order; earlier ones are not decoded where the format
        allows.  InputError where the video is damaged."""

    @abstractmethod
    def frame(self, number: int) -> np.ndarray:
        """Frame ``number``, ``(H, W, 3)`` uint8; InputError where there is none of this number."""

    def name(self, number: int) -> str:
        """What files of frame ``number`` are called, without suffix: six figures, or the picture's own name."""
        return f"{number:06d}"

    def seconds(self, number: int) -> float | None:
        """When frame ``number`` is shown; ``None`` where nobody says how fast the frames follow each other."""
        return None if self.fps is None else number / self.fps

    def close(self) -> None:  # noqa: B027 - pictures have nothing to let go of
        """Let go of the file."""

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def __len__(self) -> int:
        return self.count

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _no_frame(self, number: int) -> InputError:
        first, last = self.numbers[0], self.numbers[-1]
        return InputError(
            f"{self.path} has no frame {number}",
            f"one of its {self.count} frames, numbered {first} to {last}",
            "Frames of video files and DICOM are counted from 0" if first == 0 else "Look at the names of its files",
        )


def open_video(path: str | Path, *, fps: float | None = None, window: tuple[float, float] | None = None) -> Video:
    """Open a video file (extra ``[video]``), a DICOM file of several frames, or a folder of pictures named by number.

    fps: frames a second, where the video itself does not say.  window: intensities shown from black to white, of
    pictures and DICOM of more than 8 bits; by default percentiles 1 and 99 of at most 16 of its frames, evenly chosen
    (our decision).

    Raises InputError where the path is no video, is damaged, or needs an extra that is not installed.
    """
    path = Path(path)
    if fps is not None and not fps > 0:
        raise InputError(f"{fps} frames a second", "a positive number")
    if not path.exists():
        raise InputError(f"{path} does not exist", "a video file, or a folder of numbered pictures", "Check the path")
    if path.is_dir():
        return FrameFiles(numbered(path), path, fps, window)
    if suffix(path) in DICOM_SUFFIXES or is_dicom(path):
        from samsans.io.video_dicom import open_dicom

        return open_dicom(path, fps, window)
    if suffix(path) not in VIDEO_SUFFIXES:
        raise InputError(
            f"{path} ends in {suffix(path) or 'nothing'}",
            f"a video ({', '.join(VIDEO_SUFFIXES)}), DICOM of several frames, or a folder of numbered pictures",
        )
    from samsans.io.video_file import VideoFile

    return VideoFile(path, fps=fps)


def is_video(path: str | Path) -> bool:
    """Whether ``path`` is a video file by its suffix, or DICOM of several frames that are moments, not places."""
    path = Path(path)
    if not path.is_file():
        return False
    if suffix(path) in VIDEO_SUFFIXES:
        return True
    if not is_dicom(path):
        return False
    from samsans.io.video_dicom import is_cine

    return is_cine(path)


# -- pictures -----------------------------------------------------------------------------------------------------


def numbered(folder: Path) -> dict[int, Path]:
    """The pictures directly in ``folder`` by the number in their name; InputError where there is none, or no number."""
    files = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and suffix(p) in IMAGE_SUFFIXES]
    if not files:
        raise InputError(
            f"{folder} holds no pictures", f"frames directly in it ({', '.join(IMAGE_SUFFIXES)})", "Check the path"
        )
    return by_number(sorted(files))


def by_number(files: Sequence[Path]) -> dict[int, Path]:
    """The files by the number in their names; InputError where these do not tell them apart."""
    numbers = frame_numbers([stem(p) for p in files])
    if numbers is None:
        named = ", ".join(p.name for p in files[:4])
        raise InputError(
            f"the pictures in {files[0].parent} are not told apart by a number in their names: {named} ...",
            "names such as frame_0001.png, 12.jpg",
            "Rename them, or put other pictures (of the other camera, masks) into a folder of their own",
        )
    return dict(zip(numbers, files, strict=True))


def frame_numbers(names: Sequence[str]) -> list[int] | None:
    """The frame number in every name; ``None`` where there is none that tells them all apart.

    The last number of the names, as in ``seq1_0012``; where that is not different in all of them (``0012_v2``), the
    first, second ... place at which the numbers are.
    """
    found = [[int(d) for d in DIGITS.findall(name)] for name in names]
    shortest = min((len(numbers) for numbers in found), default=0)
    for place in (-1, *range(shortest)) if shortest else ():
        numbers = [values[place] for values in found]
        if len(set(numbers)) == len(numbers):
            return numbers
    return None


class FrameFiles(Video):
    """Pictures by frame number: ``files`` of one size.  path: what to call them in errors, usually their folder."""

    def __init__(
        self,
        files: Mapping[int, Path],
        path: Path,
        fps: float | None = None,
        window: tuple[float, float] | None = None,
    ) -> None:
        self.path, self.fps = path, fps
        self._files = dict(sorted(files.items()))
        self.numbers = tuple(self._files)
        first = self._read(self.numbers[0])
        self.size = (first.shape[0], first.shape[1])
        self._levels = levels(first.dtype, self.numbers, self._read, window)

    def frames(self, begin: int = 0) -> Iterator[Frame]:
        """The frames from number ``begin`` on."""
        for number in self.numbers:
            if number >= begin:
                yield Frame(number, self.frame(number))

    def frame(self, number: int) -> np.ndarray:
        """Frame ``number``, ``(H, W, 3)`` uint8."""
        if number not in self._files:
            raise self._no_frame(number)
        array = self._read(number)
        if array.shape[:2] != self.size:
            raise InputError(
                f"{self._files[number]} has the size {array.shape[:2]}, frame {self.numbers[0]} {self.size}",
                "frames of one size",
                "Put pictures of another size into a folder of their own",
            )
        return shown(array, self._levels, self._files[number])

    def name(self, number: int) -> str:
        """The picture's own name, without suffix."""
        return stem(self._files[number]) if number in self._files else super().name(number)

    def _read(self, number: int) -> np.ndarray:
        array = read_image(self._files[number]).array
        if len(array) != 1:
            raise InputError(f"{self._files[number]} holds {len(array)} pictures", "one a frame", "Split the file")
        return array[0]


# -- from more than 8 bits ----------------------------------------------------------------------------------------


def levels(
    dtype: np.dtype,
    numbers: Sequence[int],
    read: Callable[[int], np.ndarray],
    window: tuple[float, float] | None,
) -> tuple[float, float] | None:
    """Intensities to be shown as black and white, ``window`` where given; ``None`` for 8 bits, shown as they are."""
    if window is not None:
        if not window[0] < window[1]:
            raise InputError(f"window {list(window)}", "the lower intensity, then the higher")
        return window
    if dtype == np.uint8:
        return None
    chosen = np.unique(np.linspace(0, len(numbers) - 1, min(SAMPLED, len(numbers))).round().astype(int))
    low, high = np.percentile(np.concatenate([read(numbers[i]).reshape(-1)[::7] for i in chosen]), LEVELS)
    return float(low), float(max(high, low + 1e-6))


def shown(array: np.ndarray, levels: tuple[float, float] | None, path: Path) -> np.ndarray:
    """``(H, W, 3)`` uint8 of a picture ``(H, W, C)``, C 1 or 3, between the two ``levels``."""
    if array.shape[2] not in (1, 3):
        raise InputError(f"{path} has {array.shape[2]} channels", "grey or RGB frames")
    if levels is not None:
        low, high = levels
        array = np.rint(np.clip((array.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise InputError(f"{path} holds values of {array.dtype}", "frames of one kind, uint8 like the first")
    return np.ascontiguousarray(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array)
