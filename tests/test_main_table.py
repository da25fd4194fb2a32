"""The main table: five draws of support pairs a case, scored as they were segmented."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from proxy_training import train_beside, two_objects
from samsans import io
from samsans.config import DataConfig
from samsans.experiments import Request, run
from samsans.experiments.main_table import _spread, main_table
from samsans.inference.manifest import Manifest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_objects(tmp_path_factory.mktemp("main") / "data")


def test_five_seeds_of_draws(data: Path, tmp_path: Path) -> None:
    trained = train_beside(data, "--model.k_test", "1", steps=3, test=0.5)
    text = run("main", DataConfig(path=str(data)), trained, tmp_path)
    found = json.loads((tmp_path / "main.json").read_text(encoding="utf-8"))
    assert (found["seeds"], found["k"], found["ddof"]) == ([0, 1, 2, 3, 4], 1, 1)
    assert "5 draws of 1 support pairs a case" in text
    assert "Proxy Prompt            85.9" in text
    assert "not comparable" in text
    pairs = [Manifest.load(tmp_path / "masks" / str(seed)).records for seed in found["seeds"]]
    drawn = [[record.supports for _, record in sorted(records.items())] for records in pairs]
    assert any(one != drawn[0] for one in drawn)  # each seed draws for itself
    for seed in found["seeds"]:
        masks = sorted((tmp_path / "masks" / str(seed)).rglob("*.png"))
        truth = [io.read_labels(next((data / "masks").rglob(path.name))).array for path in masks]
        for label, name in enumerate(found["rows"], start=1):
            if name == "average":
                continue
            values = []
            for path, true in zip(masks, truth, strict=True):
                a, b = io.read_labels(path).array == label, true == label
                values.append(2 * (a & b).sum() / (a.sum() + b.sum()))
            assert found["rows"][name]["dice"][seed] == pytest.approx(np.mean(values), abs=1e-6)
    average = found["rows"]["average"]
    assert average["std"] == pytest.approx(np.std(average["dice"], ddof=1))


def test_a_method_without_supports_answers_once(data: Path, tmp_path: Path) -> None:
    from samsans.api import train

    out = tmp_path / "run"
    train("samed", data, out=out, backbone="tiny", steps=2, **{"split.test": 0.5, "train.batch_size": 2})
    text = main_table(Request(DataConfig(path=str(data)), out, tmp_path / "table", seed=3))
    found = json.loads((tmp_path / "table" / "main.json").read_text(encoding="utf-8"))
    assert (found["seeds"], found["k"]) == ([3], None)
    assert found["rows"]["average"]["std"] is None
    assert "no supports" in text


def test_spreads() -> None:
    assert _spread([0.2, 0.4]) == {"mean": pytest.approx(0.3), "std": pytest.approx(0.2 / np.sqrt(2))}
    assert _spread([0.5, np.nan]) == {"mean": None, "std": None}
