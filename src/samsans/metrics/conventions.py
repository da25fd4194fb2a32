"""What counts how: the rules of a metric table, by name, so that two tables can be compared.

Where prediction and reference both hold an object, all conventions agree on Dice and IoU.  They differ where one or
both hold nothing, in whether distances know the voxel size, and in whether slices or volumes are the samples; on the
same files this can move a mean by several points.  In every convention the background is never scored, a class's value
is the mean over the samples where it is defined, and the headline is the mean over the classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from samsans.errors import InputError
from samsans.metrics import overlap, surface

METRICS = ("dice", "iou", "hd95_mm", "asd_mm", "nsd")

State = Literal["both", "only_reference", "only_prediction", "both_empty"]


@dataclass(frozen=True)
class Outcome:
    """What an object scores where a mask is empty; None: undefined, left out of the means and counted.

    overlap: Dice, IoU and NSD.  distance: HD95 and average surface distance.
    """

    overlap: float | None
    distance: float | None


@dataclass(frozen=True)
class Convention:
    """One set of rules.

    both_empty, only_reference, only_prediction: scores where nothing is there, was missed, was made up.
    level: what one sample is, a whole ``volume`` (a 2D image is one) or each ``slice`` of it.
    use_spacing: distances in mm where the files state a voxel size; else in voxels.
    hd95: ``pooled`` or ``max_directed``, see ``surface.hausdorff``; no named convention uses the second, but
        ``dataclasses.replace(CONVENTIONS["default"], name=..., hd95="max_directed")`` is a convention too.
    slicewise: an evaluation also tells what means over slices hide, see ``samsans.metrics.slicewise``.
    """

    name: str
    description: str
    both_empty: Outcome
    only_reference: Outcome
    only_prediction: Outcome
    level: Literal["volume", "slice"] = "volume"
    use_spacing: bool = True
    hd95: surface.Pooling = "pooled"
    slicewise: bool = False


SKIP, MISS = Outcome(None, None), Outcome(0.0, None)

CONVENTIONS: Mapping[str, Convention] = {
    # Our decision: a distance to nothing is undefined.  The usual stand-in, the diagonal of the image, depends on how
    # the image was cropped and swamps the mean; the miss is already paid for by Dice, IoU and NSD of 0, and the number
    # of undefined distances stands beside the mean.
    "default": Convention(
        name="default",
        description=(
            "Per volume (or 2D image), foreground objects only. Absent in both prediction and reference: left out of "
            "the means and counted. Present in only one: Dice, IoU and NSD 0; distances undefined, left out and "
            "counted. Distances in mm where the files state a voxel size, else in pixels. HD95 pools both directions."
        ),
        both_empty=SKIP,
        only_reference=MISS,
        only_prediction=MISS,
    ),
    "nnunet": Convention(
        name="nnunet",
        description=(
            "Dice and IoU as in nnU-Net's summary: per volume, absent in both is NaN and left out of the means, "
            "present in only one is 0. nnU-Net's summary has no surface metrics: those shown follow the default "
            "convention (mm, undefined where one side is empty, HD95 pooled)."
        ),
        both_empty=SKIP,
        only_reference=MISS,
        only_prediction=MISS,
    ),
    "transunet": Convention(
        name="transunet",
        description=(
            "The rule of the TransUNet, SAMed and H-SAM test code on Synapse: per volume, predicted but absent in the "
            "reference scores Dice 1 and HD95 0; missed scores Dice 0 and HD95 0; absent in both scores Dice 0 and "
            "HD95 0. HD95 in voxels (spacing ignored), pooled as in MedPy. Mean over the volumes for each class, then "
            "over the classes; the papers print Dice times 100 and call HD95 HD. It rewards false positives, punishes "
            "correct silence and lets a total miss improve HD95: use it only to compare with those papers. IoU and NSD "
            "follow Dice, ASD follows HD95."
        ),
        both_empty=Outcome(0.0, 0.0),
        only_reference=Outcome(0.0, 0.0),
        only_prediction=Outcome(1.0, 0.0),
        use_spacing=False,
    ),
    "per_slice": Convention(
        name="per_slice",
        description=(
            "As default, but every slice of a volume is a sample of its own, as in many 2D papers; slices without the "
            "object in both prediction and reference are left out. Not comparable with per-volume numbers. Intervals "
            "resample whole cases, never single slices."
        ),
        both_empty=SKIP,
        only_reference=MISS,
        only_prediction=MISS,
        level="slice",
    ),
    "spd": Convention(
        name="spd",
        description=(
            "The rules of SPD: every slice is a sample. Absent in both prediction and reference: Dice and IoU 1; "
            "present in only one: 0. HD95 and ASD only on slices where both show the object. Surface: the object "
            "without its 4-neighbour erosion; HD95 pools both directions as in MedPy, ASD is the mean of both "
            "together. In mm where the files state a pixel size, else in pixels. It rewards silence wherever most "
            "slices are empty: read it with the scores beside it (slices that show the object, false alarms, whole "
            "volumes, coverage of the distances). NSD follows Dice. Intervals resample whole cases, never single "
            "slices."
        ),
        both_empty=Outcome(1.0, None),
        only_reference=MISS,
        only_prediction=MISS,
        level="slice",
        slicewise=True,
    ),
}


def get(name: str) -> Convention:
    """The convention of that name; raises InputError naming those that exist."""
    if name not in CONVENTIONS:
        raise InputError(f"convention {name!r}", f"one of {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]


@dataclass(frozen=True)
class Score:
    """How one object of one sample scored.

    state: where the object is.  values: one number for each of METRICS, None where undefined.
    prediction_size, reference_size: voxels.  asd_directed: average distance from prediction to reference alone, None
    where a mask is empty.
    """

    state: State
    values: Mapping[str, float | None]
    prediction_size: int
    reference_size: int
    asd_directed: float | None = None


def score(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    convention: Convention,
    nsd_tolerance: float = 2.0,
) -> Score:
    """Score one object.

    prediction, reference: bool masks of one shape, ``(D, H, W)`` or ``(H, W)``.
    spacing: voxel size along those axes; ignored where the convention counts voxels.
    nsd_tolerance: in the unit of the distances.
    """
    both, p, r = overlap.sizes(prediction, reference)
    if p and r:
        step = spacing if convention.use_spacing else (1.0,) * prediction.ndim
        distances = surface.surface_distances(prediction, reference, step)
        numbers = (
            2 * both / (p + r),
            both / (p + r - both),
            surface.hausdorff(distances, 95.0, convention.hd95),
            surface.average_symmetric_distance(distances),
            surface.surface_dice(distances, nsd_tolerance),
        )
        return Score("both", dict(zip(METRICS, numbers, strict=True)), p, r, float(distances[0].mean()))
    state: State = "only_reference" if r else "only_prediction" if p else "both_empty"
    outcome: Outcome = getattr(convention, state)
    values = {m: outcome.distance if m in ("hd95_mm", "asd_mm") else outcome.overlap for m in METRICS}
    return Score(state, values, p, r)


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the defined values; None where there is none."""
    defined = [v for v in values if v is not None and not math.isnan(v)]
    return float(np.mean(defined)) if defined else None
