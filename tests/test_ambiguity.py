"""The metrics of ambiguity: known values, properties, optimal transport, calibration."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from samsans.errors import InputError
from samsans.metrics import ambiguity
from samsans.metrics.ambiguity import Ambiguity, compare

VALUES = ("ged", "hm_iou", "hm_iou_rect", "dmax_gt", "dmax_global", "dmean")


def rectangle(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((8, 8), dtype=bool)
    mask[rows, columns] = True
    return mask


A = rectangle(slice(0, 4), slice(0, 4))
B = rectangle(slice(0, 4), slice(0, 2))
C = rectangle(slice(4, 8), slice(4, 8))
E = np.zeros((8, 8), dtype=bool)
Y0 = [A, B, C, E]
TABLE = [
    (Y0, Y0, (0, 1, 1, 1, 1, 1 / 3)),
    (Y0 * 4, Y0, (0, 1, 1, 1, 1, 1 / 3)),
    ([A] * 16, Y0, (0.5625, 0.375, 0.375, 5 / 12, 1, 5 / 12)),
    ([E] * 16, Y0, (0.8125, 0.25, 0.25, 0.25, 1, 0.25)),
    ([A, B], Y0, (0.3125, 0.5, 1, 0.5, 1, 5 / 12)),
    ([A] * 8 + [B] * 8, Y0, (0.3125, 0.5, 0.5, 0.5, 1, 5 / 12)),
    ([A, B, C], Y0, (0.0902778, 0.75, 1, 0.75, 1, 0.361111)),
    ([A, B, C, A, A, A], Y0, (0.2152778, 0.625, 0.75, 0.75, 1, 0.388889)),
    ([A], [A] * 4, (0, 1, 1, 1, 1, 1)),
    ([C] * 4, [A] * 4, (2, 0, 0, 0, 0, 0)),
    ([A] * 4, [E] * 4, (2, 0, 0, 0, 0, 0)),
    ([E] * 3, [E] * 4, (0, 1, 1, 1, 1, 1)),
    ([A, A, E, E], [A, E, E, E], (0.125, 0.75, 0.75, 1, 1, 0.5)),
]


@pytest.mark.parametrize(("samples", "annotations", "expected"), TABLE)
def test_table(samples: list[np.ndarray], annotations: list[np.ndarray], expected: tuple[float, ...]) -> None:
    found = compare(np.stack(samples), np.stack(annotations))
    assert [getattr(found, name) for name in VALUES] == pytest.approx(expected, abs=1e-6)
    assert (found.samples, found.annotations) == (len(samples), len(annotations))
    assert found.empty_samples == sum(not s.any() for s in samples)
    assert found.empty_annotations == sum(not y.any() for y in annotations)
    energy = ambiguity.ged(np.stack(samples), np.stack(annotations))
    assert energy.squared == found.ged
    assert energy.squared == pytest.approx(2 * energy.cross - energy.sample_diversity - energy.annotator_diversity)
    for name, function in (("hm_iou", ambiguity.hm_iou), ("hm_iou_rect", ambiguity.hm_iou_rect)):
        assert function(np.stack(samples), np.stack(annotations)) == pytest.approx(getattr(found, name))


def test_overlaps_of_two() -> None:
    first, second = np.stack([A, E]), np.stack([B, E])
    assert np.array_equal(ambiguity.iou(first, second), [[0.5, 0], [0, 1]])
    assert np.array_equal(ambiguity.dice(first, second), [[2 / 3, 0], [0, 1]])
    assert np.array_equal(ambiguity.distances(first, second), [[0.5, 1], [1, 0]])


@pytest.mark.parametrize("empty", [0, 1, 2, 3, 4])
def test_share_of_empty_annotations(empty: int) -> None:
    """Every sample equal to the only mask drawn, a share q of annotators drawing nothing."""
    q = empty / 4
    found = compare(np.stack([A] * 16), np.stack([A] * (4 - empty) + [E] * empty))
    assert found.ged == pytest.approx(2 * q**2)
    assert found.hm_iou == pytest.approx(1 - q)
    assert found.dmax_gt == pytest.approx(1 - q)
    assert found.dmax_global == float(q < 1)
    assert found.presence == ("agreed" if q == 0 else "absent" if q == 1 else "dissent")


def test_two_of_four_annotators_empty() -> None:
    assert compare(np.stack([A] * 7), np.stack([A, A, E, E])).ged == pytest.approx(0.5)


@pytest.mark.parametrize("count", [4, 16])
def test_perfect_sampler(count: int) -> None:
    """Expected squared distance of independent draws: D_YY / K."""
    annotations = np.stack(Y0)
    compared = ambiguity.overlaps(annotations)
    draws = np.random.default_rng(0).integers(0, 4, (3000, count))
    found = [ambiguity.measure(compared, draw, range(4)) for draw in draws]
    values = np.array([f.ged for f in found])
    assert found[0].annotator_diversity == 0.6875
    assert values.mean() == pytest.approx(0.6875 / count, abs=4 * values.std() / math.sqrt(len(values)))
    if count == 16:
        assert np.mean([f.hm_iou for f in found]) == pytest.approx(0.85, abs=0.01)


def naive(samples: np.ndarray, annotations: np.ndarray, overlap: Callable[[set[int], set[int]], float]) -> np.ndarray:
    sets = [[set(np.flatnonzero(mask).tolist()) for mask in masks] for masks in (samples, annotations)]
    return np.array([[overlap(s, y) for y in sets[1]] for s in sets[0]])


def naive_iou(s: set[int], y: set[int]) -> float:
    return len(s & y) / len(s | y) if s | y else 1.0


def naive_dice(s: set[int], y: set[int]) -> float:
    return 2 * len(s & y) / (len(s) + len(y)) if s or y else 1.0


def transport(gain: np.ndarray) -> float:
    """Best mean gain of moving uniform weights onto uniform weights, as a linear programme."""
    k, a = gain.shape
    rows = np.kron(np.eye(k), np.ones(a))
    columns = np.kron(np.ones(k), np.eye(a))
    found = linprog(
        -gain.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.r_[np.full(k, 1 / k), np.full(a, 1 / a)], method="highs"
    )
    return float(-found.fun)


def some_masks(rng: np.random.Generator, count: int) -> np.ndarray:
    """Random masks, some of them empty, some equal."""
    masks = rng.random((count, 5, 6)) < rng.random((count, 1, 1)) * rng.integers(0, 2, (count, 1, 1))
    return masks[rng.integers(0, count, count)]


@pytest.mark.parametrize("seed", range(60))
def test_naive_loops_and_optimal_transport(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples, annotations = (some_masks(rng, int(rng.integers(1, 9))) for _ in range(2))
    found = compare(samples, annotations)
    iou, dice = (naive(samples, annotations, overlap) for overlap in (naive_iou, naive_dice))
    within, between = (1 - naive(m, m, naive_iou).mean() for m in (samples, annotations))
    assert np.allclose(ambiguity.iou(samples, annotations), iou, atol=1e-15)
    assert np.allclose(ambiguity.dice(samples, annotations), dice, atol=1e-15)
    assert found.ged == pytest.approx(2 * (1 - iou).mean() - within - between, abs=1e-12)
    assert found.cross == pytest.approx(1 - iou.mean())
    assert (found.sample_diversity, found.annotator_diversity) == pytest.approx((within, between))
    assert found.hm_iou == pytest.approx(transport(iou), abs=1e-9)
    assert found.dmax_gt == pytest.approx(dice.max(axis=0).mean())
    assert found.dmax_pred == pytest.approx(dice.max(axis=1).mean())
    assert (found.dmax_global, found.dmean) == pytest.approx((dice.max(), dice.mean()))


def close(first: Ambiguity, second: Ambiguity, *names: str) -> None:
    for name in names or ambiguity.METRICS:
        assert getattr(first, name) == pytest.approx(getattr(second, name), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_properties(k: int, a: int, times: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples, annotations = some_masks(rng, k), some_masks(rng, a)
    found = compare(samples, annotations)
    close(found, compare(samples[rng.permutation(k)], annotations[rng.permutation(a)]))
    for again in (
        compare(np.repeat(samples, times, axis=0), annotations),
        compare(samples, np.repeat(annotations, times, axis=0)),
    ):
        close(found, again, "ged", "hm_iou", "dmax_gt", "dmean")
    swapped = compare(annotations, samples)
    close(found, swapped, "ged", "cross", "hm_iou", "hm_iou_rect", "dmax_global", "dmean")
    assert (swapped.dmax_gt, swapped.dmax_pred) == (found.dmax_pred, found.dmax_gt)
    assert 0 <= found.ged <= 2
    assert compare(samples, samples).ged == pytest.approx(0, abs=1e-12)
    slack = 1e-12
    assert found.hm_iou_rect >= found.hm_iou - slack
    assert found.dmax_global >= found.dmax_gt - slack
    assert found.dmax_gt >= found.dmean - slack
    iou, dice = ambiguity.iou(samples, annotations), ambiguity.dice(samples, annotations)
    assert np.allclose(dice, 2 * iou / (1 + iou))
    one = compare(samples[:1], annotations)
    assert one.hm_iou == pytest.approx(iou[0].mean())
    if not any((~s.any()) for s in samples):
        assert found.hm_iou <= 1 - found.empty_annotations / a + slack


def test_any_number_of_axes_and_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    samples, annotations = rng.random((3, 4, 5, 6)) < 0.4, rng.random((2, 4, 5, 6)) < 0.5
    whole = compare(samples, annotations)
    assert whole == compare(samples.reshape(3, -1), annotations.reshape(2, -1))
    monkeypatch.setattr(ambiguity, "_CHUNK", 7)
    assert whole == compare(samples, annotations)


def test_presence_and_means() -> None:
    agreed = compare(np.stack([A, B]), np.stack([A, A]))
    dissent = compare(np.stack([A, E]), np.stack([A, E]))
    absent = compare(np.stack([A, A]), np.stack([E, E]))
    assert [image.presence for image in (agreed, dissent, absent)] == ["agreed", "dissent", "absent"]
    found = ambiguity.mean([agreed, dissent, dissent, absent])
    assert found["images"] == 4
    assert found["ged"] == pytest.approx((agreed.ged + 2 * dissent.ged + absent.ged) / 4)
    assert found["empty_samples"] == 2 / 8
    assert ambiguity.mean([dissent, dissent])["empty_annotations"] == 0.5
    assert math.isnan(ambiguity.mean([])["ged"])


def test_calibration_by_hand() -> None:
    probability = np.array([[0.0, 0.05, 0.1], [0.5, 0.95, 1.0]])
    annotations = np.array([[[0, 0, 1], [1, 1, 1]], [[0, 0, 0], [0, 0, 1]]], dtype=bool)
    found = ambiguity.reliability(probability, annotations)
    assert found.count.tolist() == [2, 1, 0, 0, 0, 1, 0, 0, 0, 2]
    assert found.predicted == pytest.approx([0.05, 0.1, 0, 0, 0, 0.5, 0, 0, 0, 1.95])
    assert found.observed == pytest.approx([0, 0.5, 0, 0, 0, 0.5, 0, 0, 0, 1.5])
    assert found.error == pytest.approx((0.05 + 0.4 + 0 + 0.45) / 6)
    both = found + ambiguity.reliability(np.full((2, 3), 0.25), annotations)
    assert both.count.sum() == 12
    assert ambiguity.reliability(annotations.mean(axis=0), annotations).error == 0
    assert ambiguity.reliability(1 - annotations[0], annotations[:1]).error == 1


@pytest.mark.parametrize(
    ("samples", "annotations"),
    [
        (np.zeros((2, 4, 4)), np.zeros((2, 4, 4), bool)),
        (np.zeros((2, 4, 4), bool), np.zeros((2, 4, 5), bool)),
        (np.zeros((0, 4, 4), bool), np.zeros((2, 4, 4), bool)),
        (np.zeros((2, 4, 4), bool), np.zeros((0, 4, 4), bool)),
        (np.zeros(4, bool), np.zeros((2, 4), bool)),
    ],
)
def test_refused(samples: np.ndarray, annotations: np.ndarray) -> None:
    for function in (compare, ambiguity.ged, ambiguity.iou, ambiguity.hm_iou):
        with pytest.raises(InputError):
            function(samples, annotations)


@pytest.mark.parametrize("probability", [np.full((4, 4), 1.5), np.full((4, 4), np.nan), np.zeros((4, 5))])
def test_no_probabilities(probability: np.ndarray) -> None:
    with pytest.raises(InputError):
        ambiguity.reliability(probability, np.zeros((2, 4, 4), bool))
