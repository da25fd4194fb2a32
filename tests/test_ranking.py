"""The plain benchmark: who takes part, and the ranking of some on generated photographs with a tiny backbone."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from samsans import benchmark, zoo
from samsans.benchmark import external, panels, plan, ranking, runs
from samsans.benchmark.contestants import CONTESTANTS, choose
from samsans.config import DataConfig, SplitConfig
from samsans.data.cases import Dataset
from samsans.data.phantoms import write
from samsans.errors import InputError, OtherRunError
from samsans.training.errors import TrainingError, TrainingStopped
from samsans.types import Case

FAMILIES = ("sam", "sam2", "none")
NAMES = ("samed", "proxy_prompt", "masksam", "p2sam", "true_box")


def test_contestants() -> None:
    every, noisy = choose(["all"]), choose(["all"], noise=True)
    assert set(every) | set(noisy) == set(CONTESTANTS)
    assert {CONTESTANTS[name].method for name in every} == {*zoo.METHODS, ""}
    assert noisy[:6] == ("spd", "spd_no_psc", "spd_local", "tuning", "prompted_point", "prompted_box")
    assert not any(CONTESTANTS[name].truth for name in noisy)
    assert choose(["samed", "spd", "samed"]) == ("spd", "samed")
    with pytest.raises(InputError, match="No contestant is called 'sped'"):
        choose(["sped"])
    with pytest.raises(InputError, match="true_box with prompt noise"):
        choose(["true_box"], noise=True)
    asked = benchmark.Plan(DataConfig("x"), Path("out"), tuple(CONTESTANTS), ("L0",), backbone="tiny")
    found = {name: asked.settings(name) for name in CONTESTANTS if CONTESTANTS[name].method}
    assert found["spd"].model.distill == "context"
    assert (found["tuning"].model.distill, found["tuning"].model.psc) == ("none", 0)
    assert (found["spd_local"].model.distill, found["spd_no_psc"].model.psc) == ("local", 0)
    assert (found["prompted_box"].model.source, found["prompted_box"].model.prompt) == ("points", "box")
    assert {config.prompts.source for config in found.values()} == {"noise"}
    assert found["saliency"] == found["spd"]
    assert set(asked.trained) == set(CONTESTANTS) - {"saliency", "nnunet"}
    names = {family: {found[n].backbone.name for n in found if CONTESTANTS[n].family == family} for family in FAMILIES}
    assert names == {"sam": {"tiny"}, "sam2": {"sam2-scratch"}, "none": {"none"}}
    assert {config.backbone.input_size for name, config in found.items() if name in every} == {64, 256}
    assert (found["autosam_tokens"].preset, found["autosam_cnn"].model.prompt) == ("scratch", "cnn_head")
    assert found["prob_unet"].preset == "scratch"
    assert (found["true_point"].model.prompt, found["tracked"].model.prompt) == ("point", "box")
    assert found["masksam"].patches.size is None
    assert (found["masksam"].model.widths, found["masksam"].model.fusions) == ([32, 32, 16, 16], 0)


def test_contestants_on_pretrained_weights() -> None:
    asked = benchmark.Plan(DataConfig("x"), Path("out"), ("masksam",), backbone="sam-vit-b", input_size=128)
    assert asked.settings("autosam_tokens").preset == "class_tokens"
    assert asked.settings("autosam_cnn").model.prompt == "cnn_head"
    assert (asked.settings("prob_unet").preset, asked.settings("samed").preset) == ("paper", "paper")
    assert asked.settings("masksam").patches.size is None
    assert asked.settings("masksam").model.widths == [128, 128, 64, 64]
    assert asked.unsuited("persam") == ""
    random = replace(asked, backbone="scratch")
    assert "random" in random.unsuited("persam")
    assert random.unsuited("samed") == ""
    assert "nnU-Net" in random.unsuited("nnunet")
    course = runs.Course(unsuited=True)
    left = runs.suited(replace(random, names=("spd", "saliency", "persam", "true_box", "samed")), course)
    assert left.names == ("spd", "saliency", "samed")
    assert len(course.notes) == 2
    assert left.without("spd").names == ("samed",)
    with pytest.raises(InputError, match="persam is left out"):
        runs.suited(replace(random, names=("persam",)), course)


def test_what_fails_is_noted_or_raised() -> None:
    def fail(error: Exception) -> None:
        raise error

    course = runs.Course(unsuited=True)
    assert course.attempt("samed", lambda: 3) == 3
    assert course.attempt("samed", fail, InputError("no object")) is None
    assert course.attempt("hsam", fail, TrainingError("the loss is nan")) is None
    assert course.notes == ["samed does not suit these data: no object.", "hsam could not be trained: the loss is nan"]
    for error in (TrainingStopped("Ctrl-C"), KeyError("a mistake of ours"), OtherRunError("another seed")):
        with pytest.raises(type(error)):
            course.attempt("samed", fail, error)
    with pytest.raises(TrainingError):
        runs.Course().attempt("samed", fail, TrainingError("the loss is nan"))


def test_default_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"sam2.1-hiera-tiny", "sam2.1-hiera-large"}
    monkeypatch.setattr(plan.zoo, "where", lambda name: Path(name) if name in here else None)
    assert plan.default_sam2("sam-vit-b") == "sam2.1-hiera-tiny"
    assert plan.default_sam2("scratch") == "sam2-scratch"
    here.clear()
    assert plan.default_sam2("sam-vit-b") == "sam2-scratch"
    assert plan.default_backbone() == "scratch"
    here.add("samsans-small")
    assert plan.default_backbone() == "samsans-small"
    here.add("sam-vit-b")
    assert plan.default_backbone() == "sam-vit-b"


def test_plans_that_say_two_things() -> None:
    for told, match in (
        ({"length": {"train.steps": 1, "train.minutes": 1}}, "one length"),
        ({"levels": ("L0",), "shots": (1,), "backbones": ("tiny",)}, "one of the two"),
        ({"shots": (0, 1), "backbones": ("tiny",)}, "numbers of at least 1"),
        ({"shots": (1,), "backbone": "tiny"}, "backbones"),
        ({"backbones": ("tiny", "scratch")}, "Give --backbone, or --shots"),
    ):
        with pytest.raises(InputError, match=match):
            benchmark.Plan(DataConfig("x"), Path("out"), ("samed",), **told)  # type: ignore[arg-type]


def test_few_patients_are_counted_by_case(tmp_path: Path) -> None:
    def cases(*patients: str) -> Dataset:
        found = tuple(Case(f"{i}", p, (tmp_path,), ((tmp_path,),)) for i, p in enumerate(patients))
        return Dataset(tmp_path, "files", found)

    split = runs.Split(train=("0",), test=("1", "2", "3"))
    dataset, notes = runs.tested(cases("a", "b", "c", "c"), split)
    assert [case.patient for case in dataset.cases] == ["1", "2", "3"]
    assert "2 patients" in notes[0]
    dataset, notes = runs.tested(cases("a", "b", "c", "d"), split)
    assert [case.patient for case in dataset.cases] == ["b", "c", "d"]
    assert not notes
    chosen_on = runs.Split(train=("0",), val=("1", "2", "3"))
    assert "chose the weights" in runs.tested(cases("a", "b", "c", "d"), chosen_on)[1][0]
    with pytest.raises(InputError, match=r"no held-out case.*--split\.test_patients"):
        runs.tested(cases("a"), split)


def test_the_content_of_cases_is_of_their_bytes(tmp_path: Path) -> None:
    image, mask = tmp_path / "a.png", tmp_path / "mask.png"
    image.write_bytes(b"image")
    mask.write_bytes(b"mask")
    dataset = Dataset(tmp_path, "files", (Case("a", "p", (image,), ((mask,),)),))
    first = runs.content(dataset)
    assert runs.content(dataset) == first
    assert runs.content(replace(dataset, cases=(replace(dataset.cases[0], patient="q"),))) != first
    mask.write_bytes(b"a mask that somebody mended")
    assert runs.content(dataset) != first


def scored(dice: float | None, truth: bool = False) -> dict[str, object]:
    cases = {"a": dice, "b": None if dice is None else dice / 2}
    return {"truth": truth, "dice": dice, "cases": cases, "class_cases": {}}


def test_prompted_from_the_truth_is_ranked_apart(tmp_path: Path) -> None:
    found = {"samed": scored(0.5), "true_box": scored(0.9, True), "hsam": scored(0.6), "autosam": scored(None)}
    asked = benchmark.Plan(DataConfig("x"), tmp_path, tuple(found), backbone="tiny")
    summary = ranking.summarise(asked, found, {"a": "p", "b": "q"}, [])
    assert [(name, row["rank"]) for name, row in summary["methods"].items()] == [
        ("hsam", 1),
        ("samed", 2),
        ("autosam", 3),
        ("true_box", 1),
    ]
    assert summary["methods"]["hsam"]["p"] is None
    assert summary["methods"]["true_box"]["p"] is None
    assert summary["methods"]["samed"]["p"] == 1.0
    assert panels._cases(summary["methods"], summary["cases"], 2) == ["a", "b"]


# -- the whole --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fundus") / "data"
    write("fundus", folder, n=6, size=32, difficulty=0.2, seed=0)
    (folder.parent / "quick.yaml").write_text("train:\n  pictures_every: 0\n")
    return folder


def plan_of(photographs: Path, out: Path) -> benchmark.Plan:
    return benchmark.Plan(
        DataConfig(str(photographs), classes={"disc": [1, 2], "cup": [2]}, patient=r"\w+-\d+"),
        out,
        NAMES,
        backbone="tiny",
        input_size=64,
        split=SplitConfig(test=0.3),
        length={"train.steps": 2},
        config=str(photographs.parent / "quick.yaml"),
        panels=1,
    )


def test_ranking(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not suit two objects on colour pictures is left out, and what is done is not done again."""
    asked, said = plan_of(photographs, tmp_path), []
    asked = replace(asked, names=NAMES)
    summary = benchmark.benchmark(asked, unsuited=True, say=said.append, on_progress=lambda progress: None)
    rows = summary["methods"]
    assert sorted(rows) == ["proxy_prompt", "samed"]
    notes = " ".join(summary["notes"])
    for name in ("masksam does not suit", "p2sam does not suit", "true_box is left out", "intervals are over cases"):
        assert name in notes
    assert set(said) & set(summary["notes"])
    best, other = rows.values()
    assert (best["rank"], best["p"], other["rank"], other["p"]) == (1, None, 2, pytest.approx(other["p"]))
    for row in rows.values():
        assert not row["truth"]
        assert 0 <= row["classes"]["cup"]["dice"] <= 1
        assert len(row["ci"]["dice"]) == 2
        assert row["trained_parameters"] > 0
        assert row["peak_memory_bytes"] > 0
        assert row["ms_per_slice"] > 0
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    table = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [row["class"] for row in table] == ["mean", "disc", "cup"] * 2
    assert (tmp_path / "reports" / "samed" / "report.html").is_file()
    assert (tmp_path / "panels.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    for part in ("Ranking", "data:image/png;base64", "Dice by object", "What it costs"):
        assert part in page
    assert "Prompted from the truth" not in page

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("done already")

    for where, name in ((runs, "fit"), (ranking, "open_run"), (ranking, "evaluate")):
        monkeypatch.setattr(where, name, refuse)
    again = replace(asked, names=tuple(sorted(rows)), panels=0)
    assert benchmark.benchmark(again)["methods"] == rows
    monkeypatch.undo()

    shown = benchmark.benchmark(replace(again, names=("samed", "true_box")), on_progress=lambda progress: None)
    assert [(name, row["rank"], row["truth"]) for name, row in shown["methods"].items()] == [
        ("samed", 1, False),
        ("true_box", 1, True),
    ]
    assert shown["methods"]["true_box"]["peak_memory_bytes"] is None
    assert "not comparable with automatic ones" in benchmark.text(shown)
    assert "Prompted from the truth" in (tmp_path / "report.html").read_text()


def test_what_does_not_suit_is_refused_by_name(photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="samples are of one object"):
        benchmark.benchmark(replace(plan_of(photographs, tmp_path), names=("p2sam",)), on_progress=lambda p: None)


def test_nnunet(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is trained as long as the slowest of the others where these count steps, in the environment that is named."""
    asked = replace(plan_of(photographs, tmp_path), names=("samed", "hsam", "nnunet"))
    monkeypatch.setattr(external, "cost", lambda run: runs.Cost(1, {"samed": 100.0, "hsam": 61.0}[run.name]))
    assert external.minutes(asked) == 1.7
    assert external.minutes(replace(asked, length={"train.minutes": 5})) == 5
    monkeypatch.setattr(external, "cost", lambda run: runs.Cost())
    with pytest.raises(InputError, match="Give --minutes"):
        external.minutes(asked)
    monkeypatch.setattr(ranking, "train_all", lambda *_: pytest.fail("trained before nnU-Net was looked for"))
    with pytest.raises(InputError, match="--nnunet"):
        benchmark.benchmark(asked)
    with pytest.raises(InputError, match="--nnunet"):
        external.ask(asked, Dataset(photographs, "files", ()))
    assert asked.masks("nnunet") == tmp_path / "nnunet" / "masks"
