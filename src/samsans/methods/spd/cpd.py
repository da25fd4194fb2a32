"""Contextual prompt distillation: which points of a volume's slices each slice is prompted with.

No parameters and no torch.  Points are ``(x, y)`` in pixels of the square that the saliency is known on; the centre of
the top left one is (0, 0).  Points keep their place from slice to slice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from samsans.errors import InputError

Lookup = Callable[[int, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Consensus:
    """The points one slice is prompted with.

    points: ``(K, 3)`` float64: x, y and the label, 1 inside, 0 outside; no place twice.
    offsets: ``(K,)`` int64, where each is from: 0 the slice itself, else the neighbour's index less that of the slice.
    capped: how many more there would be without ``cap``.
    """

    points: np.ndarray
    offsets: np.ndarray
    capped: int = 0

    def __len__(self) -> int:
        return len(self.points)


def distil(
    lookup: Lookup,
    points: Sequence[np.ndarray],
    *,
    tau: float,
    neighbours: int,
    cap: int | None = None,
    rejected_as_negative: bool = False,
) -> list[Consensus]:
    """The consensus of every slice (section 7 of the specification).

    A point counts where the saliency of its own slice is above ``tau``; then it also counts in each slice up to
    ``neighbours`` away whose own saliency is above ``tau`` at that place.  Own points come first, then those of the
    nearest neighbours, the slice before ahead of the one after.

    Ours: points given as outside (label 0) stay in their slice unjudged and never travel; a set without any inside
    point is empty, since there is nothing to segment.

    Args:
        lookup: ``lookup(t, xy)``: the saliency ``(K,)`` of slice t at ``xy (K, 2)``.
        points: Of each of the T slices ``(K, 2)`` x, y, all inside, or ``(K, 3)`` with their labels.
        tau: What the saliency must exceed.
        neighbours: n; 0 only filters.
        cap: Most points a slice, by ``spread`` from the most salient inside one.
        rejected_as_negative: A slice's own points that do not count become outside points of it.
    """
    if neighbours < 0 or (cap is not None and cap < 1):
        raise InputError(f"{neighbours} neighbours and a cap of {cap}", "0 or more neighbours, and a cap of at least 1")
    own, valid = [], []
    for t, given in enumerate(points):
        rows = unique(labelled(given))
        inside = rows[:, 2] == 1
        kept = inside & (lookup(t, rows[:, :2]) > tau)
        if rejected_as_negative:
            rows[inside & ~kept, 2] = 0
            own.append(rows)
        else:
            own.append(rows[kept | ~inside])
        valid.append(rows[kept])
    out = []
    for t, rows in enumerate(own):
        parts, offsets = [rows], [np.zeros(len(rows), np.int64)]
        for step in range(1, neighbours + 1):
            for offset in (-step, step):
                if 0 <= t + offset < len(points) and len(other := valid[t + offset]):
                    parts.append(other[lookup(t, other[:, :2]) > tau])
                    offsets.append(np.full(len(parts[-1]), offset))
        out.append(_consensus(np.concatenate(parts), np.concatenate(offsets), lookup, t, cap))
    return out


def _consensus(rows: np.ndarray, offsets: np.ndarray, lookup: Lookup, t: int, cap: int | None) -> Consensus:
    first = first_places(rows)
    rows, offsets = rows[first], offsets[first]
    if not (rows[:, 2] == 1).any():
        return Consensus(rows[:0], offsets[:0])
    if cap is None or len(rows) <= cap:
        return Consensus(rows, offsets)
    start = int(np.argmax(np.where(rows[:, 2] == 1, lookup(t, rows[:, :2]), -np.inf)))
    chosen = spread(rows[:, :2], cap, start)
    return Consensus(rows[chosen], offsets[chosen], len(rows) - cap)


def labelled(points: np.ndarray) -> np.ndarray:
    """Points ``(K, 2)`` or ``(K, 3)`` as ``(K, 3)`` float64, a copy; without labels they are inside."""
    rows = np.array(points, np.float64)
    if rows.ndim != 2 or rows.shape[1] not in (2, 3):
        raise InputError(f"Points of shape {rows.shape}", "(K, 2): x, y; or (K, 3): x, y, label")
    return rows if rows.shape[1] == 3 else np.concatenate([rows, np.ones((len(rows), 1))], 1)


def first_places(rows: np.ndarray) -> np.ndarray:
    """Indices, in order, of the rows ``(K, 2 or more)`` whose x, y no earlier row has."""
    return np.sort(np.unique(rows[:, :2], axis=0, return_index=True)[1])


def unique(rows: np.ndarray) -> np.ndarray:
    """The rows without those whose x, y an earlier one has: to SAM a point given twice is another prompt."""
    return rows[first_places(rows)]


def spread(xy: np.ndarray, count: int, start: int) -> np.ndarray:
    """Indices, in order, of ``count`` of the places ``(K, 2)``: the start, then always the farthest from all chosen."""
    chosen = np.zeros(len(xy), bool)
    apart, at = np.full(len(xy), np.inf), start
    for _ in range(min(count, len(xy))):
        chosen[at] = True
        apart = np.minimum(apart, np.square(xy - xy[at]).sum(1))
        at = int(np.argmax(np.where(chosen, -1.0, apart)))
    return np.flatnonzero(chosen)
