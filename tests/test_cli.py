"""The command line from end to end, in this process, on generated phantoms with the tiny backbone."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from PIL import Image

import samsans
from samsans import cli, io
from samsans.data.phantoms import write
from samsans.data.splits import Split
from samsans.zoo import BACKBONES, METHODS

TINY = ("--backbone", "tiny", "--input-size", "64", "--train.pictures_every", "0", "--train.accelerator", "cpu")
SUMMARY_KEYS = {"convention", "n", "mean", "classes", "cases"}  # names that users' scripts rely on
METRICS = {"dice", "iou", "hd95_mm", "asd_mm", "nsd"}
SAME = {"classes.json", "config.yaml", "manifest.json"}


def run(*argv: object) -> int:
    return cli.main([str(a) for a in argv])


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def labels(path: Path) -> np.ndarray:
    return io.read_labels(path).array


@pytest.fixture(scope="module")
def fundus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photographs, two a patient, with the objects disc, cup and vessel."""
    return write("fundus", tmp_path_factory.mktemp("fundus") / "data", n=8, size=72, difficulty=0.2)


@pytest.fixture(scope="module")
def trained(fundus: Path) -> Path:
    """A run of four steps that holds a patient out for validation and one for test."""
    out = fundus.parent / "run"
    options = (
        "--split.test",
        0.25,
        "--split.val",
        0.25,
        "--data.patient",
        r"\w+-\d+",
        "--data.classes",
        "{disc: [1, 2]}",
    )
    assert run("train", "proxy_prompt", fundus, "-o", out, "--steps", 4, *TINY, *options) == 0
    return out


@pytest.fixture(scope="module")
def torso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CT volumes of eight organs in nnU-Net's layout, one of them a test case."""
    return write("torso", tmp_path_factory.mktemp("torso") / "Dataset001", n=3, size=32, layout="nnunet", test=1)


# -- help and mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [command, "proxy_prompt", "--help"] if command == "train" else [command, "--help"]
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert cli.COMMANDS[command] in " ".join(shown.split())
    assert "<class" not in shown
    assert "<function" not in shown


def test_usage_names_every_command_and_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name}" in shown for name in cli.COMMANDS)
    assert cli.main(["train"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name}" in shown for name in METHODS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"samsans {samsans.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("bogus", "no command 'bogus'"),
        ("check", "required: DATA"),
        ("check /no/such/folder", "nothing at /no/such/folder"),
        ("train nonsense DATA -o RUN", "'nonsense'"),
        ("train --steps 4 proxy_prompt DATA -o RUN", "'--steps' before the method"),
        ("train proxy_prompt DATA", "required: -o"),
        ("train proxy_prompt DATA -o RUN --train.foo 3", "--train.foo"),
        ("train proxy_prompt DATA -o RUN --steps many", '"steps": Expected int. Got value: many'),
        ("train proxy_prompt DATA -o RUN --preset nothing", "no preset 'nothing'"),
        ("train proxy_prompt DATA -o RUN --config nowhere.yaml", "no configuration at nowhere.yaml"),
        ("train proxy_prompt DATA -o RUN --backbone tiny --input-size 65", "65"),
        ("train proxy_prompt DATA -o RUN --backbone no-such-model", "no-such-model"),
        ("train proxy_prompt DATA -o RUN --backbone tiny --shots 99", "split.shots asks for 99"),
        ("predict RUN -i DATA", "required: -o"),
        ("predict /no/run -i DATA -o OUT", "/no/run holds no config.yaml"),
        ("predict TRAINED -i DATA -o OUT.png", "named like an image"),
        ("predict TRAINED -i DATA -o OUT --support DATA/images", "holds no image with a mask"),
        ("evaluate DATA", "required: REFERENCE, -o"),
        ("evaluate /no/masks DATA -o OUT", "there is nothing at /no/masks"),
        ("train proxy_prompt DATA -o /dev/null/run --backbone tiny --input-size 64 --steps 1", "Not a directory"),
        ("models show nonsense", "'nonsense'"),
        ("models show", "without a name"),
        ("experiment nonsense DATA --run RUN -o OUT", "invalid choice: 'nonsense'"),
    ],
)
def test_mistakes_are_one_clear_line(
    argv: str, said: str, fundus: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"DATA": fundus, "TRAINED": trained, "RUN": tmp_path / "run", "OUT": tmp_path / "out"}
    assert run(*(re.sub(r"[A-Z]{3,}", lambda word: str(named[word[0]]), part) for part in argv.split())) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("samsans")
    assert said in told
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {lr: 0.1, stepz: 3}", "'stepz'"),
        ("train: {lr: fast}", '"train.lr": Expected float'),
        ("split: 3", "split is 3"),
        ("[1, 2", "not valid YAML"),
        ("- 1", "holds list"),
    ],
)
def test_unknown_keys_and_types_in_yaml(
    text: str, said: str, fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my.yaml").write_text(text)
    assert run("train", "proxy_prompt", fundus, "-o", tmp_path / "run", "--config", tmp_path / "my.yaml", *TINY) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# -- models -----------------------------------------------------------------------------------------------------------


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == run("models", "list") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*BACKBONES, *METHODS))
    assert run("models", "show", "sam-vit-b") == 0
    assert "Apache-2.0" in capsys.readouterr().out
    assert run("models", "where") == run("models", "where", "tiny") == 0
    assert "needs no weights" in capsys.readouterr().out


# -- check ------------------------------------------------------------------------------------------------------------


def test_check_understands(fundus: Path, torso: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", fundus, "--data.patient", r"\w+-\d+") == 0
    shown = capsys.readouterr().out
    assert "8 cases of 4 patients, 8 with a mask" in shown
    assert "OK" in shown
    assert run("check", "--json", torso) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["cases"], told["labelled"], told["ok"], len(told["classes"])) == (4, 4, True, 8)


def test_check_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write("ultrasound", tmp_path / "data", n=6, size=64)
    images, masks = (sorted((data / part).iterdir()) for part in ("images", "masks"))
    images[0].write_bytes(images[0].read_bytes()[:200])
    Image.fromarray(np.ones((10, 12), np.uint8)).save(masks[1])
    masks[2].unlink()
    shutil.copy(images[4], images[5])
    assert run("check", data) == 1
    shown = capsys.readouterr().out
    for path, said in [
        (images[0], "cannot be read"),
        (masks[1], "a mask of the size of its image"),
        (images[2], "no mask"),
        (images[4], "the same pixels as"),
    ]:
        assert any(str(path) in line and said in line for line in shown.splitlines()), (path, said)
    assert "NOT OK: 2 errors" in shown


def test_check_tells_how_to_name_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        Image.fromarray(np.full((8, 8), 50 * number, np.uint8)).save(data / f"eye{number}.jpg")
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(data / f"eye{number}_1stHO.png")
    assert run("check", data) == 0
    shown = capsys.readouterr().out
    assert "WARNING: no image has a mask" in shown
    assert "--data.images '*.jpg' --data.labels '{parent}/{stem}_1stHO.png'" in shown
    assert run("check", data, "--data.images", "*.jpg", "--data.labels", "{parent}/{stem}_1stHO.png") == 0
    assert "3 cases of 3 patients, 3 with a mask" in capsys.readouterr().out


# -- train ------------------------------------------------------------------------------------------------------------


def test_run_folder(trained: Path) -> None:
    assert {"config.yaml", "split.json", "classes.json", "log.csv", "model/last.safetensors"} <= files(trained)
    written = yaml.safe_load((trained / "config.yaml").read_text())
    assert (written["backbone"]["name"], written["backbone"]["input_size"], written["train"]["steps"]) == (
        "tiny",
        64,
        4,
    )
    with (trained / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]
    split = Split.load(trained / "split.json")
    patients = [{id[:-1] for id in part} for part in (split.train, split.val, split.test)]
    assert [len(p) for p in patients] == [2, 1, 1]
    assert len(set.union(*patients)) == 4


def test_flags_go_before_yaml_before_preset(fundus: Path, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("seed: 5\ntrain: {steps: 2, lr: 0.5}\nmodel: {k_test: 3}\n")
    out = tmp_path / "run"
    argv = ("--config", tmp_path / "my.yaml", "-o", out, "--train.lr", "0.25", "--preset", "scratch", "--shots", "2")
    assert run("train", "proxy_prompt", *argv, *TINY, fundus) == 0
    made = yaml.safe_load((out / "config.yaml").read_text())
    assert (made["seed"], made["train"]["steps"], made["train"]["lr"], made["model"]["k_test"]) == (5, 2, 0.25, 3)
    assert (made["preset"], made["train"]["optimizer"], made["backbone"]["train"]) == ("scratch", "adamw", "all")
    assert len(Split.load(out / "split.json").train) == 2


def test_train_again_needs_resume(
    trained: Path, fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = shutil.copytree(trained, tmp_path / "run")
    options = (
        "--split.test",
        0.25,
        "--split.val",
        0.25,
        "--data.patient",
        r"\w+-\d+",
        "--data.classes",
        "{disc: [1, 2]}",
    )
    argv = ("train", "proxy_prompt", fundus, "-o", again, *TINY, *options)
    assert run(*argv, "--steps", 4) == 2
    assert "resume" in capsys.readouterr().err
    assert run(*argv, "--steps", 6, "--resume") == 0
    with (again / "log.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == list("123456")


# -- predict ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predicted(trained: Path, fundus: Path) -> Path:
    """Label maps of all images by the run's own supports."""
    out = fundus.parent / "out"
    assert run("predict", trained, "-i", fundus, "-o", out) == 0
    return out


def test_predict_with_the_runs_own_supports(predicted: Path, fundus: Path, trained: Path) -> None:
    names = {p.name for p in (fundus / "images").iterdir()}
    assert files(predicted) == names | SAME
    for name in names:
        assert labels(predicted / name).shape == (1, 72, 72)
        assert set(np.unique(labels(predicted / name))) <= {0, 1}
    told = json.loads((predicted / "manifest.json").read_text())
    assert told["support"]["source"] == "training images"
    assert set(told["support"]["ids"]) == set(Split.load(trained / "split.json").train)
    for id, case in told["cases"].items():
        assert id not in case["supports"]
        assert {"read", "encode", "prompt", "decode", "write"} <= set(case["seconds"])


def test_a_second_predict_skips_what_is_there(
    predicted: Path, trained: Path, fundus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in predicted.glob("*.png")}
    assert run("predict", trained, "-i", fundus, "-o", predicted) == 0
    assert "0 segmented, 8 there already" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in predicted.glob("*.png")} == before
    assert run("predict", trained, "-i", fundus, "-o", predicted, "--seed", 3) == 2
    assert "other weights, supports or options" in capsys.readouterr().err


def test_predict_needs_no_labels(trained: Path, fundus: Path, predicted: Path, tmp_path: Path) -> None:
    images = shutil.copytree(fundus / "images", tmp_path / "in/site")
    assert run("predict", trained, "-i", tmp_path / "in", "-o", tmp_path / "out") == 0
    assert files(tmp_path / "out") == {f"site/{p.name}" for p in images.iterdir()} | SAME


def test_predict_one_part_of_the_split(trained: Path, fundus: Path, tmp_path: Path) -> None:
    assert run("predict", trained, "-i", fundus, "-o", tmp_path / "out", "--split", "test", "--probabilities") == 0
    held = Split.load(trained / "split.json").test
    soft = {f"probabilities/{id}_disc.png" for id in held}
    assert files(tmp_path / "out") == {f"{id}.png" for id in held} | soft | SAME


def test_supports_by_folder_by_pairs_and_by_task(
    trained: Path, fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder = shutil.copytree(trained, tmp_path / "run")
    image = fundus / "images/fundus-0000l.png"
    pairs = [f"{fundus}/images/fundus-000{n}r.png:{fundus}/masks/fundus-000{n}r.png" for n in (1, 2)]

    def predict(name: str, *options: object) -> np.ndarray:
        assert run("predict", run_folder, "-i", image, "-o", tmp_path / name, *options) == 0
        return labels(tmp_path / name / "fundus-0000l.png")

    predict("folder", "--support", fundus)
    told = json.loads((tmp_path / "folder/manifest.json").read_text())["support"]
    assert (told["source"], len(told["ids"])) == (str(fundus), 8)
    by_pairs = predict("pairs", "--support", *pairs)
    saved = predict("saved", "--support", *pairs, "--task", "two eyes")
    assert (run_folder / "tasks/two eyes.safetensors").is_file()
    again = predict("again", "--task", "two eyes")
    assert np.array_equal(saved, again)
    assert np.array_equal(by_pairs, again)
    assert run("predict", run_folder, "-i", image, "-o", tmp_path / "no", "--task", "three") == 2
    assert "two eyes" in capsys.readouterr().err
    assert run("predict", run_folder, "-i", image, "-o", tmp_path / "no", "--support", f"{image}:nowhere.png") == 2
    assert "Check both paths" in capsys.readouterr().err


def test_objects(torso: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write("ultrasound", tmp_path / "data", n=4, size=64)
    assert run("train", "proxy_prompt", data, "-o", tmp_path / "run", "--steps", 1, *TINY) == 0
    names = [c["name"] for c in json.loads((tmp_path / "run/classes.json").read_text())["classes"]]
    argv = ("predict", tmp_path / "run", "-i", data, "-o", tmp_path / "out", "--objects")
    assert run(*argv, "spleen") == 2
    assert names[1] in capsys.readouterr().err
    assert run(*argv, names[1]) == 0
    assert all(set(np.unique(labels(p))) <= {0, 2} for p in (tmp_path / "out").glob("*.png"))
    assert run("evaluate", tmp_path / "out", data, "-o", tmp_path / "report") == 0
    found = json.loads((tmp_path / "report/summary.json").read_text())
    assert set(found["classes"]) == {names[1]}
    assert any("left out" in note for note in found["notes"])


def test_a_bad_file_stops_nothing(
    trained: Path, fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(fundus / "images", tmp_path / "in")
    broken = sorted(folder.iterdir())[2]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:150])
    argv = ("predict", trained, "-i", folder, "-o", tmp_path / "out")
    assert run(*argv) == 1
    shown = capsys.readouterr().out
    assert "7 segmented, 0 there already, 1 failed" in shown
    assert str(broken) in shown
    assert not (tmp_path / "out" / broken.name).exists()
    broken.write_bytes(whole)
    assert run(*argv) == 0
    assert "1 segmented, 7 there already, 0 failed" in capsys.readouterr().out


def test_killed_predict_leaves_whole_files_and_goes_on(trained: Path, fundus: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    sources = sorted((fundus / "images").iterdir())
    for number in range(64):
        shutil.copy(sources[number % 8], folder / f"{number:02d}.png")
    command = [sys.executable, "-m", "samsans.cli", "predict", str(trained), "-i", str(folder), "-o", str(out)]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=said, stderr=said)
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.png"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, (tmp_path / "said").read_text()
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = list(out.glob("*.png"))
    assert len(found) >= 3
    for path in found:
        assert labels(path).shape == (1, 72, 72)
    json.loads((out / "manifest.json").read_text())
    assert run(*command[3:]) == 0
    assert files(out) == {f"{number:02d}.png" for number in range(64)} | SAME


# -- evaluate ---------------------------------------------------------------------------------------------------------


def test_evaluate_against_a_data_set(
    predicted: Path, fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", predicted, fundus, "-o", tmp_path / "report") == 0
    assert "class" in capsys.readouterr().out
    assert files(tmp_path / "report") == {"summary.json", "cases.csv", "report.html"}
    found = json.loads((tmp_path / "report/summary.json").read_text())
    assert set(found) >= SUMMARY_KEYS
    assert (found["convention"], found["n"], set(found["classes"])) == ("default", 8, {"disc"})
    assert set(found["mean"]) >= METRICS
    assert set(found["classes"]["disc"]) >= METRICS
    assert 0 <= found["mean"]["dice"] <= 1
    predicted_mask, drawn = labels(predicted / "fundus-0000l.png") > 0, labels(fundus / "masks/fundus-0000l.png")
    drawn = np.isin(drawn, (1, 2))
    dice = 2 * (predicted_mask & drawn).sum() / (predicted_mask.sum() + drawn.sum())
    row = next(row for row in found["cases"] if row["id"] == "fundus-0000l")
    assert row["dice"] == pytest.approx(dice)
    with (tmp_path / "report/cases.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 8
    assert any("4 of the 8 cases were trained on" in note for note in found["notes"])


def test_evaluate_against_a_folder_by_every_convention(predicted: Path, fundus: Path, tmp_path: Path) -> None:
    for convention in ("default", "nnunet", "transunet"):
        out = tmp_path / convention
        argv = ("evaluate", predicted, fundus / "masks", "-o", out, "--convention", convention, "--bootstrap", 0)
        assert run(*argv) == 0
        found = json.loads((out / "summary.json").read_text())
        assert (found["convention"], found["n"]) == (convention, 8)
        assert convention in (out / "report.html").read_text(encoding="utf-8")
    assert run("evaluate", predicted, fundus / "masks", "-o", tmp_path / "x", "--convention", "mine") == 2
    assert not (tmp_path / "x").exists()


def test_the_runs_own_data_set_is_read_as_it_was(tmp_path: Path, fundus: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for image in (fundus / "images").iterdir():
        shutil.copy(image, data / image.name)
        shutil.copy(fundus / "masks" / image.name, data / f"{image.stem}_drawn.png")
    named = ("--data.images", "fundus-????[lr].png", "--data.labels", "{stem}_drawn.png")
    assert run("train", "proxy_prompt", data, "-o", tmp_path / "run", "--steps", 1, *TINY, *named) == 0
    assert run("predict", tmp_path / "run", "-i", data, "-o", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 8
    assert run("evaluate", tmp_path / "out", data, "-o", tmp_path / "report") == 0
    assert json.loads((tmp_path / "report/summary.json").read_text())["n"] == 8


# -- volumes, baselines, experiments, Python --------------------------------------------------------------------------


def test_volumes_from_train_to_report(torso: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("train", "proxy_prompt", torso, "-o", tmp_path / "run", "--steps", 2, *TINY) == 0
    assert run("predict", tmp_path / "run", "-i", torso / "imagesTs", "-o", out) == 0
    (made,) = out.glob("*.nii.gz")
    (given,) = (torso / "imagesTs").iterdir()
    written, image = nibabel.load(made), nibabel.load(given)
    assert written.shape == image.shape
    assert np.array_equal(written.affine, image.affine)
    assert written.get_data_dtype() == np.uint8
    assert run("predict", tmp_path / "run", "-i", torso, "-o", tmp_path / "held", "--split", "test") == 0
    assert run("evaluate", tmp_path / "held", torso, "-o", tmp_path / "report") == 0
    found = json.loads((tmp_path / "report/summary.json").read_text())
    assert (found["n"], found["unit"], len(found["classes"])) == (1, "mm", 8)


def test_slices_in_files_become_volumes(tmp_path: Path) -> None:
    for patient in "ab":
        for number in range(3):
            picture = np.full((40, 48), 30, np.uint8)
            picture[5:20, 10 + number : 30] = 200
            for part, array in (("images", picture), ("masks", (picture > 100).astype(np.uint8) * 255)):
                (tmp_path / "data" / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(tmp_path / "data" / part / f"{patient}-{number}.png")
    data, named = tmp_path / "data", ("--data.volume", r"(\w+)-(\d+)")
    assert run("train", "proxy_prompt", data, "-o", tmp_path / "run", "--steps", 1, *TINY, *named) == 0
    assert run("predict", tmp_path / "run", "-i", data, "-o", tmp_path / "out") == 0
    assert files(tmp_path / "out") == {"a.nii.gz", "b.nii.gz"} | SAME
    assert labels(tmp_path / "out/a.nii.gz").shape == (3, 40, 48)
    assert run("evaluate", tmp_path / "out", data, "-o", tmp_path / "report") == 0
    found = json.loads((tmp_path / "report/summary.json").read_text())
    assert (found["n"], found["unit"]) == (2, "px")  # no file states a voxel size


def test_prompted_baseline(fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("train", "prompted", fundus, "-o", tmp_path / "run", "--preset", "box", "--backbone", "tiny")
    assert run(*argv, "--data.classes", "{disc: [1, 2]}") == 0
    assert run("predict", tmp_path / "run", "-i", fundus, "-o", tmp_path / "out") == 0
    assert run("evaluate", tmp_path / "out", fundus, "-o", tmp_path / "report") == 0
    images = shutil.copytree(fundus / "images", tmp_path / "images")
    capsys.readouterr()
    assert run("predict", tmp_path / "run", "-i", images, "-o", tmp_path / "bare") == 2
    assert "no true mask" in capsys.readouterr().err
    assert run("predict", tmp_path / "run", "-i", images, "-o", tmp_path / "bare", "--labels", fundus / "masks") == 0
    for path in (tmp_path / "out").glob("*.png"):
        assert np.array_equal(labels(path), labels(tmp_path / "bare" / path.name))


def test_controls(trained: Path, fundus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("experiment", "controls", fundus, "--run", trained, "-o", tmp_path / "controls", "--limit", 1)
    assert run(*argv, "--data.patient", r"\w+-\d+") == 0
    assert {"controls.json", "controls.png"} <= files(tmp_path / "controls")
    arms = {row["arm"] for row in json.loads((tmp_path / "controls/controls.json").read_text())["rows"]}
    assert {"K=1", "shuffled masks", "empty masks", "mean mask"} <= arms
    assert "mean mask" in capsys.readouterr().out


def test_from_python(fundus: Path, trained: Path, predicted: Path, tmp_path: Path) -> None:
    out = samsans.train(
        "proxy_prompt",
        fundus,
        out=tmp_path / "run",
        backbone="tiny",
        input_size=64,
        steps=1,
        **{"train.pictures_every": 0},
    )
    assert out == tmp_path / "run"
    segmenter = samsans.load(trained)
    image = np.asarray(Image.open(fundus / "images/fundus-0000l.png"))
    pair = np.asarray(Image.open(fundus / "images/fundus-0001l.png")), labels(fundus / "masks/fundus-0001l.png")[0]
    found = segmenter.predict(image, support=[pair])
    assert isinstance(found, samsans.Prediction)
    assert found.labels.shape == (1, 72, 72)
    by_path = segmenter.predict(
        str(fundus / "images/fundus-0000l.png"),
        support=[(fundus / "images/fundus-0001l.png", fundus / "masks/fundus-0001l.png")],
    )
    assert np.array_equal(found.labels, by_path.labels)
    assert np.array_equal(labels(by_path.save(tmp_path / "mask.png")), found.labels)
    summary = samsans.evaluate(predicted, fundus / "masks", tmp_path / "report", bootstrap=0)
    assert summary.n == 8
    with pytest.raises(samsans.InputError, match="trian"):
        samsans.train("proxy_prompt", fundus, out=tmp_path / "x", backbone="tiny", **{"trian.lr": 1})
