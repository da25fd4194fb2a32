"""Learning curves over the number of training images, and several data sets with one command."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from samsans import benchmark
from samsans.benchmark import ranking, runs, sets, shots
from samsans.cli import main
from samsans.commands import benchmark as command
from samsans.config import DataConfig, RunConfig, SplitConfig
from samsans.data.cases import Dataset
from samsans.data.phantoms import write
from samsans.data.splits import Split
from samsans.errors import InputError
from samsans.types import Case

ROOT = Path(__file__).resolve().parents[1]


def test_sets_of_images_are_nested() -> None:
    """Each holds the smaller ones; nobody has a second image as long as somebody has none."""
    patients = {f"{person}{i}": person for person in "abc" for i in range(4)}
    train = sorted(patients, key=lambda id: id[::-1])
    found = shots.nested(train, patients, [1, 2, 3, 4, 7, 12], seed=0)
    assert [len(ids) for ids in found.values()] == [1, 2, 3, 4, 7, 12]
    for smaller, larger in zip(list(found.values()), list(found.values())[1:], strict=False):
        assert set(smaller) < set(larger)
    assert sorted(patients[id] for id in found[3]) == ["a", "b", "c"]
    assert sorted(np.unique([patients[id] for id in found[7]], return_counts=True)[1]) == [2, 2, 3]
    assert found[12] == train
    assert found == shots.nested(train, patients, [1, 2, 3, 4, 7, 12], seed=0)
    assert any(shots.nested(train, patients, [2], seed=seed)[2] != found[2] for seed in range(1, 5))


def point(scores: dict[str, dict[str, float | None]], truth: bool = False) -> dict[str, object]:
    known = dict.fromkeys(shots.METRICS, 0.5)
    costs = dict.fromkeys(ranking.COSTS, 1)
    ci = {"ci": dict.fromkeys(shots.METRICS)}
    return {**known, **costs, **ci, "truth": truth, "n": 4, "cases": {}, "classes": {}, "class_cases": scores}


def dataset() -> Dataset:
    return Dataset(
        Path(), "files", tuple(Case(id, patient, (Path(id),)) for id, patient in zip("1234", "aabc", strict=True))
    )


def test_differences_by_hand() -> None:
    ours = {"disc": {"1": 0.9, "2": 0.8, "3": 0.7, "4": None}, "cup": {"1": 0.5, "2": 0.5, "3": 0.5, "4": 0.5}}
    theirs = {"disc": {"1": 0.7, "2": 0.7, "3": 0.7, "4": 0.2}, "cup": {"1": 0.3, "2": 0.3, "3": 0.3, "4": None}}
    plan = benchmark.Plan(DataConfig("x"), Path("out"), ("samed", "spd"), shots=(1, 4), backbones=("tiny", "scratch"))
    found = {
        "samed": {"tiny": {1: point(theirs), 4: point(ours)}, "scratch": {4: point(theirs)}},
        "spd": {"tiny": {4: point(theirs, True)}, "scratch": {4: point(ours, True)}},
    }
    summary = shots.summarise(plan, found, dataset(), ["note", "note"])
    less = summary["methods"]["samed"]["difference"]["scratch"]
    assert less["dice"] == pytest.approx(((0.2 + 0.1 + 0) / 3 + 0.2) / 2)
    assert (less["shots"], less["n"], less["outside"]) == (4, 3, True)
    assert less["ci"][0] == pytest.approx(0.1)
    assert less["ci"][1] == pytest.approx(0.175)
    assert summary["methods"]["spd"]["difference"]["scratch"]["dice"] == pytest.approx(-less["dice"])
    mean = summary["difference"]["scratch"]
    assert (mean["methods"], mean["dice"], mean["ci"]) == (1, less["dice"], less["ci"])
    assert summary["notes"] == ["note"]
    assert shots.headlines(summary)["samed"] == (less["dice"], less["ci"])
    assert "spd*" in shots.text(summary)
    assert shots.headlines(summary)[shots.ALL] == (less["dice"], less["ci"])
    two = [np.array([[0.0, np.nan], [1, 2]]), np.array([[1.0, np.nan], [np.nan, 0]])]
    np.testing.assert_array_equal(shots._mean(two), [[0.5, np.nan], [1, 1]])


def test_what_cannot_be_a_curve() -> None:
    plan = benchmark.Plan(DataConfig("x"), Path("out"), ("samed",), shots=(1,), backbones=("tiny", "sam2-tiny-test"))
    assert shots._backbones(plan, "samed") == ["tiny"]
    assert shots._backbones(plan, "medical_sam2") == ["sam2-tiny-test"]
    assert shots._backbones(plan, "prob_unet") == ["none"]
    assert shots._backbones(plan, "persam") == ["tiny"]
    for name in ("nnunet", "true_box", "tracked"):
        with pytest.raises(InputError, match="learn from the images"):
            shots._backbones(plan, name)
    one = shots.variant(plan, "sam2-tiny-test", 1)
    assert (one.sam2, one.backbone) == ("sam2-tiny-test", None)
    assert one.split.file == str(Path("out/splits/1.json").absolute())
    assert one.out == Path("out/sam2-tiny-test/1")
    assert shots.variant(plan, "none", 1).backbone == "tiny"
    with pytest.raises(InputError, match="family sam2"):
        shots._backbones(benchmark.Plan(DataConfig("x"), Path(), (), shots=(1,), backbones=("tiny",)), "medical_sam2")


def test_learning_curves_keep_their_split(tmp_path: Path) -> None:
    plan = benchmark.Plan(DataConfig("x"), tmp_path, ("samed",), shots=(1, 2), backbones=("tiny", "scratch"))
    began = Split(train=("1", "2", "3"), test=("4",))
    shots._write_splits(plan, dataset(), began)
    shots._write_splits(plan, dataset(), began)
    assert len(Split.load(tmp_path / "splits" / "2.json").train) == 2
    with pytest.raises(InputError, match=r"1\.json divides the cases in another way.*another folder"):
        shots._write_splits(plan, dataset(), Split(train=("2", "3", "4"), test=("1",)))


# -- the whole --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets, and a file that names them."""
    folder = tmp_path_factory.mktemp("sets")
    for name, seed in (("one", 0), ("two", 1)):
        write("fundus", folder / name, n=5, size=32, difficulty=0.2, seed=seed)
    (folder / "quick.yaml").write_text("train: {pictures_every: 0}\n")
    (folder / "sets.yaml").write_text(
        f"all: {{steps: 3, backbone: scratch, config: {folder / 'quick.yaml'}, methods: samed, input_size: 32}}\n"
        "sets:\n"
        "  one: {data: {classes: {disc: [1, 2]}}, split: {test: 0.4}}\n"
        "  other: {path: two, steps: 1, data: {classes: {cup: [2]}}, split: {test: 0.2, val: 0}}\n"
    )
    return folder


def test_learning_curves(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxy Prompt has no point at one image, and what is done is not done again."""
    argv = ["benchmark", data / "one", "-o", tmp_path, "--shots", "1,2,16", "--backbones", "tiny,scratch"]
    argv += ["--methods", "proxy_prompt", "--steps", "2", "--input-size", "64", "--split.test", "0.4"]
    argv += ["--config", data / "quick.yaml", "--data.classes", "{disc: [1, 2]}"]
    assert main([str(a) for a in argv]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["kind"], summary["shots"], summary["backbones"]) == ("shots", [1, 2, 3], ["tiny", "scratch"])
    row = summary["methods"]["proxy_prompt"]
    assert {backbone: list(points) for backbone, points in row["curves"].items()} == {
        "tiny": ["2", "3"],
        "scratch": ["2", "3"],
    }
    one_image, fewer = "proxy_prompt cannot learn from 1 image: 1 training slices", "and 3 are there: all are taken"
    assert all(any(said in note for note in summary["notes"]) for said in (one_image, fewer))
    less = row["difference"]["scratch"]
    assert (less["shots"], less["n"]) == (3, 2)
    assert less["ci"][0] <= less["dice"] <= less["ci"][1]
    assert summary["difference"]["scratch"]["dice"] == less["dice"]
    assert row["curves"]["tiny"]["3"]["trained_parameters"] < row["curves"]["scratch"]["3"]["trained_parameters"]
    splits = [Split.load(tmp_path / "splits" / f"{count}.json") for count in (1, 2, 3)]
    assert [len(split.train) for split in splits] == [1, 2, 3]
    assert set(splits[0].train) < set(splits[1].train) < set(splits[2].train)
    assert len({(split.test, split.val) for split in splits}) == 1
    assert Split.load(tmp_path / "tiny/2/runs/proxy_prompt/split.json").train == splits[1].train
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "Learning curves" in (tmp_path / "report.html").read_text()
    assert len(list(csv.DictReader((tmp_path / "table.csv").open()))) == 2 * 2 * 2

    def refuse(config: RunConfig, run: Path, **_: object) -> None:
        raise InputError(f"{run.parent.parent.name} again", "1") if run.parent.parent.name == "1" else AssertionError

    monkeypatch.setattr(runs, "fit", refuse)
    for where, name in ((ranking, "open_run"), (ranking, "evaluate")):
        monkeypatch.setattr(where, name, refuse)
    monkeypatch.setattr(shots.curves, "draw", lambda summary: b"")
    assert main([str(a) for a in argv]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["methods"]["proxy_prompt"] == row


def test_several_data_sets(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["benchmark", data / "sets.yaml", "--root", data, "-o", tmp_path, "--backbone", "tiny", "--steps", "2"]
    assert main([str(a) for a in argv]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["kind"], summary["form"], list(summary["sets"])) == ("sets", "ranking", ["one", "other"])
    found = {name: json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "other")}
    assert [one["length"] for one in found.values()] == [{"train.steps": 2}] * 2
    assert {one["backbone"] for one in found.values()} == {"tiny"}
    assert [list(one["methods"]["samed"]["classes"]) for one in found.values()] == [["disc"], ["cup"]]
    row = summary["methods"]["samed"]
    values = [one["methods"]["samed"]["dice"] for one in found.values()]
    assert row["mean"] == pytest.approx(np.mean(values))
    assert row["mean_rank"] == 1
    page = (tmp_path / "report.html").read_text()
    assert 'href="other/report.html"' in page
    assert 'src="one/panels.png"' in page
    said = capsys.readouterr()
    assert "Dice on 2 data sets" in said.out
    assert "data set 2/2: other" in said.err
    assert main(["benchmark", str(data / "sets.yaml"), "-o", str(tmp_path / "not"), "--root", "nowhere"]) == 2
    assert "--root" in capsys.readouterr().err


def test_order_over_sets() -> None:
    def one(**rows: tuple[float, int, bool]) -> dict[str, object]:
        methods = {
            name: {"about": name, "truth": truth, "rank": rank, "dice": dice, "ci": {"dice": None}}
            for name, (dice, rank, truth) in rows.items()
        }
        return {"kind": "ranking", "data": "x", "cases": ["a"], "methods": methods, "notes": ["n"]}

    found = {
        "s": one(a=(0.5, 2, False), b=(0.6, 1, False), c=(0.4, 3, False), t=(0.9, 1, True)),
        "u": one(a=(0.5, 1, False), b=(0.4, 2, False), t=(0.9, 1, True)),
    }
    summary = sets.summarise(found, {"s": [], "u": []})
    assert list(summary["methods"]) == ["a", "b", "c", "t"]
    assert summary["methods"]["c"]["mean"] is None
    assert summary["notes"] == ["s: n", "u: n"]
    assert len(sets.rows(summary)) == 7
    assert "t*" in sets.text(summary)


def test_files_of_sets_that_say_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, match in (
        ("sets: {}\nrest: 1", "holds sets, rest"),
        ("all: {steps: 1}", "sets: NAME"),
        ("sets: {one: {stepz: 1}}", "data set one not understood"),
        ("sets: {one: {split: {test: many}}}", "split.test"),
    ):
        (tmp_path / "sets.yaml").write_text(text)
        assert main(["benchmark", str(tmp_path / "sets.yaml"), "-o", str(tmp_path / "out")]) == 2
        assert match in capsys.readouterr().err
    assert main(["benchmark", str(tmp_path / "none.yaml"), "-o", str(tmp_path / "out")]) == 2
    assert main(["benchmark", str(tmp_path), "-o", str(tmp_path / "out"), "--root", "."]) == 2
    assert main(["benchmark", str(tmp_path), "-o", str(tmp_path / "out"), "--shots", "few", "--backbones", "tiny"]) == 2
    assert "1,2,4,8,16" in capsys.readouterr().err


def test_the_three_sets() -> None:
    """The file of the repository is understood; one length replaces another, and --shots wants backbones."""
    said = command._read(str(ROOT / "benchmarks" / "three_sets.yaml"))
    told = {"folder": "x", "out": "o", "root": "data", "steps": 9, "shots": "1,16", "backbones": "tiny,scratch"}
    plans = {name: command._plan(command._arguments(name, own, told)) for name, own in said.items()}
    assert list(plans) == ["chase_db1", "usgra_nerve_us", "vocalfolds_endoscopy"]
    for name, plan in plans.items():
        assert (plan.length, plan.shots, plan.backbone) == ({"train.steps": 9}, (1, 16), None)
        assert (plan.data.path, plan.out, plan.split.val) == (f"data/{name}", Path("o") / name, 0.0)
        assert Path(plan.config).parent == ROOT / "benchmarks"
    assert plans["chase_db1"].split.test_patients == ["07", "08"]
    assert plans["usgra_nerve_us"].split.test == 0.4
    ranked = command._plan(command._arguments("chase_db1", said["chase_db1"], {"out": "o"}))
    assert (ranked.form, ranked.backbone, ranked.length) == ("ranking", "samsans-small", {"train.steps": 60})
    assert ranked.split == SplitConfig(test=0.2, test_patients=["07", "08"])
