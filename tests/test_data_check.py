"""What ``check`` finds and how it says it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_files import flat_set, nifti, picture, png, square
from samsans.config import DataConfig
from samsans.data.check import CheckReport, check
from samsans.errors import InputError
from samsans.types import Progress


def kinds(report: CheckReport) -> dict[str, str]:
    return {p.kind: p.severity for p in report.problems}


def test_a_sound_set(tmp_path: Path) -> None:
    flat_set(tmp_path, 3, (1, 2), per_patient=2)
    seen: list[Progress] = []
    report = check(DataConfig(path=str(tmp_path), patient=r"^(p\d+)"), on_progress=seen.append)
    assert report.ok
    assert not report.problems
    assert (report.cases, report.labelled, report.patients) == (3, 3, 2)
    assert report.sizes == {"12 x 16": 3}
    assert [(c.name, c.cases) for c in report.classes] == [("class_1", 2), ("class_2", 2)]
    assert report.classes[0].pixels == 2 * 4 * 6
    assert report.classes[0].share == pytest.approx(48 / (3 * 12 * 16))
    assert [(p.done, p.total) for p in seen] == [(i, 3) for i in range(1, 4)]
    assert "3 cases of 2 patients, 3 with a mask" in report.text()
    assert report.text().endswith("OK: nothing wrong found\n")
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


def test_everything_wrong_is_found_in_one_go(tmp_path: Path) -> None:
    flat_set(tmp_path, 8)
    images, masks = tmp_path / "images", tmp_path / "masks"
    whole = (images / "p00_000.png").read_bytes()
    (images / "p00_000.png").write_bytes(whole[: len(whole) // 2])
    (masks / "p01_001.png").write_bytes(b"")
    png(masks / "p02_002.png", square(size=(7, 7)))
    (masks / "p03_003.png").unlink()
    png(masks / "stray.png", square())
    png(masks / "p04_004.png", np.zeros((12, 16), np.uint8))
    shutil.copy(images / "p05_005.png", images / "p06_006.png")
    png(images / "p07_007.png", np.full((12, 16), 9, np.uint8))
    png(masks / "p07_007.png", square(7))
    report = check(DataConfig(path=str(tmp_path), classes={"polyp": [255], "ghost": [3]}))
    assert kinds(report) == {
        "an image cannot be used": "error",
        "a mask cannot be used": "error",
        "a mask is not on the grid of its image": "error",
        "an image has no mask": "warning",
        "a mask has no image": "warning",
        "mask values of no object": "warning",
        "a mask shows no object": "note",
        "one image under several patients": "warning",
        "an image is the same everywhere": "warning",
        "an object is never shown": "warning",
    }
    files = {p.kind: Path(p.file).name for p in report.problems if p.file}
    assert files["an image cannot be used"] == "p00_000.png"
    assert files["a mask cannot be used"] == "p01_001.png"
    assert files["a mask is not on the grid of its image"] == "p02_002.png"
    assert files["an image has no mask"] == "p03_003.png"
    assert files["a mask has no image"] == "stray.png"
    assert files["one image under several patients"] == "p05_005.png"
    assert not report.ok
    text = report.text()
    assert text.splitlines()[-1].startswith("NOT OK: 3 errors, ")
    assert text.index("ERROR") < text.index("WARNING") < text.index("NOTE")


def test_geometry_ranges_and_non_finite_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i, gain in enumerate((1, 1000, 5)):
        nifti(tmp_path / "images" / f"v{i}.nii.gz", (rng.random((4, 5, 6)) * gain).astype(np.float32))
        affine = np.eye(4)
        affine[0, 3] = (0.0, 0.2, 3.0)[i]
        nifti(tmp_path / "labels" / f"v{i}.nii.gz", np.ones((4, 5, 6), np.uint8), affine)
    broken = np.ones((4, 5, 6), np.float32)
    broken[0, 0, 0] = np.nan
    nifti(tmp_path / "images" / "v3.nii.gz", broken)
    nifti(tmp_path / "labels" / "v3.nii.gz", np.ones((4, 5, 6), np.uint8))
    report = check(DataConfig(path=str(tmp_path)))
    assert kinds(report) == {
        "an image cannot be used": "error",
        "a mask is not on the grid of its image": "error",
        "a mask lies slightly beside its image": "warning",
        "intensities differ widely": "note",
    }
    assert report.spacings == {"1 x 1 x 1 mm": 3}
    windowed = check(DataConfig(path=str(tmp_path), window=[0, 1]))
    assert kinds(windowed)["one window for widely differing intensities"] == "warning"


def test_duplicates_of_one_patient_are_no_leak(tmp_path: Path) -> None:
    flat_set(tmp_path, 4, per_patient=2)
    shutil.copy(tmp_path / "images" / "p00_000.png", tmp_path / "images" / "p00_001.png")
    report = check(DataConfig(path=str(tmp_path), patient=r"^(p\d+)"))
    assert kinds(report) == {"one image several times": "warning"}


def test_a_rare_object_is_reported(tmp_path: Path) -> None:
    for i in range(66):
        png(tmp_path / "images" / f"{i:02d}.png", picture(i, (6, 6)))
        png(tmp_path / "masks" / f"{i:02d}.png", np.full((6, 6), 1 if i != 16 else 2, np.uint8))
    report = check(DataConfig(path=str(tmp_path)))
    assert kinds(report) == {"a rare object would be overlooked": "warning"}


def test_channels(tmp_path: Path) -> None:
    for channel in range(2):
        nifti(tmp_path / "imagesTr" / f"a_{channel:04d}.nii.gz", np.random.default_rng(channel).random((3, 4, 5)))
    nifti(tmp_path / "labelsTr" / "a.nii.gz", np.ones((3, 4, 5), np.uint8))
    assert kinds(check(DataConfig(path=str(tmp_path)))) == {"neither grey nor three channels": "error"}
    assert check(DataConfig(path=str(tmp_path), channels=[0, 1, 0])).ok


def test_images_alone_are_fine(tmp_path: Path) -> None:
    for i in range(9):
        png(tmp_path / f"{i}.png", picture(i))
    report = check(DataConfig(path=str(tmp_path)))
    assert report.ok
    assert not report.problems
    with pytest.raises(InputError, match="there is nothing at"):
        check(DataConfig(path=str(tmp_path / "nowhere")))


def test_many_files_with_one_trouble_are_listed_in_short(tmp_path: Path) -> None:
    flat_set(tmp_path, 12)
    for path in sorted((tmp_path / "masks").iterdir())[:9]:
        path.unlink()
    report = check(DataConfig(path=str(tmp_path)))
    assert len(report.problems) == 9
    assert "an image has no mask (9)" in report.text()
    assert "... and 4 more" in report.text()


def test_real_duplicate_is_found(shared_data: Path) -> None:
    report = check(DataConfig(path=str(shared_data / "usgra_nerve_us")))
    assert report.ok
    assert kinds(report) == {"one image under several patients": "warning"}
