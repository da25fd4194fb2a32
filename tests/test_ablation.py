"""The tables of trainings: arms, resuming, what is beside them, and several data sets in one network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxy_training import train_beside, two_objects
from samsans import cli, config
from samsans.config import DataConfig
from samsans.data.splits import Split
from samsans.errors import InputError
from samsans.experiments import Request, ablation, run
from samsans.experiments.ablation import trained as train_arm


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_objects(tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    return train_beside(data)


def test_modules(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {name: ablation.ARMS["modules"][name] for name in ("CSM and CCM", "without both")}
    monkeypatch.setitem(ablation.ARMS, "modules", arms)
    argv = ("experiment", "ablation", data, "--run", trained, "-o", tmp_path, "--table", "modules")
    assert cli.main([str(a) for a in argv]) == 0
    text = capsys.readouterr().out
    told = json.loads((tmp_path / "modules.json").read_text())
    assert [row["arm"] for row in told["rows"]] == list(ablation.ARMS["modules"])
    sizes = [row["trained"] for row in told["rows"]]
    assert sizes[0] > sizes[1]
    assert not (tmp_path / "runs" / "CSM_and_CCM").exists()  # the run itself
    assert "std: over the objects, of the population (ddof 0)" in text
    assert "84.3" in text
    assert "not comparable: other data" in text
    assert "backbone tiny instead of sam-vit-h" in text
    arm = tmp_path / "runs" / "without_both"
    made = config.load(arm / "config.yaml")
    assert (made.model.ccm.enabled, made.model.csm.bridge, made.model.csm.selective) == (False, False, False)
    assert Split.load(arm / "split.json").train == Split.load(trained / "split.json").train
    written = (arm / "train.json").stat().st_mtime_ns
    assert cli.main([str(a) for a in argv]) == 0  # nothing is trained again
    assert (arm / "train.json").stat().st_mtime_ns == written
    assert json.loads((tmp_path / "modules.json").read_text()) == told


def test_an_arm_goes_on_and_keeps_its_options(data: Path, trained: Path, tmp_path: Path) -> None:
    asked = Request(DataConfig(path=str(data)), trained, tmp_path)
    short = train_arm(asked, "arm", {}, steps=1)
    assert json.loads((short / "train.json").read_text())["steps"] == 1
    longer = train_arm(asked, "arm", {}, steps=3)
    assert longer == short
    assert json.loads((short / "train.json").read_text())["steps"] == 3
    with pytest.raises(InputError, match="other options"):
        train_arm(asked, "arm", {"train.lr": 0.5}, steps=3)


def test_an_arm_that_cannot_be_trained_is_a_row_without_numbers(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {"sam-vit-h, PP": {}, "sam-vit-b, PP": {"backbone.name": str(tmp_path / "nowhere")}}
    monkeypatch.setitem(ablation.ARMS, "pretrained", arms)
    text = run("ablation", DataConfig(path=str(data)), trained, tmp_path / "out", table="pretrained", steps=1)
    rows = json.loads((tmp_path / "out" / "pretrained.json").read_text())["rows"]
    assert "nowhere" in rows[1]["missing"]
    assert rows[0]["dice"] is not None
    assert "not run: " in text


def test_box_prompts_are_an_arm(data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ablation.ARMS, "pretrained", {"sam-vit-b, box": ablation.BOX | {"backbone.name": "tiny"}})
    run("ablation", DataConfig(path=str(data)), trained, tmp_path, table="pretrained")
    assert config.load(tmp_path / "runs/sam-vit-b_box/config.yaml").method == "prompted"
    row = json.loads((tmp_path / "pretrained.json").read_text())["rows"][0]
    assert set(row["classes"]) == {"disc", "square"}
