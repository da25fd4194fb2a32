"""Points on their way to the model and back, and moved together with what they lie on."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samsans.config import AugmentConfig, BackboneConfig, DataConfig, RunConfig
from samsans.data.augment import _moved, augment, augment_together, changes, draw_spd, move_points
from samsans.data.points import from_slices, to_model, to_native, to_slices
from samsans.data.transforms import Preprocess
from samsans.errors import InputError
from samsans.io.orientation import Orientation
from samsans.types import Points, Volume

SPD = AugmentConfig(policy="spd", flip=0.5, rotate=15.0)


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (-1, -1, -1)])
def test_points_follow_their_voxels_into_slices(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    """A volume whose voxels are numbered, and points on some of them: each number is found under its point."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * signs * (1.0, 2.0, 5.0)
    affine[:3, :3] += 0.05
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    volume = Volume(array[..., None], affine)
    orientation = Orientation.of(volume)
    index = np.random.default_rng(0).integers(0, (4, 5, 6), (20, 3))
    index = index[np.argsort(np.arange(20) % 7)]
    points = Points(index.astype(float), np.arange(20) % 2)
    slices = to_slices(points, orientation, volume.shape)
    canonical = orientation.to_slices(array)
    assert len(slices) == len(canonical)
    found = [(canonical[t, int(y), int(x)], int(label)) for t, s in enumerate(slices) for x, y, label in s]
    wanted = [(array[tuple(i)], int(label)) for i, label in zip(index, points.labels, strict=True)]
    assert sorted(found) == sorted(wanted)
    back = from_slices(slices, orientation, volume.shape)
    assert sorted(map(tuple, back.positions.astype(int))) == sorted(map(tuple, index))


def test_points_between_slices_and_no_points() -> None:
    orientation = Orientation.of(Volume(np.zeros((3, 4, 4, 1)), None))
    points = Points(np.array([[-0.4, 1.5, 2.25], [0.5, 0, 0], [2.4, 1, 1]]), np.array([1, 0, 1]))
    slices = to_slices(points, orientation, (3, 4, 4))
    assert [s.tolist() for s in slices] == [[[2.25, 1.5, 1]], [[0, 0, 0]], [[1, 1, 1]]]
    none = to_slices(Points(np.zeros((0, 3)), np.zeros(0, np.int64)), orientation, (3, 4, 4))
    assert [s.shape for s in none] == [(0, 3)] * 3
    assert len(from_slices(none, orientation, (3, 4, 4))) == 0


def test_pixel_centres_are_kept() -> None:
    """Section 16.8 of the specification: W = 256 at 512."""
    x = to_model(np.array([[0.0, 0], [128, 0], [255, 0]]), (256, 256), Preprocess(512))[:, 0]
    assert x.tolist() == [0.5, 256.5, 510.5]
    moved = to_model(np.array([[10.0, 20.0, 1.0]]), (100, 50), Preprocess(64))
    assert moved[0].tolist() == pytest.approx([10.5 * 64 / 50 - 0.5, 20.5 * 64 / 100 - 0.5, 1])


@pytest.mark.parametrize(
    "preprocess",
    [Preprocess(64), Preprocess(64, "pad"), Preprocess(64, resampling="spline")],
    ids=["squash", "pad", "spline"],
)
@given(height=st.integers(5, 90), width=st.integers(5, 90), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_to_the_model_and_back(preprocess: Preprocess, height: int, width: int, seed: int) -> None:
    points = np.random.default_rng(seed).uniform(0, (width - 1, height - 1), (6, 2))
    shown = to_model(points, (height, width), preprocess)
    valid = preprocess.valid(height, width)
    assert (shown >= -0.5).all()
    assert (shown <= (valid[1] - 0.5, valid[0] - 0.5)).all()
    np.testing.assert_allclose(to_native(shown, (height, width), preprocess), points, atol=1e-9)


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_points_meet_the_resized_image(resize: str) -> None:
    """A bright blob is found, resized, where its middle is mapped to."""
    rows, columns = np.indices((90, 60))
    blob = np.exp(-((rows - 40) ** 2 + (columns - 21) ** 2) / 40) * 255
    preprocess = Preprocess(128, resize)  # type: ignore[arg-type]
    picture = blob.astype(np.uint8)[..., None]
    shown = preprocess.image(picture, preprocess.levels(picture[None]))[0].double()
    grid = torch.stack(torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")).double()
    middle = (grid * shown).sum((1, 2)) / shown.sum()
    x, y = to_model(np.array([[21.0, 40.0]]), (90, 60), preprocess)[0]
    assert (float(middle[1]), float(middle[0])) == pytest.approx((x, y), abs=0.05)


def turn(degrees: float, flip: bool = False) -> np.ndarray:
    a, f = math.radians(degrees), -1.0 if flip else 1.0
    return np.array([[f * math.cos(a), -f * math.sin(a), 0], [math.sin(a), math.cos(a), 0]], np.float32)


def test_a_dot_turns_as_the_formula_says() -> None:
    """Section 16.8: 65 x 65, dot at (45, 20) turned by 20 degrees; by formula, and by resampling to 0.02 px."""
    dot = torch.tensor([[45.0, 20.0, 1.0]])
    moved = move_points(dot, turn(20), 65)
    assert moved[0].tolist() == pytest.approx([40.1118, 16.2774, 1], abs=1e-4)
    rows, columns = np.indices((65, 65))
    blob = np.exp(-((rows - 20) ** 2 + (columns - 45) ** 2) / 18) * 255
    image = torch.from_numpy(blob).round().to(torch.uint8).expand(1, 3, 65, 65)
    shown = _moved(image, torch.zeros(1, 0, 65, 65, dtype=torch.bool), [turn(20)])[0][0, 0].double().numpy()
    middle = [(rows * shown).sum() / shown.sum(), (columns * shown).sum() / shown.sum()]
    assert middle == pytest.approx([16.2774, 40.1118], abs=0.02)


def test_flips() -> None:
    points = torch.tensor([[3.0, 5.0, 1.0], [511.0, 0.0, 0.0]])
    once = move_points(points, turn(0, flip=True), 512)
    assert torch.equal(once, torch.tensor([[508.0, 5.0, 1.0], [0.0, 0.0, 0.0]]))
    assert torch.equal(move_points(once, turn(0, flip=True), 512), points)


def test_points_that_leave_are_dropped() -> None:
    corner = torch.tensor([[0.0, 0.0, 1.0], [31.0, 31.0, 0.0]])
    assert move_points(corner, turn(15), 64)[:, 2].tolist() == [0.0]
    assert move_points(torch.zeros(0, 3), turn(15), 64).shape == (0, 3)


def test_points_inside_a_mask_stay_inside() -> None:
    """A point inside G lands on the changed G or within 1 px of it."""
    side, rng = 65, np.random.default_rng(1)
    rows, columns = np.indices((side, side))
    mask = (rows - 30) ** 2 / 200 + (columns - 38) ** 2 / 90 < 1
    ys, xs = np.nonzero(mask)
    points = torch.tensor(np.column_stack([xs, ys, np.ones(len(xs))]), dtype=torch.float32)
    image = torch.from_numpy((mask * 200).astype(np.uint8)).expand(1, 3, side, side)
    for _ in range(30):
        _, masks, moved = augment_together(image, torch.from_numpy(mask)[None, None], [points], [0], SPD, rng)
        index = moved[0][:, :2].round().long()
        near = torch.nn.functional.max_pool2d(masks.float(), 3, 1, 1)[0, 0] > 0
        assert near[index[:, 1], index[:, 0]].all()


def test_a_pair_is_moved_by_one_draw() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (1, 3, 32, 32), np.uint8)).expand(4, -1, -1, -1)
    masks = torch.rand(1, 1, 32, 32).expand(4, -1, -1, -1) > 0.5
    points = [torch.tensor([[12.0, 9.0, 1.0]])] * 4
    rng = np.random.default_rng(3)
    shown, drawn, moved = augment_together(image, masks, points, [0, 0, 1, 0], SPD, rng)
    for other in (1, 3):
        assert torch.equal(shown[0], shown[other])
        assert torch.equal(drawn[0], drawn[other])
        assert torch.equal(moved[0], moved[other])
    assert not torch.equal(shown[0], shown[2])
    still = augment_together(image, masks, points, [0, 0, 1, 0], AugmentConfig(policy="spd"), rng)
    assert still[0] is image


def test_how_often_spd_changes() -> None:
    """Flip half of the time, rotation by up to 15 degrees half of the time; nothing else is drawn."""
    rng = np.random.default_rng(0)
    drawn = np.stack([draw_spd(SPD, rng) for _ in range(4000)])
    angles = np.degrees(np.arcsin(drawn[:, 1, 0]))
    assert (drawn[:, 0, 0] < 0).mean() == pytest.approx(0.5, abs=0.03)
    assert (angles != 0).mean() == pytest.approx(0.5, abs=0.03)
    assert np.abs(angles).max() <= 15.001
    assert np.abs(angles[angles != 0]).mean() == pytest.approx(7.5, abs=0.3)
    assert not changes(AugmentConfig(policy="spd", scale=0.3, shift=0.2, intensity=0.2))
    assert changes(SPD)


def test_spd_without_points_fills_with_black() -> None:
    image = torch.full((8, 3, 33, 33), 255, dtype=torch.uint8)
    shown, masks = augment(image, torch.ones(8, 1, 33, 33, dtype=torch.bool), SPD, np.random.default_rng(0))
    assert shown.min() == 0
    assert not masks.all()
    assert set(shown.unique().tolist()) > {0, 255}  # bilinear
    assert Preprocess(33, statistics="symmetric").normalize(shown).min() == -1


def test_policies_that_bend_images_do_not_take_points() -> None:
    image, mask = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    for config in (AugmentConfig(policy="hsam"), AugmentConfig(flip=0.5, intensity=0.2)):
        with pytest.raises(InputError, match="for images with points"):
            augment_together(image, mask, [torch.zeros(0, 3)], [0], config, np.random.default_rng(0))


def test_symmetric_statistics_and_positive_levels() -> None:
    config = RunConfig(
        method="spd", data=DataConfig(levels="positive"), backbone=BackboneConfig(statistics="symmetric")
    )
    preprocess = Preprocess.of(config, 8)
    volume = np.zeros((3, 8, 8, 1), np.float32)
    volume[1, :, :, 0] = np.arange(1, 65).reshape(8, 8)
    volume[2] = -500
    levels = preprocess.levels(volume)
    assert levels is not None
    low, high = np.percentile(np.arange(1, 65), (0.5, 99.5))
    assert (levels[0][0], levels[1][0]) == pytest.approx((low, high))
    shown = preprocess.normalize(preprocess.image(volume[1], levels)[None])
    wanted = 2 * (np.clip(np.arange(1, 65).reshape(8, 8), low, high) - low) / (high - low) - 1
    np.testing.assert_allclose(shown[0, 0].numpy(), wanted, atol=1.1 / 255)
    assert (shown.min(), shown.max()) == (-1, 1)
    dark = preprocess.levels(np.zeros((2, 4, 4, 1)))
    assert dark is not None
    assert np.isfinite(dark).all()
    config.data.window = [0, 1]
    with pytest.raises(InputError, match=r"data\.levels positive"):
        Preprocess.of(config, 8)
