"""Experiments that train several networks or none: the grid retrained, mask qualities, several data sets in one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxy_training import train_beside, two_objects
from samsans.config import DataConfig
from samsans.data.phantoms import write
from samsans.data.splits import Split
from samsans.errors import InputError
from samsans.experiments import grid, run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_objects(tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    return train_beside(data)


def test_grid_with_a_network_for_every_number(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "DRAWS", 3)
    text = run("grid", DataConfig(path=str(data)), trained, tmp_path, limit=1, retrain=True, steps=1)
    rows = json.loads((tmp_path / "grid.json").read_text())["rows"]
    assert {(r["M"], r["K"]) for r in rows} == {(m, k) for m in (2, 4) for k in (1, 2, 4)}  # of all four images
    two = Split.load(tmp_path / "runs/M02/split.json")
    assert len(two.train) == 2
    assert two.test == Split.load(trained / "split.json").test
    assert "a network trained for every M" in text


def test_qualities(data: Path, trained: Path, tmp_path: Path) -> None:
    text = run("ablation", DataConfig(path=str(data)), trained, tmp_path, table="qualities", limit=1)
    rows = {row["quality"]: row for row in json.loads((tmp_path / "qualities.json").read_text())["rows"]}
    assert rows["empty"]["prompt"] == 0
    assert rows["high"]["prompt"] == 1
    assert rows["medium"]["prompt"] == pytest.approx(0.816, abs=0.03)
    assert "86.8" in text


def test_strategies(data: Path, trained: Path, tmp_path: Path) -> None:
    other = write("fundus", tmp_path / "fundus", n=4, size=64)
    out = tmp_path / "out"
    options = {"table": "strategies", "also": [f"fundus={other}"], "steps": 1, "limit": 1}
    text = run("ablation", DataConfig(path=str(data)), trained, out, **options)
    told = json.loads((out / "strategies.json").read_text())
    assert [row["arm"] for row in told["rows"]] == ["one per data set", "one per modality", "one for all"]
    names = set(told["rows"][0]["classes"])
    assert all(set(row["classes"]) == names for row in told["rows"])
    assert {"A disc", "A square"} < names
    assert told["rows"][0]["classes"] == told["rows"][1]["classes"]  # each data set is of a modality of its own
    assert {p.name for p in (out / "runs").iterdir()} == {"A", "B", "AB"}
    assert "A (own): disc, square" in text
    with pytest.raises(InputError, match="one data set"):
        run("ablation", DataConfig(path=str(data)), trained, out, table="strategies")
