"""Objects and mask values: which values of a label file belong to which object, and how objects are painted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from samsans.errors import InputError
from samsans.io import atomic
from samsans.types import Case, ClassInfo

BACKGROUND = 0
LOSSY_VALUES = (
    8  # a mask that reaches 255 with more values than this, many of them bright, is one object in grey levels
)


def value_counts(labels: np.ndarray) -> dict[int, int]:
    """How often each value occurs in an integer array, in order of the values."""
    if labels.size == 0:
        return {}
    low, high = int(labels.min()), int(labels.max())
    if high - low > labels.size:  # few values far apart
        values, counts = np.unique(labels, return_counts=True)
        return {int(v): int(n) for v, n in zip(values, counts, strict=True)}
    flat = labels.ravel()
    counts = np.bincount(flat if low == 0 and flat.dtype.itemsize < 8 else flat.astype(np.int64) - low)
    return {int(v) + low: int(counts[v]) for v in np.flatnonzero(counts)}


def named_classes(values: Mapping[str, Iterable[int]]) -> tuple[ClassInfo, ...]:
    """Objects from names and mask values, e.g. ``{"disc": [1, 2], "cup": [2]}``; labels are numbered 1..N.

    Raises InputError where an object has no value.
    """
    classes = []
    for label, (name, listed) in enumerate(values.items(), 1):
        numbers = tuple(sorted({int(v) for v in ([listed] if isinstance(listed, int) else listed)}))
        if not numbers:
            raise InputError(f"object {name!r} has no mask value", "at least one whole number", "Give it its values")
        classes.append(ClassInfo(str(name), label, numbers))
    return tuple(classes)


def read_as(labels: np.ndarray, case: Case, annotator: int = 0) -> np.ndarray:
    """File values ``(...)`` of a mask of ``case`` as the data set has them read: unchanged, or 1 where its one object
    is by ``threshold`` or by what ``answers`` of ``annotator`` lists, else 0 (uint8)."""
    if case.threshold is not None:
        return (labels > case.threshold).astype(np.uint8)
    if case.answers:
        return np.isin(labels, case.answers[annotator]).astype(np.uint8)
    return labels


def one_object(given: Mapping[str, Iterable[int]] | None, reason: str) -> tuple[ClassInfo, ...]:
    """The object of masks of 0 and 1, by the name ``given`` or as ``object``; InputError where others are given."""
    classes = named_classes(given or {"object": [1]})
    if len(classes) != 1 or classes[0].values != (1,):
        listed = ", ".join(f"{c.name}: {list(c.values)}" for c in classes)
        raise InputError(
            f"data.classes {{{listed}}} beside {reason}",
            "one object of value 1, such as {nodule: [1]}: masks are then 0 and 1",
            f"Leave out data.classes, or {reason}",
        )
    return classes


def infer_classes(found: Iterable[int]) -> tuple[tuple[ClassInfo, ...], str]:
    """Objects from the values seen in label files, and a sentence that says what was concluded (our decision).

    One value beside 0: the object ``foreground``.  Grey levels up to 255 (a JPEG mask, an anti-aliased drawing): the
    object ``foreground`` is 128 and more.  Otherwise ``class_1``, ``class_2``, ... in order of the values.
    """
    values = sorted({int(v) for v in found} - {BACKGROUND})
    if not values:
        return (), "the label files hold nothing but background"
    bright = sum(v > 127 for v in values)
    if len(values) > LOSSY_VALUES and values[0] > 0 and values[-1] == 255 and 4 * bright >= len(values):
        text = f"masks hold {len(values)} grey levels (JPEG or soft edges): 128 and more is one object, foreground"
        return (ClassInfo("foreground", 1, tuple(range(128, 256))),), text
    if len(values) == 1:
        text = f"one object, foreground, inferred from mask value {values[0]}"
        return (ClassInfo("foreground", 1, (values[0],)),), text
    classes = tuple(ClassInfo(f"class_{label}", label, (value,)) for label, value in enumerate(values, 1))
    listed = ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
    return classes, f"{len(values)} objects inferred from mask values {listed}; name them with data.classes"


def class_masks(labels: np.ndarray, classes: Sequence[ClassInfo]) -> np.ndarray:
    """Masks ``(N, ...)`` bool of the objects in ``labels``, ``(...)`` integer values as they stand in the file."""
    return np.stack([np.isin(labels, c.values) for c in classes]) if classes else np.zeros((0, *labels.shape), bool)


def inner_objects(classes: Sequence[ClassInfo]) -> np.ndarray:
    """``(N, N)`` bool: object ``j`` lies inside object ``i`` by definition (they share values, and ``j`` has fewer)."""
    sets = [set(c.values) for c in classes]
    inner = [[bool(a & b) and len(b) < len(a) for b in sets] for a in sets]
    return np.array(inner, bool).reshape(len(sets), len(sets))


def disjoint_classes(classes: Sequence[ClassInfo]) -> tuple[ClassInfo, ...]:
    """The same objects without the values of objects that lie inside them: every value belongs to at most one.

    A disc of the values 1 and 2 around a cup of 2 keeps 1, the rim.  For methods that give every pixel one class.
    Raises InputError where two objects share values without one containing the other, or one has none of its own.
    """
    out = []
    for outside in classes:
        values = set(outside.values)
        own = set(values)
        for other in classes:
            shared = values & set(other.values)
            if other is outside or not shared or values < set(other.values):
                continue
            if shared != set(other.values) or shared == values:
                raise InputError(
                    f"the objects {outside.name} and {other.name} share mask values without one containing the other",
                    "objects that are apart, or one inside the other: H-SAM and others give every pixel one class",
                    "Give every value to one object in data.classes, or take a method whose objects may overlap",
                )
            own -= shared
        if not own:
            raise InputError(
                f"all mask values of the object {outside.name} belong to objects inside it",
                "a value of its own: H-SAM and others give every pixel one class",
                f"Leave {outside.name} out of data.classes",
            )
        out.append(ClassInfo(outside.name, outside.label, tuple(sorted(own))))
    return tuple(out)


def compose(logits: np.ndarray, classes: Sequence[ClassInfo]) -> np.ndarray:
    """One label map from the objects' logits.

    logits: ``(N, H, W)`` or ``(N, D, H, W)`` float; an object is present where its logit is positive.
    Returns ``(H, W)`` or ``(D, H, W)`` uint8 (uint16 above label 255): the label of the present object with the highest
    logit, 0 where none is.  An object yields to a present one that lies inside it by definition, whatever the logits:
    the disc shows around its cup.
    """
    logits = np.asarray(logits)
    if len(logits) != len(classes):
        raise InputError(f"{len(logits)} logit maps for {len(classes)} objects", "one map an object")
    highest = max((c.label for c in classes), default=0)
    out = np.zeros(logits.shape[1:], np.uint8 if highest < 256 else np.uint16)
    best = np.full(logits.shape[1:], -np.inf, np.float32)
    present = logits > 0
    inner = inner_objects(classes)
    for i, info in enumerate(classes):
        wins = present[i] & (logits[i] > best)
        for j in np.flatnonzero(inner[i]):
            wins &= ~present[j]
        out[wins] = info.label
        best[wins] = logits[i][wins]
    return out


def painted(classes: Sequence[ClassInfo]) -> tuple[ClassInfo, ...]:
    """The same objects with the values they have in *our* label maps: their own label and those of objects inside."""
    inner = inner_objects(classes)
    return tuple(
        ClassInfo(
            c.name,
            c.label,
            tuple(sorted({c.label, *(o.label for o, inside in zip(classes, inner[i], strict=True) if inside)})),
        )
        for i, c in enumerate(classes)
    )


FILE = "classes.json"


def write_classes(path: str | Path, classes: Sequence[ClassInfo]) -> Path:
    """Write ``classes.json``: ``{"classes": [{"name", "label", "values"}]}``."""
    listed = [{"name": c.name, "label": c.label, "values": list(c.values)} for c in classes]
    return atomic.write_json(path, {"classes": listed})


def read_classes(path: str | Path) -> tuple[ClassInfo, ...]:
    """Read what ``write_classes`` wrote; InputError where the file is something else."""
    try:
        listed: list[dict[str, Any]] = json.loads(Path(path).read_text(encoding="utf-8"))["classes"]
        return tuple(ClassInfo(str(c["name"]), int(c["label"]), tuple(int(v) for v in c["values"])) for c in listed)
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} holds no list of objects ({error})", 'classes.json: {"classes": [{"name", "label", "values"}]}'
        ) from error
