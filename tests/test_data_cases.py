"""Layouts of data sets on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_files import nifti, packed, picture, png, square
from samsans.config import DataConfig
from samsans.data.cases import Dataset, find_cases, require_same_grid
from samsans.errors import InputError
from samsans.types import Case, Volume


def find(path: Path, **keys: object) -> Dataset:
    return find_cases(DataConfig(path=str(path), **keys))  # type: ignore[arg-type]


def ids(dataset: Dataset) -> list[str]:
    return [c.id for c in dataset.cases]


@pytest.mark.parametrize("folder", ["labels", "masks", "annot", "GT", "ground_truth"])
def test_two_folders(tmp_path: Path, folder: str) -> None:
    for i in range(3):
        png(tmp_path / "images" / f"{i}.png", picture(i))
        png(tmp_path / folder / f"{i}.png", square())
    found = find(tmp_path)
    assert ids(found) == ["0", "1", "2"]
    assert all(c.labels == ((tmp_path / folder / f"{c.id}.png",),) for c in found.cases)
    assert [c.name for c in found.classes] == ["foreground"]
    assert found.read_image(found.cases[0]).shape == (1, 12, 16)
    assert found.by_id("1") is found.cases[1]
    with pytest.raises(InputError, match="no case 'x'"):
        found.by_id("x")


@pytest.mark.parametrize(
    "label", ["A_mask.png", "a_seg.PNG", "A-label.png", "A_segmentation.png", "a.png", "A_0000.png"]
)
def test_names_of_masks_may_differ_a_little(tmp_path: Path, label: str) -> None:
    png(tmp_path / "images" / "A.jpg", picture(0))
    png(tmp_path / "images" / "B.jpg", picture(1))
    png(tmp_path / "masks" / label, square())
    found = find(tmp_path)
    assert [c.id for c in found.labelled] == ["A"]


def test_the_exact_name_wins_over_a_similar_one(tmp_path: Path) -> None:
    for name in ("a", "a_mask"):
        png(tmp_path / "images" / f"{name}.png", picture(0))
        png(tmp_path / "masks" / f"{name}.png", square())
    assert {c.id: c.labels[0][0].stem for c in find(tmp_path).cases} == {"a": "a", "a_mask": "a_mask"}


def test_ambiguous_masks_are_left_unused(tmp_path: Path) -> None:
    png(tmp_path / "images" / "a.png", picture(0))
    png(tmp_path / "masks" / "a_mask.png", square())
    png(tmp_path / "masks" / "a_seg.png", square())
    found = find(tmp_path)
    assert not found.labelled
    assert len(found.orphans) == 2


def test_patient_folders_inside_images(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        for i in range(2):
            png(tmp_path / "images" / patient / f"{i}.png", picture(i))
            png(tmp_path / "labels" / patient / f"{i}.png", square())
    found = find(tmp_path)
    assert ids(found) == ["p1/0", "p1/1", "p2/0", "p2/1"]
    assert [c.patient for c in found.cases] == ["p1", "p1", "p2", "p2"]
    assert len(found.labelled) == 4


def test_images_inside_patient_folders(tmp_path: Path) -> None:
    for patient in ("p1", "p2"):
        png(tmp_path / patient / "images" / "x.png", picture(0))
        png(tmp_path / patient / "masks" / "x_mask.png", square())
    found = find(tmp_path)
    assert [(c.id, c.patient, len(c.labels)) for c in found.cases] == [("p1/x", "p1", 1), ("p2/x", "p2", 1)]


def test_train_and_test_folders_declare_parts_and_are_no_patients(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        png(tmp_path / part / "images" / "p1" / f"{part}.png", picture(0))
        png(tmp_path / part / "masks" / "p1" / f"{part}.png", square())
    found = find(tmp_path)
    assert found.parts == {"test/p1/test": "test", "train/p1/train": "train", "valid/p1/valid": "val"}
    assert {c.patient for c in found.cases} == {"p1"}


def test_several_annotators(tmp_path: Path) -> None:
    for i in range(2):
        png(tmp_path / "images" / f"{i}.png", picture(i))
        png(tmp_path / "labels_ann" / f"{i}.png", square(at=2))
        png(tmp_path / "labels_bob" / f"{i}.png", square(at=4))
    found = find(tmp_path)
    case = found.cases[0]
    assert [files[0].parent.name for files in case.labels] == ["labels_ann", "labels_bob"]
    assert found.read_labels(case, 0).array[0, 2, 2] == 255
    assert found.read_labels(case, 1).array[0, 2, 2] == 0
    assert any("2 annotators" in note for note in found.notes)


def test_images_only(tmp_path: Path) -> None:
    png(tmp_path / "a.png", picture(0))
    png(tmp_path / "b.png", picture(1))
    found = find(tmp_path)
    assert ids(found) == ["a", "b"]
    assert not found.labelled
    assert not found.classes
    assert ids(find(tmp_path / "a.png")) == ["a"]


def test_images_and_masks_in_one_folder(tmp_path: Path) -> None:
    for name, image in (("a", "a"), ("b", "b_image")):
        png(tmp_path / f"{image}.png", picture(0))
        png(tmp_path / f"{name}_mask.png", square())
    assert [(c.id, len(c.labels)) for c in find(tmp_path).cases] == [("a", 1), ("b_image", 1)]


def test_two_images_of_one_name(tmp_path: Path) -> None:
    png(tmp_path / "images" / "a.png", picture(0))
    png(tmp_path / "images" / "a.jpg", picture(0))
    with pytest.raises(InputError, match="have the same name"):
        find(tmp_path)


def nnunet(root: Path, labels: dict[str, object], channels: int = 2, **more: object) -> None:
    for case in ("c1", "c2"):
        for channel in range(channels):
            nifti(root / "imagesTr" / f"{case}_{channel:04d}.nii.gz", np.full((3, 4, 5), channel + 1, np.int16))
        nifti(root / "labelsTr" / f"{case}.nii.gz", np.ones((3, 4, 5), np.uint8))
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz", **more}))


def test_nnunet_with_channels_and_regions(tmp_path: Path) -> None:
    nnunet(tmp_path, {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3})
    nifti(tmp_path / "imagesTs" / "t_0000.nii.gz", np.zeros((3, 4, 5), np.int16))
    nifti(tmp_path / "imagesTs" / "t_0001.nii.gz", np.zeros((3, 4, 5), np.int16))
    found = find(tmp_path)
    assert found.layout == "nnU-Net raw"
    assert [(c.id, len(c.images), len(c.labels)) for c in found.cases] == [("c1", 2, 1), ("c2", 2, 1), ("t", 2, 0)]
    assert [(c.name, c.values) for c in found.classes] == [("whole", (1, 2)), ("core", (2,))]
    assert found.parts == {"t": "test"}
    image = found.read_image(found.cases[0])
    assert image.array.shape == (3, 4, 5, 2)
    assert image.array[0, 0, 0].tolist() == [1, 2]
    assert any("ignore" in note for note in found.notes)


def test_nnunet_of_the_first_version_and_test_labels(tmp_path: Path) -> None:
    nnunet(tmp_path, {"0": "background", "1": "liver", "2": "tumour"}, channels=1)
    nifti(tmp_path / "imagesTs" / "t_0000.nii.gz", np.zeros((3, 4, 5), np.int16))
    nifti(tmp_path / "labelsTs" / "t.nii.gz", np.ones((3, 4, 5), np.uint8))
    found = find(tmp_path)
    assert [(c.name, c.values) for c in found.classes] == [("liver", (1,)), ("tumour", (2,))]
    assert ids(found) == ["c1", "c2", "t"]
    assert len(found.labelled) == 3
    assert found.parts == {"t": "test"}


def test_decathlon_lists_its_pairs(tmp_path: Path) -> None:
    for name in ("x_001", "x_002"):
        nifti(tmp_path / "imagesTr" / f"{name}.nii.gz", np.zeros((3, 4, 5), np.int16))
        nifti(tmp_path / "labelsTr" / f"{name}.nii.gz", np.ones((3, 4, 5), np.uint8))
    training = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in ("x_001",)]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "bg", "1": "organ"}, "training": training}))
    found = find(tmp_path)
    assert found.layout == "Medical Segmentation Decathlon"
    assert ids(found) == ["x_001"]
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        find(tmp_path)


def test_four_digits_are_no_channel_where_masks_have_them(tmp_path: Path) -> None:
    for i in range(3):
        png(tmp_path / "images" / f"frame_{i:04d}.png", picture(i))
        png(tmp_path / "labels" / f"frame_{i:04d}.png", square())
    assert len(find(tmp_path).labelled) == 3


def test_csv(tmp_path: Path) -> None:
    for i in range(3):
        png(tmp_path / "x" / f"{i}.png", picture(i))
        png(tmp_path / "y" / f"{i}a.png", square())
    png(tmp_path / "y" / "0b.png", square(at=5))
    table = tmp_path / "cases.csv"
    table.write_text(
        "Image;Label;patient;split;rater\nx/0.png;y/0b.png;anna;train;2\nx/0.png;y/0a.png;anna;train;1\n"
        "x/1.png;y/1a.png;bert;test;1\nx/2.png;;carl;;\n"
    )
    found = find(table)
    assert [(c.id, c.patient, len(c.labels)) for c in found.cases] == [
        ("x/0", "anna", 2),
        ("x/1", "bert", 1),
        ("x/2", "carl", 0),
    ]
    assert found.cases[0].labels[0][0].name == "0a.png"
    assert found.parts == {"x/0": "train", "x/1": "test"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label\ny.png\n", "has the columns label"),
        ("image,label\nx.png,nothing.png\n", "line 2 .* names .*nothing.png, which does not exist"),
        ("image,label\n,x.png\n", "line 2 .* names no image"),
        ("image,split\nx.png,maybe\n", "has the splits maybe"),
        ("image,patient\nx.png,a\nx.png,b\n", "another patient"),
        ("image,label\n", "has no rows"),
    ],
)
def test_csv_mistakes_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    png(tmp_path / "x.png", picture(0))
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        find(tmp_path / "cases.csv")


def test_patterns_with_several_annotators(tmp_path: Path) -> None:
    for name in ("Image_01L", "Image_01R", "Image_02L"):
        png(tmp_path / "[raw]" / f"{name}.jpg", picture(0))
        for rater in (1, 2):
            png(tmp_path / "[raw]" / f"{name}_{rater}.png", square())
    found = find(tmp_path, images="*/*.jpg", labels="{parent}/{stem}_*.png", patient=r"Image_(\d+)")
    assert [(c.id, c.patient, len(c.labels)) for c in found.cases] == [
        ("[raw]/Image_01L", "01", 2),
        ("[raw]/Image_01R", "01", 2),
        ("[raw]/Image_02L", "02", 2),
    ]


def test_a_mask_that_fits_the_image_pattern_is_no_image(tmp_path: Path) -> None:
    png(tmp_path / "a.png", picture(0))
    png(tmp_path / "a_m.png", square())
    assert ids(find(tmp_path, images="*.png", labels="{stem}_m.png")) == ["a"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"images": "*.tif"}, "no file matches"),
        ({"images": "*.png", "labels": "{stem}_x.png"}, "no image has a mask at"),
        ({"images": "*.png", "labels": "{nonsense}.png"}, "is not understood"),
        ({"labels": "{stem}.png"}, "without data.images"),
        ({"patient": r"z(\d+)"}, "patient of 'a' is not found"),
        ({"patient": "("}, "no regular expression"),
        ({"volume": r"(a)"}, "has 1 groups"),
        ({"spacing": [1.0, 0.0, 1.0]}, "three positive lengths"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, keys: dict[str, object], message: str) -> None:
    png(tmp_path / "a.png", picture(0))
    with pytest.raises(InputError, match=message):
        find(tmp_path, **keys)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is nothing at"):
        find(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no images found"):
        find(tmp_path)
    with pytest.raises(InputError, match="no data set is given"):
        find_cases(DataConfig())


def test_slices_become_volumes(tmp_path: Path) -> None:
    for patient in ("a", "b"):
        for number in (2, 10, 1):
            png(tmp_path / "images" / f"{patient}-{number}.png", np.full((4, 5), number, np.uint8))
            png(tmp_path / "labels" / f"{patient}-{number}.png", np.full((4, 5), number == 10, np.uint8))
    found = find(tmp_path, volume=r"(\w)-(\d+)", spacing=[8.0, 1.5, 1.25])
    assert [(c.id, c.patient, c.stacked, len(c.images)) for c in found.cases] == [
        ("a", "a", True, 3),
        ("b", "b", True, 3),
    ]
    image = found.read_image(found.cases[0])
    assert image.array[:, 0, 0, 0].tolist() == [1, 2, 10]
    assert image.spacing == (8.0, 1.5, 1.25)
    assert found.read_labels(found.cases[0]).array[:, 0, 0].tolist() == [0, 0, 1]


def test_further_groups_divide_a_stack(tmp_path: Path) -> None:
    for number in ("10", "11", "20", "21"):
        png(tmp_path / f"images/a-{number}.png", np.full((4, 5), int(number), np.uint8))
    found = find(tmp_path, volume=r"(\w)-(\d(\d))")
    assert [(c.id, c.patient) for c in found.cases] == [("a-0", "a"), ("a-1", "a")]
    assert found.read_image(found.cases[1]).array[:, 0, 0, 0].tolist() == [11, 21]


def test_a_stack_with_some_masks_only_counts_as_unlabelled(tmp_path: Path) -> None:
    for number in range(3):
        png(tmp_path / "images" / f"a-{number}.png", picture(number))
    png(tmp_path / "labels" / "a-1.png", square())
    found = find(tmp_path, volume=r"(\w)-(\d+)")
    assert not found.labelled
    assert any("some slices only" in note for note in found.notes)


def test_stacks_need_numbers_and_one_size(tmp_path: Path) -> None:
    png(tmp_path / "a-1.png", picture(0))
    png(tmp_path / "a-2.png", picture(0, (3, 3)))
    found = find(tmp_path, volume=r"(\w)-(\d+)")
    with pytest.raises(InputError, match=r"a-2.png has the shape \(1, 3, 3, 1\)"):
        found.read_image(found.cases[0])
    with pytest.raises(InputError, match="no volume and slice number"):
        find(tmp_path, volume=r"(\d)-(\w)")
    png(tmp_path / "a-02.png", picture(0))
    with pytest.raises(InputError, match="slice 2 more than once"):
        find(tmp_path, volume=r"(\w)-(\d+)")


def test_a_mask_must_lie_on_the_grid_of_its_image() -> None:
    case = Case("a", "a", (Path("a.nii"),), ((Path("m.nii"),),))
    image = Volume(np.zeros((2, 3, 4, 1)), np.diag([2.0, 2, 2, 1]))
    require_same_grid(case, image, Volume(np.zeros((2, 3, 4), int), np.diag([2.0, 2, 2, 1])))
    require_same_grid(case, image, Volume(np.zeros((2, 3, 4), int)))
    moved = np.diag([2.0, 2, 2, 1])
    moved[0, 3] = 3.0
    with pytest.raises(InputError, match=r"m.nii \(mask of a.nii\) lies 1.5 voxels away"):
        require_same_grid(case, image, Volume(np.zeros((2, 3, 4), int), moved))
    with pytest.raises(InputError, match=r"size \(2, 3, 5\)"):
        require_same_grid(case, image, Volume(np.zeros((2, 3, 5), int)))


REAL = {
    "kvasir_hyper_polyps": ({}, 660, 660, {"foreground": 255}),
    "chase_db1": (
        {"images": "*.jpg", "labels": "{parent}/{stem}_1stHO.png", "patient": r"Image_(\d+)"},
        16,
        8,
        {"foreground": 1},
    ),
    "usgra_nerve_us": ({}, 204, 204, {"class_1": 1, "class_2": 2}),
    "msd_hippocampus": ({"classes": {"anterior": [1], "posterior": [2]}}, 180, 180, {"anterior": 1, "posterior": 2}),
    "vocalfolds_endoscopy": (
        {"images": "all256/img/**/*.jpg", "labels": "all256/annot/{below}/{stem}.png", "patient": r"seq\d"},
        158,
        4,
        {f"class_{i}": i for i in range(1, 7)},
    ),
    "scd_cardiac_mri": (
        {"volume": r"(SC-[A-Z-]+-\d+)-IM-\d+-(\d+)", "spacing": [8.0, 1.4, 1.4]},
        30,
        30,
        {"foreground": 255},
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_sets_are_understood(shared_data: Path, name: str) -> None:
    keys, cases, patients, classes = REAL[name]
    found = find(shared_data / name, **keys)
    assert len(found.cases) == len(found.labelled) == cases
    assert len({c.patient for c in found.cases}) == patients
    assert {c.name: c.values[0] for c in found.classes} == classes
    assert not found.orphans
    for case in (found.cases[0], found.cases[-1]):
        image, labels = found.read_image(case), found.read_labels(case)
        require_same_grid(case, image, labels)
        assert labels.array.any()


def test_arrays_of_preprocessed_sets(tmp_path: Path) -> None:
    image = np.zeros((4, 6), np.float32)
    packed(tmp_path / "Synapse" / "train_npz" / "case0005_slice004.npz", image, image)
    packed(tmp_path / "Synapse" / "train_npz" / "case0005_slice005.npz", image, image)
    packed(tmp_path / "Synapse" / "test_vol_h5" / "case0001.npy.h5", image[None], None)
    png(tmp_path / "preview.png", picture(0))
    found = find(tmp_path)
    assert [(c.id, c.patient, len(c.labels)) for c in found.cases] == [
        ("Synapse/test_vol_h5/case0001", "case0001", 0),
        ("Synapse/train_npz/case0005_slice004", "case0005", 1),
        ("Synapse/train_npz/case0005_slice005", "case0005", 1),
    ]
    assert found.parts == {
        "Synapse/test_vol_h5/case0001": "test",
        **{f"Synapse/train_npz/case0005_slice00{i}": "train" for i in (4, 5)},
    }
    assert "1 files that are not .npz or .h5 are left out" in found.notes
    assert {c.patient for c in find(tmp_path, patient=r"case\d{3}(\d)").cases} == {"1", "5"}
    stacked = find(tmp_path / "Synapse" / "train_npz", volume=r"(case\d+)_slice(\d+)")
    assert [(c.id, c.patient, len(c.images)) for c in stacked.cases] == [("case0005", "case0005", 2)]
    assert stacked.read_labels(stacked.cases[0]).array.shape == (2, 4, 6)
    one = find(tmp_path / "Synapse" / "train_npz" / "case0005_slice004.npz")
    assert one.cases[0].labels == (one.cases[0].images,)


def test_a_picture_is_not_its_own_mask(tmp_path: Path) -> None:
    png(tmp_path / "a.png", picture(0))
    with pytest.raises(InputError, match=r"the image .*a\.png would be its own mask"):
        find(tmp_path, images="*.png", labels="{name}")
