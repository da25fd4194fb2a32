"""Slices of cases, prepared and cached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data_files import flat_set, nifti, picture, png, square
from samsans.config import DataConfig
from samsans.data.cases import Dataset, find_cases
from samsans.data.slices import SliceDataset
from samsans.data.transforms import Preprocess
from samsans.errors import InputError


def volumes(root: Path, count: int = 2) -> SliceDataset:
    """Volumes of 6 slices; slice ``k`` is as bright as ``k`` and shows the object where ``k`` is 2 or 3."""
    for i in range(count):
        image = np.repeat(np.arange(6, dtype=np.int16), 80).reshape(6, 8, 10)
        mask = np.zeros((6, 8, 10), np.uint8)
        mask[2:4, 2:5, 3:6] = 1
        nifti(root / "images" / f"v{i}.nii.gz", image)
        nifti(root / "labels" / f"v{i}.nii.gz", mask)
    dataset = find_cases(DataConfig(path=str(root)))
    return SliceDataset(dataset, [c.id for c in dataset.cases], Preprocess(16, window=(0, 255)))


def test_pictures(tmp_path: Path) -> None:
    dataset = flat_set(tmp_path, 3, (1, 2))
    slices = SliceDataset(dataset, ["p02_002", "p00_000"], Preprocess(16))
    assert len(slices) == 2
    assert slices.ids == ("p02_002", "p00_000")
    assert slices.patients == ("p02", "p00")
    assert slices.objects == ("o1", "o2")
    assert slices.present.tolist() == [[True, True], [True, False]]
    item = slices[0]
    assert item.image.shape == (3, 16, 16)
    assert item.image.dtype == torch.uint8
    assert item.masks.shape == (2, 16, 16)
    assert item.valid == (16, 16)
    assert item.present == (True, True)
    assert slices[-1].id == "p00_000"
    assert [s.id for s in slices[0:2]] == list(slices.ids)
    with pytest.raises(IndexError):
        slices[2]


def test_volumes(tmp_path: Path) -> None:
    slices = volumes(tmp_path)
    assert len(slices) == 12
    assert slices.ids[7] == "v1#001"
    assert np.flatnonzero(slices.present[:, 0]).tolist() == [2, 3, 8, 9]
    for i in range(12):
        assert slices[i].image.unique().tolist() == [i % 6]
        assert bool(slices[i].masks.any()) == slices[i].present[0]


def test_other_axis_and_storage_order_give_the_same_slices(tmp_path: Path) -> None:
    slices = volumes(tmp_path / "a", 1)
    flipped = np.diag([1.0, 1, -1, 1])
    flipped[2, 3] = 5
    image = np.repeat(np.arange(6, dtype=np.int16), 80).reshape(6, 8, 10)[::-1]
    nifti(tmp_path / "b" / "v.nii.gz", np.ascontiguousarray(image), flipped)
    dataset = find_cases(DataConfig(path=str(tmp_path / "b")))
    again = SliceDataset(dataset, ["v"], Preprocess(16, window=(0, 255)))
    assert all(torch.equal(a.image, b.image) for a, b in zip(slices, again, strict=True))
    assert len(SliceDataset(dataset, ["v"], Preprocess(16), slice_axis="1")) == 8


def test_presence_is_that_of_the_prepared_masks(tmp_path: Path) -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[0, 0] = 1  # lost at 8 pixels
    png(tmp_path / "images" / "a.png", picture(0, (40, 40)))
    png(tmp_path / "masks" / "a.png", mask)
    dataset = find_cases(DataConfig(path=str(tmp_path)))
    for side, kept in ((8, False), (40, True)):
        slices = SliceDataset(dataset, ["a"], Preprocess(side))
        assert slices.present[0, 0] == kept == bool(slices[0].masks.any())


def test_unlabelled_cases_have_empty_masks(tmp_path: Path) -> None:
    flat_set(tmp_path, 2)
    (tmp_path / "masks" / "p01_001.png").unlink()
    dataset = find_cases(DataConfig(path=str(tmp_path)))
    item = SliceDataset(dataset, ["p01_001"], Preprocess(16))[0]
    assert item.masks.shape == (1, 16, 16)
    assert not item.masks.any()


def test_the_cache_returns_the_same_slices_and_stays_within_its_limit(tmp_path: Path) -> None:
    slices = volumes(tmp_path)
    first = [slices[i] for i in range(len(slices))]
    assert slices[5] is first[5]
    small = SliceDataset(slices.dataset, [c.id for c in slices.dataset.cases], slices.preprocess, cache_gb=4e-6)
    for _ in range(2):
        for i, item in enumerate(first):
            assert torch.equal(small[i].image, item.image)
            assert torch.equal(small[i].masks, item.masks)
            assert small._cache.used <= small._cache.limit


def test_mistakes_name_the_file(tmp_path: Path) -> None:
    dataset = flat_set(tmp_path, 3)
    png(tmp_path / "masks" / "p00_000.png", square(size=(5, 9), at=0))
    (tmp_path / "images" / "p01_001.png").write_bytes(b"no picture")
    (tmp_path / "masks" / "p02_002.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"masks.p00_000.png \(mask of .*has the size \(1, 5, 9\)"):
        SliceDataset(dataset, ["p00_000"], Preprocess(16))[0]
    with pytest.raises(InputError, match=r"images.p01_001.png"):
        SliceDataset(dataset, ["p01_001"], Preprocess(16))[0]
    with pytest.raises(InputError, match=r"masks.p02_002.png"):
        len(SliceDataset(dataset, ["p02_002"], Preprocess(16)))
    with pytest.raises(InputError, match="no case 'x'"):
        SliceDataset(dataset, ["x"], Preprocess(16))


def nested(root: Path, classes: dict[str, list[int]], count: int = 3) -> Dataset:
    """Pictures of 10 x 14 with random values 0 to 3; the last has no mask."""
    rng = np.random.default_rng(1)
    for i in range(count):
        png(root / "images" / f"p{i}.png", picture(i, (10, 14)))
        if i < count - 1:
            png(root / "masks" / f"p{i}.png", rng.integers(0, 4, (10, 14), dtype=np.uint8))
    return find_cases(DataConfig(path=str(root), classes=classes))


CUP = {"disc": [1, 2], "cup": [2], "vessel": [3]}


def test_exclusive_masks_are_disjoint_and_the_outer_one_yields(tmp_path: Path) -> None:
    dataset = nested(tmp_path, CUP)
    plain, apart = (SliceDataset(dataset, ["p0", "p1"], Preprocess(16), exclusive=e) for e in (False, True))
    assert apart.objects == plain.objects == ("disc", "cup", "vessel")
    for a, b in zip(plain, apart, strict=True):
        disc, cup, vessel = a.masks
        assert (disc & cup).any()
        assert torch.equal(b.masks, torch.stack([disc & ~cup, cup, vessel]))
        assert int(b.masks.sum(0).max()) == 1
    assert plain.class_pixels[1] == apart.class_pixels[[1, 2]].sum()
    assert plain.class_pixels[0] == apart.class_pixels[0]


def test_a_disc_that_is_all_cup_is_not_shown(tmp_path: Path) -> None:
    png(tmp_path / "images" / "a.png", picture(0))
    png(tmp_path / "masks" / "a.png", square(2))
    dataset = find_cases(DataConfig(path=str(tmp_path), classes=CUP))
    assert SliceDataset(dataset, ["a"], Preprocess(16)).present.tolist() == [[True, True, False]]
    assert SliceDataset(dataset, ["a"], Preprocess(16), exclusive=True).present.tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"a": [1, 2], "b": [2, 3]}, "objects a and b share mask values without one containing the other"),
        ({"a": [1, 2, 3], "b": [3, 4]}, "objects a and b share"),
        ({"a": [1], "b": [1]}, "objects a and b share"),
        ({"a": [1, 2], "b": [1], "c": [2]}, "all mask values of the object a belong to objects inside it"),
    ],
)
def test_objects_that_cannot_be_exclusive(tmp_path: Path, classes: dict[str, list[int]], message: str) -> None:
    dataset = nested(tmp_path, classes)
    SliceDataset(dataset, ["p0"], Preprocess(16))
    with pytest.raises(InputError, match=message):
        SliceDataset(dataset, ["p0"], Preprocess(16), exclusive=True)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize(
    "preprocess",
    [Preprocess(16), Preprocess(16, "pad"), Preprocess(7, "pad", resampling="spline"), Preprocess(16, via=5)],
)
def test_class_pixels_are_those_of_the_prepared_masks(tmp_path: Path, preprocess: Preprocess, exclusive: bool) -> None:
    slices = SliceDataset(nested(tmp_path, CUP), ["p0", "p1", "p2"], preprocess, exclusive=exclusive)
    counts = np.zeros(4, np.int64)
    for item in slices[:2]:  # the third has no mask
        height, width = item.valid
        counts[0] += height * width - int(item.masks.any(0).sum())
        counts[1:] += item.masks.sum((1, 2)).numpy()
    assert slices.class_pixels.dtype == np.int64
    assert slices.class_pixels.tolist() == counts.tolist()
    assert SliceDataset(slices.dataset, ["p2"], preprocess).class_pixels.tolist() == [0, 0, 0, 0]


def test_only_the_slices_that_are_asked_for(tmp_path: Path) -> None:
    whole = volumes(tmp_path)
    ids = [c.id for c in whole.dataset.cases]
    some = SliceDataset(whole.dataset, ids, whole.preprocess, only=["v1#003", "v0#002", "v1#005", "elsewhere#001"])
    assert some.ids == ("v0#002", "v1#003", "v1#005")
    assert [int(s.image.max()) for s in some] == [2, 3, 5]
    assert some.class_pixels[1] == sum(int(s.masks.sum()) for s in some)
    shown = SliceDataset(whole.dataset, ids, whole.preprocess, foreground=True)
    assert shown.ids == ("v0#002", "v0#003", "v1#002", "v1#003")
    assert shown.present.all()
    assert len(SliceDataset(whole.dataset, ids, whole.preprocess, only=["v0#000"], foreground=True)) == 0
    with pytest.raises(InputError, match=r"2 of the slices to keep are not in .*: v0, v0#006"):
        len(SliceDataset(whole.dataset, ids, whole.preprocess, only=["v0#006", "v0", "v0#001"]))
