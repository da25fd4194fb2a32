"""Which prediction belongs to which reference, and which values of their files mean which object."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samsans import io
from samsans.errors import InputError
from samsans.types import Case, ClassInfo, Volume

SHOWN = 5


@dataclass(frozen=True)
class Pair:
    """A predicted label map and the case with its reference."""

    prediction: Path
    case: Case


@dataclass(frozen=True)
class Matching:
    """What is compared and what is not.

    pairs: in the order of their ids.
    skipped: ids left out, by reason: ``predictions_without_reference``, ``references_without_prediction`` (only where
        these are allowed) and ``unlabelled`` cases.
    """

    pairs: tuple[Pair, ...]
    skipped: dict[str, list[str]]


def match(
    predictions: Path, reference: Path | Sequence[Case], images: Path | None = None, allow_missing: bool = False
) -> Matching:
    """Match label maps by their path inside the folder without suffix (``site/case1`` of ``site/case1.nii.gz``).

    predictions: folder, or one file (then the reference is one file too, whatever the names).
    reference: folder of label maps, one file, or cases whose ``id`` is that path; the first annotator counts.
    images: folder of the images (pictures only); cases bring their own.
    Raises InputError listing the references without prediction, unless ``allow_missing``, and where nothing matches.
    """
    predictions = Path(predictions)
    if isinstance(reference, (str, Path)):
        cases = _cases_of(Path(reference), Path(images) if images is not None else None)
        where = str(reference)
    else:
        cases, where = list(reference), "the data set"
    labelled = {case.id: case for case in cases if case.labels}
    if predictions.is_file() and len(labelled) == 1:
        found = {next(iter(labelled)): predictions}
    else:
        found = _by_key(predictions)
    missing = sorted(set(labelled) - set(found))
    extra = sorted(set(found) - set(labelled))
    pairs = tuple(Pair(found[key], labelled[key]) for key in sorted(set(found) & set(labelled)))
    if not pairs:
        raise InputError(
            f"no prediction in {predictions} is named as a reference of {where}: "
            f"predictions {_some(found)}; references {_some(labelled)}",
            "the same relative path and name, without suffix, on both sides",
            "rename one side, or give the reference as a data set with its own naming",
        )
    if missing and not allow_missing:
        raise InputError(
            f"{len(missing)} of {len(labelled)} references of {where} have no prediction in {predictions}: "
            f"{_some(missing)}",
            "a prediction for each reference",
            "predict them too, or allow missing predictions: they are then left out of every mean and listed",
        )
    skipped = {
        "predictions_without_reference": extra,
        "references_without_prediction": missing,
        "unlabelled": sorted(case.id for case in cases if not case.labels),
    }
    return Matching(pairs, skipped)


def read_reference(case: Case) -> Volume:
    """The first annotator's label map ``(D, H, W)``; the files of a stack become its slices."""
    volumes = [io.read_labels(path) for path in case.labels[0]]
    if len(volumes) == 1:
        return volumes[0]
    shapes = sorted({v.shape[1:] for v in volumes})
    if len(shapes) > 1:
        raise InputError(f"slices of sizes {shapes} in the stack {case.id}", "slices of one size")
    return Volume(np.concatenate([v.array for v in volumes]), volumes[0].affine, volumes[0].path)


def check_grid(prediction: Volume, reference: Volume, case: str) -> None:
    """Raise InputError unless both lie on one grid: same shape and, where both state a geometry, voxel corners within
    a tenth of a voxel of each other."""
    if prediction.shape != reference.shape:
        raise InputError(
            f"{case}: the prediction {prediction.path} has shape (z, y, x) {prediction.shape} and the reference "
            f"{reference.path} {reference.shape}",
            "both on one grid",
            "predict on the image the reference was drawn on, or resample one of them with nearest neighbours",
        )
    if prediction.affine is None or reference.affine is None:
        return
    ends = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in reference.shape[::-1]], indexing="ij")).reshape(3, -1)
    corners = np.vstack([ends, np.ones(ends.shape[1])])
    apart = np.linalg.norm(((prediction.affine - reference.affine) @ corners)[:3], axis=0).max()
    if apart > 0.1 * min(reference.spacing):
        raise InputError(
            f"{case}: the prediction {prediction.path} and the reference {reference.path} lie up to {apart:.3g} mm "
            f"apart: affines {np.round(prediction.affine, 4).tolist()} and {np.round(reference.affine, 4).tolist()}",
            "both on one grid",
            "copy the geometry of the image into the file that lost it, or predict again",
        )


def read_classes(folder: Path) -> tuple[ClassInfo, ...] | None:
    """What ``classes.json`` of a prediction folder says of its labels; None where there is no such file.

    The file: ``{"classes": [{"name": "polyp", "label": 1, "values": [255]}, ...]}``, ``values`` being those of the
    reference files that belong to the object (the label itself where not given).
    """
    path = (folder.parent if folder.is_file() else folder) / "classes.json"
    if not path.is_file():
        return None
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["classes"]
        return tuple(
            ClassInfo(str(e["name"]), int(e["label"]), tuple(int(v) for v in e.get("values", [e["label"]])))
            for e in entries
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be understood ({type(error).__name__}: {error})",
            '{"classes": [{"name": "polyp", "label": 1, "values": [255]}]}',
        ) from error


def resolve_classes(
    given: Sequence[ClassInfo] | None, predicted: Sequence[ClassInfo] | None, pairs: Sequence[Pair]
) -> tuple[tuple[ClassInfo, ...], dict[int, int]]:
    """The objects to score, and how to recode prediction values.

    given: the reference's classes; predicted: those of ``classes.json``.  Where both are there they are matched by name
    (a single class on both sides matches whatever its names): labels come from the prediction, values from the
    reference.  Where neither is there, the classes are the values found: one non-zero value in all references is
    object 1 whatever the value (0/255 masks), more are labels by themselves; a prediction of 0/255 is recoded to 0/1.
    Raises InputError where a class of one side is unknown to the other, or no object is found.
    """
    if given and predicted:
        if len(given) == len(predicted) == 1:
            return (ClassInfo(given[0].name, predicted[0].label, given[0].values),), {}
        label = {c.name: c.label for c in predicted}
        if set(label) != {c.name for c in given}:
            raise InputError(
                f"predictions of {', '.join(label)} and references of {', '.join(c.name for c in given)}",
                "the same class names on both sides",
                "predict with a model of these classes, or correct the names",
            )
        return tuple(ClassInfo(c.name, label[c.name], c.values) for c in given), {}
    if given or predicted:
        return tuple(given or predicted or ()), {}
    drawn = set().union(*(values_of(read_reference(p.case).array) for p in pairs))
    painted = set().union(*(values_of(io.read_labels(p.prediction).array) for p in pairs))
    recode = {255: 1} if painted == {255} else {}
    if len(drawn) == 1:
        return (ClassInfo("object", 1, tuple(drawn)),), recode
    labels = sorted(drawn | (painted if not recode else {1}))
    if not labels:
        raise InputError("only zeros in all predictions and references", "label maps with at least one object")
    return tuple(ClassInfo(f"label {v}", v, (v,)) for v in labels), recode


def parts(classes: Sequence[ClassInfo]) -> dict[int, tuple[int, ...]]:
    """For each label, the labels of a label map that belong to its object: its own, and those of the objects inside it.

    An object lies inside another when its file values are some, not all, of the other's: a cup (2) in a disc (1, 2)
    is painted over the disc in a label map, yet the disc is whole.
    """
    inside = {o.label: tuple(c.label for c in classes if set(c.values) < set(o.values)) for o in classes}
    return {label: (label, *others) for label, others in inside.items()}


def values_of(array: np.ndarray) -> set[int]:
    """The non-zero values in an integer array ``(D, H, W)``."""
    found: set[int] = set()
    for plane in array:  # by slice: counting needs 8 bytes a voxel
        if plane.dtype.kind == "b":
            found |= {1} if plane.any() else set()
        elif plane.size and plane.min() >= 0 and plane.max() < 2**16:
            found.update(np.flatnonzero(np.bincount(plane.ravel())).tolist())
        else:
            found.update(np.unique(plane).tolist())
    return found - {0}


def _cases_of(reference: Path, images: Path | None) -> list[Case]:
    found = {io.stem(reference): reference} if reference.is_file() else _by_key(reference)
    if images is None:
        pictures = {}
    elif images.is_file():
        pictures = dict.fromkeys(found, images)
    else:
        pictures = _by_key(images)
    return [
        Case(key, key, images=(pictures[key],) if key in pictures else (), labels=((path,),))
        for key, path in found.items()
    ]


def _by_key(folder: Path) -> dict[str, Path]:
    """Image files of a folder by their relative path without suffix."""
    if folder.is_file():
        return {io.stem(folder): folder}
    found: dict[str, Path] = {}
    for path in io.find_images(folder):
        key = (path.relative_to(folder).parent / io.stem(path)).as_posix()
        if key in found:
            raise InputError(f"{found[key]} and {path} have one name", "one file for each case", "remove one of them")
        found[key] = path
    return found


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return (", ".join(listed[:SHOWN]) or "none") + more
