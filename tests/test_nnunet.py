"""The baseline nnU-Net, with a stand-in for nnU-Net itself (see ``fake_nnunet``)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

import fake_nnunet
from samsans import cli, io
from samsans.config import DataConfig
from samsans.data.cases import find_cases
from samsans.data.classes import write_classes
from samsans.data.phantoms import write
from samsans.data.splits import Split
from samsans.errors import InputError
from samsans.experiments.nnunet import Task, collect, prepare
from samsans.experiments.nnunet_child import NnUNet
from samsans.metrics.evaluate import evaluate

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in's environment is laid out as on Linux and macOS")
MINUTES = 0.005


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_nnunet.environment(tmp_path_factory.mktemp("nnunet") / "env")


@pytest.fixture(scope="module")
def tubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("tubes", tmp_path_factory.mktemp("tubes") / "data", n=5, size=32)


def a_run(data: Path, folder: Path, split: Split) -> Path:
    """What the experiment reads of a run folder."""
    folder.mkdir()
    split.save(folder / "split.json")
    write_classes(folder / "classes.json", find_cases(DataConfig(path=str(data))).classes)
    return folder


def ids(data: Path) -> list[str]:
    return [case.id for case in find_cases(DataConfig(path=str(data))).cases]


def experiment(data: Path, run: Path, out: Path, *more: object) -> int:
    argv = ["experiment", "nnunet", data, "--run", run, "-o", out, *more]
    return cli.main([str(a) for a in argv])


def content(path: Path) -> object:
    return json.loads(path.read_text(encoding="utf-8"))


def test_from_split_to_report(python: Path, tubes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ids(tubes)
    run = a_run(tubes, tmp_path / "run", Split(tuple(names[:2]), (names[2],), tuple(names[3:])))
    out = tmp_path / "out"
    asked = ("--python", python, "--minutes", MINUTES, "--threads", 1)
    assert experiment(tubes, run, out, *asked) == 0
    said = capsys.readouterr().out
    assert "nnU-Net 2.8.1 (3d_fullres) on cpu" in said
    assert "tube" in said

    raw = out / "nnunet/raw/Dataset001_samsans"
    assert sorted(p.name for p in (raw / "imagesTr").iterdir()) == [f"case_000{i}_0000.nii.gz" for i in range(3)]
    assert sorted(p.name for p in (raw / "imagesTs").iterdir()) == [f"case_000{i}_0000.nii.gz" for i in (3, 4)]
    assert sorted(p.name for p in (raw / "labelsTr").iterdir()) == [f"case_000{i}.nii.gz" for i in range(3)]
    (fold,) = content(out / "nnunet/preprocessed/Dataset001_samsans/splits_final.json")  # type: ignore[misc]
    assert fold == {"train": ["case_0000", "case_0001"], "val": ["case_0002"]}

    # what was predicted lies on the grid, and under the name, of each input
    for id in names[3:]:
        image, made = nibabel.load(tubes / f"images/{id}.nii.gz"), nibabel.load(out / f"masks/{id}.nii.gz")
        assert np.array_equal(np.asarray(made.dataobj), np.asarray(image.dataobj) > 100)
        assert np.array_equal(made.affine, image.affine)
    manifest = content(out / "masks/manifest.json")
    assert isinstance(manifest, dict)
    assert list(manifest["cases"]) == names[3:]
    assert manifest["steps"] > 0
    summary = content(out / "report/summary.json")
    assert isinstance(summary, dict)
    again = tmp_path / "again"
    assert cli.main(["evaluate", str(out / "masks"), str(tubes), "-o", str(again)]) == 0
    found = content(again / "summary.json")
    assert isinstance(found, dict)
    assert found["mean"] == summary["mean"]

    # a second call repeats no step; mirroring is another prediction of the same network
    log = (out / "nnunet/nnunet.log").read_bytes()
    assert b"threads 1 loader processes 0" in log
    assert experiment(tubes, run, out, *asked) == 0
    assert (out / "nnunet/nnunet.log").read_bytes() == log
    assert experiment(tubes, run, out, *asked, "--mirror") == 0
    more = (out / "nnunet/nnunet.log").read_bytes()[len(log) :].decode()
    assert "predict-mirrored" in more
    assert "train" not in more.replace("MinutesTrainer", "")
    assert not io.read_labels(out / f"masks/{names[3]}.nii.gz").array.any()  # the stand-in's sign of mirroring
    capsys.readouterr()
    assert experiment(tubes, run, out, "--python", python, "--minutes", 2 * MINUTES, "--threads", 1) == 2
    assert "with other minutes" in capsys.readouterr().err


def test_training_ends_by_the_clock(python: Path, tubes: Path, tmp_path: Path) -> None:
    names = ids(tubes)
    run = a_run(tubes, tmp_path / "run", Split(tuple(names[:3]), (), (names[4],)))
    out = tmp_path / "out"
    assert experiment(tubes, run, out, "--python", python, "--minutes", 0.01) == 0
    trained = out / "nnunet/results/Dataset001_samsans/MinutesTrainer__nnUNetPlans__3d_fullres/fold_0"
    told = content(trained / "minutes.json")
    assert isinstance(told, dict)
    assert told["seconds"] >= 0.6
    assert 2 <= told["epochs"] <= 10
    rates = content(trained / "checkpoint_final.pth")
    assert isinstance(rates, list)
    assert len(rates) == told["steps"]
    assert rates[:2] == pytest.approx([0.01, 0.01], rel=0.2)  # the clock starts after the first step
    assert rates == sorted(rates, reverse=True)
    assert 0 <= rates[-1] < 0.003
    (fold,) = content(out / "nnunet/preprocessed/Dataset001_samsans/splits_final.json")  # type: ignore[misc]
    assert fold == {"train": ["case_0000", "case_0001", "case_0002"], "val": ["case_0000"]}  # chooses nothing


def test_raw_volumes_keep_values_and_grid(tmp_path: Path) -> None:
    data = write("torso", tmp_path / "data", n=2, size=32)
    dataset = find_cases(DataConfig(path=str(data)))
    first, second = dataset.cases
    task = Task(dataset, Split((first.id,)), (second,))
    assert prepare(task, tmp_path / "nnunet", "auto", 1) == "3d_fullres"
    raw = tmp_path / "nnunet/raw/Dataset001_samsans"
    for case, file in ((first, "imagesTr/case_0000_0000"), (second, "imagesTs/case_0001_0000")):
        given, written = nibabel.load(case.images[0]), nibabel.load(raw / f"{file}.nii.gz")
        assert np.array_equal(np.asarray(given.dataobj), np.asarray(written.dataobj))
        assert np.allclose(given.affine, written.affine, atol=1e-5)
        assert np.allclose(given.header.get_zooms(), written.header.get_zooms(), atol=1e-5)
    described = content(raw / "dataset.json")
    assert isinstance(described, dict)
    assert described["channel_names"] == {"0": "CT"}
    assert described["labels"]["background"] == 0
    assert list(described["labels"].values()) == list(range(9))
    assert not (raw / "labelsTs").exists()


@pytest.mark.parametrize(("name", "kind"), [("CT", "CT"), ("MRI", "image")])
def test_a_data_set_that_names_its_modality(tmp_path: Path, name: str, kind: str) -> None:
    data = write("torso", tmp_path / "data", n=2, size=32)
    (data / "dataset.json").write_text(json.dumps({"modality": {"0": name}}), encoding="utf-8")
    dataset = find_cases(DataConfig(path=str(data)))
    prepare(Task(dataset, Split((dataset.cases[0].id,)), dataset.cases[1:]), tmp_path / "nnunet", "auto", 1)
    described = content(tmp_path / "nnunet/raw/Dataset001_samsans/dataset.json")
    assert isinstance(described, dict)
    assert described["channel_names"] == {"0": kind}


def test_nested_objects_and_colours_come_back(tmp_path: Path) -> None:
    """nnU-Net's labels are disjoint: predicting them exactly is a Dice of 1 of the whole disc, cup included."""
    data = write("fundus", tmp_path / "data", n=2, size=48)
    dataset = find_cases(DataConfig(path=str(data), classes={"disc": [1, 2], "cup": [2]}))
    task = Task(dataset, Split(tuple(case.id for case in dataset.cases)), dataset.cases)
    assert prepare(task, tmp_path / "nnunet", "auto", 1) == "2d"
    raw = tmp_path / "nnunet/raw/Dataset001_samsans"
    assert len(list((raw / "imagesTs").iterdir())) == 6
    described = content(raw / "dataset.json")
    assert isinstance(described, dict)
    assert described["channel_names"] == {"0": "image", "1": "image", "2": "image"}
    drawn = io.read_labels(dataset.cases[0].labels[0][0]).array
    rim = io.read_labels(raw / "labelsTr/case_0000.nii.gz").array
    assert np.array_equal(rim == 1, drawn == 1)
    assert np.array_equal(rim == 2, drawn == 2)
    collect(task, raw / "labelsTr", tmp_path / "masks", {"method": "nnunet"})
    found = evaluate(tmp_path / "masks", dataset.cases, tmp_path / "report", classes=dataset.classes, bootstrap=0)
    assert [row["dice"] for row in found.classes.values()] == [1, 1]
    only = tmp_path / "one"
    prepare(task, only, [1], 1)
    green = io.read_image(only / "raw/Dataset001_samsans/imagesTr/case_0000_0000.nii.gz").array[..., 0]
    assert np.array_equal(green, io.read_image(dataset.cases[0].images[0]).array[..., 1])


def test_a_prediction_that_does_not_fit_is_refused(tubes: Path, tmp_path: Path) -> None:
    dataset = find_cases(DataConfig(path=str(tubes)))
    first, second = dataset.cases[:2]
    task = Task(dataset, Split((first.id,)), (second,))
    for array in (np.zeros((2, 3, 4), np.uint8), np.full(dataset.read_image(second).shape, 2, np.uint8)):
        io.write_labels(tmp_path / "predicted/case_0001.nii.gz", array)
        with pytest.raises(InputError, match=r"case_0001\.nii\.gz has the size"):
            collect(task, tmp_path / "predicted", tmp_path / "masks", {})
    assert not (tmp_path / "masks").exists()


def test_without_nnunet_the_message_tells_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no nnU-Net was named.*pip install nnunetv2.*--python"):
        NnUNet.find(None)
    with pytest.raises(InputError, match=r"nowhere cannot be run: No such file"):
        NnUNet.find(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"No module named 'nnunetv2'.*an environment of its own.*torchvision"):
        NnUNet.find(sys.executable)
    old = fake_nnunet.environment(tmp_path / "old", changed={"nnunetv2/paths.py": ""})
    with pytest.raises(InputError, match=r"nnU-Net 2\.8\.1 .* finds no trainer outside of itself"):
        NnUNet.find(old)


def test_failure_shows_the_last_lines_and_goes_on_later(
    tubes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ids(tubes)
    run = a_run(tubes, tmp_path / "run", Split(tuple(names[:2]), (), (names[2],)))
    argv = (tubes, run, tmp_path / "out", "--minutes", MINUTES, "--python")
    broken = "def run_training_entry():\n    raise RuntimeError('the network exploded')\n"
    bad = fake_nnunet.environment(tmp_path / "bad", changed={"nnunetv2/run/run_training.py": broken})
    assert experiment(*argv, bad) == 2
    said = capsys.readouterr().err
    assert "nnU-Net failed to train (exit status 1)" in said
    assert "RuntimeError: the network exploded" in said
    assert str(tmp_path / "out/nnunet/nnunet.log") in said
    good = fake_nnunet.environment(tmp_path / "good")
    assert experiment(*argv, good) == 0
    assert (tmp_path / "out/nnunet/nnunet.log").read_text().count("== plan:") == 1


def test_what_cannot_be_compared_is_refused(
    python: Path, tubes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ids(tubes)
    few = a_run(tubes, tmp_path / "few", Split((names[0],), (), (names[1],), slices=(f"{names[0]}#003",)))
    assert experiment(tubes, few, tmp_path / "out", "--python", python, "--minutes", 1) == 2
    assert "learned from 1 single slices" in capsys.readouterr().err
    assert experiment(tubes, few, tmp_path / "out", "--python", python, "--minutes", 0) == 2
    assert "more than 0" in capsys.readouterr().err
    argv = ["experiment", "stages", tubes, "--run", few, "-o", tmp_path / "out", "--python", python]
    assert cli.main([str(a) for a in argv]) == 2
    assert "--python for the experiment stages" in capsys.readouterr().err
