"""Images with their masks by name: what every layout is made of.  Paths only; nothing is decoded here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from samsans import io
from samsans.errors import InputError

PARTS = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "va"), "val"),
    **dict.fromkeys(("test", "testing", "ts"), "test"),
}
LABEL_SUFFIX = re.compile(r"[_-](masks?|seg|segmentation|labels?|gt|annot|annotation|groundtruth)$")
IMAGE_SUFFIX = re.compile(r"[_-](images?|img)$")
CHANNEL = re.compile(r"^(.+)_(\d{4})$")
RATER = re.compile(
    r"[_-]((?:rater|reader|expert|observer|annotator|grader|radiologist)[_-]?[a-z0-9]+|r\d{1,2}|\d(?:st|nd|rd|th)[a-z]*)$",
    re.IGNORECASE,
)
MOST_CHANNELS = 12  # more files of one name and a number are frames (our decision)
SLICE = re.compile(r"[_-]?slice[_-]?(\d+)$", re.IGNORECASE)

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "frames", "scans")
LABEL_FOLDERS = (
    *("labels", "label", "masks", "mask", "annotations", "annotation", "annots", "annot", "gt", "gts"),
    *("groundtruth", "ground_truth", "seg", "segs", "segmentation", "segmentations"),
)


@dataclass(frozen=True)
class Pair:
    """An image and its masks before volumes are stacked.

    images: one file per channel.  labels: one file per annotator.  patient, part (``train``, ``val`` or ``test``):
    where the layout states them.  likely: the patient by the habit of the layout, unless the user names another.
    video, frame: id of the video that it is a frame of, and its number there.
    """

    id: str
    images: tuple[Path, ...]
    labels: tuple[Path, ...] = ()
    patient: str | None = None
    part: str | None = None
    likely: str | None = None
    video: str = ""
    frame: int | None = None


@dataclass(frozen=True)
class Found:
    """What a recogniser understood: pairs, object names with their values, mask files that belong to no image, video
    files by id."""

    layout: str
    pairs: tuple[Pair, ...]
    names: Mapping[str, list[int]] | None = None
    orphans: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    videos: Mapping[str, Path] = field(default_factory=dict)


def relative_id(path: Path, base: Path) -> str:
    """Posix path of ``path`` below ``base`` without its format suffix; the bare name where it lies elsewhere."""
    stem = io.stem(path)
    return (path.relative_to(base).parent / stem).as_posix() if path.is_relative_to(base) else stem


def part_of(name: str) -> str | None:
    """``train``, ``val`` or ``test`` where ``name`` is one of the usual names of such a folder."""
    return PARTS.get(name.lower())


def annotator_of(folder: str) -> str | None:
    """``""`` for ``labels``, ``"b"`` for ``labels_b``, ``None`` for a folder that holds no masks."""
    name = folder.lower()
    if name in LABEL_FOLDERS:
        return ""
    head, _, tail = name.rpartition("_")
    return tail if head in LABEL_FOLDERS and part_of(tail) is None else None


def match(images: Mapping[str, Path], labels: Mapping[str, Path]) -> tuple[dict[str, Path], list[Path]]:
    """Mask of each image id, and the masks that belong to none.

    Tried in this order: same relative path; same path without ``_mask``, ``_seg``, ``_image``, ``_0000`` and the like;
    same bare name, where only one image and one mask have it.  Upper and lower case count as the same.
    """

    def plain(name: str) -> str:
        name = name.casefold()
        channel = CHANNEL.match(name)
        name = channel[1] if channel and channel[2] == "0000" else name
        return IMAGE_SUFFIX.sub("", LABEL_SUFFIX.sub("", name))

    def unique(keys: Iterable[tuple[str, str]]) -> dict[str, str]:
        listed = list(keys)
        seen = Counter(k for k, _ in listed)
        return {k: v for k, v in listed if seen[k] == 1}

    ways: list[Callable[[str], str]] = [str.casefold, plain, lambda name: plain(name.rsplit("/", 1)[-1])]
    matched: dict[str, str] = {}
    for way in ways:
        taken = set(matched.values())
        free_labels = unique((way(name), name) for name in labels if name not in taken)
        free_images = unique((way(name), name) for name in images if name not in matched)
        matched |= {image: free_labels[key] for key, image in free_images.items() if key in free_labels}
    used = set(matched.values())
    return {i: labels[name] for i, name in matched.items()}, [p for name, p in labels.items() if name not in used]


def by_rater(images: Iterable[str], labels: Iterable[str]) -> dict[str, dict[str, str]]:
    """Masks ``{rater: {image: mask}}`` called as their image with an annotator at the end: ``x_r1``, ``x_2ndHO``,
    ``x_rater_b``; in order of the annotators.  Empty unless most of these images have several."""
    known = {name.casefold(): name for name in images}
    found: dict[str, dict[str, str]] = {}
    for label in labels:
        end = RATER.search(label)
        image = known.get(label[: end.start()].casefold()) if end is not None else None
        if end is not None and image is not None:
            found.setdefault(end[1], {})[image] = label
    counts = Counter(image for drawn in found.values() for image in drawn)
    if 2 * sum(n > 1 for n in counts.values()) <= len(counts):
        return {}
    return {rater: found[rater] for rater in sorted(found, key=natural)}


def natural(name: str) -> list[str | int]:
    """Key by which ``r2`` comes before ``r10``."""
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(re.split(r"(\d+)", name))]


def several(raters: Iterable[str]) -> tuple[str, ...]:
    """The note on annotators of these names; none where there are fewer than two."""
    names = sorted(set(raters), key=natural)
    note = f"{len(names)} annotators: {', '.join(names)}; the first is learned, by some methods all"
    return (note,) if len(names) > 1 else ()


def listing(folder: Path) -> dict[str, Path]:
    """Image files (and DICOM series folders) below ``folder`` by relative id, in order of their names.

    Raises InputError where two files differ by their suffix only.
    """
    out: dict[str, Path] = {}
    if not any(p.is_file() and not p.name.startswith(".") for p in folder.rglob("*")):
        return out
    for path in io.find_images(folder):
        name = relative_id(path, folder)
        if name in out:
            raise InputError(f"{out[name]} and {path} have the same name", "one image a name", "Rename one of them")
        out[name] = path
    return out


def group_channels(images: Mapping[str, Path], labels: Iterable[str]) -> dict[str, tuple[Path, ...]]:
    """Join ``case_0000``, ``case_0001`` ... to one image of several channels, where the names say so without doubt.

    Without doubt: every name ends in ``_`` and four digits, no mask has such a name, and all cases have the same
    channels 0000, 0001, ..., at most 12.
    """
    split = {name: CHANNEL.match(name) for name in images}
    whole = {name.casefold() for name in labels}
    if not images or not all(split.values()) or any(name.casefold() in whole for name in images):
        return {name: (path,) for name, path in images.items()}
    grouped: dict[str, dict[str, Path]] = {}
    for name, found in split.items():
        assert found is not None
        grouped.setdefault(found[1], {})[found[2]] = images[name]
    channels = {tuple(sorted(c)) for c in grouped.values()}
    first = next(iter(channels))
    if len(channels) > 1 or len(first) > MOST_CHANNELS or first != tuple(f"{i:04d}" for i in range(len(first))):
        return {name: (path,) for name, path in images.items()}
    return {name: tuple(c[k] for k in first) for name, c in grouped.items()}


def looks_paired(paths: Mapping[str, Path]) -> str:
    """Advice where most names are those of others with one and the same ending, as masks have: ``a``, ``a_drawn``."""
    endings: Counter[tuple[str, str, str]] = Counter()
    for id, path in paths.items():
        for cut in (i for i, letter in enumerate(id) if letter in "_-"):
            image = paths.get(id[:cut])
            if image is not None:
                endings[id[cut:], _suffix(path), _suffix(image)] += 1
    (ending, suffix, image_suffix), count = max(endings.items(), key=lambda item: item[1], default=(("", "", ""), 0))
    if count < 2 or 4 * count < len(paths):
        return ""
    nested = "**/" if any("/" in id for id in paths) else ""
    return (
        f"If the files ending in {ending}{suffix} are masks: --data.images '{nested}*{image_suffix}' "
        f"--data.labels '{{parent}}/{{stem}}{ending}{suffix}'"
    )


def _suffix(path: Path) -> str:
    return path.name[len(io.stem(path)) :]
