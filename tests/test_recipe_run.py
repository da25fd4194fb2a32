"""A recipe from the files of its data set to the report, on a generated miniature of that data set."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from samsans import api, cli, config, io
from samsans.data.phantoms import make
from samsans.data.protocols import protocols
from samsans.data.splits import Split
from samsans.metrics import panels
from samsans.metrics.examples import Example

TINY = ("--backbone", "tiny", "--input-size", "64", "--train.pictures_every", "0", "--train.accelerator", "cpu")
ORGANS = ("spleen", "right kidney", "left kidney", "gallbladder", "liver", "stomach", "aorta", "pancreas")


def run(*argv: object) -> int:
    return cli.main([str(a) for a in argv])


@pytest.fixture(scope="module")
def synapse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preprocessed layout: two slices of each training case, two test volumes of sixteen slices."""
    h5py = pytest.importorskip("h5py")
    folder = tmp_path_factory.mktemp("synapse") / "data"
    (folder / "train_npz").mkdir(parents=True)
    (folder / "test_vol_h5").mkdir()
    split = protocols.load("synapse")
    names = [*split.train, *split.test[:2]]
    for name, phantom in zip(names, make("torso", len(names), size=32, difficulty=0.1), strict=True):
        image = np.clip((phantom.image[..., 0] + 125) / np.float32(400), 0, 1).astype(np.float32)
        label = phantom.labels[0].astype(np.float32)
        if name in split.train:
            for number, z in enumerate((8, 11)):
                file = folder / "train_npz" / f"case{name}_slice{number:03d}.npz"
                np.savez(file, image=image[z], label=label[z])
        else:
            with h5py.File(folder / "test_vol_h5" / f"case{name}.npy.h5", "w") as file:
                file["image"], file["label"] = image, label
    return folder


@pytest.fixture(scope="module")
def trained(synapse: Path) -> Path:
    out = synapse.parent / "run"
    assert (
        run("train", "--config", "hsam_synapse", synapse, "-o", out, "--steps", 3, "--train.batch_size", 4, *TINY) == 0
    )
    return out


@pytest.fixture(scope="module")
def predicted(trained: Path, synapse: Path) -> Path:
    out = synapse.parent / "masks"
    assert run("predict", trained, "-i", synapse, "-o", out, "--split", "test") == 0
    return out


def test_the_run_remembers_its_recipe(trained: Path) -> None:
    made = config.load(trained / "config.yaml")
    assert (made.method, made.recipe.name, made.recipe.published[0].dice) == ("hsam", "hsam_synapse", 0.8649)
    assert (made.train.steps, made.train.epochs, made.train.lr) == (3, None, 2.6e-3)
    split = Split.load(trained / "split.json")
    assert (len(split.train), len(split.test)) == (36, 2)
    with (trained / "log.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3


def test_report_beside_the_paper(
    predicted: Path, synapse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("evaluate", predicted, synapse, "-o", tmp_path / "report", "--bootstrap", 0)
    assert run(*argv, "--convention", "transunet", "--panels", 2) == 0
    shown = capsys.readouterr().out
    assert "beside H-SAM, Table 1 of arXiv 2403.18271" in shown
    assert "departs from its recipe hsam_synapse: backbone.name: sam-vit-l -> tiny" in shown
    assert "10 of the 12 test cases of synapse are not scored" in shown
    found = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert (found["n"], tuple(found["classes"]), found["unit"]) == (2, ORGANS, "px")
    first = found["published"]["rows"][0]
    assert first["difference"] == pytest.approx(found["mean"]["dice"] - 0.8649)
    assert found["published"]["repeated"] is None
    assert "10 of the 12" in found["published"]["verdict"]
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "The run answers with logit_mean.<" in page
    assert "Beside the published numbers" in page
    assert "data:image/png;base64," in page
    assert run(*argv) == 0
    assert "Re-run with --convention transunet" in capsys.readouterr().out


def test_views_and_options_of_predict(predicted: Path, trained: Path, synapse: Path, tmp_path: Path) -> None:
    argv = ("predict", trained, "-i", synapse, "--split", "test")
    assert run(*argv, "-o", tmp_path / "mean", "--view", "logit_mean") == 0
    assert run(*argv, "-o", tmp_path / "one", "--view", "stage1", "--largest-component", "--slice-axis", "1") == 0
    assert run(*argv, "-o", tmp_path / "coarse", "--via", "16") == 0
    assert run(*argv, "-o", tmp_path / "no", "--view", "stage3") == 2
    assert run(*argv, "-o", tmp_path / "no", "--via", "0") == 2
    assert run(*argv, "-o", tmp_path / "no", "--slice-axis", "diagonal") == 2
    assert not (tmp_path / "no").exists()
    for path in predicted.rglob("*.nii.gz"):
        mine = io.read_labels(path).array
        np.testing.assert_array_equal(mine, io.read_labels(tmp_path / "mean" / path.relative_to(predicted)).array)
    told = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert (told["options"]["view"], told["options"]["largest_component"]) == ("stage1", True)
    assert told["slice_axis"] == "1"
    coarse, usual = (json.loads((folder / "manifest.json").read_text()) for folder in (tmp_path / "coarse", predicted))
    assert (coarse["backbone"]["via"], usual["backbone"]["via"]) == (16, None)
    assert coarse["key"] != usual["key"]


def test_panels_of_other_weights_are_refused(
    predicted: Path, synapse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((predicted / "manifest.json").read_text())
    told = manifest | {"weights": manifest["weights"] | {"sha256": "0" * 64}}
    (predicted / "manifest.json").write_text(json.dumps(told))
    try:
        assert run("evaluate", predicted, synapse, "-o", tmp_path / "report", "--panels") == 2
    finally:
        (predicted / "manifest.json").write_text(json.dumps(manifest))
    assert "not those that made the predictions" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The rows of every picture of panels: id, Dice, example."""
    seen: list[Any] = []
    draw = panels._draw

    def record(rows: Any, objects: Any) -> bytes:
        seen.extend(rows)
        return draw(rows, objects)

    monkeypatch.setattr(panels, "_draw", record)
    return seen


def same(label_map: np.ndarray, example: Example, name: str) -> bool:
    """Whether a picture shows the slice of a label map that shows most of the truth, turned for the reader or not."""
    return any(
        np.array_equal(example.found[name], turned)
        for z in label_map
        for plane in (z, z.T)
        for turned in (plane, plane[::-1], plane[:, ::-1], plane[::-1, ::-1])
    )


def test_panels_show_each_stage_from_its_own_label_map(
    trained: Path, predicted: Path, synapse: Path, tmp_path: Path, drawn: list[Any]
) -> None:
    masks = {"ensemble": predicted}
    for view in ("stage1", "stage2"):
        masks[view] = tmp_path / view
        assert run("predict", trained, "-i", synapse, "--split", "test", "-o", masks[view], "--view", view) == 0
    argv = ("--bootstrap", 0, "--panels", 2)
    assert run("evaluate", predicted, synapse, "-o", tmp_path / "report", *argv) == 0
    assert len(drawn) == 2
    for id, _, example in drawn:
        assert list(example.found) == ["stage1", "stage2", "ensemble"]
        for name, folder in masks.items():
            (file,) = folder.rglob(f"{Path(id).name}*.nii.gz")
            labels = io.read_labels(file).array
            assert labels.any()
            assert same(labels, example, name)
            assert not any(same(labels, example, other) for other in masks if other != name)
    assert run("evaluate", masks["stage1"], synapse, "-o", tmp_path / "other", *argv) == 0
    page = (tmp_path / "other" / "report.html").read_text(encoding="utf-8")
    assert "answers with logit_mean. The masks that are scored and ranked are those of stage1." in page
    assert "view: logit_mean -&gt; stage1" in page
    written = trained / "config.yaml"
    before = written.read_text()
    written.write_text(before.replace("ensemble: logit_mean", "ensemble: stage2"))
    drawn.clear()
    try:
        assert run("evaluate", masks["stage2"], synapse, "-o", tmp_path / "own", *argv) == 0
    finally:
        written.write_text(before)
    assert all(list(example.found) == ["stage1", "stage2"] for _, _, example in drawn)
    assert "The run answers with stage2.<" in (tmp_path / "own" / "report.html").read_text(encoding="utf-8")


def test_a_folder_is_no_origin_because_a_configuration_lies_about(
    predicted: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    assert api._origin(predicted) == (trained, config.load("config.yaml"))
    for content in (None, {}, {"run": None}, {"run": ""}):
        if content is not None:
            (tmp_path / "manifest.json").write_text(json.dumps(content))
        assert api._origin(tmp_path) == (None, None)


def test_stages(
    trained: Path, synapse: Path, tmp_path: Path, drawn: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("experiment", "stages", synapse, "--run", trained, "-o", tmp_path / "stages", "--convention", "transunet")
    assert run(*argv, "--limit", 1, "--split", "test") == 0
    shown = capsys.readouterr().out
    assert "1 scored, convention default" in shown
    assert "1 scored, convention transunet" in shown
    assert "stage1      stage2  logit_mean   prob_mean" in shown
    rows = json.loads((tmp_path / "stages" / "stages.json").read_text())["rows"]
    assert len(rows) == 2 * 4 * 9
    for convention in ("default", "transunet"):
        for view in ("stage1", "stage2", "logit_mean", "prob_mean"):
            report = tmp_path / "stages" / "reports" / convention / view / "summary.json"
            mean = json.loads(report.read_text())["mean"]
            (row,) = [r for r in rows if (r["convention"], r["view"], r["class"]) == (convention, view, "mean")]
            assert (row["dice"], row["hd95"]) == (mean["dice"], mean["hd95_mm"])
    with (tmp_path / "stages" / "stages.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert (tmp_path / "stages" / "stages.md").read_text().count("| pancreas |") == 2
    assert Image.open(tmp_path / "stages" / "panels.png").size[0] > 1000
    ((_, dice, example),) = drawn
    assert list(example.found) == ["stage1", "stage2", "logit_mean", "prob_mean"]
    (own,) = [r for r in rows if (r["convention"], r["view"], r["class"]) == ("default", "logit_mean", "mean")]
    assert dice == pytest.approx(own["dice"])  # one case, ranked by the run's own answer
    for name in example.found:
        (file,) = (tmp_path / "stages" / "masks" / name).rglob("*.nii.gz")
        assert same(io.read_labels(file).array, example, name)
    assert run(*argv, "--split", "val") == 2
    assert "out for val" in capsys.readouterr().err


def test_stages_need_views(synapse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert run("train", "samed", synapse, "-o", out, "--config", "samed_synapse", "--steps", 1, *TINY) == 0
    assert yaml.safe_load((out / "config.yaml").read_text())["recipe"]["name"] == "samed_synapse"
    assert run("experiment", "stages", synapse, "--run", out, "-o", tmp_path / "stages") == 2
    assert "samed gives one answer and no views" in capsys.readouterr().err
    assert run("predict", out, "-i", synapse, "-o", tmp_path / "masks", "--split", "test") == 0
    assert run("evaluate", tmp_path / "masks", synapse, "-o", tmp_path / "report", "--panels", "--bootstrap", 0) == 0
    width, height = Image.open(tmp_path / "report" / "panels.png").size
    assert width < 2 * height  # image, truth, prediction; two cases
