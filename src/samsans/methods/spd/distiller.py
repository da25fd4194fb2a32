"""From saliency and raw points to the points SAM is shown, as a run's configuration says; no torch, can be pickled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from samsans.errors import InputError
from samsans.methods.spd.config import SpdConfig
from samsans.methods.spd.cpd import Consensus, distil, labelled, spread, unique
from samsans.methods.spd.saliency import enlarged, peak

PEAK = 0.9  # saliency that the most salient pixel must exceed to stand for missing points


class Distiller:
    """Distillation by ``config`` for a model that sees ``side`` pixels.

    counts: of all slices so far: ``slices``; ``prompted``, those that had points; ``silenced``, those of them that lost
    all; ``empty``, those without a consensus; ``fallback``, those of them that got points by ``config.empty``; and
    ``capped``, those with more points than ``config.cap``.
    """

    def __init__(self, config: SpdConfig, side: int) -> None:
        self.config, self.side = config, side
        self.counts: Counter[str] = Counter()

    def __call__(self, logits: np.ndarray | None, points: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Of each slice of a volume the points ``(K, 3)`` float64 to show to SAM; with ``distill`` none those given.

        logits: ``(T, 4g, 4g)`` of the saliency; unused (``None``) with ``distill`` none.  points: ``(K, 3)`` of each.
        """
        rows = [labelled(given) for given in points]
        found = self.consensus(logits, rows)
        shown = [part.points for part in found]
        for t, part in enumerate(found):
            if len(part):
                continue
            if self.config.empty == "raw":
                shown[t] = as_given(rows[t], self.config.cap).points
            elif self.config.empty == "saliency_peak":
                shown[t] = self._peak(logits, t)
        self._count(rows, found, shown)
        return shown

    def consensus(self, logits: np.ndarray | None, points: Sequence[np.ndarray]) -> list[Consensus]:
        """The consensus of each slice and where its points are from, before what ``config.empty`` adds."""
        config = self.config
        if config.distill == "none":
            return [as_given(rows, config.cap) for rows in points]
        if logits is None or len(logits) != len(points):
            maps = "no saliency" if logits is None else f"the saliency of {len(logits)} slices"
            raise InputError(f"{maps} for the points of {len(points)} slices", "a map for every slice")
        return distil(
            enlarged(logits, self.side),
            points,
            tau=config.tau,
            neighbours=config.neighbours if config.distill == "context" else 0,
            cap=config.cap,
            rejected_as_negative=config.rejected_as_negative,
        )

    def _peak(self, logits: np.ndarray | None, t: int) -> np.ndarray:
        assert logits is not None
        place, value = peak(logits[t], self.side)
        return np.array([[*place, 1.0]]) if value > PEAK else np.empty((0, 3))

    def _count(self, rows: Sequence[np.ndarray], found: Sequence[Consensus], shown: Sequence[np.ndarray]) -> None:
        self.counts["slices"] += len(rows)
        for given, part, points in zip(rows, found, shown, strict=True):
            self.counts["prompted"] += len(given) > 0
            self.counts["silenced"] += len(given) > 0 and not len(part)
            self.counts["empty"] += not len(part)
            self.counts["fallback"] += not len(part) and len(points) > 0
            self.counts["capped"] += part.capped > 0


def as_given(points: np.ndarray, cap: int | None) -> Consensus:
    """The points of a slice as they are, each place once; none where none is inside.

    cap: the most, by ``spread`` from the first one.
    """
    rows = unique(labelled(points))
    if not (rows[:, 2] == 1).any():
        rows = rows[:0]
    if cap is not None and len(rows) > cap:
        chosen = spread(rows[:, :2], cap, 0)
        return Consensus(rows[chosen], np.zeros(cap, np.int64), len(rows) - cap)
    return Consensus(rows, np.zeros(len(rows), np.int64))
