"""The benchmark of prompt noise: curves by hand, and the whole of it on generated tubes with a tiny backbone."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from samsans import benchmark
from samsans.benchmark import noise, runs, scores
from samsans.benchmark.contestants import levels_of
from samsans.benchmark.scores import Answer, Contest
from samsans.cli import main
from samsans.commands import benchmark as command
from samsans.config import DataConfig, SplitConfig
from samsans.data.cases import Dataset
from samsans.data.phantoms import write
from samsans.data.prompt_statistics import PromptStatistics
from samsans.errors import InputError, OtherRunError
from samsans.metrics import robustness
from samsans.metrics.slicewise import slicewise
from samsans.types import Case

NAMES = ("spd", "tuning", "prompted_box", "saliency", "samed")
LEVELS = ("L0", "L3")


def test_levels() -> None:
    assert levels_of("L0..L5") == ("L0", "L1", "L2", "L3", "L4", "L5")
    assert levels_of("L5, L0,L2..L3") == ("L0", "L2", "L3", "L5")
    for text in ("L5..L0", "L6", "L0..", "", "L0..L9"):
        if text != "L0..":
            with pytest.raises(InputError, match="prompt noise"):
                levels_of(text)


def answer(shift: int, on_target: int = 4) -> Answer:
    """Two volumes of three slices: a square found ``shift`` pixels away in the first, exactly in the second."""
    truth = np.zeros((3, 16, 16), bool)
    truth[1:, 4:8, 4:8] = True
    found = {id: slicewise(np.roll(truth, s, 2), truth) for id, s in (("a", shift), ("b", 0))}
    return Answer(found, 2.0, PromptStatistics(4, on_target, 6, 4, 3, 1, 2), PromptStatistics(2, 2, 6, 4, 2, 0, 4))


def contests() -> dict[str, Contest]:
    spd = {("L0", 0): answer(0), ("L3", 0): answer(2, 1), ("L3", 1): answer(4, 1)}
    tuning = {("L0", 0): answer(1), ("L3", 0): answer(4, 1), ("L3", 1): answer(4, 1)}
    free = replace(answer(2), given=None, shown=None)
    return {"spd": Contest("spd", spd), "tuning": Contest("tuning", tuning), "samed": Contest("samed", {("", 0): free})}


def test_summary_by_hand(tmp_path: Path) -> None:
    plan = benchmark.Plan(DataConfig("x"), tmp_path, ("spd", "tuning", "samed"), LEVELS)
    summary = noise.summarise(plan, contests(), ["a", "b"], ["a note"])
    spd, tuning, samed = (summary["methods"][name] for name in ("spd", "tuning", "samed"))
    assert spd["L0"]["volumetric_dice"] == 1
    assert spd["L3"]["volumetric_dice"] == pytest.approx((0.5 + 1 + 0 + 1) / 4)
    assert spd["L3"]["dice"] == pytest.approx((1 + 0.5 + 0.5 + 3 + 1 + 0 + 0 + 3) / 12)
    assert spd["L3"]["dice_positive"] == pytest.approx((0.5 + 0.5 + 2 + 0 + 0 + 2) / 8)
    assert (spd["L3"]["false_positive_rate"], spd["L3"]["coverage"], spd["L3"]["n"]) == (0, 1, 2)
    assert spd["naurc"] == pytest.approx((1 + 0.625) / 2)
    assert spd["half_drop"] is None
    assert spd["crossover"] == pytest.approx(3 * (1 - 0.75) / (1 - 0.625))
    assert tuning["clean_cost"] == 0
    assert spd["clean_cost"] == pytest.approx(1 - 0.875)
    assert samed["prompt_free"]
    assert (samed["L0"]["volumetric_dice"], samed["naurc"], samed["crossover"]) == (0.75, 0.75, None)
    assert summary["best_prompt_free"] == "samed"
    assert summary["prompts"]["L3"]["on_target_share"] == 0.25
    assert spd["L3"]["prompts"]["shown"]["on_target_share"] == 1
    volumes = np.array([0.25, 1]), np.array([0.0, 1])
    assert summary["tests"]["L3"]["p"]["tuning"] == robustness.compare(volumes[0], {"tuning": volumes[1]})["tuning"]
    assert set(summary["robust"]) == {"spd"}
    assert len(noise.rows(summary)) == 6
    assert "samed*" in noise.text(summary)
    json.dumps(summary, allow_nan=False)
    assert noise.picture(plan, contests(), ["a", "b"], summary).startswith(b"\x89PNG")


def test_other_prompts_are_told() -> None:
    plan = benchmark.Plan(DataConfig("x"), Path("out"), ("spd", "tuning", "samed"), LEVELS)
    others = contests()
    others["tuning"].answers["L3", 1] = answer(4, 3)
    summary = noise.summarise(plan, others, ["a", "b"], [])
    assert [note for note in summary["notes"] if "same simulated points (spd; tuning)" in note]


def test_answers_are_kept(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path, "files", tuple(Case(id, id, (tmp_path / id,)) for id in "ab"))
    scores._write(tmp_path / "x.json", "key", answer(9))
    kept = scores._read(tmp_path / "x.json", "key", dataset)
    assert kept is not None
    assert (kept.given, kept.shown, kept.ms_per_slice) == (answer(9).given, answer(9).shown, 2.0)
    for name, values in scores._columns(answer(9).volumes["a"]):
        np.testing.assert_array_equal(getattr(kept.volumes["a"], name), values)
    assert scores._read(tmp_path / "x.json", "other", dataset) is None
    assert scores._read(tmp_path / "x.json", "key", replace(dataset, cases=dataset.cases[:1])) is None


# -- the whole --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tubes") / "data"
    write("distractors", folder, n=4, size=32, difficulty=0.2, seed=0)
    (folder.parent / "quick.yaml").write_text("train:\n  pictures_every: 0\n")
    return folder


def plan_of(tubes: Path, out: Path, **options: object) -> benchmark.Plan:
    asked = {"levels": LEVELS, "draws": 2, "backbone": "tiny", "input_size": 32, "length": {"train.steps": 2}}
    asked |= {"config": str(tubes.parent / "quick.yaml")} | options
    split = SplitConfig(test=0.25, val=0.0)
    return benchmark.Plan(DataConfig(str(tubes)), out, NAMES, split=split, **asked)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def done(tubes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    benchmark.benchmark(plan_of(tubes, out), on_progress=lambda progress: None)
    return out


def test_benchmark(done: Path) -> None:
    summary = json.loads((done / "summary.json").read_text())
    assert list(summary["methods"]) == list(NAMES)
    assert summary["levels"] == list(LEVELS)
    assert len(summary["cases"]) == 1
    for name, row in summary["methods"].items():
        for level in LEVELS:
            assert 0 <= row[level]["dice"] <= 1
            assert (row[level]["prompts"] is None) == (name in ("saliency", "samed"))
        assert row["ms_per_slice"] > 0
        assert (row["trained_parameters"] > 0) == (name not in ("prompted_box", "saliency"))
    assert summary["prompts"]["L0"]["on_target_share"] == 1
    assert summary["prompts"]["L3"]["on_target_share"] < 1
    assert not [note for note in summary["notes"] if "same simulated points" in note]
    assert summary["methods"]["tuning"]["L3"]["prompts"]["given"] == summary["prompts"]["L3"]
    assert sorted(p.name for p in (done / "masks" / "spd").iterdir()) == ["L0-0", "L3-0", "L3-1"]
    assert [p.name for p in (done / "masks" / "samed").iterdir()] == ["once-0"]
    assert len(list(csv.DictReader((done / "table.csv").open()))) == len(NAMES) * len(LEVELS)
    page = (done / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "prompted_box" in page


def test_again_does_nothing_again(tubes: Path, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("done already")

    before = (done / "summary.json").read_text()
    monkeypatch.setattr(runs, "fit", refuse)
    monkeypatch.setattr(scores, "open_run", refuse)
    monkeypatch.setattr(noise, "picture", lambda *_: b"")
    benchmark.benchmark(plan_of(tubes, done))
    assert (done / "summary.json").read_text() == before


def test_other_settings_are_refused_and_a_longer_training_goes_on(tubes: Path, done: Path) -> None:
    with pytest.raises(InputError, match="trained with other options"):
        benchmark.benchmark(plan_of(tubes, done, seed=1))
    plan = plan_of(tubes, done)
    assert runs.finished(plan, "samed")
    assert runs.finished(plan, "prompted_box")
    assert not runs.finished(replace(plan, length={"train.steps": 3}), "samed")
    for shorter in ({"train.steps": 1}, {"train.minutes": 1.0}):
        with pytest.raises(OtherRunError, match="was trained for 2 steps, and 1 "):
            runs.finished(replace(plan, length=shorter), "samed")
    file = plan.run("samed") / "train.json"
    told = json.loads(file.read_text())
    for reason, ended in (("no improvement in 3 validations", True), ("Ctrl-C", False), (None, False)):
        file.write_text(json.dumps(told | {"finished": False, "stopped_by": reason}))
        assert runs.finished(plan, "samed") == ended
    file.write_text(json.dumps(told))
    (plan.run("tuning") / "train.json").rename(plan.run("tuning") / "kept.json")
    assert not runs.finished(plan, "tuning")
    (plan.run("tuning") / "kept.json").rename(plan.run("tuning") / "train.json")


def test_a_published_split_needs_no_other() -> None:
    parser = command._benchmark_parser(False)
    plan = command._plan(parser.parse_args(["data", "-o", "out", "--split.protocol", "synapse"]))
    assert (plan.split.protocol, plan.split.test) == ("synapse", 0.0)
    told = parser.parse_args(["data", "-o", "out", "--split.protocol", "synapse", "--split.test", "0.3"])
    assert command._plan(told).split.test == 0.3  # refused by the split itself


def test_command(tubes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "benchmark",
        str(tubes),
        "-o",
        str(tmp_path / "out"),
        "--methods",
        "prompted_point",
        "--prompt-noise",
        "L5",
    ]
    argv += ["--draws", "1", "--backbone", "tiny", "--input-size", "32", "--split.test", "0.25", "--split.val", "0"]
    assert main(argv) == 0
    said = capsys.readouterr()
    assert "prompted_point" in said.out
    assert "weights of tiny are random" in said.out
    assert "1/1 training prompted_point" in said.err
    assert main(["benchmark", str(tubes), "-o", str(tmp_path), "--methods", "nobody"]) == 2


def test_distillation(tubes: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["experiment", "distillation", str(tubes), "--run", str(done / "runs" / "spd"), "-o", str(tmp_path)]
    assert main([*argv, "--prompt-noise", "L1"]) == 0
    found = json.loads((tmp_path / "distillation.json").read_text())
    assert [row["neighbours"] for row in found["neighbours"]] == [0, 1, 2, 3]
    assert len(found["tau"]) == 10
    points = [row["points_per_slice"] for row in found["tau"]]
    assert points == sorted(points, reverse=True)
    assert points[0] > 0
    assert sum(found["histogram"]["shares"]) == pytest.approx(1)
    assert sum(found["histogram"]["pixels"]) == 12 * 32 * 32
    assert [row["sources"] for row in found["sources"]][::2] == [
        f"{n} run" for n in ("given", "consensus", "oracle", "random")
    ]
    assert found["sources"][4]["on_target_share"] == 1
    ours, random = (found["sources"][i]["volumetric_dice"] for i in (2, 6))
    assert found["prompt_reliance"] == pytest.approx(ours - random)
    assert found["stage1"].keys() >= {"dice", "volumetric_dice", "recall", "area_ratio"}
    assert (tmp_path / "distillation.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "Jaccard" in said
    assert "began with random weights" in said
    argv[argv.index("--run") + 1] = str(done / "runs" / "tuning")
    assert main(argv) == 2
    assert "distils no points" in capsys.readouterr().err
