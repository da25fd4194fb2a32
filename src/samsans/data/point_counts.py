"""How many points of each person fall on the target and off it, for ``samsans check``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from samsans.data.cases import Dataset
from samsans.errors import InputError
from samsans.types import Case, ClassInfo, Volume


@dataclass(frozen=True)
class Placed:
    """One person's points of a case.

    notes: on points that were left out.  values: how many points of each label (1 inside, 0 outside) lie on each value
    of the mask, by the first annotator; ``None`` where there is no mask to compare them with.  error: why they cannot
    be used.
    """

    person: str
    file: str
    points: int = 0
    inside: int = 0
    notes: tuple[str, ...] = ()
    values: Counter[tuple[int, int]] | None = None
    error: str = ""


@dataclass(frozen=True)
class PointCount:
    """One person's points over all cases.

    inside, outside: points of either label.  judged: the inside ones of cases with a mask, of which ``on`` fall on an
    object; of the outside ones ``outside_judged`` and ``outside_on``.
    """

    person: str
    cases: int
    inside: int
    outside: int
    judged: int
    on: int
    outside_judged: int
    outside_on: int

    def text(self) -> str:
        """One line for people."""
        who = f" of {self.person}" if self.person else ""
        parts = [f"{self.inside} inside"] + ([f"{self.outside} outside"] if self.outside else [])
        line = f"points{who}: {', '.join(parts)} in {self.cases} cases"
        if self.judged:
            off = self.judged - self.on
            line += f"; inside points: {self.on} on the target, {off} off it ({self.on / self.judged:.1%} on)"
        if self.outside_judged:
            off = self.outside_judged - self.outside_on
            line += f"; outside points: {self.outside_on} on the target, {off} off it"
        return line


def place(dataset: Dataset, case: Case, image: Volume | None, labels: np.ndarray | None) -> tuple[Placed, ...]:
    """Look up everybody's points in the mask ``(D, H, W)`` of a case, if there is one of the image's size."""
    return () if image is None else tuple(_place(dataset, case, image, labels, i) for i in range(len(case.points)))


def troubles(placed: Iterable[Placed]) -> Iterator[tuple[Literal["error", "warning"], str, str, str]]:
    """Severity, kind, file and what was found, of all that is wrong with points."""
    for one in placed:
        if one.error:
            yield "error", "a file of points cannot be used", one.file, one.error
        for note in one.notes:
            yield "warning", "points are left out", one.file, note


def _place(dataset: Dataset, case: Case, image: Volume, labels: np.ndarray | None, person: int) -> Placed:
    who, file = case.points[person].person, str(case.points[person].paths[0])
    try:
        points, notes = dataset.placed_points(case, image, person)
    except InputError as error:
        return Placed(who, file, error=str(error))
    values: Counter[tuple[int, int]] | None = None
    if labels is not None and labels.shape == image.shape:
        z, y, x = np.floor(points.positions + 0.5).astype(int).T.clip(0, np.array(labels.shape)[:, None] - 1)
        values = Counter(zip(points.labels.tolist(), labels[z, y, x].tolist(), strict=True))
    return Placed(who, file, len(points), int(points.labels.sum()), notes, values)


def tally(placed: Iterable[Placed], classes: Sequence[ClassInfo]) -> tuple[PointCount, ...]:
    """The sum over all cases of each person, in order of first appearance; the target is any of the objects."""
    target = {value for info in classes for value in info.values}
    by_person: dict[str, list[Placed]] = {}
    for one in (one for one in placed if not one.error):
        by_person.setdefault(one.person, []).append(one)

    def count(found: list[Placed], label: int, on: set[int] | None) -> int:
        seen = [one.values for one in found if one.values is not None]
        return sum(n for v in seen for (k, value), n in v.items() if k == label and (on is None or value in on))

    return tuple(
        PointCount(
            person,
            len(found),
            sum(one.inside for one in found),
            sum(one.points - one.inside for one in found),
            count(found, 1, None),
            count(found, 1, target),
            count(found, 0, None),
            count(found, 0, target),
        )
        for person, found in by_person.items()
    )
