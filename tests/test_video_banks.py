"""Experiments on a run of Medical SAM 2: its banks side by side, every frame of the videos, what it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proxy_training import TINY
from samsans import cli
from samsans.config import DataConfig
from samsans.data.phantoms import write
from samsans.errors import InputError
from samsans.experiments import run
from samsans.methods.medical_sam2.config import BANKS

SAM2 = ("--backbone", "sam2-tiny-test", "--backbone.train", "lora", "--split.test", 0.5, "--steps", 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of five frames, the third without a mask."""
    folder = write("video", tmp_path_factory.mktemp("videos") / "data", n=2, size=64, seed=1)
    for kind in ("images", "masks"):
        for video in (folder / kind).iterdir():
            pictures = sorted(video.iterdir())
            for picture in (*pictures[5:], *([pictures[2]] if kind == "masks" else [])):
                picture.unlink()
    return folder


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    out = data.parent / "run"
    assert cli.main([str(a) for a in ("train", "medical_sam2", data, "-o", out, *TINY, *SAM2)]) == 0
    return out


def test_banks_side_by_side_see_every_frame(data: Path, trained: Path, tmp_path: Path) -> None:
    text = run("memory", DataConfig(path=str(data)), trained, tmp_path)
    told = json.loads((tmp_path / "memory.json").read_text())
    assert {row["mode"] for row in told["rows"]} == set(BANKS)
    assert len(told["cases"]) == 4  # what is scored
    assert [len(list((tmp_path / "masks" / bank).rglob("*.png"))) for bank in BANKS] == [5] * 3
    assert "nothing to compare" not in text


@pytest.mark.parametrize("name", ["grid", "relevance", "choosing"])
def test_it_merges_no_pairs(data: Path, trained: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"medical_sam2 that follows objects \(\w+\).*memory_mode proxy_only"):
        run(name, DataConfig(path=str(data)), trained, tmp_path)
