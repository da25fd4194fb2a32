"""Clean points of masks: golden values by hand, scaling with the side, and thinning against the plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from samsans.data.clean_points import clean_points, find_centres, thin


def test_clean_points_by_hand() -> None:
    mask = np.zeros((4, 512, 512), bool)
    mask[1, 0:5, 10:15] = True  # touches the border: its middle is its middle
    mask[1, 100:121, 200:221] = True  # thicker, so it comes first
    mask[2, 50:54, 50:54] = True  # four equal pixels: the third in row-major order
    mask[2, 300:302, 300:304] = True  # 8 px: too small
    mask[3, 80:83, 80:83] = mask[3, 83:86, 83:86] = True  # they touch at a corner: one object
    points = clean_points(mask)
    assert points.positions.tolist() == [[1, 110, 210], [1, 2, 12], [2, 52, 51], [3, 84, 84]]
    assert points.positions.dtype == np.float64
    assert points.labels.tolist() == [1] * 4
    assert points.tags == ("clean",) * 4
    assert find_centres(mask).rho == pytest.approx((11 + 3 + 2 + 2) / 4)


def test_pixel_constants_scale_with_the_side() -> None:
    mask = np.zeros((1, 512, 512), bool)
    mask[0, 300:302, 300:304] = True
    assert len(clean_points(mask)) == 0
    assert len(clean_points(mask, side=482)) == 1  # 9 px at 512 are 7.98 px there
    assert len(clean_points(mask[:, 200:456, 200:456])) == 1  # a slice of 256 px
    bar = np.zeros((1, 512, 512), bool)
    bar[0, 100:111, 100:151] = True  # its skeleton is about 41 px
    assert len(clean_points(bar)) == 1
    assert len(clean_points(bar, side=256)) == 3
    assert len(clean_points(bar, side=256, step=60)) == 1  # 30 px there: too far for any


def test_long_components_get_points_apart_from_each_other() -> None:
    mask = np.zeros((1, 512, 512), bool)
    mask[0, 100:111, 100:240] = True
    found = clean_points(mask).positions
    assert len(found) == 3
    assert all(mask[tuple(p.astype(int))] for p in found)
    apart = np.hypot(*(found[:, None] - found[None])[..., 1:].transpose(2, 0, 1)) + 1e9 * np.eye(3)
    assert apart.min() >= 24
    ends = sorted(found[1:, 2])  # the farthest from any other: both ends of the skeleton
    assert ends[0] < 110
    assert ends[1] > 229


def slow_thin(mask: np.ndarray) -> np.ndarray:
    """Zhang and Suen pixel by pixel."""
    image = np.pad(mask, 1).astype(int)
    changed = True
    while changed:
        changed = False
        for half in (0, 1):
            gone = []
            for y, x in np.argwhere(image):
                ring = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
                p = [image[y + dy, x + dx] for dy, dx in ring]
                runs = sum(p[i] == 0 and p[(i + 1) % 8] == 1 for i in range(8))
                up, right, down, left = p[0], p[2], p[4], p[6]
                sides = (up * right * down, right * down * left) if half == 0 else (up * right * left, up * down * left)
                if 2 <= sum(p) <= 6 and runs == 1 and sides == (0, 0):
                    gone.append((y, x))
            for y, x in gone:
                image[y, x] = 0
            changed |= bool(gone)
    return image[1:-1, 1:-1].astype(bool)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.5, 3))
def test_thinning_against_the_loop(seed: int, smooth: float) -> None:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((22, 27)), smooth)
    assert np.array_equal(thin(field > 0), slow_thin(field > 0))
