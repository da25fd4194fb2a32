"""Every other recipe from the files of its data set to the report: one step on a generated miniature of that data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from samsans import cli, config, io
from samsans.data import protocols
from samsans.data.splits import Split
from samsans.types import Volume

SMALL = ("--backbone", "tiny", "--input-size", "32", "--steps", "1", "--train.batch_size", "2")
QUIET = ("--train.pictures_every", "0", "--train.accelerator", "cpu")
PATCHES = ("--patches.size", "[3, 8, 8]", "--model.matching.points", "64")
SIDE, DEEPEST = 16, 81


def drawn(depth: int, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Image of z-scores and labels ``(depth, SIDE, SIDE)``: one square an object in every slice."""
    labels = np.zeros((depth, SIDE, SIDE), np.uint8)
    for k in range(objects):
        row, column = divmod(k, 3)
        labels[:, 5 * row + 1 : 5 * row + 5, 5 * column + 1 : 5 * column + 5] = k + 1
    noise = np.random.default_rng(depth).normal(0, 0.2, labels.shape)
    return (labels * (2.0 / objects) - 1 + noise).astype(np.float32), labels


@pytest.fixture(scope="module")
def synapse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 221 slices that are listed, and one test volume, as preprocessed arrays."""
    h5py = pytest.importorskip("h5py")
    folder = tmp_path_factory.mktemp("synapse")
    (folder / "train_npz").mkdir()
    (folder / "test_vol_h5").mkdir()
    image, label = drawn(2, 8)
    image = np.clip((image + 1) / 2, 0, 1)
    split = protocols.load("synapse_fewshot")
    for case, numbers in split.slices.items():
        for number in numbers:
            np.savez(folder / "train_npz" / f"case{case}_slice{number:03d}.npz", image=image[0], label=label[0])
    with h5py.File(folder / "test_vol_h5" / f"case{split.test[0]}.npy.h5", "w") as file:
        file["image"], file["label"] = image, label
    return folder


@pytest.fixture(scope="module")
def atrium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder a scan, as (x, y, z)."""
    h5py = pytest.importorskip("h5py")
    folder = tmp_path_factory.mktemp("la")
    split = protocols.load("la_4")
    for case in (*split.train, split.test[0]):
        (folder / case).mkdir()
        image, label = drawn(DEEPEST if case in split.train else 3, 1)
        with h5py.File(folder / case / "mri_norm2.h5", "w") as file:
            file["image"], file["label"] = image.transpose(2, 1, 0), label.transpose(2, 1, 0)
    return folder


@pytest.fixture(scope="module")
def prostate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The challenge's names, as NIfTI."""
    folder = tmp_path_factory.mktemp("promise12")
    split = protocols.load("promise12_3")
    for case in (*split.train, split.test[0]):
        image, label = drawn(33 if case in split.train else 3, 1)
        like = Volume(image[..., None], np.diag([0.6, 0.6, 3.6, 1.0]))
        io.write_image(folder / f"Case{case}.nii.gz", image * 300 + 400, like=like)
        io.write_labels(folder / f"Case{case}_segmentation.nii.gz", label, like=like)
    return folder


@pytest.fixture(scope="module")
def cardiac(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net's names: one phase of every training patient, of one to validate with and of one to test."""
    folder = tmp_path_factory.mktemp("acdc")
    split = protocols.load("acdc")
    image, label = drawn(3, 3)
    like = Volume(image[..., None], np.diag([1.5, 1.5, 10.0, 1.0]))
    for case in (*split.train, split.val[0], split.test[0]):
        io.write_image(folder / "imagesTr" / f"patient{case}_frame01_0000.nii.gz", image * 300 + 400, like=like)
        io.write_labels(folder / "labelsTr" / f"patient{case}_frame01.nii.gz", label, like=like)
    names = {"background": 0, "RV": 1, "MLV": 2, "LV": 3}
    about = {"channel_names": {"0": "MR"}, "labels": names, "numTraining": 72, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize(
    ("recipe", "data", "cases", "slices"),
    [
        ("hsam_synapse_fewshot", "synapse", 221, 0),
        ("samed_synapse_fewshot", "synapse", 221, 0),
        ("autosam_synapse", "synapse", 221, 0),
        ("hsam_synapse_semi5", "synapse", 60, 0),
        ("hsam_la", "atrium", 4, 224),
        ("hsam_promise12", "prostate", 3, 58),
        ("masksam_acdc", "cardiac", 70, 0),
    ],
)
def test_recipe(
    recipe: str, data: str, cases: int, slices: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    def run(*argv: object) -> int:
        return cli.main([str(a) for a in argv])

    folder: Path = request.getfixturevalue(data)
    meant = config.load(recipe)
    patches = PATCHES if meant.method == "masksam" else ()
    model, masks, report = tmp_path / "run", tmp_path / "masks", tmp_path / "report"
    assert run("train", "--config", recipe, folder, "-o", model, *SMALL, *QUIET, *patches) == 0
    split = Split.load(model / "split.json")
    assert (len(split.train), len(split.test), len(split.slices)) == (cases, 1, slices)
    assert run("predict", model, "-i", folder, "--split", "test", "-o", masks) == 0
    (made,) = masks.rglob("*.nii.gz")
    axis = 0 if data != "atrium" else 2
    stored = io.read_labels(made).array.shape
    assert stored == tuple(np.roll((3 if data != "synapse" else 2, SIDE, SIDE), axis))
    assert json.loads((masks / "manifest.json").read_text())["slice_axis"] == meant.data.slice_axis
    convention = meant.recipe.published[0].convention
    assert run("evaluate", masks, folder, "-o", report, "--convention", convention, "--bootstrap", 0) == 0
    found = json.loads((report / "summary.json").read_text())
    assert tuple(found["classes"]) == tuple(meant.data.classes or ())
    assert found["published"]["recipe"] == recipe
    assert found["published"]["repeated"] is None
    assert any("test cases of" in note and "are not scored" in note for note in found["notes"])
