"""Supports chosen by likeness when predicting, and which image to annotate next."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import samsans
from proxy_training import train_beside, two_objects
from samsans import cli, io
from samsans.data.phantoms import write
from samsans.errors import InputError
from samsans.inference.manifest import Manifest
from samsans.inference.suggest import rank, suggest
from samsans.methods.proxy_prompt.pairs import choose_pairs, closeness


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_objects(tmp_path_factory.mktemp("two"), 8)


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    return train_beside(data, "--model.k_test", 2, test=0.25)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Images without masks: two that were learned from, four others."""
    folder = tmp_path_factory.mktemp("fresh")
    made = write("two_objects", folder / "made", n=4, size=64, seed=5)
    out = folder / "images"
    out.mkdir()
    for i, path in enumerate(sorted((made / "images").iterdir())):
        shutil.copy(path, out / f"new{i}.png")
    return out


def test_predict_with_the_most_similar_supports(data: Path, trained: Path, tmp_path: Path) -> None:
    argv = ("predict", trained, "-i", data, "-o", tmp_path / "out", "--choose", "similar", "--device", "cpu")
    assert cli.main([str(a) for a in argv]) == 0
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.about["options"]["choose"] == "similar"
    segmenter = samsans.load(trained, device="cpu")
    found = segmenter.supports(None, None)
    dataset = segmenter.dataset(data)
    for case in dataset.cases:
        volume = dataset.read_image(case)
        levels = segmenter.preprocess.levels(volume.array)
        image = segmenter.preprocess.normalize(segmenter.preprocess.image(volume.array[0], levels)[None])
        with torch.no_grad():
            close = closeness(segmenter.method.backbone.encode(image).features, found.bank)[0]
        chosen = choose_pairs(close, 2, found.drawable(case.id))
        shown = manifest.records[case.id].supports
        assert shown == tuple(found.bank.ids[i] for i in chosen)
        assert case.id not in shown  # a training image is never its own support
        alone = segmenter.predict(volume, found.bank.select(chosen)).labels
        assert np.array_equal(io.read_labels(tmp_path / "out" / manifest.records[case.id].output).array, alone)
    one = segmenter.predict(dataset.read_image(dataset.cases[0]), choose="similar").labels
    first = manifest.records[dataset.cases[0].id].output
    assert np.array_equal(io.read_labels(tmp_path / "out" / first).array, one)


def test_choices_that_cannot_be_made(trained: Path, data: Path) -> None:
    segmenter = samsans.load(trained, device="cpu")
    image = next((data / "images").glob("*.png"))
    with pytest.raises(InputError, match="random or similar"):
        segmenter.predict(image, choose="best")  # type: ignore[arg-type]


def test_the_most_similar_support_is_the_image_itself(trained: Path, data: Path) -> None:
    segmenter = samsans.load(trained, device="cpu")
    bank = segmenter.supports(None, None).bank
    side = int(bank.keys.shape[1] ** 0.5)
    features = bank.keys[3].T.reshape(1, -1, side, side)
    close = closeness(features, bank)[0]
    assert choose_pairs(close, 1, range(bank.K)) == (3,)
    torch.testing.assert_close(close[3], torch.zeros_like(close[3]), atol=1e-4, rtol=0)
    assert (close[[0, 1, 2, 4, 5]] <= 1e-4).all()


def test_suggestions(trained: Path, fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segmenter = samsans.load(trained, device="cpu")
    for by in ("coverage", "farthest"):
        found = suggest(segmenter, fresh, 3, by=by)  # type: ignore[arg-type]
        assert len({one.id for one in found}) == 3
        assert all(one.distance > 0 and one.file.is_file() for one in found)
    distances = [one.distance for one in found]
    assert distances == sorted(distances, reverse=True)  # farthest first
    assert len(suggest(segmenter, fresh, 99)) == 4
    assert cli.main(["suggest", str(trained), "-i", str(fresh), "-n", "2", "--by", "farthest", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in told] == [one.id for one in found[:2]]
    assert cli.main(["suggest", str(trained), "-i", str(fresh), "-n", "2"]) == 0
    assert "nearest" in capsys.readouterr().out


def test_suggestions_without_the_training_images(trained: Path, data: Path, fresh: Path, tmp_path: Path) -> None:
    segmenter = samsans.load(trained, device="cpu")
    there = suggest(segmenter, fresh, 2)
    segmenter.supports(None, None)  # kept in the run folder
    gone = samsans.load(trained, device="cpu")
    gone.config.data.path = str(tmp_path / "gone")
    again = suggest(gone, fresh, 2)
    assert [one.id for one in again] == [one.id for one in there]
    with pytest.raises(InputError, match="no unlabelled image"):
        suggest(segmenter, data, 2)
    with pytest.raises(InputError, match="0 suggestions"):
        suggest(segmenter, fresh, 0)


def test_rules_of_suggesting() -> None:
    crowd = torch.tensor([[4.0, 0], [4, 1], [5, 0], [5, 1]])
    points = torch.cat([crowd, torch.tensor([[-9.0, 0]])])  # four that are alike, and one far off
    known = torch.zeros(1, 2)
    assert rank(points, known, 1, "farthest") == [(4, 9.0, 0)]
    assert rank(points, known, 1, "coverage")[0][0] in range(4)
    order = rank(points, known, 5, "coverage")
    assert sorted(i for i, _, _ in order) == list(range(5))
    assert order[1][0] == 4
    assert all(near >= 1 for _, _, near in order[2:])  # near one of those taken before, not the annotated one
