"""Recognise how a data set lies on disk: folders, nnU-Net raw, Medical Segmentation Decathlon, TransUNet arrays, CSV,
patterns.

Every recogniser returns what it ``Found`` or ``None`` where the layout is another one.  Nothing is decoded here.
"""

from __future__ import annotations

import csv
import glob
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from samsans import io
from samsans.data.pairs import (
    LABEL_SUFFIX,
    PARTS,
    SLICE,
    Found,
    Pair,
    by_rater,
    group_channels,
    listing,
    match,
    natural,
    part_of,
    relative_id,
    several,
)
from samsans.errors import InputError
from samsans.io.files import PICKLE_SUFFIXES, pickle_error
from samsans.io.packed import holds_mask

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "frames", "scans")
LABEL_FOLDERS = (
    *("labels", "label", "masks", "mask", "annotations", "annotation", "annots", "annot", "gt", "gts"),
    *("groundtruth", "ground_truth", "seg", "segs", "segmentation", "segmentations"),
)
TABLE = "cases.csv"
DEPTH = 4  # how deep below the root image folders are looked for
KNOWN = (
    "images/ beside labels/ or masks/ (also per patient), nnU-Net raw or Medical Segmentation Decathlon "
    "(imagesTr/ labelsTr/ dataset.json), .npz or .h5 files with the arrays image and label (train_npz/ test_vol_h5/), "
    "a CSV file with the columns image and label (or cases.csv in the folder), or a folder of images"
)


def patterns(root: Path, images: str, labels: str | None) -> Found:
    """Files named by the glob ``images``, masks by the template ``labels`` with ``{stem}``, ``{name}``, ``{parent}``
    (folder relative to ``root``) and ``{below}`` (folder below the fixed part of the glob).  A template that still
    holds ``*`` may find several files: one per annotator.  Only a ``.npz`` or ``.h5`` file may be its own mask.
    A case whose first folder, of those the glob leaves open, is called ``train``, ``testing`` and the like has that
    part."""
    parts = Path(images).parts
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    base = root.joinpath(*parts[:fixed])
    files = sorted(Path(p) for p in glob.glob(images, root_dir=root, recursive=True))
    files = [root / p for p in files if (root / p).is_file() and not p.name.startswith(".")]
    if not files:
        raise InputError(f"no file matches {images!r} in {root}", "a glob such as images/**/*.png")
    masks: dict[Path, tuple[Path, ...]] = {}
    for path in files if labels else ():
        folders = {"parent": path.parent.relative_to(root), "below": path.parent.relative_to(base)}
        fields = {k: v.as_posix() for k, v in folders.items()} | {"stem": io.stem(path), "name": path.name}
        try:
            wanted = str(labels).format(**{k: glob.escape(v) for k, v in fields.items()})
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(
                f"the label template {labels!r} is not understood ({error})", "{stem}, {name}, {parent} and {below}"
            ) from error
        masks[path] = tuple(root / p for p in sorted(glob.glob(os.path.normpath(wanted), root_dir=root), key=natural))
    drawn = {p for found in masks.values() for p in found if p not in masks or masks[p] != (p,)}
    twice = next((p for p in files if masks.get(p) == (p,) and not _packed(p)), None)
    if twice is not None:
        raise InputError(
            f"by data.labels {labels!r} the image {twice} would be its own mask",
            "another file, or a .npz or .h5 file that holds both",
            "Give the masks' names, for instance masks/{stem}.png",
        )
    named = {p: relative_id(p, base) for p in files if p not in drawn}
    pairs = tuple(Pair(id, (p,), masks.get(p, ()), None, _leading_part(id)) for p, id in named.items())
    if labels and not any(p.labels for p in pairs):
        raise InputError(f"no image has a mask at {labels!r} in {root}", "a template such as masks/{stem}.png")
    most = max((len(p.labels) for p in pairs), default=0)
    notes = (f"up to {most} masks an image, of as many annotators",) if most > 1 else ()
    return Found("patterns", pairs, notes=notes)


def csv_file(path: Path) -> Found:
    """A table with the columns image, label and optionally patient, split, rater; paths relative to the file's folder.

    Rows with the same image are its annotators.  Raises InputError with the line of what is wrong.
    """
    text = path.read_text(encoding="utf-8-sig")
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    rows = list(csv.DictReader(text.splitlines(), delimiter=delimiter))
    columns = [c.strip().lower() for c in head.strip().split(delimiter)]
    if "image" not in columns:
        raise InputError(f"{path} has the columns {', '.join(columns)}", "image,label[,patient,split,rater]")
    images: dict[str, Path] = {}
    masks: dict[str, list[tuple[str, Path]]] = {}
    patients: dict[str, str] = {}
    parts: dict[str, str] = {}
    for line, raw in enumerate(rows, 2):
        row = {str(k).strip().lower(): v.strip() for k, v in raw.items() if isinstance(v, str)}
        files = {key: path.parent / row[key] for key in ("image", "label") if row.get(key)}
        for file in files.values():
            if not file.exists():
                raise InputError(f"line {line} of {path} names {file}, which does not exist", "a path from its folder")
        if "image" not in files:
            raise InputError(f"line {line} of {path} names no image", "a path in the column image")
        name = relative_id(files["image"], path.parent)
        if images.setdefault(name, files["image"]) != files["image"]:
            raise InputError(f"{images[name]} and {files['image']} have the same name", "one image a name")
        if "label" in files:
            masks.setdefault(name, []).append((row.get("rater", ""), files["label"]))
        for key, kept in (("patient", patients), ("split", parts)):
            if row.get(key) and kept.setdefault(name, row[key]) != row[key]:
                raise InputError(f"line {line} of {path} gives {name} another {key} than before", f"one {key} an image")
    unknown = {part for part in parts.values() if part_of(part) is None}
    if unknown:
        raise InputError(f"{path} has the splits {', '.join(sorted(unknown))}", "train, val or test")
    if not images:
        raise InputError(f"{path} has no rows", "one row an image")
    pairs = []
    for name, image in images.items():
        drawn = tuple(
            p for _, p in sorted(masks.get(name, []), key=lambda row: (natural(row[0]), natural(str(row[1]))))
        )
        pairs.append(Pair(name, (image,), drawn, patients.get(name), part_of(parts.get(name, ""))))
    return Found("CSV", tuple(pairs))


def table(root: Path) -> Found | None:
    """The table ``cases.csv`` of a folder, which knows patients and annotators that names of files do not tell."""
    path = root / TABLE
    if not path.is_file():
        return None
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        columns = re.split(r"[,;\t]", file.readline().strip().lower())
    return csv_file(path) if "image" in columns else None


def json_names(described: Mapping[str, Any]) -> tuple[dict[str, list[int]] | None, list[str]]:
    """Object names and values of a ``dataset.json``: ``{"1": name}`` (v1, MSD), ``{name: 1}`` or ``{name: [1, 2]}``."""
    labels = described.get("labels")
    if not isinstance(labels, Mapping) or not labels:
        return None, []
    if all(str(k).isdigit() for k in labels):
        values = {str(name): [int(key)] for key, name in labels.items()}
    else:
        values = {str(n): [int(i) for i in v] if isinstance(v, list) else [int(v)] for n, v in labels.items()}
    notes = ["dataset.json has an ignore label: its pixels count as background"] if "ignore" in values else []
    kept = {n: [i for i in v if i] for n, v in values.items() if n.lower() not in ("background", "ignore")}
    return {n: v for n, v in kept.items() if v} or None, notes


def read_dataset_json(root: Path) -> dict[str, Any]:
    """The ``dataset.json`` of ``root``; empty where there is none."""
    path = root / "dataset.json"
    if not path.is_file():
        return {}
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(described, dict):
        raise InputError(f"{path} holds {type(described).__name__}", "an object with labels and training")
    return described


def listed_pairs(root: Path, described: Mapping[str, Any]) -> list[Pair] | None:
    """Pairs that ``dataset.json`` lists itself: ``dataset`` of nnU-Net, else ``training`` of MSD; ``None`` where it
    lists none or the files bear nnU-Net's channel numbers and are to be looked up."""
    if isinstance(described.get("dataset"), Mapping):
        entries = [(str(k), v["images"], v.get("label")) for k, v in described["dataset"].items()]
    else:
        training = [e for e in described.get("training") or () if isinstance(e, Mapping)]
        entries = [(io.stem(Path(e["image"])), [e["image"]], e.get("label")) for e in training]
    pairs = []
    for name, images, label in entries:
        files = [root / p for p in images]
        if not all(p.exists() for p in files):
            return None
        pairs.append(Pair(name, tuple(files), (root / label,) if label else ()))
    return pairs or None


def decathlon(root: Path) -> Found | None:
    """nnU-Net raw and Medical Segmentation Decathlon: imagesTr, labelsTr, imagesTs, labelsTs, ``dataset.json``."""
    folders = {p.name.lower(): p for p in root.iterdir() if p.is_dir()}
    described = read_dataset_json(root)
    parts_found = [s for s in ("tr", "va", "val", "ts") if f"images{s}" in folders]
    listed = listed_pairs(root, described)
    if not parts_found and not listed:
        return None
    names, notes = json_names(described)
    pairs: list[Pair] = []
    orphans: list[Path] = []
    channels = False
    for suffix in parts_found:
        images = listing(folders[f"images{suffix}"])
        labels = listing(folders[f"labels{suffix}"]) if f"labels{suffix}" in folders else {}
        if suffix == "tr" and listed:
            pairs += listed
            continue
        grouped = group_channels(images, labels)
        channels |= set(grouped) != set(images)
        matched, unused = match({name: files[0] for name, files in grouped.items()}, labels)
        part = None if suffix == "tr" else PARTS[suffix]
        pairs += [Pair(n, files, (matched[n],) if n in matched else (), None, part) for n, files in grouped.items()]
        orphans += unused
    pairs = pairs if "tr" in parts_found or not listed else [*listed, *pairs]
    layout = "nnU-Net raw" if channels or "file_ending" in described else "Medical Segmentation Decathlon"
    return Found(layout, tuple(pairs), names, tuple(orphans), tuple(notes))


def _annotator(folder: str) -> str | None:
    """``""`` for ``labels``, ``"b"`` for ``labels_b``, ``None`` for a folder that holds no masks."""
    name = folder.lower()
    if name in LABEL_FOLDERS:
        return ""
    head, _, tail = name.rpartition("_")
    return tail if head in LABEL_FOLDERS and part_of(tail) is None else None


def image_folders(root: Path) -> list[tuple[Path, list[Path]]]:
    """Every image folder below ``root`` with the mask folders beside it, one an annotator, in order of their names."""
    found = []
    for here, below, _ in os.walk(root):
        folder = Path(here)
        below[:] = sorted(b for b in below if not b.startswith("."))
        lower = {b.lower(): b for b in below}
        images = next((lower[name] for name in IMAGE_FOLDERS if name in lower), None)
        masks = sorted((b for b in below if _annotator(b) is not None), key=natural)
        if images is not None:
            found.append((folder / images, [folder / m for m in masks]))
        if len(folder.relative_to(root).parts) >= DEPTH:
            below[:] = []
        below[:] = [b for b in below if b != images and b not in masks]
    return found


def folders(root: Path) -> Found | None:
    """``images/`` beside ``labels/`` (or ``masks/`` ..., ``labels_a/ labels_b/`` of several annotators), at the top, in
    ``train/ val/ test/``, or in a folder per patient."""
    found = image_folders(root)
    if not found:
        return None
    pairs: list[Pair] = []
    orphans: list[Path] = []
    annotators: set[str] = set()
    for images_folder, label_folders in found:
        above = images_folder.parent.relative_to(root).as_posix()
        prefix = "" if above == "." or len(found) == 1 else f"{above}/"
        images = listing(images_folder)
        drawn = [listing(f) for f in label_folders]
        grouped = group_channels(images, [name for d in drawn for name in d]) if any(drawn) else None
        files = grouped or {name: (path,) for name, path in images.items()}
        matches = []
        for labels in drawn:
            matched, unused = match({name: f[0] for name, f in files.items()}, labels)
            raters = by_rater(files, labels) if not matched else {}
            if raters:  # all annotators in one folder
                matches += [{image: labels[name] for image, name in masks.items()} for masks in raters.values()]
                annotators |= set(raters)
                used = {name for masks in raters.values() for name in masks.values()}
                unused = [path for name, path in labels.items() if name not in used]
            else:
                matches.append(matched)
            orphans += unused
        annotators |= {f.name for f in label_folders} if len(label_folders) > 1 else set()
        for name, channels in files.items():
            id = prefix + name
            drawings = tuple(m[name] for m in matches if name in m)
            pairs.append(Pair(id, channels, drawings, None, _leading_part(id)))
    return Found("image and label folders", tuple(pairs), None, tuple(orphans), several(annotators))


def _leading_part(id: str) -> str | None:
    """The part that the first folder of a case names: ``test`` of ``testing/x``."""
    return part_of(id.partition("/")[0]) if "/" in id else None


def one_folder(root: Path) -> Found | None:
    """Images and their masks in one folder (``x.png``, ``x_mask.png``; of several annotators ``x_r1.png``,
    ``x_r2.png``), or images alone."""
    files = listing(root)
    if not files:
        return None
    labels = {n: p for n, p in files.items() if LABEL_SUFFIX.search(n.casefold())}
    images = {n: p for n, p in files.items() if n not in labels}
    matched, unused = match(images, labels)
    raters = by_rater(images, images) if not matched else {}
    if raters:
        masks = {name for drawn in raters.values() for name in drawn.values()}
        of = {n: tuple(images[d[n]] for d in raters.values() if n in d) for n in images if n not in masks}
        pairs = tuple(Pair(n, (images[n],), drawn) for n, drawn in of.items())
        return Found("images and masks in one folder", pairs, orphans=tuple(unused), notes=several(raters))
    if not matched:
        return Found("images only", tuple(Pair(n, c) for n, c in group_channels(files, ()).items()))
    pairs = tuple(Pair(n, (p,), (matched[n],) if n in matched else ()) for n, p in images.items())
    return Found("images and masks in one folder", pairs, orphans=tuple(unused))


def _packed(path: Path) -> bool:
    """Whether a file may hold an image and its mask."""
    return io.suffix(path) in io.PACKED_SUFFIXES


def _own_mask(path: Path) -> tuple[Path, ...]:
    """The masks in the file of an image itself."""
    return (path,) if _packed(path) and holds_mask(path) else ()


def arrays(root: Path) -> Found | None:
    """Image and mask (if any) in one file, as TransUNet, SAMed, H-SAM and the methods on LA preprocess.

    ``train_npz/case0005_slice004.npz`` and ``test_vol_h5/case0001.npy.h5``: the first word of a folder names the part,
    what stands before ``_slice`` the patient.  ``SCAN/mri_norm2.h5``: where files share a name, their folder does.
    """
    there = listing(root) if any(_packed(p) for p in root.rglob("*")) else {}
    files = {name: path for name, path in there.items() if _packed(path)}
    if not files:
        return None
    shared = Counter(name.rpartition("/")[2] for name in files)
    pairs = []
    for name, path in files.items():
        *above, last = name.split("/")
        named = [(folder, _first_part(folder)) for folder in above]
        part = next((part for _, part in named if part is not None), None)
        scans = [folder for folder, part in named if part is None]
        likely = scans[-1] if scans and shared[last] > 1 else SLICE.sub("", last)
        pairs.append(Pair(name, (path,), _own_mask(path), None, part, likely))
    others = len(there) - len(files)
    notes = ["patients by the names of the files (what stands before _slice) or of their folders"]
    notes += [f"{others} files that are not .npz or .h5 are left out"] if others else []
    return Found("TransUNet arrays", tuple(pairs), notes=tuple(notes))


def _first_part(folder: str) -> str | None:
    """The part that the first word of a folder's name says: ``train`` of ``train_npz``."""
    return part_of(re.split(r"[_-]", folder, maxsplit=1)[0])


FOLDER_LAYOUTS: Sequence[Callable[[Path], Found | None]] = (table, decathlon, folders, arrays, one_folder)


def recognise(root: Path, images: str | None = None, labels: str | None = None) -> Found:
    """What lies at ``root``, by patterns where given.

    Raises InputError where nothing is there or nothing is understood, with the layouts that are.
    """
    if not root.exists():
        raise InputError(f"there is nothing at {root}", "a folder, a CSV file or an image", "Check data.path")
    if io.suffix(root) in PICKLE_SUFFIXES and root.is_file():
        raise pickle_error(root)
    if images is None and labels is not None:
        raise InputError("data.labels is given without data.images", "both", "Give the images as a glob too")
    if images is not None:
        return patterns(root, images, labels)
    if root.is_file():
        if root.suffix.lower() in (".csv", ".tsv"):
            return csv_file(root)
        return Found("one image", (Pair(io.stem(root), (root,), _own_mask(root)),))
    for layout in FOLDER_LAYOUTS:
        found = layout(root)
        if found is not None and found.pairs:
            return found
    raise InputError(f"no images found in {root}", KNOWN, "Give data.images and data.labels for another layout")
