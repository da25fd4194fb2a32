"""The cases of a data set: which files are an image, its masks and its patient.  Paths only, until one is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from samsans import io
from samsans.config import DataConfig
from samsans.data import classes as objects
from samsans.data import layouts
from samsans.data.pairs import Found, Pair, part_of
from samsans.data.point_files import with_points
from samsans.data.videos import frames_of, video_cases
from samsans.errors import InputError
from samsans.io import points as points_io
from samsans.io.geometry import affine_of_spacing
from samsans.io.video import FrameFiles, Video, open_video
from samsans.types import Case, ClassInfo, Points, VideoCase, Volume

SCANNED = 64  # label files read to infer the objects
UNLABELLED = "no masks: the cases can be segmented, not learned from"
SHIFT = 0.5  # largest distance between the grids of an image and its mask, in voxels


def slice_name(case: str, number: int) -> str:
    """``case#012``: a slice of a volume, numbered from 0 as it is cut (see ``DataConfig.slice_axis``)."""
    return f"{case}#{number:03d}"


def case_of_slice(name: str, cases: Container[str]) -> str:
    """The case id in a slice's name, which is the case id itself of a picture."""
    return name if name in cases else name.rpartition("#")[0]


@dataclass(frozen=True)
class Dataset:
    """What was understood of a data set.

    root: folder or file it was found at.  layout: its kind, in words.  notes: what was concluded, for people.
    parts: ``train``, ``val`` or ``test`` by case id, where the data set itself says so.
    orphans: mask files that belong to no image.  spacing: ``(z, y, x)`` mm of files that state none.
    videos: what the cases that are frames are frames of, and videos without such cases.
    """

    root: Path
    layout: str
    cases: tuple[Case, ...]
    classes: tuple[ClassInfo, ...] = ()
    notes: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    orphans: tuple[Path, ...] = ()
    spacing: tuple[float, float, float] | None = None
    videos: tuple[VideoCase, ...] = ()

    def by_id(self, id: str) -> Case:
        """The case called ``id``; InputError where there is none."""
        for case in self.cases:
            if case.id == id:
                return case
        near = ", ".join(c.id for c in self.cases[:3])
        raise InputError(f"no case {id!r} in {self.root}", f"an id such as {near}")

    @property
    def labelled(self) -> tuple[Case, ...]:
        """The cases that have a mask."""
        return tuple(c for c in self.cases if c.labels)

    def read_image(self, case: Case) -> Volume:
        """Image ``(D, H, W, C)``: the channels joined, or the stack of slices.

        Raises InputError where a file is unreadable or its shape differs from the others of the case.
        """
        volumes = [_frame_of(case) if _in_video(case) else io.read_image(path) for path in case.images]
        array = _join([v.array for v in volumes], case.images, axis=0 if case.stacked else 3)
        affine = volumes[0].affine
        if affine is None and self.spacing is not None:
            affine = affine_of_spacing(self.spacing)
        header = volumes[0].header if len(volumes) == 1 else None
        return Volume(array, affine, case.images[0], header)

    def open_video(self, video: VideoCase) -> Video:
        """The frames of a video, one after the other, never all in memory."""
        if video.path.is_file() or not video.frames:
            return open_video(video.path)
        return FrameFiles({number: self.by_id(id).images[0] for number, id in video.frames.items()}, video.path)

    def read_labels(self, case: Case, annotator: int = 0) -> Volume:
        """Label map ``(D, H, W)`` of one ``annotator``: the values that stand in the file, or 0 and 1 where
        ``data.threshold`` or ``data.annotators`` says how its one object is read."""
        if not case.labels:
            raise InputError(f"{case.id} has no mask", "a labelled case")
        stored = self._stored(case.labels[annotator], case.threshold is not None)
        return replace(stored, array=objects.read_as(stored.array, case, annotator))

    def read_points(self, case: Case, volume: Volume, person: int = 0) -> Points:
        """The point prompts of one ``person`` (of ``case.points``) on the grid of ``volume``, the image of ``case``.

        None where the case has no points.  Those outside the image are left out (``placed_points`` tells of them).
        Raises InputError that names the file where one cannot be used, or where there is no such person.
        """
        if not case.points and person == 0:
            return points_io.join([])
        return self.placed_points(case, volume, person)[0]

    def placed_points(self, case: Case, volume: Volume, person: int = 0) -> tuple[Points, tuple[str, ...]]:
        """``read_points``, and notes for people on points that were left out."""
        if not 0 <= person < len(case.points):
            raise InputError(f"{case.id} has points of {len(case.points)} people, not of number {person + 1}")
        files = case.points[person]
        if not files.slices:
            return points_io.read_points(files.paths[0], volume, files.member)
        parts: list[Points] = []
        notes: list[str] = []
        for path, index in zip(files.paths, files.slices, strict=True):
            points, found = points_io.read_points(path, io.read_image(case.images[index]), files.member)
            parts.append(replace(points, positions=points.positions + np.array([index, 0.0, 0.0])))
            notes += found
        return points_io.join(parts), tuple(notes)

    def read_annotations(self, case: Case) -> tuple[Volume, ...]:
        """The label maps of all annotators of a case, in their order; empty where it has no mask.  A file that holds
        several of them is read once."""
        stored = {files: self._stored(files, case.threshold is not None) for files in dict.fromkeys(case.labels)}
        volumes = [stored[files] for files in case.labels]
        return tuple(replace(v, array=objects.read_as(v.array, case, a)) for a, v in enumerate(volumes))

    def _stored(self, files: Sequence[Path], fractions: bool) -> Volume:
        """The values that stand in the files of one label map ``(D, H, W)``; ``fractions``: need not be whole."""
        volumes = [io.read_labels(path, fractions=fractions) for path in files]
        affine = volumes[0].affine
        if affine is None and self.spacing is not None:
            affine = affine_of_spacing(self.spacing)
        return Volume(_join([v.array for v in volumes], files, axis=0), affine, files[0])


def _in_video(case: Case) -> bool:
    """Whether the image of the case is a frame inside a file."""
    return case.frame is not None and io.suffix(case.images[0]) not in io.IMAGE_SUFFIXES


def _frame_of(case: Case) -> Volume:
    assert case.frame is not None
    with open_video(case.images[0]) as video:
        return Volume(video.frame(case.frame)[None], path=case.images[0])


def _join(arrays: Sequence[np.ndarray], paths: Sequence[Path], axis: int) -> np.ndarray:
    if len(arrays) == 1:
        return arrays[0]

    def others(array: np.ndarray) -> tuple[int, ...]:
        return tuple(n for i, n in enumerate(array.shape) if i != axis)

    for array, path in zip(arrays, paths, strict=True):
        if others(array) != others(arrays[0]):
            raise InputError(
                f"{path} has the shape {array.shape}, {paths[0]} has {arrays[0].shape}",
                "the same size in all files of a case",
                "Check data.volume, or the channels of this case",
            )
    return np.concatenate(arrays, axis)


def grid_shift(image: Volume, labels: Volume) -> float:
    """Largest distance between the corners of two grids of one shape, in voxels; 0 where one states no geometry."""
    if image.affine is None or labels.affine is None:
        return 0.0
    d, h, w = (n - 1 for n in image.shape)
    corners = np.array([[x, y, z, 1] for x in (0, w) for y in (0, h) for z in (0, d)], float)
    voxels = corners @ np.linalg.solve(image.affine, labels.affine).T
    return float(np.abs(voxels - corners).max())


def require_same_grid(case: Case, image: Volume, labels: Volume) -> None:
    """InputError where the mask of ``case`` is not on the grid of its image."""
    where = f"{case.labels[0][0]} (mask of {case.images[0]})"
    if image.shape != labels.shape:
        raise InputError(
            f"{where} has the size {labels.shape}, the image {image.shape} (slices, rows, columns)",
            "a mask of the size of its image",
            "Resample the mask with nearest neighbours, or mend the pairing (data.labels)",
        )
    shift = grid_shift(image, labels)
    if shift > SHIFT:
        raise InputError(
            f"{where} lies {shift:.1f} voxels away from its image by the geometry in the headers",
            "the same origin, spacing and directions",
            "Resample the mask on the image's grid, or copy the header if the arrays do fit",
        )


def find_cases(config: DataConfig, *, infer: bool = True) -> Dataset:
    """Recognise the layout of ``config.path``, pair images with masks, name patients and objects.

    Where neither ``config.classes``, ``dataset.json`` nor ``classes.json`` names the objects, they are inferred from
    the values of at most 64 evenly chosen cases; ``infer=False`` leaves them out then and decodes nothing.

    Raises InputError where nothing usable is found, or a mask that was looked into is damaged.
    """
    if not config.path:
        raise InputError("no data set is given", "a folder, a CSV file or an image", "Set data.path")
    root = Path(config.path).expanduser()
    found = layouts.recognise(root, config.images, config.labels)
    cases, parts, notes = _cases(found, config)
    _require_unique(cases)
    cases, more = with_points(cases, root, config.points, config.images)
    spacing = None
    if config.spacing is not None:
        affine_of_spacing(config.spacing)  # three positive lengths, or an error
        z, y, x = config.spacing
        spacing = (z, y, x)
    notes = [*found.notes, *notes, *more]
    videos = video_cases(cases, found.videos)
    dataset = Dataset(root, found.layout, cases, (), tuple(notes), parts, found.orphans, spacing, videos)
    if reading := _one_object_by(config):
        return replace(dataset, classes=objects.one_object(config.classes, reading))
    names = config.classes or found.names
    beside = (root if root.is_dir() else root.parent) / objects.FILE
    if names:
        classes, note = objects.named_classes(names), ""
    elif beside.is_file():
        classes, note = objects.read_classes(beside), f"objects named by {beside.name}"
    elif not infer:
        return dataset
    elif dataset.labelled:
        classes, note = objects.infer_classes(label_values(dataset))
    else:
        classes, note = (), UNLABELLED
    return replace(dataset, classes=classes, notes=(*notes, note) if note else tuple(notes))


def _one_object_by(config: DataConfig) -> str:
    """The setting that makes one object of all masks; empty where none does."""
    if config.annotators is None:
        return "" if config.threshold is None else "data.threshold"
    if config.threshold is not None:
        raise InputError("data.threshold beside data.annotators", "one of them")
    objects.named_classes(config.annotators)  # at least one value each, or an error
    return "data.annotators" if config.annotators else ""


def label_values(dataset: Dataset, at_most: int = SCANNED) -> set[int]:
    """Values seen in the masks of ``at_most`` evenly chosen labelled cases."""
    cases = evenly(dataset.labelled, at_most)
    return {v for case in cases for v in objects.value_counts(dataset.read_labels(case).array)}


def evenly(cases: Sequence[Case], at_most: int = SCANNED) -> list[Case]:
    """At most so many of the cases, evenly spread over their order."""
    return [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, min(at_most, len(cases))).round().astype(int))]


def _cases(found: Found, config: DataConfig) -> tuple[tuple[Case, ...], dict[str, str], list[str]]:
    """Cases with their patients, stacked where ``config.volume`` says so; their declared parts; notes for people."""
    notes: list[str] = []
    pattern = _regex("data.patient", config.patient)
    places: dict[str, tuple[float, ...]] = {}
    if config.volume is not None:
        if config.video is not None:
            raise InputError("data.video beside data.volume", "one of them: frames one by one, or stacks of slices")
        pairs, places, note = _stack(found.pairs, _regex("data.volume", config.volume, groups=2))
        notes += [note] if note else []
    else:
        pairs = [(pair, False) for pair in frames_of(found.pairs, _regex("data.video", config.video, groups=2))]
    answers = tuple(tuple(sorted(values)) for values in (config.annotators or {}).values())
    if config.threshold is not None:
        notes.append(f"mask values above {config.threshold:g} are the object (data.threshold)")
    if config.annotators:
        named = ", ".join(f"{name} {sorted(values)}" for name, values in config.annotators.items())
        notes.append(f"{len(answers)} annotators of one mask by its values: {named}")
    cases = []
    guessed = set()
    for pair, stacked in pairs:
        patient = pair.patient
        if patient is None and pattern is not None:
            hit = pattern.search(pair.id)
            if hit is None:
                raise InputError(
                    f"the patient of {pair.id!r} is not found by {config.patient!r}", "a match in every case id"
                )
            patient = hit[1] if pattern.groups else hit[0]
        patient = patient or pair.likely
        if patient is None:
            *above, _ = pair.id.split("/")
            above = [a for a in above if part_of(a) is None]
            guessed.add("folders" if above else "none")
            patient = above[0] if above else pair.id
        if stacked:
            slices = len(pair.images)
            raters = tuple(pair.labels[i : i + slices] for i in range(0, len(pair.labels), slices))
        else:
            raters = tuple((p,) for p in pair.labels)
        if answers and len(raters) > 1:
            raise InputError(
                f"{pair.id} has {len(raters)} masks, and data.annotators reads several annotators out of each",
                "one mask an image",
                "Leave out data.annotators, or name one mask each with data.labels",
            )
        raters *= max(len(answers), 1)
        case = Case(pair.id, patient, pair.images, raters, stacked, config.threshold, answers)
        cases.append(replace(case, positions=places.get(pair.id, ()), video=pair.video, frame=pair.frame))
    if "folders" in guessed:
        notes.append("the first folder of each case is taken as its patient; data.patient says otherwise")
    if "none" in guessed and config.volume is None:
        notes.append("no patient is known: each image counts as a patient of its own; data.patient names them")
    parts = {pair.id: pair.part for pair, _ in pairs if pair.part is not None}
    return tuple(cases), parts, notes


def _stack(
    pairs: Sequence[Pair], pattern: re.Pattern[str] | None
) -> tuple[list[tuple[Pair, bool]], dict[str, tuple[float, ...]], str]:
    """Files that share the first group of ``pattern`` as one volume, in order of the number in its second group; these
    numbers by volume; a note.

    Further groups divide what the first one names, e.g. the frames of a heart by their phase.
    """
    assert pattern is not None
    volumes: dict[str, list[tuple[int, Pair]]] = {}
    whole: dict[str, str] = {}
    for pair in pairs:
        hit = pattern.search(pair.id)
        if hit is None or not hit[2].isdigit():
            raise InputError(
                f"{pair.id!r} has no volume and slice number by {pattern.pattern!r}",
                "data.volume with two groups, the second a whole number, that match every image",
            )
        name = "-".join((hit[1], *hit.groups()[2:]))
        whole[name] = hit[1]
        volumes.setdefault(name, []).append((int(hit[2]), pair))
    out, partly = [], []
    places = {}
    for name, numbered in volumes.items():
        numbered.sort(key=lambda item: item[0])
        repeated = [n for n, count in Counter(n for n, _ in numbered).items() if count > 1]
        if repeated:
            raise InputError(f"volume {name!r} has slice {repeated[0]} more than once", "one file a slice number")
        ordered = [pair for _, pair in numbered]
        places[name] = tuple(float(number) for number, _ in numbered)
        raters = min(len(p.labels) for p in ordered)
        if raters == 0 and any(p.labels for p in ordered):
            partly.append(name)
        images = tuple(p.images[0] for p in ordered)
        labels = tuple(p.labels[r] for r in range(raters) for p in ordered)
        patient = _shared(name, "patients", {p.patient for p in ordered if p.patient is not None})
        habit = {p.likely for p in ordered}
        likely = whole[name] if pattern.groups > 2 else habit.pop() if len(habit) == 1 else None
        part = _shared(name, "parts of the split", {p.part for p in ordered if p.part is not None})
        out.append((Pair(name, images, labels, patient, part, likely), True))
    note = f"{len(partly)} stacks have masks on some slices only and count as unlabelled: {', '.join(partly[:5])}"
    return out, places, note if partly else ""


def _shared(volume: str, what: str, found: set[str]) -> str | None:
    if len(found) > 1:
        raise InputError(f"the slices of volume {volume!r} belong to several {what}: {', '.join(sorted(found))}", "one")
    return next(iter(found), None)


def _regex(key: str, pattern: str | None, groups: int = 0) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{key} {pattern!r} is no regular expression ({error})") from error
    if compiled.groups < groups:
        raise InputError(f"{key} {pattern!r} has {compiled.groups} groups", f"{groups} groups")
    return compiled


def _require_unique(cases: Sequence[Case]) -> None:
    seen: dict[str, Case] = {}
    for case in cases:
        other = seen.setdefault(case.id, case)
        if other is not case:
            raise InputError(
                f"{other.images[0]} and {case.images[0]} are both called {case.id!r}",
                "one id an image",
                "Rename one, or name the images with data.images",
            )
