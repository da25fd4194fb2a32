"""Dice and IoU against hand-made cases and the definition on sets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from samsans.errors import InputError
from samsans.metrics.overlap import dice, iou, sizes

MASKS = arrays(bool, (2, 3, 4))


def test_hand_made() -> None:
    p = np.array([[1, 1, 0], [0, 1, 0]], dtype=bool)  # 3 voxels
    r = np.array([[0, 1, 1], [0, 1, 1]], dtype=bool)  # 4 voxels, 2 shared
    assert sizes(p, r) == (2, 3, 4)
    assert dice(p, r) == pytest.approx(4 / 7)
    assert iou(p, r) == pytest.approx(2 / 5)


def test_empty() -> None:
    empty, full = np.zeros((2, 2), bool), np.ones((2, 2), bool)
    assert math.isnan(dice(empty, empty))
    assert math.isnan(iou(empty, empty))
    assert dice(empty, full) == dice(full, empty) == iou(full, empty) == 0


@given(MASKS, MASKS)
def test_as_sets(p: np.ndarray, r: np.ndarray) -> None:
    a, b = (set(map(tuple, np.argwhere(m).tolist())) for m in (p, r))
    if a or b:
        assert dice(p, r) == pytest.approx(2 * len(a & b) / (len(a) + len(b)))
        assert iou(p, r) == pytest.approx(len(a & b) / len(a | b))
        assert dice(p, r) == dice(r, p)


def test_integers_count_as_masks() -> None:
    assert dice(np.array([2, 0]), np.array([1, 1])) == pytest.approx(2 / 3)


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match=r"\(2, 2\).*\(2, 3\)"):
        dice(np.ones((2, 2), bool), np.ones((2, 3), bool))
