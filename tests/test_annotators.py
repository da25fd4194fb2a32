"""Several annotators: how their masks are found, read, augmented alike, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_files import picture, png, square
from samsans.config import AugmentConfig, DataConfig
from samsans.data.cases import Dataset, find_cases
from samsans.data.episodes import BatchSource, plain_batch
from samsans.data.slices import SliceDataset
from samsans.data.transforms import Preprocess
from samsans.errors import InputError

PREPARE = Preprocess(32)


def raters(root: Path, drawn: dict[str, list[np.ndarray]]) -> Dataset:
    """``images/`` and ``labels_0/``, ``labels_1/``, ... with the masks of each case."""
    for number, (case, masks) in enumerate(drawn.items()):
        png(root / "images" / f"{case}.png", picture(number))
        for rater, mask in enumerate(masks):
            png(root / f"labels_{rater}" / f"{case}.png", mask)
    return find_cases(DataConfig(path=str(root), classes={"lesion": [255]}))


def ambiguous(root: Path) -> Dataset:
    empty = np.zeros((12, 16), np.uint8)
    return raters(
        root,
        {
            "a": [square(), square(at=5), empty],
            "b": [empty, empty, square()],
            "c": [empty, empty, empty],
            "d": [square(), square()],
        },
    )


def test_slices_hold_what_every_annotator_drew(tmp_path: Path) -> None:
    dataset = ambiguous(tmp_path)
    slices = SliceDataset(dataset, ["a", "b", "c", "d"], PREPARE, annotators=True)
    assert slices.annotators == 3
    assert slices.present[:, 0].tolist() == [True, True, False, True]
    by_id = dict(zip("abcd", slices, strict=True))
    for item in by_id.values():
        assert item.annotations is not None
        assert item.annotations.shape == (3, 1, 32, 32)
        assert torch.equal(item.annotations[0], item.masks)
    assert [s.drawn.tolist() for s in slices] == [[True] * 3] * 3 + [[True, True, False]]
    found = [s.annotations.any((1, 2, 3)).tolist() for s in slices]
    assert found == [[True, True, False], [False, False, True], [False] * 3, [True, True, False]]
    few = SliceDataset(dataset, ["d"], PREPARE, annotators=True)
    assert few[0].annotations.shape[0] == 3, "as many as any case of the data set has"


def test_one_annotator_is_read_where_not_asked_for_more(tmp_path: Path) -> None:
    slices = SliceDataset(ambiguous(tmp_path), ["a", "b"], PREPARE)
    assert slices.annotators == 0
    assert slices.present[:, 0].tolist() == [True, False]
    assert slices[0].annotations is None
    assert slices[0].drawn is None
    batch = plain_batch(slices, [0, 1])
    assert batch.annotations is None
    assert batch.drawn is None


def test_slices_that_nobody_drew_on_are_left_out_and_counted(tmp_path: Path) -> None:
    slices = SliceDataset(ambiguous(tmp_path), ["a", "b", "c", "d"], PREPARE, annotators=True, foreground=True)
    assert slices.ids == ("a", "b", "d")
    assert slices.notes == ("1 of 4 slices, on which no annotator drew anything, are left out",)
    assert SliceDataset(ambiguous(tmp_path), ["a", "c"], PREPARE, annotators=True).notes == ()


def test_augmentation_changes_all_annotations_alike(tmp_path: Path) -> None:
    slices = SliceDataset(ambiguous(tmp_path), ["a", "b", "d"], PREPARE, annotators=True)
    plain = plain_batch(slices, [0, 1, 2])
    assert plain.annotations is not None
    assert plain.annotations.shape == (3, 3, 1, 32, 32)
    assert plain.drawn is not None
    assert plain.drawn.tolist() == [[True] * 3, [True] * 3, [True, True, False]]
    changed = plain_batch(slices, [0, 1, 2], AugmentConfig(flip=1.0), np.random.default_rng(0))
    assert torch.equal(changed.annotations, plain.annotations.flip(-1))
    assert torch.equal(changed.masks, changed.annotations[:, 0])
    assert torch.allclose(changed.images, plain.images.flip(-1), atol=1e-4)


def test_training_batches_carry_annotations(tmp_path: Path) -> None:
    slices = SliceDataset(ambiguous(tmp_path), ["a", "b", "d"], PREPARE, annotators=True, foreground=True)
    config = AugmentConfig(flip=0.5, rotate=20, scale=0.2)
    first, again = (BatchSource(slices, 2, config, seed=3).batch(5) for _ in range(2))
    assert first.annotations is not None
    assert first.annotations.shape == (2, 3, 1, 32, 32)
    assert torch.equal(first.annotations, again.annotations)
    same = first.annotations[list(first.ids).index("d")] if "d" in first.ids else None
    assert same is None or torch.equal(same[0], same[1]), "equal masks stay equal"


def test_one_mask_holds_nested_annotators(tmp_path: Path) -> None:
    mask = np.zeros((12, 16), np.uint8)
    mask[2:10, 2:10], mask[3:8, 3:8], mask[4:6, 4:6] = 2, 4, 1
    png(tmp_path / "images/a.png", picture(0))
    png(tmp_path / "labels/a.png", mask)
    config = DataConfig(path=str(tmp_path), annotators={"core": [1], "whole": [4, 1, 2], "enhancing": [4]})
    dataset = find_cases(config)
    assert [(c.name, c.label, c.values) for c in dataset.classes] == [("object", 1, (1,))]
    case = dataset.cases[0]
    assert len(case.labels) == 3
    read = dataset.read_annotations(case)
    assert [int(v.array.sum()) for v in read] == [4, 64, 21]
    assert np.array_equal(read[1].array[0], mask > 0)
    assert "3 annotators of one mask by its values: core [1], whole [1, 2, 4], enhancing [4]" in dataset.notes
    item = SliceDataset(dataset, ["a"], PREPARE, annotators=True)[0]
    assert item.annotations is not None
    assert item.annotations.shape == (3, 1, 32, 32)
    assert not (item.annotations[0] & ~item.annotations[1]).any()


def test_threshold_reads_masks_kept_as_jpeg(tmp_path: Path) -> None:
    soft = picture(9)
    png(tmp_path / "images/a.png", picture(0))
    png(tmp_path / "labels/a.png", soft)
    dataset = find_cases(DataConfig(path=str(tmp_path), threshold=200))
    assert [(c.name, c.values) for c in dataset.classes] == [("object", (1,))]
    assert np.array_equal(dataset.read_labels(dataset.cases[0]).array[0], soft > 200)
    named = find_cases(DataConfig(path=str(tmp_path), threshold=200, classes={"nodule": [1]}))
    assert named.classes[0].name == "nodule"


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"threshold": 9, "classes": {"a": [255]}}, r"a: \[255\].* beside data.threshold"),
        ({"threshold": 9, "classes": {"a": [1], "b": [1]}}, "beside data.threshold"),
        ({"annotators": {"a": [1]}, "classes": {"b": [2]}}, "beside data.annotators"),
        ({"annotators": {"a": [1]}, "threshold": 9}, "data.threshold beside data.annotators"),
        ({"annotators": {"a": []}}, "'a' has no mask value"),
    ],
)
def test_settings_that_make_one_object_refuse_others(tmp_path: Path, config: dict[str, Any], found: str) -> None:
    png(tmp_path / "images/a.png", picture(0))
    png(tmp_path / "labels/a.png", square())
    with pytest.raises(InputError, match=found):
        find_cases(DataConfig(path=str(tmp_path), **config))


def test_several_masks_are_not_several_annotators_each(tmp_path: Path) -> None:
    ambiguous(tmp_path)
    with pytest.raises(InputError, match="has 3 masks"):
        find_cases(DataConfig(path=str(tmp_path), annotators={"a": [1], "b": [1, 2]}))
