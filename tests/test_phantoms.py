"""Phantoms: the same case every time, exact truth, and data sets on disk that other readers understand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from samsans.config import DataConfig
from samsans.data.cases import find_cases
from samsans.data.phantoms import FAMILIES, LAYOUTS, Phantom, make, write
from samsans.data.phantoms.base import splat, texture
from samsans.errors import InputError

ALL = sorted(FAMILIES)
FLAT = ("fundus", "ultrasound", "lesions", "two_objects")


def same(a: Phantom, b: Phantom) -> bool:
    return (
        (a.id, a.patient, a.classes, a.frames) == (b.id, b.patient, b.classes, b.frames)
        and np.array_equal(a.image, b.image)
        and all(np.array_equal(x, y) for x, y in zip(a.labels, b.labels, strict=True))
        and np.array_equal(a.affine if a.affine is not None else 0, b.affine if b.affine is not None else 0)
    )


def separability(case: Phantom) -> float:
    """Contrast between each label value and the ring around it, over the spread inside both: mean over the values.

    Of several raters the second is taken: the outlines of the others are wide or narrow of the true edge on purpose,
    and a wide one holds more plain background the sharper that edge is.
    """
    image, label = case.image[..., 0].astype(float), case.labels[len(case.labels) > 1]
    if case.image.shape[-1] == 3:
        image = case.image[..., 1].astype(float)  # green shows discs and vessels best
    found = []
    for value in np.unique(label[label > 0]):
        inside = label == value
        ring = ndimage.binary_dilation(inside, np.ones((1, 7, 7))) & (label == 0) & (case.image[..., 0] != 0)
        if ring.any():
            a, b = image[inside], image[ring]
            found.append(abs(a.mean() - b.mean()) / np.sqrt((a.var() + b.var()) / 2 + 1))
    return float(np.mean(found))


@pytest.mark.parametrize("family", ALL)
def test_a_case_is_the_same_every_time_and_for_every_n(family: str) -> None:
    few, many = list(make(family, 2, size=48, seed=3)), list(make(family, 4, size=48, seed=3))
    assert all(same(a, b) for a, b in zip(few, many[:2], strict=True))
    assert same(many[3], next(make(family, 1, size=48, seed=3, start=3)))
    assert not np.array_equal(many[0].image, many[1].image)
    assert not np.array_equal(few[0].image, next(make(family, 1, size=48, seed=4)).image)
    assert len({c.id for c in many}) == 4


@pytest.mark.parametrize("family", ALL)
def test_shapes_types_and_label_values(family: str) -> None:
    for case in make(family, 3, size=64):
        d, h, w, channels = case.image.shape
        assert (h, w) == (64, 64)
        assert (d == 1) == (family in FLAT)
        assert channels == (3 if family == "fundus" else 1)
        assert case.image.dtype == (np.int16 if case.affine is not None else np.uint8)
        assert [c.label for c in case.classes] == list(range(1, len(case.classes) + 1))
        assert len(case.labels) == (4 if family == "lesions" else 1)
        for label in case.labels:
            assert label.shape == (d, h, w)
            assert label.dtype == np.uint8
            assert set(np.unique(label)) <= {0, *(c.label for c in case.classes)}
        for info in case.classes:
            assert np.isin(case.labels[0], info.values).any(), f"{case.id} shows no {info.name}"
        assert case.image.std() > 10


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_every_class_shows_at_the_smallest_size(family: str, difficulty: float) -> None:
    for case in make(family, 12, size=32, difficulty=difficulty, seed=9):
        for info in case.classes:
            assert np.isin(case.labels[0], info.values).any(), f"{case.id} shows no {info.name}"


@pytest.mark.parametrize("family", ALL)
def test_difficulty_lowers_separability(family: str) -> None:
    levels, n = [], 4 if family in ("torso", "video") else 8
    for difficulty in (0.0, 0.5, 1.0):
        cases = list(make(family, n, size=64, difficulty=difficulty, seed=1))
        levels.append(np.mean([separability(c) for c in cases if c.labels[len(c.labels) > 1].any()]))
    assert levels[1] < 0.95 * levels[0], levels
    assert levels[2] < 0.95 * levels[1], levels


def test_anatomy_does_not_depend_on_size() -> None:
    for family in ("fundus", "ultrasound", "lesions", "two_objects", "video"):
        small, large = (next(make(family, 1, size=s, difficulty=0.3)).labels[0] for s in (64, 256))
        keep = [1, 2] if family == "fundus" else np.unique(small[small > 0])  # thin vessels need pixels
        for value in keep:
            a = np.array(ndimage.center_of_mass(small == value))[1:] + 0.5
            b = np.array(ndimage.center_of_mass(large == value))[1:] + 0.5
            assert np.abs(a - b / 4).max() < 0.6
            assert np.isclose((small == value).mean(), (large == value).mean(), rtol=0.12, atol=5e-4)


def test_fundus_eyes_cups_and_field_of_view() -> None:
    cases = list(make("fundus", 8, size=128))
    assert [c.patient for c in cases[:4]] == ["fundus-0000", "fundus-0000", "fundus-0001", "fundus-0001"]
    assert [c.id for c in cases[:3]] == ["fundus-0000r", "fundus-0000l", "fundus-0001r"]  # the name tells the patient
    for index, case in enumerate(cases):
        disc = np.isin(case.labels[0][0], case.classes[0].values)
        cup = np.isin(case.labels[0][0], case.classes[1].values)
        assert (cup & ~disc).sum() == 0
        assert 0.02 < cup.sum() / disc.sum() < 0.85
        assert ndimage.label(disc)[1] == 1
        column = ndimage.center_of_mass(disc)[1]
        assert (column > 64) == (index % 2 == 0)  # right eyes show the disc on the right
        assert not case.image[0][:6, :6].any()  # dark outside the field
        green = case.image[0, ..., 1].astype(float)
        assert green[cup].mean() > green[disc & ~cup].mean() > green[~disc & (green > 20)].mean()


def test_ultrasound_lies_in_its_fan() -> None:
    for case in make("ultrasound", 4, size=128, difficulty=0.2):
        image, label = case.image[0, ..., 0], case.labels[0][0]
        assert (image[label > 0] > 0).mean() > 0.8
        assert not image[:10, :10].any()
        assert (label == 2).sum() > 4 * (label == 1).sum()
        assert all(ndimage.label(label == v)[1] == 1 for v in (1, 2))


def test_torso_geometry_and_densities() -> None:
    case = next(make("torso", 1, size=96, difficulty=0.0))
    assert case.image.shape == (48, 96, 96, 1)
    assert case.affine is not None
    axes = case.affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    assert np.allclose(axes.T @ axes, np.diag(spacing**2))  # a rotation times spacings: no shear
    assert np.linalg.det(axes) > 0  # left, back, head is a right-handed triple, as RAS is
    assert spacing[2] > 1.1 * spacing[0]
    assert np.abs(axes / spacing - np.diag(np.sign(np.diag(axes)))).max() > 0.01  # oblique
    hu, label = case.image[..., 0], case.labels[0]
    medians = {c.name: np.median(hu[label == c.label]) for c in case.classes}
    assert medians["right kidney"] > medians["liver"] > medians["gallbladder"]
    assert hu.min() <= -1000
    assert (hu > 250).any()
    x = {c.name: np.mean(np.nonzero(label == c.label)[2]) for c in case.classes}
    world = {name: (case.affine @ [i, 48, 24, 1])[0] for name, i in x.items()}
    assert world["liver"] > world["spleen"]  # RAS: the liver is on the right
    assert world["right kidney"] > world["left kidney"]


def test_raters_disagree_in_the_same_way() -> None:
    cases = list(make("lesions", 40, size=64, seed=5))
    areas = np.array([[label.sum() for label in c.labels] for c in cases])
    assert (areas[:, 0] > 0).all()
    found = areas > 0
    assert (found[:, :-1] >= found[:, 1:]).all()  # a stricter rater never sees what a milder one missed
    assert set(found.sum(1)) == {1, 2, 3, 4}
    everyone = areas[found.all(1)]
    assert (np.diff(everyone.mean(0)) < 0).all()
    assert all(len({label.tobytes() for label in c.labels}) > 1 for c in cases)


def test_centre_line_lies_on_the_tube() -> None:
    for case in make("tubes", 6, size=96):
        assert case.points is not None
        line, label = case.points["centreline"], case.labels[0]
        assert line.dtype == np.float64
        slices = np.flatnonzero(label.any((1, 2)))
        assert np.array_equal(line[:, 0], slices)
        assert slices[0] > 0
        assert slices[-1] < len(label) - 1  # annotated on inner slices only
        for z, y, x in line:
            assert label[int(z), round(y), round(x)] == 1
            assert np.allclose(ndimage.center_of_mass(label[int(z)]), (y, x), atol=0.6)


def test_tube_stays_visible_beyond_its_annotation() -> None:
    bright = 0
    for case in make("tubes", 6, size=96, difficulty=0.0):
        assert case.points is not None
        z, y, x = np.rint(case.points["centreline"][-1]).astype(int)
        patch = case.image[z + 1, y - 5 : y + 6, x - 5 : x + 6, 0]
        bright += patch.max() > 0.8 * case.image[z, y, x, 0]
    assert bright == 6


def test_video_moves_smoothly_and_has_gaps() -> None:
    for case in make("video", 4, size=64):
        assert case.frames is not None
        assert len(case.frames) == len(case.image)
        step = np.diff(case.frames)
        assert step.min() >= 1
        assert step.max() > 1
        centre = np.array([ndimage.center_of_mass(label == 2) for label in case.labels[0]])
        moved = np.linalg.norm(np.diff(centre, axis=0), axis=1)
        assert moved.sum() > 2
        assert (moved / step).max() < 3  # pixels a frame


def test_two_objects_are_apart_and_alike_in_brightness() -> None:
    signs = set()
    for case in make("two_objects", 16, size=64, difficulty=0.2):
        label, image = case.labels[0][0], case.image[0, ..., 0].astype(float)
        assert [ndimage.label(label == v)[1] for v in (1, 2)] == [1, 1]
        assert not (ndimage.binary_dilation(label == 1) & (label == 2)).any()
        signs.add(tuple(np.sign(image[label == v].mean() - image[label == 0].mean()) for v in (1, 2)))
        box = ndimage.find_objects(label)[0]
        assert (label[box] == 1).mean() == pytest.approx(np.pi / 4, abs=0.06)  # a disc fills pi/4 of its box
    assert signs == {(-1, -1), (-1, 1), (1, -1), (1, 1)}  # brightness tells nothing


@settings(max_examples=25, deadline=None)
@given(
    y=st.floats(-3, 35), x=st.floats(-3, 35), radius=st.floats(0.5, 6), y2=st.floats(0, 32), radius2=st.floats(0.5, 6)
)
def test_splat_against_the_formula(y: float, x: float, radius: float, y2: float, radius2: float) -> None:
    row, column = np.mgrid[:32, :32] + 0.5
    discs = ((y, x, radius), (y2, 16.0, radius2))
    want = np.max([np.clip(r - np.hypot(row - a, column - b) + 0.5, 0, 1) for a, b, r in discs], axis=0)
    got = splat(np.array([d[:2] for d in discs]), np.array([d[2] for d in discs]), 32)
    assert np.abs(got - want).max() < 1e-4


def test_texture_is_one_picture_at_every_size() -> None:
    small, large = (texture(np.random.default_rng(1), (n, n), 6) for n in (40, 120))
    assert np.abs(small - large[1::3, 1::3]).max() < 1e-5  # every third fine centre is a coarse centre
    volume = texture(np.random.default_rng(2), (30, 60, 60), (10, 20, 20))
    assert abs(volume.mean()) < 0.1
    assert 0.8 < volume.std() < 1.2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ALL)
def test_layouts_hold_the_cases(family: str, layout: str, tmp_path: Path) -> None:
    if (family in ("lesions", "video") and layout in ("nnunet", "msd")) or (family, layout) == ("fundus", "msd"):
        with pytest.raises(InputError, match="cannot hold"):
            write(family, tmp_path / "set", n=1, layout=layout, size=48)
        assert not any(tmp_path.iterdir())
        return
    path = write(family, tmp_path / "set", n=3, layout=layout, size=48, test=1)
    root = path.parent if layout == "csv" else path
    assert [p.name for p in tmp_path.iterdir()] == ["set"]  # nothing else is left beside it
    start = 4 if family == "fundus" else 3
    for part, cases in (("Tr", make(family, 3, size=48)), ("Ts", make(family, 1, size=48, start=start))):
        for case in cases:
            for rater, labels in zip("abcd", case.labels, strict=False):
                image, mask = _files(root, layout, part, case, rater)
                assert np.array_equal(image, case.image)
                assert np.array_equal(mask, labels)


def _files(root: Path, layout: str, part: str, case: Phantom, rater: str) -> tuple[np.ndarray, np.ndarray]:
    """Image and labels of ``case`` as Pillow and nibabel read them."""
    if layout in ("nnunet", "msd"):
        images, masks, mark = root / f"images{part}", root / f"labels{part}", "_0000" if layout == "nnunet" else ""
    else:
        base = root / "test" if layout == "folders" and part == "Ts" else root
        name = {"folders": "masks", "csv": "labels"}[layout] if len(case.labels) == 1 else f"labels_{rater}"
        images, masks, mark = base / "images", base / name, ""
    if case.affine is not None or layout == "msd":
        read = [nib.load(images / f"{case.id}{mark}.nii.gz"), nib.load(masks / f"{case.id}.nii.gz")]
        for file in read:
            if case.affine is not None:
                assert np.allclose(file.get_sform(), case.affine, atol=1e-4)
                assert np.allclose(file.get_qform(), case.affine, atol=1e-3)
            else:
                assert file.header["sform_code"] == file.header["qform_code"] == 0
        image, mask = (np.asanyarray(file.dataobj).transpose(2, 1, 0) for file in read)
    elif case.frames is not None:
        names = [f"{number:06d}.png" for number in case.frames]
        assert sorted(p.name for p in (images / case.id).iterdir()) == names
        image, mask = (np.stack([np.asarray(Image.open(d / case.id / n)) for n in names]) for d in (images, masks))
    else:
        image = np.asarray(Image.open(images / f"{case.id}{mark}.png"))[None]
        mask = np.asarray(Image.open(masks / f"{case.id}.png"))[None]
    return image.reshape(case.image.shape), mask


def test_dataset_json_and_table(tmp_path: Path) -> None:
    nnunet = json.loads((write("fundus", tmp_path / "a", n=2, layout="nnunet", size=32) / "dataset.json").read_text())
    assert nnunet["labels"] == {"background": 0, "disc": [1, 2], "cup": 2, "vessel": 3}
    assert nnunet["regions_class_order"] == [1, 2, 3]
    assert (nnunet["file_ending"], nnunet["numTraining"]) == (".png", 2)
    root = write("torso", tmp_path / "b", n=1, layout="msd", size=32, test=1)
    msd = json.loads((root / "dataset.json").read_text())
    assert (root / msd["training"][0]["image"]).is_file()
    assert (root / msd["training"][0]["label"]).is_file()
    assert (root / msd["test"][0]).is_file()
    assert msd["labels"]["5"] == "liver"
    table = write("fundus", tmp_path / "c", n=3, layout="csv", size=32, test=2)
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["split"] for r in rows] == ["train"] * 3 + ["test"] * 2
    assert not {r["patient"] for r in rows[:3]} & {r["patient"] for r in rows[3:]}  # the other eye is not a test case
    assert all((table.parent / r[k]).is_file() for r in rows for k in ("image", "label"))
    with open(write("lesions", tmp_path / "d", n=1, layout="csv", size=32), newline="") as file:
        assert [r["rater"] for r in csv.DictReader(file)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("family", ALL)
def test_the_project_reads_its_own_phantoms(family: str, tmp_path: Path) -> None:
    volume = r"(.+)/(\d+)$" if family == "video" else None
    patient = r"\w+-\d+"
    path = write(family, tmp_path / "set", n=3, layout="folders", size=48, test=1)
    found = find_cases(DataConfig(path=str(path), volume=volume, patient=patient))
    start = 4 if family == "fundus" else 3
    wanted = {c.id: c for c in make(family, 3, size=48)}
    wanted |= {f"test/{c.id}": c for c in make(family, 1, size=48, start=start)}
    assert {c.id for c in found.cases} == set(wanted)
    for case in found.cases:
        truth = wanted[case.id]
        assert case.patient == truth.patient
        image = found.read_image(case)
        assert np.array_equal(image.array, truth.image)
        assert (image.affine is None) == (truth.affine is None)
        if truth.affine is not None and image.affine is not None:
            assert np.allclose(image.affine, truth.affine, atol=1e-4)
        assert len(case.labels) == len(truth.labels)
        for rater, labels in enumerate(truth.labels):
            assert np.array_equal(found.read_labels(case, rater).array, labels)


def test_points_file_in_voxels_and_millimetres(tmp_path: Path) -> None:
    root = write("tubes", tmp_path / "set", n=1, size=64)
    case = next(make("tubes", 1, size=64))
    assert case.points is not None
    found = json.loads((root / "points" / f"{case.id}.json").read_text())
    assert np.array_equal(found["centreline"], case.points["centreline"])
    affine = nib.load(root / "images" / f"{case.id}.nii.gz").affine
    z, y, x = case.points["centreline"][0]
    assert np.allclose(found["centreline_ras_mm"][0], (affine @ [x, y, z, 1])[:3], atol=1e-3)


def test_bad_requests_say_what_is_wrong_and_write_nothing(tmp_path: Path) -> None:
    for options, match in (
        ({"family": "mri"}, "one of"),
        ({"size": 8}, "at least 32"),
        ({"difficulty": 1.5}, "0 \\(easy\\)"),
        ({"n": -1}, "not negative"),
        ({"seed": -1}, "not negative"),
    ):
        with pytest.raises(InputError, match=match):
            make(**{"family": "fundus", "n": 1, **options})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="layout"):
        write("fundus", tmp_path / "x", layout="zip")
    with pytest.raises(InputError, match="at least one"):
        write("fundus", tmp_path / "x", n=0)
    assert not any(tmp_path.iterdir())
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="not an empty folder"):
        write("fundus", tmp_path, n=1, size=32)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failure_halfway_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(OSError, match="disk full"):
        write("tubes", tmp_path / "set", n=1, size=32)
    assert not any(tmp_path.iterdir())
