"""Surface metrics against hand-made cases, a distance transform, MONAI and MedPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from samsans.errors import InputError
from samsans.metrics.surface import (
    average_symmetric_distance,
    bounding_box,
    hausdorff,
    surface,
    surface_dice,
    surface_distances,
)

SPACING = (2.5, 0.8, 0.7)


def blobs(seed: int, shape: tuple[int, ...] = (14, 30, 28)) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping, ragged masks."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 3)
    other = ndimage.gaussian_filter(rng.standard_normal(shape), 3)
    return field > 0.02, field + 0.5 * other > 0.02


def one(shape: tuple[int, ...], *places: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for place in places:
        mask[place] = True
    return mask


def test_two_voxels_anisotropic() -> None:
    a, b = one((4, 6, 6), (0, 1, 1)), one((4, 6, 6), (2, 4, 1))
    distances = surface_distances(a, b, (3.0, 2.0, 1.0))
    expected = np.hypot(6.0, 6.0)
    assert hausdorff(distances) == hausdorff(distances, pooling="max_directed") == pytest.approx(expected)
    assert average_symmetric_distance(distances) == pytest.approx(expected)
    assert surface_dice(distances, expected - 1e-6) == 0
    assert surface_dice(distances, expected + 1e-6) == 1


def test_line_and_point() -> None:
    """A point on a line of five: 0 one way; 0, 1, 2, 3, 4 the other."""
    line, point = one((2, 8), *[(0, x) for x in range(5)]), one((2, 8), (0, 0))
    distances = surface_distances(line, point, (9.0, 1.0))
    assert sorted(distances[0]) == [0, 1, 2, 3, 4]
    assert sorted(distances[1]) == [0]
    assert average_symmetric_distance(distances) == pytest.approx(10 / 6)
    assert hausdorff(distances, 100) == 4
    assert hausdorff(distances, 50) == pytest.approx(1.5)  # median of 0 0 1 2 3 4
    assert hausdorff(distances, 50, "max_directed") == 2  # the larger of the medians 2 and 0
    assert surface_dice(distances, 1) == pytest.approx(3 / 6)


def test_square_border() -> None:
    mask = np.zeros((7, 7), bool)
    mask[1:6, 1:6] = True
    assert surface(mask).sum() == 16
    assert surface(np.ones((4, 4), bool)).sum() == 12  # outside the grid is outside the mask


def test_one_slice_is_an_image() -> None:
    a, b = (m[7] for m in blobs(1))
    flat = surface_distances(a, b, SPACING[1:])
    deep = surface_distances(a[None], b[None], SPACING)
    for x, y in zip(flat, deep, strict=True):
        np.testing.assert_array_equal(np.sort(x), np.sort(y))


def test_identical_is_zero() -> None:
    mask = blobs(2)[0]
    distances = surface_distances(mask, mask, SPACING)
    assert hausdorff(distances) == average_symmetric_distance(distances) == 0
    assert surface_dice(distances, 0) == 1


def test_one_voxel_grid() -> None:
    mask = np.ones((1, 1, 1), bool)
    assert hausdorff(surface_distances(mask, mask, SPACING)) == 0


def test_bounding_box() -> None:
    assert bounding_box(one((5, 6), (1, 2), (3, 2))) == (slice(1, 4), slice(2, 3))
    assert bounding_box(np.zeros((2, 2), bool)) == (slice(0, 0), slice(0, 0))


@given(arrays(bool, st.sampled_from([(6, 7), (3, 4, 5), (1, 5, 4)])))
def test_surface_is_mask_without_its_erosion(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(surface(mask), mask & ~ndimage.binary_erosion(mask))


@settings(max_examples=60, deadline=None)
@given(arrays(bool, (4, 5, 6)), arrays(bool, (4, 5, 6)), st.tuples(*[st.floats(0.2, 5)] * 3))
def test_against_distance_transform(p: np.ndarray, r: np.ndarray, spacing: tuple[float, float, float]) -> None:
    assume(p.any() and r.any())
    edge_p, edge_r = p & ~ndimage.binary_erosion(p), r & ~ndimage.binary_erosion(r)
    to_r = ndimage.distance_transform_edt(~edge_r, sampling=spacing)[edge_p]
    to_p = ndimage.distance_transform_edt(~edge_p, sampling=spacing)[edge_r]
    found = surface_distances(p, r, spacing)
    np.testing.assert_allclose(np.sort(found[0]), np.sort(to_r), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(np.sort(found[1]), np.sort(to_p), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("flat", [False, True])
def test_monai(seed: int, flat: bool) -> None:
    pytest.importorskip("monai")
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice

    p, r = blobs(seed)
    spacing: tuple[float, ...] = SPACING
    if flat:
        p, r, spacing = p[6], r[6], SPACING[1:]
    y_pred, y = (torch.from_numpy(m)[None, None].float() for m in (p, r))
    distances = surface_distances(p, r, spacing)
    options = {"include_background": True, "spacing": list(spacing)}
    hd95 = compute_hausdorff_distance(y_pred, y, percentile=95, **options).item()
    assert hausdorff(distances, 95, "max_directed") == pytest.approx(hd95, rel=1e-5)
    asd = compute_average_surface_distance(y_pred, y, symmetric=True, **options).item()
    assert average_symmetric_distance(distances) == pytest.approx(asd, rel=1e-5)
    nsd = compute_surface_dice(y_pred, y, class_thresholds=[1.7], **options).item()
    assert surface_dice(distances, 1.7) == pytest.approx(nsd, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_medpy(seed: int) -> None:
    binary = pytest.importorskip("medpy.metric.binary", reason="MedPy is not installed")
    p, r = blobs(seed)
    distances = surface_distances(p, r, SPACING)
    assert hausdorff(distances) == pytest.approx(binary.hd95(p, r, voxelspacing=SPACING))
    assert hausdorff(distances, 100) == pytest.approx(binary.hd(p, r, voxelspacing=SPACING))
    for found, (one_side, other) in zip(distances, ((p, r), (r, p)), strict=True):
        assert found.mean() == pytest.approx(binary.asd(one_side, other, voxelspacing=SPACING))


def test_refusals() -> None:
    mask = np.ones((3, 3), bool)
    with pytest.raises(InputError, match="empty"):
        surface_distances(mask, np.zeros_like(mask), (1, 1))
    with pytest.raises(InputError, match="spacing"):
        surface_distances(mask, mask, (1, 1, 1))
    with pytest.raises(InputError, match="one shape"):
        surface_distances(mask, np.ones((3, 4), bool), (1, 1))
