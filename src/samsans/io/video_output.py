"""What is written of a segmented video: a label map a frame, a table of its frames, and the video with its objects.

``OUT/VIDEO/FRAME.png`` under the frames' own names, ``OUT/VIDEO.csv`` and ``OUT/VIDEO.mp4``.  Every file appears whole
or not at all; a half-done video is gone on with.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from types import TracebackType

import numpy as np

from samsans.errors import InputError
from samsans.io.atomic import atomic_path
from samsans.io.overlay import overlay
from samsans.io.read import read_labels
from samsans.io.video import Video
from samsans.io.video_file import write_mp4
from samsans.io.write import write_labels
from samsans.types import ClassInfo

FIXED = ("frame", "file", "time_s")
FPS = 25.0  # of overlay videos where nobody says how fast the frames follow each other


def columns(classes: Sequence[ClassInfo]) -> list[str]:
    """Of the table: frame number, label map, seconds; of every object its area in pixels, whether it is there (1 or 0)
    and the quality that the model predicts for it (empty where it predicts none)."""
    return [*FIXED, *(f"{c.name} {what}" for c in classes for what in ("area_px", "present", "quality"))]


class LabelFrames:
    """Writes the label maps of a video frame by frame, and their table at the end.

    out: folder of all videos.  video: its name, a path below ``out`` without suffix.  classes: the objects painted.
    done: numbers of the frames that are there.  Opened where some are, it goes on with these.

        with LabelFrames(out, "patient1/seq2", classes) as frames:
            for number, image in video:
                if number not in frames.done:
                    frames.write(number, labels, name=video.name(number), seconds=video.seconds(number))
            frames.finish()

    Raises InputError where what is there was made of other objects, and ``overwrite`` is not said.
    """

    def __init__(self, out: str | Path, video: str, classes: Sequence[ClassInfo], *, overwrite: bool = False) -> None:
        self.out, self.video, self.classes = Path(out), video, tuple(classes)
        self.table = self.out / f"{video}.csv"
        self._partial = self.table.with_name(f".{self.table.name}.part")
        self._columns = columns(classes)
        self._rows: dict[int, list[str]] = {}
        if overwrite:
            self._partial.unlink(missing_ok=True)
            self.table.unlink(missing_ok=True)
        for path in (self.table, self._partial):
            self._rows |= self._read(path)
        self._rows = {n: row for n, row in self._rows.items() if (self.out / row[1]).is_file()}
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self._partial) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([self._columns, *self._rows.values()])
        self._file = open(self._partial, "a", encoding="utf-8", newline="")  # noqa: SIM115 - closed by close
        self._writer = csv.writer(self._file, lineterminator="\n")

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the frames whose label map and row are there."""
        return frozenset(self._rows)

    def file(self, name: str) -> str:
        """Where the label map of the frame called ``name`` goes, below ``out``."""
        return f"{self.video}/{name}.png"

    def write(
        self,
        number: int,
        labels: np.ndarray,
        *,
        name: str | None = None,
        seconds: float | None = None,
        quality: Sequence[float] | None = None,
        areas: Sequence[int] | None = None,
    ) -> Path:
        """Write the label map ``(H, W)`` of frame ``number``; returns its path.

        name: the frame's own, see ``Video.name``; six figures by default.  quality: of each object, as the model
        predicts it; NaN where it does not.  areas: of each object in pixels, where objects overlap and the label map
        cannot tell; counted in it by default.
        """
        counts = np.bincount(labels.reshape(-1), minlength=max((c.label for c in self.classes), default=0) + 1)
        sizes = [int(counts[c.label]) for c in self.classes] if areas is None else [int(a) for a in areas]
        scores = [float("nan")] * len(sizes) if quality is None else [float(q) for q in quality]
        file = self.file(f"{number:06d}" if name is None else name)
        row = [str(number), file, "" if seconds is None else f"{seconds:.4f}"]
        for area, score in zip(sizes, scores, strict=True):
            row += [str(area), str(int(area > 0)), "" if np.isnan(score) else f"{score:.4f}"]
        path = write_labels(self.out / file, labels[None])
        self._writer.writerow(row)  # after its label map: what has a row has one
        self._file.flush()
        self._rows[number] = row
        return path

    def finish(self) -> Path:
        """Write the table, in order of the frames; returns its path."""
        with atomic_path(self.table) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            rows = [self._rows[number] for number in sorted(self._rows)]
            csv.writer(file, lineterminator="\n").writerows([self._columns, *rows])
        self.close()
        self._partial.unlink(missing_ok=True)
        return self.table

    def close(self) -> None:
        """Let go of the unfinished table; it stays, to be gone on with."""
        self._file.close()

    def __enter__(self) -> LabelFrames:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _read(self, path: Path) -> dict[int, list[str]]:
        """Rows of a table by frame number; a last one that was cut off by the end of a process is left out."""
        if not path.is_file():
            return {}
        text = path.read_text(encoding="utf-8")
        rows = list(csv.reader(StringIO(text[: text.rfind("\n") + 1])))
        if rows and rows[0] != self._columns:
            raise InputError(
                f"{path} has the columns {', '.join(rows[0][:7])} ...",
                f"those of the objects {', '.join(c.name for c in self.classes)}, or no such file",
                "Choose another folder, or overwrite",
            )
        return {int(row[0]): row for row in rows[1:] if len(row) == len(self._columns) and row[0].isdigit()}


def write_overlay(
    video: Video,
    labels: str | Path | Mapping[int, Path],
    path: str | Path,
    classes: Sequence[ClassInfo] = (),
    *,
    fps: float | None = None,
) -> Path:
    """Write the video with its objects as MP4 at ``path``, frames at their own times: gaps stand still.

    labels: label maps by frame number, or the folder where they lie under ``Video.name``; a frame without one is shown
    as it is.  classes: whose names are written.  fps: where the video does not say how fast it is; 25 by default.
    Nothing is there before all is written.

    Raises InputError as ``write_mp4``, and where no frame has a label map or one is of another size.
    """
    if isinstance(labels, Mapping):
        files = dict(labels)
    else:
        there = {n: Path(labels) / f"{video.name(n)}.png" for n in video.numbers}
        files = {n: file for n, file in there.items() if file.is_file()}
    if not any(n in files for n in video.numbers):
        raise InputError(f"no frame of {video.path} has a label map in {labels}", "label maps named as the frames")
    rate = video.fps or fps or FPS
    first = video.numbers[0]
    start = video.seconds(first) or 0.0
    with write_mp4(path, rate, video.size) as add:
        for number, image in video:
            if number in files:
                image = overlay(image, _one(files[number], video.size), classes)
            seconds = video.seconds(number)
            add(image, (number - first) / rate if seconds is None else seconds - start)
    return Path(path)


def _one(path: Path, size: tuple[int, int]) -> np.ndarray:
    array = read_labels(path).array
    if array.shape != (1, *size):
        raise InputError(f"{os.fspath(path)} has the size {array.shape}", f"one map of {size}, as the frames")
    return array[0]
