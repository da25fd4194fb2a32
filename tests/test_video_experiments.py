"""Experiments of support pairs on a SAM 2 and on videos: the convention of videos, five pairs, memory modes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from proxy_training import train_beside, two_objects
from samsans import io
from samsans.config import DataConfig
from samsans.data.cases import find_cases
from samsans.data.phantoms import write
from samsans.data.splits import Split
from samsans.errors import InputError
from samsans.experiments import Request, draws, held_out, run
from samsans.experiments.stability import _candidates, _table
from samsans.types import Case

SAM2 = ("--backbone", "sam2-tiny-test", "--backbone.train", "lora")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of five frames."""
    folder = write("video", tmp_path_factory.mktemp("videos") / "data", n=4, size=64, seed=1)
    for kind in ("images", "masks"):
        for video in (folder / kind).iterdir():
            for picture in sorted(video.iterdir())[5:]:
                picture.unlink()
    return folder


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    return train_beside(data, *SAM2, steps=3, test=0.5)


def asked(data: Path, trained: Path, out: Path, **options: Any) -> Request:
    return Request(DataConfig(path=str(data)), trained, out, **options)


def copied(trained: Path, folder: Path) -> Path:
    """The files of a run, to be changed."""
    return Path(shutil.copytree(trained, folder / "run"))


def test_means_of_videos_by_hand() -> None:
    cases = [Case(f"f{i}", "p", (), video=video) for i, video in enumerate("aabbb")]
    scores = np.array([[0.2, 0.0, 0.5, 0.7, 0.9], [np.nan, 1.0, 1.0, 1.0, 1.0]])[..., None]
    shown = np.array([1, 0, 1, 1, 0], bool)[:, None]
    assert held_out.video_means(scores, shown, cases)[:, 0] == pytest.approx([(0.2 + 0.6) / 2, 1.0])
    assert np.isnan(held_out.video_means(scores, np.zeros_like(shown), cases)).all()
    assert held_out.are_frames(cases)
    assert not held_out.are_frames([*cases, Case("x", "p", ())])


def test_stability_of_videos(data: Path, trained: Path, tmp_path: Path) -> None:
    text = run("stability", DataConfig(path=str(data)), trained, tmp_path)
    told = json.loads((tmp_path / "stability.json").read_text())
    assert told["videos"] == 2
    assert (
        len(set(told["patients"])) == len(set(told["patients"][:2])) == len(set(told["patients"][2:4])) == 2
    )  # in turn
    assert len(set(told["pairs"])) == 5
    assert all(f"S{i}: {told['pairs'][i - 1]} (patient {told['patients'][i - 1]} again)" in text for i in (3, 4, 5))
    assert "5 pairs of 2 patients" in text
    assert "10 frames of 2 videos" in text
    this = draws.study(asked(data, trained, tmp_path))
    counts = draws.score_draws(asked(data, trained, tmp_path), this, this.bank(_candidates(this)[:1]), [(0,)], "test")
    for n, row in enumerate(told["rows"]):
        means = []
        for video in dict.fromkeys(case.video for case in this.cases):
            own = [c for c, case in enumerate(this.cases) if case.video == video and counts.truth[0, c, n]]
            means.append(counts.dice[0, own, n].mean())
        assert row["dice"][0] == pytest.approx(np.mean(means), abs=1e-6)
    first = {this.slices.ids[i] for i in _candidates(this)[:2]}
    for id in first:  # the first frame of its video that shows both
        earlier = [
            i for i, other in enumerate(this.slices.ids) if other.split("/")[0] == id.split("/")[0] and other < id
        ]
        assert not any(this.slices.present[i].all() for i in earlier)


def test_an_object_that_no_frame_shows() -> None:
    dice = np.array([[0.5, np.nan], [0.7, np.nan]])
    lines = _table(("head", "ear"), dice, dice)
    told = [" ".join(line.split()) for line in lines[1:]]
    assert told == ["head 50.0 / 50.0 70.0 / 70.0 60.0 / 60.0 14.14 20.00", "ear in no case"]


def test_stability_of_some_objects(data: Path, trained: Path, tmp_path: Path) -> None:
    run("stability", DataConfig(path=str(data)), trained, tmp_path, objects=["fetal head"])
    told = json.loads((tmp_path / "stability.json").read_text())
    assert [row["object"] for row in told["rows"]] == ["fetal head"]
    this = draws.study(asked(data, trained, tmp_path), objects=["fetal head"])
    assert this.bank(this.order[:1]).objects == ("fetal head",)
    with pytest.raises(InputError, match="objects ear"):
        run("stability", DataConfig(path=str(data)), trained, tmp_path, objects=["ear"])


def test_stability_of_an_object_that_no_tested_case_shows(data: Path, trained: Path, tmp_path: Path) -> None:
    held = {case.video for case in asked(data, trained, tmp_path).held_out(find_cases(DataConfig(path=str(data))))}
    other = Path(shutil.copytree(data, tmp_path / "data"))
    for file in (path for path in sorted((other / "masks").rglob("*.png")) if path.parent.name in held):
        labels = np.asarray(Image.open(file))
        Image.fromarray(np.where(labels == 1, 0, labels).astype(np.uint8)).save(file)
    classes = find_cases(DataConfig(path=str(data))).classes
    (gone,) = [info.name for info in classes if info.values == (1,)]
    with pytest.raises(InputError, match=f"none of the 10 tested cases shows {gone}"):
        run("stability", DataConfig(path=str(other)), trained, tmp_path / "out", objects=[gone])
    assert not (tmp_path / "out/masks").exists()


def test_memories_are_no_stages(data: Path, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"remember frames.*experiment `memory`"):
        run("stages", DataConfig(path=str(data)), trained, tmp_path)


def test_memory_modes_side_by_side(data: Path, trained: Path, tmp_path: Path) -> None:
    text = run("memory", DataConfig(path=str(data)), trained, tmp_path)
    told = json.loads((tmp_path / "memory.json").read_text())
    modes = ("proxy_only", "proxy_plus_bank", "proxy_first_frame")
    assert {row["mode"] for row in told["rows"]} == set(modes)
    assert {row["convention"] for row in told["rows"]} == {"default", "video"}
    maps = {
        mode: {path.relative_to(tmp_path / "masks" / mode): io.read_labels(path).array for path in files}
        for mode in modes
        if (files := sorted((tmp_path / "masks" / mode).rglob("*.png")))
    }
    assert [len(found) for found in maps.values()] == [10] * 3
    alone, bank, first = maps.values()
    starts = {sorted(name for name in alone if name.parent == video)[0] for video in {name.parent for name in alone}}
    assert all(np.array_equal(alone[name], first[name]) for name in starts)  # the same prompt, nothing remembered yet
    assert any(not np.array_equal(alone[name], first[name]) for name in alone)  # in order, not as single images
    assert any(not np.array_equal(bank[name], first[name]) for name in alone)
    assert "nothing to compare" in text


def test_runs_that_remember_are_segmented_as_videos(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samsans.experiments.stability.PAIRS", 2)
    remembers = copied(trained, tmp_path)
    config = remembers / "config.yaml"
    config.write_text(config.read_text().replace("memory_mode: proxy_only", "memory_mode: proxy_plus_bank"))
    with pytest.raises(InputError, match=r"follows objects \(proxy_plus_bank\)"):
        run("grid", DataConfig(path=str(data)), remembers, tmp_path / "grid")
    out = tmp_path / "out"
    run("stability", DataConfig(path=str(data)), remembers, out, limit=5)
    told = json.loads((out / "stability.json").read_text())
    assert told["videos"] == 1
    assert len(list((out / "masks").glob("S*/*.csv"))) == 2  # a table a video
    this = draws.study(asked(data, remembers, out, limit=5), merging=False)
    folder = tmp_path / "again"
    held_out.segment(this.segmenter, this.dataset, this.cases, folder, support=this.bank(_candidates(this)[:1]), seed=0)
    request = dataclasses.replace(asked(data, remembers, out), limit=5)
    summary = held_out.score(request, this.segmenter, this.cases, folder, tmp_path / "report", this.dataset.classes)
    means = held_out.by_video(summary, this.cases)
    assert [row["dice"][0] for row in told["rows"]] == pytest.approx([means.classes[n]["dice"] for n in this.objects])


def test_what_has_no_memory(trained: Path, tmp_path: Path) -> None:
    images, other = two_objects(tmp_path, 2), copied(trained, tmp_path)
    Split((), (), tuple(case.id for case in find_cases(DataConfig(path=str(images))).cases)).save(other / "split.json")
    with pytest.raises(InputError, match="single images"):
        run("memory", DataConfig(path=str(images)), other, tmp_path / "out")
