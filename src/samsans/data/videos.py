"""Videos in a data set: files with label maps for some of their frames, and pictures that are the frames of a video."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from samsans.data.pairs import IMAGE_FOLDERS, SLICE, Found, Pair, annotator_of, natural, part_of, several
from samsans.errors import InputError
from samsans.io import IMAGE_SUFFIXES, stem, suffix
from samsans.io.files import DICOM_SUFFIXES, KNOWN_SUFFIXES, VIDEO_SUFFIXES
from samsans.io.video import frame_numbers, numbered
from samsans.types import Case, VideoCase

FOLDERS = (*IMAGE_FOLDERS, "videos", "video", "clips", "movies")
LEAST = 3  # numbered pictures that make a video of a folder (our decision)
LISTED = 6


# -- files ------------------------------------------------------------------------------------------------------------


def files_of(root: Path, suffixes: Sequence[str] = VIDEO_SUFFIXES) -> Iterator[Path]:
    """Files of these suffixes below ``root``, sorted; hidden ones are skipped."""
    for here, below, names in os.walk(root):
        below[:] = sorted(b for b in below if not b.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and suffix(name) in suffixes:
                yield Path(here) / name


def labelled_videos(root: Path) -> Found | None:
    """Videos with label maps for some of their frames: ``videos/a.mp4`` beside ``labels/a/000012.png`` (or ``masks``,
    ...; ``labels_a`` and ``labels_b`` of several annotators; also per patient), the number being the frame's, from 0.

    DICOM files of several frames count where such a folder bears their name.  ``None`` where no video has label maps.
    """
    pairs: list[Pair] = []
    videos: dict[str, Path] = {}
    annotators: set[str] = set()
    masks: set[Path] = set()
    for path in files_of(root, (*VIDEO_SUFFIXES, *DICOM_SUFFIXES)):
        id = _id(path, root)
        drawn = {folder.parent: numbered(folder) for folder in _label_folders(path, root)}
        if not drawn and suffix(path) in DICOM_SUFFIXES:
            continue
        if id in videos:
            raise InputError(f"{videos[id]} and {path} have the same name", "one video a name", "Rename one of them")
        videos[id] = path
        names = {f.relative_to(root).parts[0] for f in drawn}
        annotators |= names if len(drawn) > 1 else set()
        masks |= {file for files in drawn.values() for file in files.values()}
        pairs += annotated_frames(id, path, list(drawn.values()))
    if not pairs:
        return None
    others = sum(1 for p in files_of(root, IMAGE_SUFFIXES) if p not in masks)
    notes = (f"{others} pictures beside the videos are left out",) if others else ()
    return Found("videos with label frames", tuple(pairs), notes=(*notes, *several(annotators)), videos=videos)


def annotated_frames(id: str, path: Path, drawn: Sequence[Mapping[int, Path]]) -> list[Pair]:
    """The frames of the video ``path`` that have a label map; ``drawn``: of each annotator by frame number."""
    above = id.partition("/")[0] if "/" in id else ""
    likely = above if above and part_of(above) is None else id
    pairs = []
    for number in sorted({n for files in drawn for n in files}):
        labels = tuple(files[number] for files in drawn if number in files)
        pairs.append(Pair(f"{id}/{number:06d}", (path,), labels, None, _part(id), likely, id, number))
    return pairs


def only_videos(root: Path) -> Found | None:
    """Videos and nothing to learn from, nor any picture or volume."""
    if next(files_of(root, KNOWN_SUFFIXES), None) is not None:
        return None
    videos = {_id(path, root): path for path in files_of(root)}
    return Found("videos only", (), videos=videos) if videos else None


def in_words(root: Path) -> tuple[str, ...]:
    """The note on video files beside other images."""
    names = [path.name for path in files_of(root)]
    if not names:
        return ()
    return (f"{len(names)} video files are left out ({names[0]} ...): they have no label maps named by frame",)


def _id(path: Path, root: Path) -> str:
    parts = path.relative_to(root).parent.parts
    return "/".join([*(p for p in parts if p.lower() not in FOLDERS), stem(path)])


def _part(id: str) -> str | None:
    return part_of(id.partition("/")[0]) if "/" in id else None


def _label_folders(video: Path, root: Path) -> list[Path]:
    """The folders of a video's label maps, one an annotator, beside the folders that it lies in."""
    for base in (video.parent, *video.parent.parents):
        below = video.relative_to(base).parent.parts
        inside = Path(*below[1:] if below and below[0].lower() in FOLDERS else below, stem(video))
        beside = sorted((p for p in base.iterdir() if p.is_dir() and annotator_of(p.name) is not None), key=_natural)
        found = [p / inside for p in beside if (p / inside).is_dir()]
        if found or base == root:
            return found
    return []


def _natural(path: Path) -> list[str | int]:
    return natural(path.name)


# -- pictures -----------------------------------------------------------------------------------------------------


def frames_of(pairs: Sequence[Pair], pattern: re.Pattern[str] | None) -> list[Pair]:
    """The pairs, those that are frames with their video and number.

    With ``pattern`` its first group names the video and its second the number; InputError where it finds none, or a
    number twice.  Without, the pictures of one folder below the images are a video where there are at least three of
    them, all told apart by the numbers in their names, none of them called a slice.
    """
    found: dict[str, dict[str, int]] = {}
    if pattern is not None:
        for pair in pairs:
            hit = pattern.search(pair.id)
            if hit is not None and hit[2].isdigit():
                found.setdefault(hit[1], {})[pair.id] = int(hit[2])
        if not found:
            raise InputError(f"no image is a frame by data.video {pattern.pattern!r}", "a video and a whole number")
        for video, numbers in found.items():
            number, times = Counter(numbers.values()).most_common(1)[0]
            if times > 1:
                raise InputError(f"video {video!r} has frame {number} more than once", "one image a frame number")
    else:
        folders: dict[str, list[Pair]] = {}
        for pair in pairs:
            folders.setdefault(pair.id.rpartition("/")[0], []).append(pair)
        for folder, inside in folders.items():
            listed = _numbers(inside) if folder and part_of(folder.rpartition("/")[2]) is None else None
            if listed is not None:
                found[folder] = {pair.id: number for pair, number in zip(inside, listed, strict=True)}
    of = {id: (video, number) for video, numbers in found.items() for id, number in numbers.items()}
    return [_frame(pair, *of[pair.id], named=pattern is not None) if pair.id in of else pair for pair in pairs]


def _frame(pair: Pair, video: str, number: int, named: bool) -> Pair:
    return replace(pair, video=video, frame=number, likely=pair.likely or (video if named else None))


def _numbers(pairs: Sequence[Pair]) -> list[int] | None:
    pictures = all(len(p.images) == 1 and suffix(p.images[0]) in IMAGE_SUFFIXES for p in pairs)
    names = [p.id.rpartition("/")[2] for p in pairs]
    if len(pairs) < LEAST or not pictures or any(p.video for p in pairs) or any(SLICE.search(n) for n in names):
        return None
    return frame_numbers(names)


# -- together -----------------------------------------------------------------------------------------------------


def video_cases(cases: Sequence[Case], files: Mapping[str, Path]) -> tuple[VideoCase, ...]:
    """The videos of which ``cases`` are frames, in their order, and then ``files`` of which no frame is a case."""
    frames: dict[str, dict[int, Case]] = {}
    for case in cases:
        if case.video and case.frame is not None:
            frames.setdefault(case.video, {})[case.frame] = case
    videos = []
    for id, of in frames.items():
        first = next(iter(of.values()))
        path = files.get(id, first.images[0].parent)
        videos.append(VideoCase(id, first.patient, path, {n: of[n].id for n in sorted(of)}))
    bare = [VideoCase(id, id.partition("/")[0], path) for id, path in files.items() if id not in frames]
    return (*videos, *bare)


@dataclass(frozen=True)
class VideoCount:
    """What a report tells of a video: its frames, the numbers of the first and last, how many have a mask."""

    id: str
    frames: int
    first: int
    last: int
    annotated: int

    def text(self) -> str:
        """``patient1/seq2: 34 frames, numbers 89 to 170, 34 with a mask``."""
        missing = self.last - self.first + 1 - self.frames
        gaps = f" ({missing} between are missing)" if missing else ""
        return (
            f"{self.id}: {self.frames} frames, numbers {self.first} to {self.last}{gaps}, {self.annotated} with a mask"
        )


def video_lines(videos: Sequence[VideoCount]) -> list[str]:
    """The videos of a data set for people; nothing where there are none."""
    if not videos:
        return []
    frames, annotated = sum(v.frames for v in videos), sum(v.annotated for v in videos)
    lines = [f"{len(videos)} video{'s' if len(videos) > 1 else ''} of {frames} frames, {annotated} with a mask"]
    lines += [f"  {video.text()}" for video in videos[:LISTED]]
    return [*lines, f"  ... and {len(videos) - LISTED} more"] if len(videos) > LISTED else lines


def count_frames(video: VideoCase, numbers: Iterable[int], annotated: int) -> VideoCount:
    """The count of a video whose frames have these ``numbers``."""
    listed = list(numbers)
    return VideoCount(video.id, len(listed), min(listed), max(listed), annotated)
