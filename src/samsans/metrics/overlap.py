"""How much two masks overlap: Dice and IoU, both in [0, 1]."""

from __future__ import annotations

import math

import numpy as np

from samsans.errors import InputError


def sizes(prediction: np.ndarray, reference: np.ndarray) -> tuple[int, int, int]:
    """Numbers of voxels in both masks, in the prediction and in the reference.

    prediction, reference: bool arrays of one shape, of any number of axes.
    Raises InputError where the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise InputError(
            f"prediction of shape {prediction.shape} and reference of shape {reference.shape}",
            "two masks on one grid",
            "resample one onto the grid of the other",
        )
    prediction, reference = prediction.astype(bool, copy=False), reference.astype(bool, copy=False)
    both = int(np.count_nonzero(prediction & reference))
    return both, int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Dice coefficient ``2 |P & R| / (|P| + |R|)`` of two bool masks; NaN where both are empty."""
    both, p, r = sizes(prediction, reference)
    return 2 * both / (p + r) if p + r else math.nan


def iou(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Intersection over union ``|P & R| / |P | R|`` of two bool masks; NaN where both are empty."""
    both, p, r = sizes(prediction, reference)
    return both / (p + r - both) if p + r else math.nan
