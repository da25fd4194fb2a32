"""The named conventions against hand-made tables, and the intervals against their definition."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from samsans.errors import InputError
from samsans.metrics.conventions import CONVENTIONS, METRICS, get, mean, score
from samsans.metrics.statistics import bootstrap, class_means

EMPTY = np.zeros((2, 4, 4), bool)
BLOCK = EMPTY.copy()
BLOCK[:, 1:3, 1:3] = True
SHIFTED = np.roll(BLOCK, 1, axis=2)  # half of it overlaps; surfaces 0 or 1 voxel apart

# prediction, reference -> dice, iou, hd95, asd, nsd;  None: undefined, left out
TABLE = {
    "default": {
        "both_empty": (None, None, None, None, None),
        "only_reference": (0, 0, None, None, 0),
        "only_prediction": (0, 0, None, None, 0),
        "both": (0.5, 1 / 3, 3.0, 1.5, 0.5),
    },
    "nnunet": {
        "both_empty": (None, None, None, None, None),
        "only_reference": (0, 0, None, None, 0),
        "only_prediction": (0, 0, None, None, 0),
        "both": (0.5, 1 / 3, 3.0, 1.5, 0.5),
    },
    "transunet": {
        "both_empty": (0, 0, 0, 0, 0),
        "only_reference": (0, 0, 0, 0, 0),
        "only_prediction": (1, 1, 0, 0, 1),
        "both": (0.5, 1 / 3, 1.0, 0.5, 1.0),  # spacing ignored: one voxel, not 3 mm
    },
    "per_slice": {
        "both_empty": (None, None, None, None, None),
        "only_reference": (0, 0, None, None, 0),
        "only_prediction": (0, 0, None, None, 0),
        "both": (0.5, 1 / 3, 3.0, 1.5, 0.5),
    },
    "spd": {
        "both_empty": (1, 1, None, None, 1),
        "only_reference": (0, 0, None, None, 0),
        "only_prediction": (0, 0, None, None, 0),
        "both": (0.5, 1 / 3, 3.0, 1.5, 0.5),
    },
}
MASKS = {
    "both_empty": (EMPTY, EMPTY),
    "only_reference": (EMPTY, BLOCK),
    "only_prediction": (BLOCK, EMPTY),
    "both": (SHIFTED, BLOCK),
}


@pytest.mark.parametrize("state", MASKS)
@pytest.mark.parametrize("name", CONVENTIONS)
def test_table(name: str, state: str) -> None:
    prediction, reference = MASKS[state]
    result = score(prediction, reference, (5.0, 4.0, 3.0), get(name), nsd_tolerance=2.0)
    assert result.state == state
    assert result.prediction_size == prediction.sum()
    assert result.reference_size == reference.sum()
    assert [result.values[m] for m in METRICS] == pytest.approx(TABLE[name][state])


def test_transunet_hd95_is_medpys_in_voxels() -> None:
    """MedPy's definition: surface by erosion with a cross (the border counts as outside), both directions pooled."""
    rng, cross = np.random.default_rng(0), ndimage.generate_binary_structure(3, 1)
    for _ in range(5):
        prediction, reference = (ndimage.gaussian_filter(rng.random((6, 12, 14)), 1.5) > 0.5 for _ in range(2))
        a, b = (mask ^ ndimage.binary_erosion(mask, cross) for mask in (prediction, reference))
        directed = ndimage.distance_transform_edt(~b)[a], ndimage.distance_transform_edt(~a)[b]
        found = score(prediction, reference, (5.0, 0.7, 0.7), get("transunet")).values["hd95_mm"]
        assert found == pytest.approx(np.percentile(np.hstack(directed), 95))


def test_every_convention_says_what_it_does() -> None:
    assert set(TABLE) == set(CONVENTIONS)
    for name, convention in CONVENTIONS.items():
        assert convention.name == name
        assert len(convention.description) > 80


def test_max_directed_can_be_asked_for() -> None:
    long = np.zeros((1, 40, 40), bool)
    long[0, 5:35, 20] = True
    short = long.copy()
    short[0, 8:] = False
    pooled = get("default")
    directed = dataclasses.replace(pooled, hd95="max_directed")
    one, other = (score(short, long, (1, 1, 1), c).values["hd95_mm"] for c in (pooled, directed))
    assert one is not None
    assert other is not None
    # 30 distances 0 0 0 1 .. 27 and three zeros: the 95th percentiles of all 33, and of the 30
    assert one == pytest.approx(np.percentile([0] * 6 + list(range(1, 28)), 95))
    assert other == pytest.approx(np.percentile([0] * 3 + list(range(1, 28)), 95))


def test_unknown_name() -> None:
    with pytest.raises(InputError, match="default, nnunet, transunet"):
        get("medpy")


def test_mean_of_defined() -> None:
    assert mean([1.0, None, 0.0]) == 0.5
    assert mean([None]) is None


def test_class_means_skip_undefined() -> None:
    values = np.array([[1.0, np.nan], [0.0, np.nan]])
    np.testing.assert_array_equal(class_means(values), [0.5, np.nan])


def test_bootstrap_is_the_loop_it_stands_for() -> None:
    rng = np.random.default_rng(3)
    values = rng.random((7, 2))
    values[2, 0] = np.nan
    patients = ["a", "a", "b", "c", "c", "d", "e"]
    found = bootstrap(values, patients, resamples=400, seed=5)
    weights = np.random.default_rng(5).multinomial(5, [0.2] * 5, size=400)
    draws = []
    for weight in weights:
        rows = [i for patient, times in zip("abcde", weight, strict=True) for _ in range(times)
                for i, p in enumerate(patients) if p == patient]  # fmt: skip
        draws.append([np.nanmean(column) if np.isfinite(column).any() else np.nan for column in values[rows].T])
    np.testing.assert_allclose(found.classes.T, np.nanquantile(draws, [0.025, 0.975], axis=0))
    np.testing.assert_allclose(found.headline, np.quantile(np.nanmean(draws, axis=1), [0.025, 0.975]))


def test_bootstrap_covers_and_repeats() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(60):
        values = rng.normal(0.5, 0.1, (40, 1))
        low, high = bootstrap(values, [str(i) for i in range(40)], 300, seed=trial).headline
        inside += low <= 0.5 <= high
    assert 50 <= inside <= 60  # nominally 57
    again = [bootstrap(values, [str(i) for i in range(40)], 300, seed=1).headline for _ in range(2)]
    np.testing.assert_array_equal(again[0], again[1])


def test_no_interval_from_one_patient() -> None:
    values = np.array([[0.4], [0.6]])
    assert np.isnan(bootstrap(values, ["a", "a"]).headline).all()
    assert np.isnan(bootstrap(values, ["a", "b"], resamples=0).classes).all()
    alone = np.array([[0.4, 0.5], [np.nan, 0.7]])
    found = bootstrap(alone, ["a", "b"])
    assert np.isnan(found.classes[0]).all()
    assert np.isfinite(found.classes[1]).all()
