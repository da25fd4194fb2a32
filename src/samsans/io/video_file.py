"""MP4, AVI, MOV and other video files through PyAV (extra ``[video]``): read as a stream, and written as MP4."""

from __future__ import annotations

import itertools
import warnings
from array import array
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from samsans.errors import InputError
from samsans.io.atomic import atomic_path
from samsans.io.files import reading
from samsans.io.video import Frame, Video

NEAR = 32  # frames that are decoded on the way rather than sought
PROBED = 8  # frames whose time stamps are compared with those of the packets
TICKS = 90_000  # of the clock of written files, a second
CODECS = (("libx264", {"crf": "18", "g": "50"}), ("mpeg4", {"qscale": "3", "g": "25"}))  # the first that is there


def _pyav(what: Path | str) -> Any:
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"{what} is a video file, for which PyAV is needed, and it is not installed",
            "the extra samsans[video], or a folder of frames as pictures",
            'pip install "samsans[video]"',
        ) from error
    return av


@dataclass(frozen=True)
class _Index:
    """What one pass over the packets told, nothing being decoded but the first frames.

    stamps: time stamps of all frames in order of showing, or None where they cannot be trusted.  tick: seconds.
    """

    count: int
    size: tuple[int, int]
    fps: float | None
    stamps: array[int] | None
    tick: Fraction


@lru_cache(maxsize=64)
def _index_of(path: Path, changed: int, length: int) -> _Index:
    """The index of a file; kept as long as its time of change and length stay (they are arguments for that alone)."""
    return _index(path, path)


def _index(source: Any, path: Path) -> _Index:
    with reading(path, "video"), _pyav(path).open(source if hasattr(source, "read") else str(source)) as container:
        if not container.streams.video:
            raise InputError(f"{path} holds no video", "a video stream", "Check the file in a player")
        stream = container.streams.video[0]
        packets = [(p.pts, p.is_discard) for p in container.demux(stream) if p.size]
        stated, rate, tick = stream.frames, stream.average_rate, stream.time_base or Fraction(1, TICKS)
        stamps = [stamp for stamp, discarded in packets if not discarded]
        trusted = array("q", sorted(stamps)) if stamps and None not in stamps else None
        if trusted is not None and any(a == b for a, b in itertools.pairwise(trusted)):
            trusted = None
    with reading(path, "video"), _pyav(path).open(_rewound(source)) as container:
        first = list(itertools.islice(container.decode(video=0), PROBED))
        if not first:
            raise InputError(f"{path} holds no frame that can be decoded", "a whole video", "Check it in a player")
        if trusted is not None and [f.pts for f in first] != list(trusted[: len(first)]):
            trusted = None
        if first[0].rotation:
            warnings.warn(
                f"{path} asks players to turn it by {first[0].rotation} degrees; samsans reads the frames as stored, "
                "and so must masks be. Turn the frames themselves if masks were drawn on the turned view.",
                stacklevel=4,
            )
        if stated > len(packets):
            warnings.warn(f"{path} states {stated} frames and holds {len(packets)}: is it cut off?", stacklevel=4)
    return _Index(len(stamps), (first[0].height, first[0].width), float(rate) if rate else None, trusted, tick)


def _rewound(source: Any) -> Any:
    if not hasattr(source, "read"):
        return str(source)
    source.seek(0)
    return source


class VideoFile(Video):
    """A video file.  Frames are numbered from 0 in order of showing, pixels as stored (turns are not applied).

    open_stream: gives the bytes of the video instead, of a file ``path`` that wraps them.
    """

    def __init__(self, path: Path, *, fps: float | None = None, open_stream: Callable[[], Any] | None = None) -> None:
        self.path = path
        self._open_stream = open_stream
        if open_stream is None:
            about = path.stat()
            self._index = _index_of(path.resolve(), about.st_mtime_ns, about.st_size)
        else:
            with open_stream() as stream:
                self._index = _index(stream, path)
        self.size, self.numbers = self._index.size, range(self._index.count)
        self.fps = self._index.fps or fps
        self._near: Generator[Frame, None, None] | None = None  # where the last single frame was read, and its number
        self._last = -1

    def frames(self, begin: int = 0) -> Generator[Frame, None, None]:
        """The frames from number ``begin`` on."""
        stamps = self._index.stamps
        if begin > 0 and begin < self.count and stamps is not None:
            found = self._from(begin, stamps[begin])
            first = next(found, None)
            if first is not None and first.number == begin:
                yield first
                yield from found
                return
            found.close()  # the place was not found: decode from the start
        yield from self._from(begin, None)

    def _from(self, begin: int, stamp: int | None) -> Generator[Frame, None, None]:
        """Frames from ``begin`` on, after seeking the frame of time ``stamp``, or from the start."""
        stamps = self._index.stamps
        source = str(self.path) if self._open_stream is None else self._open_stream()
        with reading(self.path, "video"), _pyav(self.path).open(source) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if stamp is not None:
                container.seek(stamp, stream=stream)
            counted = itertools.count()
            for frame in container.decode(stream):
                number = next(counted) if stamps is None else self._number(frame.pts)
                if number >= begin:
                    yield Frame(number, self._rgb(frame, number))

    def _number(self, stamp: int | None) -> int:
        stamps = self._index.stamps
        assert stamps is not None
        number = -1 if stamp is None else bisect_left(stamps, stamp)
        if number < 0 or number >= len(stamps) or stamps[number] != stamp:
            raise InputError(
                f"{self.path} has a frame whose time stamp ({stamp}) none of its packets has",
                "a whole video",
                "Copy it again from its source, or encode it anew",
            )
        return number

    def _rgb(self, frame: Any, number: int) -> np.ndarray:
        if (frame.height, frame.width) != self.size:
            raise InputError(
                f"frame {number} of {self.path} has the size {frame.height} x {frame.width}, the first "
                f"{self.size[0]} x {self.size[1]}",
                "frames of one size",
            )
        return frame.to_ndarray(format="rgb24")

    def frame(self, number: int) -> np.ndarray:
        """Frame ``number``, ``(H, W, 3)`` uint8."""
        if not 0 <= number < self.count:
            raise self._no_frame(number)
        if self._near is None or not self._last < number <= self._last + NEAR:
            self.close()
            self._near = self.frames(number)
        for found in self._near:
            self._last = found.number
            if found.number == number:
                return found.image
            if found.number > number:
                break
        raise InputError(f"frame {number} of {self.path} cannot be decoded", "a whole video", "Check it in a player")

    def seconds(self, number: int) -> float | None:
        """When frame ``number`` is shown, by its own time stamp, after the first."""
        stamps = self._index.stamps
        if stamps is None or not 0 <= number < len(stamps):
            return super().seconds(number)
        return float((stamps[number] - stamps[0]) * self._index.tick)

    def close(self) -> None:
        """Let go of the file; it is opened again when a frame is asked for."""
        if self._near is not None:
            self._near.close()
        self._near, self._last = None, -1


class AddFrame(Protocol):
    """Adds an ``(H, W, 3)`` uint8 frame, shown ``seconds`` after the first."""

    def __call__(self, image: np.ndarray, seconds: float) -> None: ...


@contextmanager
def write_mp4(path: str | Path, fps: float, size: tuple[int, int]) -> Iterator[AddFrame]:
    """Write an MP4 of frames of ``size`` (rows, columns), as H.264 where the installed PyAV has it, else MPEG-4.

    Sides that are odd gain a row or column, which both codecs need.  The file appears whole or not at all.
    Raises InputError for a name that does not end in ``.mp4`` and without the extra ``[video]``.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise InputError(f"a video to be written at {path}", "a name in .mp4")
    av = _pyav(path)
    height, width = size
    grown = ((0, height % 2), (0, width % 2), (0, 0))
    name, options = next(((n, o) for n, o in CODECS if n in av.codecs_available), CODECS[-1])
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream(name, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS if name == "libx264" else 60_000)
        last = -1

        def add(image: np.ndarray, seconds: float) -> None:
            nonlocal last
            frame = av.VideoFrame.from_ndarray(np.pad(image, grown, mode="edge"), format="rgb24")
            frame.time_base = stream.codec_context.time_base
            last = frame.pts = max(last + 1, round(seconds / frame.time_base))
            container.mux(stream.encode(frame))

        yield add
        container.mux(stream.encode(None))
