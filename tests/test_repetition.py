"""What keeps a table from being the published experiment: training, prediction and cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samsans import api, config
from samsans.data import protocols
from samsans.metrics.repetition import obstacles

TEST = tuple(f"test_vol_h5/case{key}.npy" for key in protocols.load("synapse").test)
TRAINED = {"weights": {"file": "run/model/last.safetensors", "sha256": "ab"}}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    (tmp_path / "train.json").write_text(json.dumps({"finished": True, "steps": 9}))
    return tmp_path


def test_nothing_hinders_what_is_as_published(finished: Path) -> None:
    meant = config.load("hsam_synapse")
    usual = {
        "options": {
            "view": "logit_mean",
            "largest_component": False,
            "objects": list(reversed(meant.data.classes or [])),
        },
        "backbone": {"via": None},
        "slice_axis": "auto",
        "precision": "fp32",
    }
    assert obstacles(finished, meant, TRAINED | usual, TEST) == []
    assert obstacles(finished, meant, {}, TEST) == []
    assert obstacles(finished, config.from_dict({"method": "hsam"}), TRAINED, ()) == []


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"options": {"view": "stage1"}}, "view: logit_mean -> stage1"),
        ({"options": {"largest_component": True}}, "largest_component: False -> True"),
        ({"options": {"objects": ["liver", "aorta"]}}, "-> ['aorta', 'liver']"),
        ({"slice_axis": "1"}, "slice_axis: auto -> 1"),
        ({"precision": "bf16"}, "precision: fp32 -> bf16"),
        ({"backbone": {"via": 224}}, "via: None -> 224"),
    ],
)
def test_predicted_otherwise(told: dict[str, Any], said: str, finished: Path) -> None:
    (found,) = obstacles(finished, config.load("hsam_synapse"), TRAINED | told, TEST)
    assert found.startswith("Predicted otherwise than the recipe: ")
    assert said in found


def test_via_of_the_recipe_is_no_departure(finished: Path) -> None:
    assert obstacles(finished, config.load("samed_synapse"), TRAINED | {"backbone": {"via": 224}}, TEST) == []


def test_mirroring_is_part_of_a_volumetric_recipe(finished: Path) -> None:
    meant = config.load("masksam_acdc")
    test = protocols.load(meant.split.protocol or "").test
    assert obstacles(finished, meant, TRAINED | {"options": {"mirror": True}}, test) == []
    (found,) = obstacles(finished, meant, TRAINED | {"options": {"mirror": False}}, test)
    assert found == "Predicted otherwise than the recipe: mirror: True -> False."


def test_stopped_early(tmp_path: Path) -> None:
    meant = config.load("hsam_synapse")
    assert obstacles(tmp_path, meant, TRAINED, TEST) == ["The training stopped before its end: it is not finished."]
    (tmp_path / "train.json").write_text(json.dumps({"finished": False, "steps": 9}))
    assert obstacles(tmp_path, meant, TRAINED, TEST) == ["The training stopped after step 9: it is not finished."]


def test_other_settings(finished: Path) -> None:
    made = api.resolve(None, config="hsam_synapse", options={"train.lr": 0.1})
    assert obstacles(finished, made, TRAINED, TEST) == [
        "The run departs from its recipe hsam_synapse: train.lr: 0.0026 -> 0.1."
    ]


def test_other_cases(finished: Path) -> None:
    def said(*scored: str) -> list[str]:
        return obstacles(finished, config.load("hsam_synapse"), TRAINED, scored)

    assert said(*TEST[2:]) == ["2 of the 12 test cases of synapse are not scored."]
    assert said(*TEST, "case0005", "mine") == ["2 scored cases are not test cases of synapse."]
    parts = [f"{TEST[0][:-4]}_slice{number:03d}" for number in range(3)]
    assert said(*TEST[1:], *parts) == ["Test cases of synapse are scored in parts: 14 files."]
