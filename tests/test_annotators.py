"""Several annotators: how their masks are found, read, augmented alike, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_files import picture, png, square
from samsans.config import AugmentConfig, DataConfig
from samsans.data.agreement import joint_counts, overlap
from samsans.data.cases import Dataset, find_cases
from samsans.data.check import check
from samsans.data.episodes import BatchSource, plain_batch
from samsans.data.phantoms import write
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
    assert slices.notes == ("1 of 4 slices, on which nothing is drawn, are left out",)
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
    alone = [dataset.read_labels(case, annotator) for annotator in range(3)]
    assert all(np.array_equal(a.array, b.array) for a, b in zip(read, alone, strict=True))
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


# -- how they are found -----------------------------------------------------------------------------------------------


def drawn(dataset: Dataset) -> dict[str, list[str]]:
    return {c.id: [files[0].relative_to(dataset.root).as_posix() for files in c.labels] for c in dataset.cases}


def files(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        png(root / name, picture(number))
    return root


def test_annotators_beside_their_images(tmp_path: Path) -> None:
    files(tmp_path, "x_1L.png", "x_1L_1stHO.png", "x_1L_2ndHO.png", "x_1R.png", "x_1R_2ndHO.png", "x_1R_1stHO.png")
    found = find_cases(DataConfig(path=str(tmp_path)), infer=False)
    assert drawn(found) == {
        "x_1L": ["x_1L_1stHO.png", "x_1L_2ndHO.png"],
        "x_1R": ["x_1R_1stHO.png", "x_1R_2ndHO.png"],
    }
    assert "2 annotators: 1stHO, 2ndHO; the first is learned, by some methods all" in found.notes


def test_annotators_in_one_folder_of_masks(tmp_path: Path) -> None:
    masks = [f"labels/a_r{n}.png" for n in (1, 2, 10)] + ["labels/b_r2.png", "labels/b_r10.png"]
    files(tmp_path, "images/a.png", "images/b.png", *masks, "labels/lost_r1.png")
    found = find_cases(DataConfig(path=str(tmp_path)), infer=False)
    assert drawn(found) == {"a": masks[:3], "b": masks[3:]}, "in the order of their numbers"
    assert [p.name for p in found.orphans] == ["lost_r1.png"]
    assert "3 annotators: r1, r2, r10; the first is learned, by some methods all" in found.notes


@pytest.mark.parametrize(
    "names",
    [
        ("a.png", "a_r1.png", "b.png", "c.png", "c_r1.png"),  # a second picture, not two annotators
        ("eye_1st.png", "eye_2nd.png"),
        ("a.png", "a_disc.png", "a_cup.png"),  # two objects, as likely
        ("case.png", "case_1.png", "case_2.png"),
    ],
)
def test_doubtful_names_are_no_annotators(tmp_path: Path, names: tuple[str, ...]) -> None:
    found = find_cases(DataConfig(path=str(files(tmp_path, *names))), infer=False)
    assert found.layout == "images only"
    assert len(found.cases) == len(names)


def test_folders_and_tables_keep_their_order(tmp_path: Path) -> None:
    names = [f"labels_{n}/a.png" for n in (1, 2, 10)]
    files(tmp_path, "images/a.png", *names)
    assert drawn(find_cases(DataConfig(path=str(tmp_path)), infer=False)) == {"a": names}
    rows = [f"images/a.png,labels_{n}/a.png,r{n}" for n in (10, 1, 2)]
    (tmp_path / "x.csv").write_text("\n".join(["image,label,rater", *rows]))
    table = find_cases(DataConfig(path=str(tmp_path / "x.csv")), infer=False)
    assert [c[0] for c in table.cases[0].labels] == [tmp_path / name for name in names]


def test_a_table_in_the_folder_tells_more_than_the_names(tmp_path: Path) -> None:
    files(tmp_path, "images/a.png", "labels_1/a.png", "labels_2/a.png")
    table = tmp_path / "cases.csv"
    table.write_text("image;label;patient\nimages/a.png;labels_2/a.png;p7")
    found = find_cases(DataConfig(path=str(tmp_path)), infer=False)
    assert found.layout == "CSV"
    assert found.cases[0].patient == "p7"
    assert drawn(found) == {"images/a": ["labels_2/a.png"]}
    table.write_text("id,dice\na,0.5")  # that of a report
    assert find_cases(DataConfig(path=str(tmp_path)), infer=False).layout == "image and label folders"


def test_patterns_know_parts_by_the_first_folder(tmp_path: Path) -> None:
    names = [f"{part}/{n}/{what}.png" for part in ("training", "testing", "more") for n, what in ((1, "i"), (1, "m10"))]
    files(tmp_path, *names, "training/1/m2.png")
    config = DataConfig(path=str(tmp_path), images="*/*/i.png", labels="{parent}/m*.png")
    found = find_cases(config, infer=False)
    assert found.parts == {"training/1/i": "train", "testing/1/i": "test"}
    assert drawn(found)["training/1/i"] == ["training/1/m2.png", "training/1/m10.png"]
    assert "up to 2 masks an image, of as many annotators" in found.notes
    config.images = "training/*/i.png"
    assert find_cases(config, infer=False).parts == {}, "asked for by name: the part is nobody's to choose"


# -- how far they agree -----------------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(-1, 3), min_size=6, max_size=6), min_size=2, max_size=4),
    st.sets(st.integers(-1, 3), min_size=1),
)
def test_overlaps_of_joint_counts_are_those_of_the_masks(maps: list[list[int]], values: set[int]) -> None:
    arrays = [np.array(m, np.int16).reshape(1, 2, 3) for m in maps]
    pairs = [(i, j) for i in range(len(arrays)) for j in range(i + 1, len(arrays))]
    for (i, j), joint in zip(pairs, joint_counts(arrays), strict=True):
        a, b = (np.isin(arrays[n], list(values)) for n in (i, j))
        both, either = int((a & b).sum()), int((a | b).sum())
        iou = both / either if either else 1.0
        assert overlap(joint, values) == pytest.approx((iou, 2 * iou / (1 + iou), a.sum(), b.sum()))


def test_check_tells_how_far_annotators_agree(tmp_path: Path) -> None:
    ambiguous(tmp_path)
    report = check(DataConfig(path=str(tmp_path), classes={"lesion": [255]}))
    assert report.agreement is not None
    assert report.agreement.annotators == {2: 1, 3: 3}
    (found,) = report.agreement.objects
    overlapping = 4 / 28  # squares of 16 pixels that share 4
    a, b = [overlapping, 0.0, 0.0], [1.0, 0.0, 0.0]  # the pairs of cases a and b
    assert found.iou == pytest.approx(np.mean([np.mean(a), np.mean(b), 1.0, 1.0]))
    assert found.dice == pytest.approx(np.mean([0.25 / 3, np.mean(b), 1.0, 1.0]))
    assert (found.annotations, found.empty, found.presence) == (11, 6, 2)
    text = report.text()
    assert "annotators: 2 in 1 cases, 3 in 3 cases" in text
    assert "6 of 11 annotations are empty; in 2 of 4 cases only some drew it" in text
    assert "in 2 of 4 cases by the first annotator" in text
    assert [p.file for p in report.problems if p.kind == "a mask shows no object"] == [
        str(tmp_path / "labels_0" / "c.png")
    ]
    assert report.to_dict()["agreement"]["objects"][0]["name"] == "lesion"


def test_check_says_nothing_of_one_annotator(tmp_path: Path) -> None:
    raters(tmp_path, {"a": [square()]})
    report = check(DataConfig(path=str(tmp_path)))
    assert report.agreement is None
    assert "annotator" not in report.text()


# -- generated and real data ------------------------------------------------------------------------------------------


def test_lesions_have_none_to_three_empty_annotations(tmp_path: Path) -> None:
    folder = write("lesions", tmp_path / "set", n=24, test=4, seed=3)
    dataset = find_cases(DataConfig(path=str(folder)))
    assert len(dataset.cases) == 28
    slices = SliceDataset(dataset, [c.id for c in dataset.cases], Preprocess(128), annotators=True)
    empty = [int((~s.annotations.any((1, 2, 3))).sum()) for s in slices]
    assert set(empty) == {0, 1, 2, 3}
    assert all(s.image.shape == (3, 128, 128) and s.drawn.all() for s in slices)


def test_real_crops_with_four_annotators(shared_data: Path) -> None:
    folder = shared_data / "lidc_crops4"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    config = DataConfig(path=str(folder), images="*/*/image_*.jpg", labels="{parent}/label*_.jpg", threshold=127)
    dataset = find_cases(config)
    assert {len(c.labels) for c in dataset.cases} == {4}
    assert set(dataset.parts.values()) == {"train", "test"}
    slices = SliceDataset(dataset, [c.id for c in dataset.cases], Preprocess(128), annotators=True)
    for item, case in zip(slices, dataset.cases, strict=True):
        expected = np.stack([np.asarray(Image.open(files[0]).convert("L")) > 127 for files in case.labels])
        assert np.array_equal(item.annotations[:, 0].numpy(), expected)
    report = check(config)
    assert report.agreement is not None
    assert 0.6 < report.agreement.objects[0].iou < 0.75
    assert report.agreement.objects[0].empty > 0


def test_real_vessels_of_two_observers(shared_data: Path) -> None:
    folder = shared_data / "chase_db1"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    dataset = find_cases(DataConfig(path=str(folder), patient=r"Image_(\d+)"))
    for case in dataset.cases:
        assert [f[0].name for f in case.labels] == [f"{case.id}_1stHO.png", f"{case.id}_2ndHO.png"]
    first, second = (v.array for v in dataset.read_annotations(dataset.cases[0]))
    _, dice, _, _ = overlap(joint_counts([first, second])[0], {1})
    assert 0.7 < dice < 0.85, "the source tells 0.74 to 0.83"
