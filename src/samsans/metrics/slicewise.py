"""An object slice by slice, and what a mean over slices hides.

Where most slices show nothing, a mean Dice that counts correct silence as 1 mostly measures silence, and distances that
skip what was missed reward it.  So Dice on the slices that show the object, false alarms on those that do not, the Dice
of whole volumes, and how often a distance exists at all stand beside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from samsans.errors import InputError
from samsans.metrics.conventions import CONVENTIONS, Score, mean, score

TITLES = {
    "dice": "Dice, all slices",
    "iou": "IoU, all slices",
    "dice_present": "Dice, slices that show the object",
    "false_positives": "share of the other slices with a prediction",
    "volumetric_dice": "Dice of whole volumes",
    "hd95": "HD95, where both show something",
    "asd": "ASD, where both show something",
    "asd_directed": "the same from prediction to reference alone",
    "coverage": "share of slices with the object that have a distance",
    "hd95_penalised": "HD95, missed or made up being the diagonal",
}


@dataclass(frozen=True)
class Slicewise:
    """How one object scored in the T slices of a volume.

    dice, iou: ``(T,)`` float64, 1 where both masks are empty and 0 where exactly one is.
    hd95, asd, asd_directed: ``(T,)``, NaN where a mask is empty: pooled 95th percentile, mean of both directions
        together, and mean from prediction to reference.
    hd95_penalised: ``(T,)``, the diagonal of the slice where exactly one mask is empty, NaN where both are.
    predicted, reference, both: ``(T,)`` int64 pixels in the prediction, in the reference, in both.
    """

    dice: np.ndarray
    iou: np.ndarray
    hd95: np.ndarray
    asd: np.ndarray
    asd_directed: np.ndarray
    hd95_penalised: np.ndarray
    predicted: np.ndarray
    reference: np.ndarray
    both: np.ndarray

    @classmethod
    def of(cls, scores: Sequence[Score], diagonal: float) -> Slicewise:
        """From scores of slices by the convention ``spd``; diagonal: of a slice, in the unit of the distances."""
        columns = {m: _floats([s.values[m] for s in scores]) for m in ("dice", "iou", "hd95_mm", "asd_mm")}
        predicted, reference = (
            np.array([getattr(s, name) for s in scores], np.int64) for name in ("prediction_size", "reference_size")
        )
        one = (predicted > 0) != (reference > 0)
        overlap = np.where(predicted > 0, columns["dice"], 0.0) * (predicted + reference) / 2
        return cls(
            dice=columns["dice"],
            iou=columns["iou"],
            hd95=columns["hd95_mm"],
            asd=columns["asd_mm"],
            asd_directed=_floats([s.asd_directed for s in scores]),
            hd95_penalised=np.where(one, diagonal, columns["hd95_mm"]),
            predicted=predicted,
            reference=reference,
            both=np.rint(overlap).astype(np.int64),
        )

    @property
    def volumetric_dice(self) -> float:
        """Dice over all voxels together; 1 where both are empty."""
        size = int(self.predicted.sum() + self.reference.sum())
        return 2 * int(self.both.sum()) / size if size else 1.0

    def means(self) -> dict[str, float | None]:
        """The numbers of ``TITLES`` for this volume; None where no slice has one."""
        return {name: self.volumetric_dice if name == "volumetric_dice" else _mean(self, name) for name in TITLES}


def slicewise(predicted: np.ndarray, reference: np.ndarray, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Slicewise:
    """Score the slices of a volume by the convention ``spd``.

    predicted, reference: ``(T, H, W)`` bool.  spacing: ``(z, y, x)``, or ``(y, x)``; only that inside slices counts.
    """
    if predicted.shape != reference.shape or predicted.ndim != 3:
        raise InputError(
            f"prediction {predicted.shape} and reference {reference.shape}", "two masks of one shape (T, H, W)"
        )
    step = tuple(float(v) for v in spacing[-2:])
    rules = CONVENTIONS["spd"]
    return Slicewise.of([score(p, r, step, rules) for p, r in zip(predicted, reference, strict=True)],
                        diagonal(reference.shape[1:], step))  # fmt: skip


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Of an image ``(H, W)`` with pixels of ``spacing (y, x)``."""
    return math.hypot(*(n * step for n, step in zip(shape, spacing, strict=True)))


def over_slices(volumes: Sequence[Slicewise]) -> dict[str, float | None]:
    """The numbers of ``TITLES`` but the volumetric one, every slice of every volume counting once."""
    joined = Slicewise(
        *(np.concatenate([getattr(v, name) for v in volumes]) for name in Slicewise.__dataclass_fields__)
    )
    return {name: _mean(joined, name) for name in TITLES if name != "volumetric_dice"}


def over_volumes(volumes: Sequence[Slicewise]) -> dict[str, float | None]:
    """The numbers of ``TITLES``, each the mean over the volumes where it is defined."""
    each = [volume.means() for volume in volumes]
    return {name: mean([numbers[name] for numbers in each]) for name in TITLES}


def block(volumes: Sequence[Slicewise]) -> dict[str, Any]:
    """What ``summary.json`` holds of one object."""
    shown = [v.reference > 0 for v in volumes]
    return {
        "volumes": len(volumes),
        "slices": sum(len(s) for s in shown),
        "present": int(sum(s.sum() for s in shown)),
        "over_slices": over_slices(volumes),
        "over_volumes": over_volumes(volumes),
    }


def text(blocks: Mapping[str, Mapping[str, Any]]) -> str:
    """The blocks of all objects for a terminal."""
    lines = []
    for name, found in blocks.items():
        lines.append(
            f"{name}: {found['slices']} slices of {found['volumes']} volume(s), {found['present']} show the object"
        )
        lines.append(f"  {'':54}{'over slices':>13}{'over volumes':>14}")
        for key, title in TITLES.items():
            cells = (found[over].get(key) for over in ("over_slices", "over_volumes"))
            one, other = ("-" if value is None else f"{value:.3f}" for value in cells)
            lines.append(f"  {title:54}{one:>13}{other:>14}")
    return "\n".join(lines)


def _mean(slices: Slicewise, name: str) -> float | None:
    """Mean of one number of ``TITLES`` over slices."""
    present = slices.reference > 0
    values = {
        "dice_present": slices.dice[present],
        "false_positives": slices.predicted[~present] > 0,
        "coverage": slices.predicted[present] > 0,
    }
    found: np.ndarray = values[name] if name in values else getattr(slices, name)
    return mean(found.tolist())


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if v is None else v for v in values], np.float64)
