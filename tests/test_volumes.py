"""Volumes on a planned grid: what is planned from a training set, resampling both ways, normalised volumes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from data_files import nifti, picture, png
from samsans.config import DataConfig, PatchConfig
from samsans.data.cases import Dataset, find_cases
from samsans.data.grids import Grid
from samsans.data.volumes import (
    VolumeDataset,
    label_map,
    named_intensity,
    normalize,
    pick,
    plan,
    prepare,
    target_spacing,
)
from samsans.errors import InputError
from samsans.io.orientation import Orientation
from samsans.types import ClassInfo
from volume_method import volume_set

PLANNED = PatchConfig(spacing=[3.0, 1.0, 1.0], size=[8, 16, 16], intensity="zscore")


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = volume_set(tmp_path_factory.mktemp("blocks"))
    return find_cases(DataConfig(path=str(root), classes={"cube": [1], "rod": [2]}))


def ids(dataset: Dataset) -> list[str]:
    return [case.id for case in dataset.cases]


def written(root: Path, images: list[np.ndarray], spacing: list[tuple[float, float, float]]) -> Dataset:
    """Volumes of those voxel sizes (z, y, x), the first fifth of each one object."""
    for number, (image, (z, y, x)) in enumerate(zip(images, spacing, strict=True)):
        labels = np.zeros(image.shape, np.uint8)
        labels[: max(1, len(image) // 5)] = 1
        nifti(root / "images" / f"p{number}.nii.gz", image, np.diag([x, y, z, 1.0]))
        nifti(root / "labels" / f"p{number}.nii.gz", labels, np.diag([x, y, z, 1.0]))
    return find_cases(DataConfig(path=str(root), classes={"first": [1]}))


def test_spacing_is_the_median_or_the_tenth_percentile_of_thick_slices() -> None:
    near = [(1.0, 0.5, 0.5), (2.0, 0.7, 0.5), (1.5, 0.9, 0.5)]
    assert target_spacing(near, [(50, 60, 60)] * 3) == [1.5, 0.7, 0.5]
    thick = [(4.0, 1.0, 1.0), (5.0, 1.0, 1.0), (8.0, 1.0, 1.0)]
    assert target_spacing(thick, [(10, 60, 60)] * 3) == [pytest.approx(4.2), 1.0, 1.0]
    assert target_spacing(thick, [(30, 60, 60)] * 3) == [5.0, 1.0, 1.0]  # thick, but many of them
    wide = [(0.6, 1.0, 1.0), *[(5.0, 1.0, 1.0)] * 5]
    assert target_spacing(wide, [(10, 60, 60)] * 6)[0] == pytest.approx(2.8)
    fine = [(0.6, 1.0, 1.0), (0.6, 1.0, 1.0), *[(5.0, 1.0, 1.0)] * 3]
    assert target_spacing(fine, [(10, 60, 60)] * 5)[0] == pytest.approx(1.00001)  # never finer than the planes


def test_a_plan_of_volumes(tmp_path: Path, blocks: Dataset) -> None:
    made = plan(blocks, ids(blocks), PatchConfig(), 16)
    assert made == PatchConfig(spacing=[3.0, 1.0, 1.0], size=[10, 16, 16], intensity="zscore")
    halved = plan(blocks, ids(blocks), PatchConfig(spacing=[1.5, 1.0, 1.0]), 32)
    assert (halved.spacing, halved.size) == ([1.5, 1.0, 1.0], [16, 32, 32])  # 21 slices, of which at most 16
    sagittal = plan(blocks, ids(blocks), PatchConfig(), 16, "2")
    assert (sagittal.spacing, sagittal.size) == ([1.0, 3.0, 1.0], [16, 16, 16])


def test_what_is_known_is_kept_and_nothing_is_read_for_it(blocks: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    known = PatchConfig([2.0, 1.0, 1.0], [4, 16, 16], "ct", [0, 10, 5, 2])
    monkeypatch.setattr(Dataset, "read_image", lambda *_: pytest.fail("an image is read"))
    assert plan(blocks, ids(blocks), known, 16) is known
    monkeypatch.undo()
    monkeypatch.setattr(Dataset, "read_labels", lambda *_: pytest.fail("a mask is read"))
    assert plan(blocks, ids(blocks), PatchConfig(intensity="zscore"), 16).size == [10, 16, 16]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"size": [4, 16, 32]}, {"size": [4, 32, 32]}, {"size": [16, 16]}, {"size": [0, 16, 16]}),
        *({"spacing": [1, 1]}, {"spacing": [0, 1, 1]}, {"statistics": [1, 2]}, {"foreground": 1.5}),
        *({"per_epoch": 0}, {"overlap": 1.0}),
    ],
)
def test_what_no_patches_can_have(blocks: Dataset, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"patches\.{next(iter(wrong))} is"):
        plan(blocks, ids(blocks), dataclasses.replace(PatchConfig(), **wrong), 16)
    with pytest.raises(InputError, match="no training case"):
        plan(blocks, [], PatchConfig(), 16)


def test_pictures_and_stacks_of_them_have_spacing_one(tmp_path: Path) -> None:
    for number in range(6):
        png(tmp_path / "images" / f"a_{number}.png", picture(number))
        png(tmp_path / "masks" / f"a_{number}.png", np.full((12, 16), 255 * (number == 2), np.uint8))
    for volume, depth in ((None, 1), (r"^(\w+)_(\d+)", 6)):
        dataset = find_cases(DataConfig(path=str(tmp_path), volume=volume))
        made = plan(dataset, ids(dataset), PatchConfig(), 16)
        assert (made.spacing, made.size, made.intensity) == ([1, 1, 1], [depth, 16, 16], "zscore")
    prepared = VolumeDataset(dataset, ids(dataset), made)[0]
    assert prepared.image.shape == (1, 6, 12, 16)
    assert prepared.labels.sum((1, 2)).tolist() == [0, 0, 12 * 16, 0, 0, 0]


def test_ct_is_told_by_its_values_and_its_statistics_are_those_of_objects(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(-1024, 1500, (10, 12, 14)).astype(np.int16) for _ in range(3)]
    dataset = written(tmp_path / "ct", images, [(2, 1, 1)] * 3)
    made = plan(dataset, ids(dataset), PatchConfig(), 8)
    objects = np.concatenate([image[:2].ravel() for image in images]).astype(float)
    assert made.intensity == "ct"
    wanted = [*np.percentile(objects, (0.5, 99.5)), objects.mean(), objects.std()]
    np.testing.assert_allclose(made.statistics, wanted, atol=1e-3)
    assert plan(dataset, ids(dataset), PatchConfig(intensity="zscore"), 8).statistics is None

    grey = [images[0], *(i.clip(0).astype(np.uint16) for i in images[1:])]  # one of three: not most
    dataset = written(tmp_path / "mr", grey, [(2, 1, 1)] * 3)
    assert plan(dataset, ids(dataset), PatchConfig(), 8).intensity == "zscore"
    forced = plan(dataset, ids(dataset), PatchConfig(intensity="ct"), 8)
    assert (forced.intensity, len(forced.statistics or ())) == ("ct", 4)
    dataset = written(tmp_path / "float", [i + np.float32(0.25) for i in images], [(2, 1, 1)] * 3)
    assert plan(dataset, ids(dataset), PatchConfig(), 8).intensity == "zscore"
    nothing = dataclasses.replace(dataset, classes=(ClassInfo("none", 1, (9,)),))
    with pytest.raises(InputError, match="no training case shows an object"):
        plan(nothing, ids(dataset), PatchConfig(intensity="ct"), 8)


def test_ct_is_told_by_its_name(tmp_path: Path) -> None:
    """The names of nnU-Net's ``dataset.json`` and of the Decathlon's go before the values."""
    rng = np.random.default_rng(0)
    dataset = written(tmp_path, [rng.integers(0, 900, (4, 8, 8)).astype(np.int16)], [(2, 1, 1)])
    file = tmp_path / "dataset.json"
    for described, channels, wanted in (
        ({"labels": {"background": 0, "first": 1}}, "auto", None),
        ({"channel_names": {"0": "ct"}}, "auto", "ct"),
        ({"modality": {"0": "CT"}}, "auto", "ct"),
        ({"modality": {"0": "MRI"}}, "auto", "zscore"),
        ({"channel_names": {"0": "CT", "1": "PET"}}, "auto", "zscore"),
        ({"channel_names": {"0": "CT", "1": "PET"}}, [0], "ct"),
        ({"channel_names": {"0": "CT", "1": "PET"}}, [0, 1], "zscore"),
    ):
        file.write_text(json.dumps(described), encoding="utf-8")
        assert named_intensity(dataset, channels) == wanted
    file.write_text(json.dumps({"channel_names": {"0": "CT"}}), encoding="utf-8")
    made = plan(dataset, ids(dataset), PatchConfig(), 8)
    assert (made.intensity, len(made.statistics or ())) == ("ct", 4)
    assert plan(dataset, ids(dataset), PatchConfig(intensity="zscore"), 8).intensity == "zscore"


def test_normalised_values() -> None:
    array = np.random.default_rng(0).integers(0, 4000, (3, 4, 5, 2)).astype(np.uint16)
    out = normalize(array, PLANNED)
    assert (out.shape, out.dtype) == ((2, 3, 4, 5), np.float32)
    for c in range(2):
        channel = array[..., c].astype(float)
        np.testing.assert_allclose(out[c], (channel - channel.mean()) / channel.std(), atol=1e-5)
    assert not normalize(np.full((2, 2, 2, 1), 7, np.int16), PLANNED).any()
    ct = dataclasses.replace(PLANNED, intensity="ct", statistics=[0.5, 99.5, 40.0, 10.0])
    values = np.array([-1000, 0, 1, 50, 3000], np.int16).reshape(1, 1, 5, 1)
    np.testing.assert_allclose(normalize(values, ct).ravel(), [-3.95, -3.95, -3.9, 1.0, 5.95], atol=1e-5)
    with pytest.raises(InputError, match="4 numbers for 2 channels"):
        normalize(array, ct)


def test_channels() -> None:
    grey = np.random.default_rng(0).integers(0, 9, (2, 3, 4, 1))
    assert pick(grey, "auto").shape == pick(np.repeat(grey, 3, 3), "auto").shape == (2, 3, 4, 1)
    colours = np.concatenate([grey, grey + 1, grey], 3)
    np.testing.assert_array_equal(pick(colours, [1, 0]), colours[..., [1, 0]])
    with pytest.raises(InputError, match="3 channels"):
        pick(colours, "auto")
    with pytest.raises(InputError, match=r"data\.channels is"):
        pick(colours, [3])


@pytest.mark.parametrize("wanted", [(1.5, 0.8, 1.3), (2.0, 1.0, 0.7), (0.9, 2.5, 1.0)])
def test_images_are_resampled_as_by_scipy(wanted: tuple[float, ...]) -> None:
    image = np.random.default_rng(0).normal(size=(2, 12, 15, 17)).astype(np.float32)
    grid = Grid.of(image.shape[1:], (2.0, 1.0, 1.0), wanted)
    assert grid.order_z == 3
    assert grid.target == tuple(round(n * a / b) for n, a, b in zip((12, 15, 17), (2, 1, 1), wanted, strict=True))
    out = grid.to_target(image)
    for c in range(2):
        oracle = ndimage.zoom(image[c].astype(float), grid.zoom, order=3, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(out[c], oracle.clip(image[c].min(), image[c].max()), atol=1e-5)


def test_thick_slices_are_not_interpolated_between() -> None:
    image = np.random.default_rng(0).normal(size=(1, 6, 8, 9)).astype(np.float32)
    grid = Grid.of((6, 8, 9), (4.0, 1.0, 1.0), (3.0, 0.8, 1.0))
    assert (grid.order_z, grid.target) == (0, (8, 10, 9))
    assert Grid.of((6, 8, 9), (2.0, 1.0, 1.0), (4.0, 1.0, 1.0)).order_z == 0  # after resampling
    out = grid.to_target(image)[0]
    source = [0, 1, 1, 2, 3, 4, 4, 5]  # floor((2 z + 1) 6 / 16)
    for z, native in enumerate(source):
        plane = ndimage.zoom(image[0, native].astype(float), (10 / 8, 1), order=3, mode="nearest", grid_mode=True)
        np.testing.assert_allclose(out[z], plane.clip(image.min(), image.max()), atol=1e-5)
    assert [grid.depth(z) for z in range(6)] == [(s, s, 0.0) for s in (0, 2, 3, 4, 6, 7)]


def test_a_grid_that_fits_costs_nothing() -> None:
    grid = Grid.of((4, 8, 9), (2.0, 1.0, 1.0), (2.0, 1.0, 1.01))
    image, labels = np.zeros((1, 4, 8, 9), np.float32), np.zeros((4, 8, 9), np.uint8)
    scores = torch.zeros(2, 8, 9)
    assert grid.identity
    assert grid.to_target(image) is image
    assert grid.labels_to_target(labels) is labels
    assert grid.plane(scores) is scores
    assert [grid.depth(z) for z in range(4)] == [(z, z, 0.0) for z in range(4)]


def test_labels_are_the_winner_of_linear_weights() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (5, 6, 7)).astype(np.uint8)
    for spacing in ((2.0, 1.0, 1.0), (4.0, 1.0, 1.0)):
        grid = Grid.of(labels.shape, spacing, (1.3, 0.6, 1.45))
        planes = torch.stack([torch.from_numpy(labels == v).float() for v in range(3)])
        if grid.order_z == 0:
            source = [(2 * z + 1) * 5 // (2 * grid.target[0]) for z in range(grid.target[0])]
            shown = F.interpolate(planes[:, source], grid.target[1:], mode="bilinear")
        else:
            shown = F.interpolate(planes[None], grid.target, mode="trilinear")[0]
        top = shown.topk(2, 0).values
        clear = (top[0] - top[1] > 1e-4).numpy()  # ties are decided by rounding
        out = grid.labels_to_target(labels)
        assert out.dtype == np.uint8
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(out[clear], shown.argmax(0).numpy()[clear])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30))
def test_scores_come_back_linearly(native: int, target: int) -> None:
    grid = Grid((native, 4, 4), (target, 4, 4))
    values = np.random.default_rng(native * 31 + target).normal(size=target)
    pairs = [grid.depth(z) for z in range(native)]
    assert all(0 <= low <= high < target and high - low <= 1 and 0 <= w < 1 for low, high, w in pairs)
    assert pairs == sorted(pairs)  # so that scores can be streamed
    mixed = [(1 - w) * values[low] + w * values[high] for low, high, w in pairs]
    oracle = F.interpolate(torch.from_numpy(values)[None, None], native, mode="linear")[0, 0]
    np.testing.assert_allclose(mixed, oracle, atol=1e-9)


def test_there_and_back_keeps_a_ball() -> None:
    z, y, x = np.indices((14, 40, 44))
    ball = ((((z - 7) * 2.5) ** 2 + (y - 20) ** 2 + (x - 21) ** 2) < 144).astype(np.uint8)
    for wanted in ((1.7, 1.3, 0.8), (5.0, 0.9, 1.1)):
        grid = Grid.of(ball.shape, (2.5, 1.0, 1.0), wanted)
        labels = torch.from_numpy(grid.labels_to_target(ball))
        scores = torch.stack([labels == 0, labels == 1], 1).float()
        pairs = [grid.depth(z) for z in range(14)]
        back = torch.stack([torch.lerp(grid.plane(scores[a]), grid.plane(scores[b]), w) for a, b, w in pairs])
        found = back.argmax(1).numpy()
        assert 2 * (found & ball).sum() / (found.sum() + ball.sum()) > (0.96 if wanted[0] < 2 else 0.9)


def test_objects_are_apart() -> None:
    classes = (ClassInfo("rim", 1, (1, 4)), ClassInfo("cup", 2, (2,)))
    labels = np.array([[[0, 1, 2], [3, 4, 9]]], np.int32)
    assert label_map(labels, classes).tolist() == [[[0, 1, 2], [0, 1, 0]]]


def test_prepared_volumes(blocks: Dataset) -> None:
    volumes = VolumeDataset(blocks, ids(blocks), PLANNED)
    assert (volumes.objects, len(volumes), len(set(volumes.patients))) == (("cube", "rod"), 4, 4)
    assert volumes.present.all()
    for number in range(4):
        prepared = volumes[number]
        drawn = blocks.read_labels(blocks.cases[number])
        assert volumes[number] is prepared
        assert prepared.image.shape == (1, *prepared.labels.shape)
        assert np.bincount(prepared.labels.ravel()).tolist() == volumes.voxels[number].tolist()
        np.testing.assert_array_equal(prepared.labels, Orientation.of(drawn).to_slices(drawn.array))
        for value, places in enumerate(prepared.places, 1):
            assert len(places) == (prepared.labels == value).sum()
            assert (prepared.labels[tuple(places.T)] == value).all()
    again = VolumeDataset(blocks, ids(blocks), PLANNED, cache_gb=0)
    assert again[1] is not again[1]
    np.testing.assert_array_equal(again[1].image, volumes[1].image)
    image, grid, orientation = prepare(blocks.read_image(blocks.cases[1]), PLANNED)
    np.testing.assert_array_equal(image, volumes[1].image)
    assert (grid.identity, orientation.plane) == (True, "axial")


def test_storage_order_does_not_matter(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 500, (6, 9, 11)).astype(np.int16)
    dataset = written(tmp_path, [image], [(3, 1, 1)])
    flipped = np.diag([-1.0, 1.0, 3.0, 1.0])
    flipped[0, 3] = 10
    nifti(tmp_path / "images" / "p0.nii.gz", image[:, :, ::-1], flipped)
    drawn = dataset.read_labels(dataset.cases[0]).array
    nifti(tmp_path / "labels" / "p0.nii.gz", drawn[:, :, ::-1], flipped)
    turned = VolumeDataset(dataset, ids(dataset), PLANNED)[0]
    written(tmp_path / "again", [image], [(3, 1, 1)])
    straight = find_cases(DataConfig(path=str(tmp_path / "again"), classes={"first": [1]}))
    np.testing.assert_array_equal(turned.image, VolumeDataset(straight, ids(straight), PLANNED)[0].image)


def test_what_cannot_be_prepared_names_its_file(tmp_path: Path) -> None:
    dataset = written(tmp_path, [np.zeros((4, 8, 8), np.uint8)] * 2, [(1, 1, 1)] * 2)
    nifti(tmp_path / "labels" / "p1.nii.gz", np.zeros((4, 8, 9), np.uint8))
    volumes = VolumeDataset(dataset, ids(dataset), PLANNED)
    assert not volumes[0].image.any()
    with pytest.raises(InputError, match=r"p1\.nii\.gz"):
        _ = volumes[1]
    with pytest.raises(InputError, match="Plan them first"):
        VolumeDataset(dataset, ids(dataset), PatchConfig())
    with pytest.raises(InputError, match=r"p0\.nii\.gz.*data\.channels is \[1\]"):
        _ = VolumeDataset(dataset, ids(dataset), PLANNED, channels=[1])[0]


def test_hippocampus(shared_data: Path) -> None:
    dataset = find_cases(DataConfig(path=str(shared_data / "msd_hippocampus")))
    few = ids(dataset)[:8]
    made = plan(dataset, few, PatchConfig(), 64)
    assert (made.spacing, made.size, made.intensity) == ([1, 1, 1], [16, 64, 64], "zscore")
    prepared = VolumeDataset(dataset, few, made)[3]
    assert prepared.image.std() == pytest.approx(1, abs=1e-3)
    assert set(np.unique(prepared.labels)) == {0, 1, 2}
