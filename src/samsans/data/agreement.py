"""How far several annotators of a data set agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from samsans.data.classes import value_counts
from samsans.types import ClassInfo

Joint = Mapping[tuple[int, int], int]


@dataclass(frozen=True)
class ObjectAgreement:
    """One object.  iou, dice: mean over the cases of the mean over all pairs of annotators; 1 where both drew nothing.

    annotations: masks of the object by anyone, of which ``empty`` hold nothing.  presence: cases in which some drew it
    and others did not.
    """

    name: str
    iou: float
    dice: float
    annotations: int
    empty: int
    presence: int


@dataclass(frozen=True)
class Agreement:
    """annotators: how many cases have how many.  cases: those with several, compared by ``objects``."""

    annotators: dict[int, int]
    cases: int
    objects: tuple[ObjectAgreement, ...]

    def lines(self) -> list[str]:
        """For people."""
        if not self.cases:
            return []
        counted = ", ".join(f"{count} in {cases} cases" for count, cases in self.annotators.items())
        return [f"annotators: {counted}", *(_line(found, self.cases) for found in self.objects)]


def _line(found: ObjectAgreement, cases: int) -> str:
    return (
        f"agreement on {found.name}: IoU {found.iou:.3f}, Dice {found.dice:.3f} between two annotators; {found.empty} "
        f"of {found.annotations} annotations are empty; in {found.presence} of {cases} cases only some drew it"
    )


def joint_counts(annotations: Sequence[np.ndarray]) -> tuple[Joint, ...]:
    """Of every pair of label maps of one shape, how often each pair of values occurs; in order of ``combinations``."""
    return tuple(_joint(a, b) for a, b in combinations(annotations, 2))


def _joint(a: np.ndarray, b: np.ndarray) -> Joint:
    low, step = int(b.min(initial=0)), int(b.max(initial=0)) - int(b.min(initial=0)) + 1
    counts = value_counts(a.astype(np.int64) * step + (b.astype(np.int64) - low))
    return {(code // step, code % step + low): n for code, n in counts.items()}


def overlap(joint: Joint, values: Collection[int]) -> tuple[float, float, int, int]:
    """IoU and Dice (1 where both are empty) of the object of these ``values``, and its size in either map."""
    first = sum(n for (a, _), n in joint.items() if a in values)
    second = sum(n for (_, b), n in joint.items() if b in values)
    both = sum(n for (a, b), n in joint.items() if a in values and b in values)
    union = first + second - both
    return (both / union, 2 * both / (first + second), first, second) if union else (1.0, 1.0, 0, 0)


def agree(
    annotators: Iterable[int], joints: Sequence[Sequence[Joint]], classes: Sequence[ClassInfo]
) -> Agreement | None:
    """Agreement of a data set: how many annotators each case has, and the ``joint_counts`` of those with several.

    None where no case has several.
    """
    counted = Counter(n for n in annotators if n)
    if max(counted, default=0) < 2:
        return None
    objects = tuple(_of_object(joints, info) for info in classes) if joints else ()
    return Agreement(dict(sorted(counted.items())), len(joints), objects)


def _of_object(joints: Sequence[Sequence[Joint]], info: ClassInfo) -> ObjectAgreement:
    values = frozenset(info.values)
    ious, dices = [], []
    annotations = empty = presence = 0
    for pairs in joints:
        found = [overlap(joint, values) for joint in pairs]
        ious.append(np.mean([f[0] for f in found]))
        dices.append(np.mean([f[1] for f in found]))
        count = round((1 + (1 + 8 * len(pairs)) ** 0.5) / 2)  # annotators of so many pairs
        sizes = [found[0][2], *(f[3] for f in found[: count - 1])]  # the first pairs are those of the first annotator
        annotations, empty = annotations + count, empty + sizes.count(0)
        presence += 0 < sizes.count(0) < count
    return ObjectAgreement(info.name, float(np.mean(ious)), float(np.mean(dices)), annotations, empty, presence)
