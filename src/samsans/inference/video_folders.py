"""Video files and folders of frames to label maps of every frame, a table and a video with the objects; resumable."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samsans import io
from samsans.data.cases import Dataset
from samsans.data.classes import write_classes
from samsans.errors import InputError
from samsans.inference import provenance
from samsans.inference.banks import Supports
from samsans.inference.choosing import Choose
from samsans.inference.folders import Item, open_manifest
from samsans.inference.following import shows
from samsans.inference.manifest import Manifest, Record, hash_files, hash_values
from samsans.inference.video import FrameResult, VideoSegmenter, require_frames
from samsans.io.video import Video, by_number, is_video, numbered, open_video
from samsans.io.video_output import LabelFrames, write_overlay
from samsans.types import Case, Progress, VideoCase

if TYPE_CHECKING:
    from samsans.inference.segmenter import Segmenter


@dataclass(frozen=True)
class Source:
    """A video to segment.

    id: what it is called, a path below the output without suffix.  files: what it is made of.  open: gives its frames.
    labels: by number, ascending, what reads the true label map ``(H, W)`` of each annotated frame.
    """

    id: str
    files: tuple[Path, ...]
    open: Callable[[], Video] = field(compare=False)
    labels: Mapping[int, Callable[[], np.ndarray]] = field(default_factory=dict, compare=False)

    @property
    def shown(self) -> str:
        """The file, or the folder of the frames."""
        return str(self.files[0] if len(self.files) == 1 else self.files[0].parent)


def source_of(path: str | Path, id: str | None = None) -> Source:
    """A video file, DICOM of several frames or folder of numbered pictures, called by its stem unless ``id`` is."""
    path = Path(path)
    return Source(id or io.stem(path.resolve() if path.name in ("", "..") else path), (path,), lambda: open_video(path))


def sources_of(dataset: Dataset) -> list[Source]:
    """The videos of a data set, or of the part of it whose cases are left."""
    cases = {case.id: case for case in dataset.cases}
    sources = []
    for video in dataset.videos:
        frames = {number: id for number, id in video.frames.items() if id in cases}
        if video.frames and not frames:
            continue
        part = VideoCase(video.id, video.patient, video.path, frames)
        single = video.path.is_file() or not frames
        files = (video.path,) if single else tuple(cases[id].images[0] for id in frames.values())
        drawn = {n: cases[id] for n, id in sorted(frames.items()) if cases[id].labels}
        labels = {n: lambda case=case: dataset.read_labels(case).array[0] for n, case in drawn.items()}  # type: ignore[misc]
        sources.append(Source(video.id, files, lambda part=part: dataset.open_video(part), labels))  # type: ignore[misc]
    return sources


def with_labels(sources: Sequence[Source], labels: str | Path) -> list[Source]:
    """The videos with the true label maps of a folder, ``labels/VIDEO/000012.png``: the number is the frame's.

    Of one video the label maps may also lie directly in it, or be one file.  InputError where a video has none.
    """
    given, found = Path(labels), []
    for source in sources:
        own = given / source.id
        if own.is_dir():
            files = numbered(own)
        elif len(sources) == 1 and given.exists():
            files = numbered(given) if given.is_dir() else by_number([given])
        else:
            raise InputError(
                f"no label maps at {own}", f"a folder for {source.id}, of label maps named by frame number"
            )
        read = {n: lambda file=file: io.read_labels(file).array[0] for n, file in sorted(files.items())}  # type: ignore[misc]
        found.append(replace(source, labels=read))
    return found


def find_videos(
    segmenter: Segmenter, inputs: str | Path | Sequence[str | Path] | Dataset, wanted: bool | None = None
) -> list[Source]:
    """The videos among what is to be segmented; none where these are images and volumes.

    wanted: ``True``: folders of numbered pictures are videos, too.  ``False``: nothing is one.  By default video files,
    DICOM of several frames that are moments, and folders that hold nothing but video files.

    Raises InputError where videos and other images are mixed.
    """
    if wanted is False:
        return []
    if isinstance(inputs, Dataset):
        return _of_dataset(inputs, wanted)
    paths = [Path(inputs)] if isinstance(inputs, (str, Path)) else [Path(p) for p in inputs]
    if len(paths) == 1 and paths[0].is_dir():
        if wanted and any(io.suffix(p) in io.IMAGE_SUFFIXES for p in paths[0].iterdir() if p.is_file()):
            return [source_of(paths[0])]
        if not wanted and not any(is_video(p) for p in paths[0].rglob("*") if io.suffix(p) in io.VIDEO_SUFFIXES):
            return []
        return _of_dataset(segmenter.dataset(paths[0]), wanted)
    found = [p for p in paths if is_video(p) or (wanted and p.is_dir())]
    if not found and not wanted:
        return []
    if len(found) < len(paths):
        other = next(p for p in paths if p not in found)
        raise InputError(f"{other} is no video", "videos alone", "Segment images and volumes by themselves")
    return [source_of(path) for path in found]


def _of_dataset(dataset: Dataset, wanted: bool | None) -> list[Source]:
    if not wanted and dataset.cases:
        return []
    alone = [case.id for case in dataset.cases if not case.video]
    if wanted and (alone or not dataset.videos):
        what = f"{len(alone)} images that are no frames ({alone[0]} ...)" if alone else "no videos"
        raise InputError(f"{dataset.root} ({dataset.layout}) holds {what}", "videos alone", "Leave `--video` out")
    return sources_of(dataset)


def predict_video(segmenter: Segmenter, path: str | Path, out: str | Path, **options: Any) -> Manifest:
    """Segment the video at ``path`` into ``out``; see ``predict_videos``."""
    return predict_videos(segmenter, [source_of(path)], out, **options)


def predict_videos(
    segmenter: Segmenter,
    sources: Sequence[Source],
    out: str | Path,
    *,
    support: Any = None,
    task: str | None = None,
    objects: Sequence[str] | None = None,
    labels: str | Path | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    view: str | None = None,
    largest_component: bool = False,
    choose: Choose = "random",
    overlay: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Segment videos into ``out``: label maps ``VIDEO/FRAME.png`` under the frames' own names, the table ``VIDEO.csv``.

    Also writes ``classes.json``, ``manifest.json`` and ``config.yaml``; with ``overlay`` the video with its objects,
    ``VIDEO.mp4``.  However long a video is, one batch of frames is in memory.  Run again, frames that are there and
    were made from the same bytes in the same way are not segmented again; of a method that follows objects, a video of
    which some are missing is begun anew.

    Args:
        segmenter: What to segment with: a method of single images, or one that follows objects.
        sources: The videos.
        out: Folder to write.
        support: As in ``Segmenter.predict``; encoded once.
        task: As in ``Segmenter.predict``.
        objects: Names of the objects wanted; all by default.
        labels: Of methods that are shown the objects in one frame: the true label maps, see ``with_labels``; by default
            those of the data set.  The first that shows an object is taken.
        seed: Of the draws of supports, one a video; the run's by default.
        batch_size: Frames a batch.
        view: As in ``Segmenter.predict``.
        largest_component: Keep of each object its largest connected piece alone, in every frame.
        choose: As in ``Segmenter.predict``.
        overlay: Also write the video with its objects.
        overwrite: Do everything again, and replace files that were not made in this way.
        on_progress: Called after every frame.

    Returns:
        The manifest; videos that could not be read are in its ``failures``.

    Raises:
        InputError: the method cannot, two videos of one name, or ``out`` holds something else.
    """
    out = Path(out)
    if io.is_image(out) or io.suffix(out) in io.VIDEO_SUFFIXES:
        raise InputError(f"the output {out} is named like a file", "a folder, label maps are written there")
    require_frames(segmenter)
    _require_apart(sources, out)
    if labels is not None and not segmenter.method.needs.first_label:
        raise InputError(f"{segmenter.config.method} was given true masks", "no labels: it needs no prompt")
    sources = sources if labels is None else with_labels(sources, labels)
    for source in sources if segmenter.method.needs.first_label else ():
        if not source.labels:
            raise segmenter.no_truth(source.id)
    found = segmenter.supports(support, task, batch_size)
    seed = segmenter.seed(seed)
    shared = {"view": view, "largest_component": largest_component, "choose": choose}
    asked: dict[str, Any] = {"objects": objects, "seed": seed, "batch_size": batch_size, **shared}
    classes = VideoSegmenter(segmenter, found, **asked).classes
    options = {"objects": [c.name for c in classes], "seed": seed, "video": True, **shared}
    about = provenance.about(segmenter, found, options | {"batch_size": segmenter.batch_size(batch_size)})
    items = [Item(Case(s.id, s.id, s.files), f"{s.id}.csv", (f"{s.id}.mp4",) if overlay else ()) for s in sources]
    manifest = open_manifest(out, provenance.key(segmenter, found, options), about, items, overwrite)
    call = {
        "inputs": [s.shown for s in sources],
        "out": str(out),
        "support": found.source or None,
        "labels": str(labels or "") or None,
        "overlay": overlay,
    }
    io.write_text(out / "config.yaml", provenance.resolved(call | options | {"overwrite": overwrite}, segmenter))
    write_classes(out / "classes.json", classes)
    for source in sources:
        model = VideoSegmenter(segmenter, found, id=source.id, **asked)
        try:
            _predict(model, source, manifest, overlay, overwrite, found, on_progress)
        except (InputError, OSError, MemoryError) as error:
            manifest.failures[source.id] = str(error) or type(error).__name__  # its record stays, to be gone on with
        finally:
            manifest.save()
    return manifest


def _require_apart(sources: Sequence[Source], out: Path) -> None:
    """InputError where there is nothing, two videos have one name, or an output would fall on an input."""
    if not sources:
        raise InputError("no videos to segment", "video files, or folders of numbered pictures")
    named: dict[str, Source] = {}
    inputs = {path.resolve() for source in sources for path in source.files}
    folders = {path if path.is_dir() else path.parent for path in inputs}
    for source in sources:
        other = named.setdefault(source.id.casefold(), source)
        if other is not source:
            raise InputError(
                f"{other.files[0]} and {source.files[0]} are both called {source.id}",
                "one video a name",
                "Segment them into two folders",
            )
        if (out / source.id).resolve() in folders or (out / f"{source.id}.mp4").resolve() in inputs:
            raise InputError(f"the output {out / source.id} would mix with an input", "another output folder")


def _predict(
    model: VideoSegmenter,
    source: Source,
    manifest: Manifest,
    overlay: bool,
    overwrite: bool,
    found: Supports,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    """Segment the frames of one video that are not there yet."""
    sha256, beside = hash_files(source.files), (f"{source.id}.mp4",) if overlay else ()
    labels = _first_label(model, source)
    for number, label in labels.items():
        sha256 = hash_values(sha256, number, label.shape, hashlib.sha256(label.astype(np.int64).tobytes()).hexdigest())
    old = manifest.records.get(source.id)
    same = old is not None and old.sha256 == sha256 and not overwrite
    for file in old.beside if old is not None and not same else ():
        (manifest.folder / file).unlink(missing_ok=True)  # the overlay of other bytes
    seconds: dict[str, float] = {}
    used: set[str] = set()

    def record() -> None:
        order = () if found.bank is None else tuple(id for id in found.bank.ids if id in used)
        manifest.records[source.id] = Record((source.shown,), sha256, f"{source.id}.csv", order, seconds, beside)

    with (
        source.open() as video,
        LabelFrames(manifest.folder, source.id, model.classes, overwrite=not same) as frames,
    ):
        todo = [number for number in video.numbers if number not in frames.done]
        if todo and model.follows:  # what was remembered of the frames that are there is gone
            todo = list(video.numbers)
        elif same and old is not None:
            seconds, used = dict(old.seconds), set(old.supports)
        complete = same and not todo and all((manifest.folder / file).is_file() for file in beside)
        if complete and frames.table.is_file():
            frames.finish()
            manifest.skipped = (*manifest.skipped, source.id)
            return
        record()  # what is half done can be told from what was made of other bytes
        manifest.save()
        done = video.count - len(todo)
        for number, result in _results(model, video, todo, labels):
            start = time.perf_counter()
            frames.write(
                number,
                result.labels,
                name=video.name(number),
                seconds=video.seconds(number),
                quality=result.quality,
                areas=result.areas,
            )
            for part, value in (*result.seconds.items(), ("write", time.perf_counter() - start)):
                seconds[part] = seconds.get(part, 0.0) + value
            used.update(result.supports)
            done += 1
            if on_progress is not None:
                on_progress(Progress(done, video.count, source.id))
        frames.finish()
        if overlay:
            write_overlay(video, manifest.folder / source.id, manifest.folder / f"{source.id}.mp4", model.classes)
        record()


def _first_label(model: VideoSegmenter, source: Source) -> dict[int, np.ndarray]:
    """By its number the label map of the first frame that shows a wanted object, of methods that need one; else empty.

    InputError where there is none.
    """
    if not model.segmenter.method.needs.first_label:
        return {}
    for number, read in source.labels.items():
        label = read()
        if shows(label, model.classes, model.segmenter.preprocess):
            return {number: label}
    raise model.segmenter.no_truth(source.id)


def _results(
    model: VideoSegmenter, video: Video, todo: Sequence[int], labels: Mapping[int, np.ndarray]
) -> Iterator[tuple[int, FrameResult]]:
    """Number and result of the frames ``todo``, ascending; ``labels`` by number."""
    strange = [number for number in labels if number not in video.numbers]
    if strange:
        raise InputError(f"labels of frame {strange[0]} of {video.path}", "the number of one of its frames")
    wanted, numbers = set(todo), deque[int]()

    def images() -> Iterator[np.ndarray]:
        for number, image in video.frames(todo[0]) if todo else ():
            if number in wanted:
                numbers.append(number)
                yield image

    placed = {place: labels[number] for place, number in enumerate(todo) if number in labels}
    for result in model.run(images(), placed):
        yield numbers.popleft(), result
