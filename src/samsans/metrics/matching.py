"""Which prediction belongs to which reference, and which values of their files mean which object."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from samsans import io
from samsans.data import classes as objects
from samsans.errors import InputError
from samsans.io.samples import sampled_case
from samsans.types import Case, ClassInfo, Volume

SHOWN = 5
MAPS = ("probabilities/", "entropy/")  # where predict puts its other maps, beside the label maps


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

    predictions: folder (its ``probabilities``, ``entropy`` and the samples of its cases are left alone), or one file
        (then the reference is one file too, under any name).
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
        found = {key: path for key, path in _by_key(predictions).items() if not key.startswith(MAPS)}
        found = {key: path for key, path in found.items() if key in labelled or sampled_case(key) not in found}
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


def with_images(pairs: Sequence[Pair], manifest: Mapping[str, Any]) -> tuple[Pair, ...]:
    """The pairs, those without an image given the one the prediction's manifest names, where it is still there."""
    cases = manifest.get("cases")
    records = cases if isinstance(cases, Mapping) else {}
    found = []
    for pair in pairs:
        record = records.get(pair.case.id)
        files: Sequence[str] = record.get("input", ()) if isinstance(record, Mapping) else ()
        if not pair.case.images and len(files) == 1 and Path(files[0]).exists():
            pair = replace(pair, case=replace(pair.case, images=(Path(files[0]),), stacked=False))
        found.append(pair)
    return tuple(found)


def read_manifest(predictions: Path) -> dict[str, Any]:
    """``manifest.json`` beside the predictions; empty where there is none."""
    path = (predictions.parent if predictions.is_file() else predictions) / "manifest.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}", "the manifest that predict wrote", "Remove it") from error
    return content if isinstance(content, dict) else {"manifest": content}


def read_reference(case: Case, annotator: int = 0) -> Volume:
    """The label map ``(D, H, W)`` of one annotator, the first; the files of a stack become its slices.

    The values of the file, or 0 and 1 where the data set has its one object read by ``threshold`` or ``answers``.
    """
    volumes = [io.read_labels(path, fractions=case.threshold is not None) for path in case.labels[annotator]]
    if len(volumes) == 1:
        return replace(volumes[0], array=objects.read_as(volumes[0].array, case, annotator))
    shapes = sorted({v.shape[1:] for v in volumes})
    if len(shapes) > 1:
        raise InputError(f"slices of sizes {shapes} in the stack {case.id}", "slices of one size")
    array = objects.read_as(np.concatenate([v.array for v in volumes]), case, annotator)
    return Volume(array, volumes[0].affine, volumes[0].path)


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


def read_classes(predictions: Path) -> tuple[ClassInfo, ...] | None:
    """What ``classes.json`` beside the predictions says of their labels; None where there is no such file."""
    path = (predictions.parent if predictions.is_file() else predictions) / "classes.json"
    return objects.read_classes(path) if path.is_file() else None


def resolve_classes(
    given: Sequence[ClassInfo] | None, predicted: Sequence[ClassInfo] | None, pairs: Sequence[Pair]
) -> tuple[ClassInfo, ...]:
    """The objects to score: ``label`` is their value in the predictions, ``values`` those in the references.

    given: the reference's classes; predicted: those of ``classes.json``.  With both, the same names are the same
    objects (labels of the prediction, values of the reference), and what was not predicted is left out.  Where names
    differ, ``classes.json`` stands if it knows all values of the reference, and one class on each side is the same
    object.  With neither, see ``infer``.
    Raises InputError where both sides speak of different objects, or no object is found.
    """
    if given and predicted:
        label = {c.name: c.label for c in predicted}
        if set(label) <= {c.name for c in given}:
            return tuple(ClassInfo(c.name, label[c.name], c.values) for c in given if c.name in label)
        if {v for c in given for v in c.values} <= {v for c in predicted for v in c.values}:
            return tuple(predicted)
        if len(given) == len(predicted) == 1:
            return (ClassInfo(predicted[0].name, predicted[0].label, given[0].values),)
        raise InputError(
            f"predictions of {', '.join(label)} and references of {', '.join(c.name for c in given)}",
            "the same class names, or the same mask values, on both sides",
            "predict with a model of these classes, or correct the names",
        )
    if given or predicted:
        return tuple(given or predicted or ())
    drawn = set().union(*(values_of(read_reference(p.case).array) for p in pairs))
    painted = set().union(*(values_of(io.read_labels(p.prediction).array) for p in pairs))
    return infer(drawn, painted)


def infer(drawn: set[int], painted: set[int]) -> tuple[ClassInfo, ...]:
    """The objects, from the non-zero values found in all references and in all predictions (our decision).

    One object in the references (one value, or the grey levels of a JPEG mask): its label is the same value where the
    predictions hold it, else their only value, else 1.  Several: the same values mean the same objects; where no value
    is shared, predictions 1..N are the reference's values in order.
    """
    found, _ = objects.infer_classes(drawn)
    if not drawn | painted:
        raise InputError("only zeros in all predictions and references", "label maps with at least one object")
    if len(found) == 1:
        shared = painted & set(found[0].values)
        label = min(shared) if len(shared) == 1 else min(painted) if len(painted) == 1 else 1
        return (ClassInfo(found[0].name, label, found[0].values),)
    if painted and not painted & drawn and painted <= {c.label for c in found}:
        return found
    return tuple(ClassInfo(f"class_{v}", v, (v,)) for v in sorted(drawn | painted))


def values_of(array: np.ndarray) -> set[int]:
    """The non-zero values in an integer array ``(D, H, W)``."""
    return {v for plane in array for v in objects.value_counts(plane)} - {0}  # by slice: counting takes 8 bytes a voxel


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
