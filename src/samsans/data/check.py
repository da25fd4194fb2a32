"""Look through a data set before training: what was understood, and what is wrong in which file."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from samsans.config import DataConfig
from samsans.data.agreement import Agreement, Joint, agree, joint_counts
from samsans.data.cases import UNLABELLED, Dataset, evenly, find_cases, grid_shift, require_same_grid
from samsans.data.classes import infer_classes, value_counts
from samsans.data.pairs import looks_paired
from samsans.data.point_counts import Placed, PointCount, place, tally, troubles
from samsans.data.videos import VideoCount, count_frames, video_lines
from samsans.errors import InputError
from samsans.types import Case, ClassInfo, Progress, VideoCase, Volume

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
SAMPLE = 1 << 16  # pixels of an image looked at for its range
RANGES_APART = 100.0  # intensities of two cases that differ by more than this are worth a note
SHIFT_NOTED = 0.05  # voxels between the grids of image and mask that are worth a warning
LISTED = 5  # files of one kind of problem that the text lists


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.  kind: the same for all files with the same trouble.  todo: how to mend it."""

    severity: Severity
    kind: str
    file: str
    found: str
    todo: str = ""


@dataclass(frozen=True)
class ClassCount:
    """One object over all cases.  share: of all labelled pixels."""

    name: str
    values: tuple[int, ...]
    cases: int
    pixels: int
    share: float


@dataclass(frozen=True)
class CheckReport:
    """What was understood of a data set and what is wrong with it.

    sizes, spacings: how many cases have which size (slices x rows x columns) and voxel size (z x y x).
    agreement: of several annotators; None where no case has several.  points: prompts of each person, on and off the
    target.  videos: how many frames each has.
    """

    path: str
    layout: str
    cases: int
    labelled: int
    patients: int
    sizes: dict[str, int]
    spacings: dict[str, int]
    classes: tuple[ClassCount, ...]
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]
    agreement: Agreement | None = None
    points: tuple[PointCount, ...] = ()
    videos: tuple[VideoCount, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is no error (warnings and notes may be there)."""
        return not any(p.severity == "error" for p in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values, with ``ok``."""
        return asdict(self) | {"ok": self.ok}

    def text(self) -> str:
        """The report for people, as plain text."""
        lines = [
            f"{self.path}: {self.layout}",
            f"{self.cases} cases of {self.patients} patients, {self.labelled} with a mask",
            f"size: {_most_common(self.sizes)}",
            f"voxel size: {_most_common(self.spacings)}",
            *video_lines(self.videos),
        ]
        first = " by the first annotator" if self.agreement is not None else ""
        for c in self.classes:
            values = f"{c.values[0]}-{c.values[-1]}" if len(c.values) > 4 else ", ".join(map(str, c.values))
            where = f"in {c.cases} of {self.labelled} cases{first}"
            lines.append(f"object {c.name} (value {values}): {where}, {c.share:.2%} of the pixels")
        lines += self.agreement.lines() if self.agreement is not None else []
        lines += [count.text() for count in self.points]
        lines += [f"({note})" for note in self.notes]
        for severity in SEVERITIES:
            kinds = dict.fromkeys(p.kind for p in self.problems if p.severity == severity)
            for kind in kinds:
                found = [p for p in self.problems if p.severity == severity and p.kind == kind]
                lines.append(f"{severity.upper()}: {kind}" + (f" ({len(found)})" if len(found) > 1 else ""))
                lines += [f"  {p.found}" if p.file in p.found else f"  {p.file}: {p.found}" for p in found[:LISTED]]
                lines += [f"  ... and {len(found) - LISTED} more"] if len(found) > LISTED else []
                lines += [f"  -> {todo}" for todo in dict.fromkeys(p.todo for p in found if p.todo)][:LISTED]
        counted = Counter(p.severity for p in self.problems)
        named = [f"{counted[s]} {s}{'s' if counted[s] > 1 else ''}" for s in SEVERITIES if counted[s]]
        verdict = ", ".join(named) or "nothing wrong found"
        return "\n".join([*lines, f"{'OK' if self.ok else 'NOT OK'}: {verdict}"]) + "\n"


@dataclass(frozen=True)
class _Facts:
    """What one look at a case told.  pixels: count by mask value of the first annotator, ``None`` where no mask could
    be read.  joints: of every pair of annotators, where all masks could be read."""

    case: Case
    shape: tuple[int, ...] | None = None
    spacing: tuple[float, float, float] | None = None
    unit: str = ""
    range: tuple[float, float] | None = None
    digest: str = ""
    pixels: dict[int, int] | None = None
    joints: tuple[Joint, ...] = ()
    points: tuple[Placed, ...] = ()
    problems: tuple[Problem, ...] = ()


def check(config: DataConfig, *, on_progress: Callable[[Progress], None] | None = None) -> CheckReport:
    """Decode every file of a data set once and report what was understood and what is wrong.

    Raises InputError where no data set is found at all; everything later is a ``Problem`` of the report.
    """
    dataset = find_cases(config, infer=False)
    facts: list[_Facts] = []
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for done, looked in enumerate(pool.map(lambda case: _look(dataset, case, config), dataset.cases), 1):
            facts.append(looked)
            if on_progress is not None:
                on_progress(Progress(done, len(dataset.cases), looked.case.id))
    notes = list(dataset.notes)
    problems = [p for f in facts for p in f.problems]
    classes = dataset.classes
    drawn = [f for f in facts if f.pixels is not None]
    if not classes and drawn:
        classes, note = infer_classes(_values(drawn))
        notes.append(note)
        problems += _rare_values(dataset, drawn, classes)
    if not dataset.labelled:
        notes.append(UNLABELLED)
    videos = [_watch(dataset, video) for video in dataset.videos]
    problems += [found for found in videos if isinstance(found, Problem)]
    problems += [
        *_pairs(dataset),
        *_masks(drawn, classes),
        *_duplicates(facts),
        *_ranges(facts, config),
        *(Problem(*told) for f in facts for told in troubles(f.points)),
    ]
    problems.sort(key=lambda p: SEVERITIES.index(p.severity))
    sizes = Counter(_size(f.shape) for f in facts if f.shape)
    spacings = Counter(_spacing(f) for f in facts if f.spacing)
    return CheckReport(
        path=str(dataset.root),
        layout=dataset.layout,
        cases=len(dataset.cases),
        labelled=len(dataset.labelled),
        patients=len({c.patient for c in dataset.cases}),
        sizes=dict(sizes.most_common()),
        spacings=dict(spacings.most_common()),
        classes=_count(drawn, classes),
        notes=tuple(notes),
        problems=tuple(problems),
        agreement=agree((len(c.labels) for c in dataset.cases), [f.joints for f in facts if f.joints], classes),
        points=tally((p for f in facts for p in f.points), classes),
        videos=tuple(found for found in videos if isinstance(found, VideoCount)),
    )


def _watch(dataset: Dataset, video: VideoCase) -> VideoCount | Problem:
    """The count of a video's frames; of a file without cases the first one is decoded."""
    annotated = sum(1 for case in dataset.labelled if case.video == video.id)
    try:
        if not video.path.is_file():
            return count_frames(video, video.frames, annotated)
        with dataset.open_video(video) as opened:
            return count_frames(video, opened.numbers, annotated)
    except InputError as error:
        return Problem("error", "a video cannot be used", str(video.path), str(error))


def _look(dataset: Dataset, case: Case, config: DataConfig) -> _Facts:
    """Decode one case: its image, and the masks of all annotators."""
    file = str(case.images[0])
    facts = _Facts(case)
    problems: list[Problem] = []
    image: Volume | None = None
    try:
        image = dataset.read_image(case)
    except InputError as error:
        problems.append(Problem("error", "an image cannot be used", file, str(error)))
    if image is not None:
        facts = replace(facts, **_image_facts(image))
        channels = image.array.shape[3]
        if config.channels == "auto" and channels not in (1, 3):
            found = f"{channels} channels"
            problems.append(
                Problem("error", "neither grey nor three channels", file, found, "Pick three with data.channels")
            )
        if facts.range is not None and facts.range[0] == facts.range[1]:
            problems.append(Problem("warning", "an image is the same everywhere", file, f"only {facts.range[0]:g}"))
    drawn: list[np.ndarray] = []
    for annotator, files in enumerate(case.labels):
        mask = str(files[0])
        try:
            labels = dataset.read_labels(case, annotator)
        except InputError as error:
            problems.append(Problem("error", "a mask cannot be used", mask, str(error)))
            continue
        if image is not None:
            problems += _grid(replace(case, labels=(files,)), image, labels)
        drawn.append(labels.array)
        if annotator == 0:
            facts = replace(facts, pixels=value_counts(labels.array))
    if len(drawn) == len(case.labels) and len({array.shape for array in drawn}) == 1:
        facts = replace(facts, joints=joint_counts(drawn))
    facts = replace(facts, points=place(dataset, case, image, drawn[0] if facts.pixels is not None else None))
    return replace(facts, problems=tuple(problems))


def _image_facts(image: Volume) -> dict[str, Any]:
    array = np.ascontiguousarray(image.array)
    flat = array.reshape(-1)
    low, high = np.percentile(flat[:: max(1, flat.size // SAMPLE)], (1, 99)) if flat.size else (0.0, 0.0)
    if low == high and flat.size:  # a small bright object on black: look at all of it
        low, high = flat.min(), flat.max()
    digest = hashlib.sha256(f"{array.shape} {array.dtype.name}".encode() + array.tobytes()).hexdigest()
    return {
        "shape": array.shape,
        "spacing": image.spacing,
        "unit": image.unit,
        "range": (float(low), float(high)),
        "digest": digest,
    }


def _grid(case: Case, image: Volume, labels: Volume) -> list[Problem]:
    file = str(case.labels[0][0])
    try:
        require_same_grid(case, image, labels)
    except InputError as error:
        return [Problem("error", "a mask is not on the grid of its image", file, str(error))]
    shift = grid_shift(image, labels)
    if shift > SHIFT_NOTED:
        todo = "Copy the image's header into the mask if the arrays fit"
        return [Problem("warning", "a mask lies slightly beside its image", file, f"{shift:.2f} voxels", todo)]
    return []


def _pairs(dataset: Dataset) -> list[Problem]:
    """Images without a mask, where the others have one, and masks without an image."""
    if not dataset.labelled and not dataset.orphans:
        todo = looks_paired({c.id: c.images[0] for c in dataset.cases})
        found = "the names of some files look like those of masks"
        return [Problem("warning", "no image has a mask", "", found, todo)] if todo else []
    bare = [c for c in dataset.cases if not c.labels and dataset.parts.get(c.id) != "test"]
    todo = "Draw the mask, or mend its name; until then the image is not learned from"
    return [
        *(Problem("warning", "an image has no mask", str(c.images[0]), "no mask of that name", todo) for c in bare),
        *(
            Problem("warning", "a mask has no image", str(p), "no image of that name", "Mend its name or remove it")
            for p in dataset.orphans
        ),
    ]


def _values(facts: Iterable[_Facts]) -> set[int]:
    return {v for f in facts for v in f.pixels or ()}


def _rare_values(dataset: Dataset, drawn: Sequence[_Facts], classes: Sequence[ClassInfo]) -> list[Problem]:
    """Objects are inferred from a sample of the cases: tell where the others hold more."""
    scanned = {c.id for c in evenly(dataset.labelled)}
    inferred, _ = infer_classes(_values(f for f in drawn if f.case.id in scanned))
    missed = sorted({v for c in classes for v in c.values} - {v for c in inferred for v in c.values})
    if not missed:
        return []
    found = f"mask values {missed} are in none of the {len(scanned)} cases from which objects are inferred"
    return [Problem("warning", "a rare object would be overlooked", "", found, "Name the objects with data.classes")]


def _masks(drawn: Sequence[_Facts], classes: Sequence[ClassInfo]) -> list[Problem]:
    """Empty masks, values that belong to no object, objects that no case shows."""
    known = {v for c in classes for v in c.values}
    problems = []
    strange: dict[int, list[str]] = {}
    for facts in drawn:
        values = set(facts.pixels or ()) | {v for joint in facts.joints for pair in joint for v in pair}
        file = str(facts.case.labels[0][0])
        if not values & known:
            todo = "Right if nothing is there; else check the file"
            problems.append(Problem("note", "a mask shows no object", file, f"values {sorted(values)}", todo))
        for value in values - known - {0}:
            strange.setdefault(value, []).append(file)
    grey = any(len(c.values) > LISTED for c in classes)  # a band of grey levels: the darker ones are background
    for value, files in sorted(strange.items()) if not grey else ():
        found = f"value {value} in {len(files)} masks belongs to no object and counts as background"
        todo = "List the value under an object in data.classes, or relabel"
        problems.append(Problem("warning", "mask values of no object", files[0], found, todo))
    seen = _values(drawn)
    for info in classes:
        if drawn and not seen & set(info.values):
            found = f"{info.name} (values {list(info.values)}) is in no mask"
            problems.append(
                Problem("warning", "an object is never shown", "", found, "Mend data.classes or dataset.json")
            )
    return problems


def _duplicates(facts: Sequence[_Facts]) -> list[Problem]:
    groups: dict[str, list[Case]] = {}
    for f in facts:
        if f.digest:
            groups.setdefault(f.digest, []).append(f.case)
    problems = []
    for same in (g for g in groups.values() if len(g) > 1):
        across = len({c.patient for c in same}) > 1
        kind = "one image under several patients" if across else "one image several times"
        todo = "Keep one of them" + (", or the split leaks from training to test" if across else "")
        others = ", ".join(c.id for c in same[1 : LISTED + 1])
        problems.append(Problem("warning", kind, str(same[0].images[0]), f"the same pixels as {others}", todo))
    return problems


def _ranges(facts: Sequence[_Facts], config: DataConfig) -> list[Problem]:
    """Intensities that differ widely between cases, where each is shown by its own percentiles or by one window."""
    tops = {f.case.id: f.range[1] for f in facts if f.range is not None and f.range[1] > 0}
    if len(tops) < 2:
        return []
    low, high = min(tops, key=lambda id: tops[id]), max(tops, key=lambda id: tops[id])
    if tops[high] <= RANGES_APART * tops[low]:
        return []
    found = f"bright pixels are {tops[low]:.4g} in {low} and {tops[high]:.4g} in {high}"
    if config.window is None:
        return [
            Problem("note", "intensities differ widely", "", found, "Fine without data.window: each case has its own")
        ]
    todo = "Leave data.window out, so that each case is shown by its own percentiles"
    return [Problem("warning", "one window for widely differing intensities", "", found, todo)]


def _count(drawn: Sequence[_Facts], classes: Sequence[ClassInfo]) -> tuple[ClassCount, ...]:
    total = sum(n for f in drawn for n in (f.pixels or {}).values())
    counts = []
    for info in classes:
        by_case = [sum((f.pixels or {}).get(v, 0) for v in info.values) for f in drawn]
        pixels = sum(by_case)
        share = pixels / total if total else 0.0
        counts.append(ClassCount(info.name, info.values, sum(n > 0 for n in by_case), pixels, share))
    return tuple(counts)


def _size(shape: Sequence[int]) -> str:
    """``(slices x) rows x columns`` and the channels where there are several."""
    grid = " x ".join(map(str, shape[1:3] if shape[0] == 1 else shape[:3]))
    return f"{grid}, {shape[3]} channels" if shape[3] > 1 else grid


def _spacing(facts: _Facts) -> str:
    assert facts.spacing is not None
    return " x ".join(f"{s:.3g}" for s in facts.spacing) + " mm" if facts.unit == "mm" else "not stated"


def _most_common(counted: dict[str, int]) -> str:
    if len(counted) == 1:
        return next(iter(counted))
    shown = ", ".join(f"{name} ({n})" for name, n in list(counted.items())[:3])
    return f"{shown}, {len(counted) - 3} others" if len(counted) > 3 else shown or "unknown"
