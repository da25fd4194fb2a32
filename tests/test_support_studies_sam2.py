"""Studies of support pairs on a run with a SAM 2: draws that are merges, and trainings that depart from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxy_training import train_beside, two_objects
from samsans.config import DataConfig
from samsans.experiments import grid, run
from samsans.experiments.ablation import ARMS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_objects(tmp_path_factory.mktemp("two"), 8)


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    return train_beside(data, "--backbone", "sam2-tiny-test", "--backbone.train", "lora", test=0.2)


@pytest.mark.parametrize("name", ["grid", "choosing", "relevance", "stability"])
def test_read_outs_merge(data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(grid, "DRAWS", 3)
    monkeypatch.setattr("samsans.experiments.choosing.DRAWS", 3)
    text = run(name, DataConfig(path=str(data)), trained, tmp_path, limit=1)
    assert text.count("\n") > 3
    assert json.loads((tmp_path / f"{name}.json").read_text())["rows"]
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert ("a SAM 2 of a size that the paper does not tell" in text) == (name == "stability")


def test_ablation(data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARMS, "modules", {name: ARMS["modules"][name] for name in ("CSM and CCM", "without both")})
    text = run("ablation", DataConfig(path=str(data)), trained, tmp_path, limit=1, table="modules")
    rows = json.loads((tmp_path / "modules.json").read_text())["rows"]
    assert [row["arm"] for row in rows if "missing" not in row] == ["CSM and CCM", "without both"]
    assert rows[0]["trained"] > rows[1]["trained"] > 0
    assert "without both" in text
